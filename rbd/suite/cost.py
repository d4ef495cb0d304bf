"""What a run costs: seconds on one core, by a formula, corrected by the records that are there. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

from rbd.suite import record
from rbd.suite.config import RunConfig, find_size
from rbd.suite.record import Record

IMAGES = {"mnist": 50_000, "fmnist": 50_000, "cifar10": 40_000, "mnist-embedded": 5_000, "fmnist-embedded": 5_000}
BATCH = {  # s a batch of 32: grey, colour
    "fc": (6e-4, 2e-3), "cnn": (1e-2, 2e-2), "resnet8": (5e-2, 7e-2), "resnet32": (0.25, 0.35), "fc200": (1e-3, 3e-3),
    "lenet": (3e-3, 5e-3),
}  # fmt: skip
ENTRY = {"countsketch": 0.0, "rademacher": 4e-11, "uniform": 3e-10, "normal": 4e-10, None: 0.0}  # s


def estimate(config: RunConfig) -> float:
    """Seconds that a run takes on one core, roughly; where another method takes over, of both parts."""
    return sum(map(_cost, split(config)))


def split(config: RunConfig) -> tuple[RunConfig, ...]:
    """A run as runs of one method each."""
    if config.switch is None:
        return (config,)
    ends = config.switch, config.epochs - config.switch
    return tuple(replace(config.at(start), epochs=length) for start, length in zip((0, config.switch), ends))


def _cost(config: RunConfig) -> float:
    """Passes × a pass + entries of Φ generated × an entry."""
    colour, kind = config.data == "cifar10", str(config.partition).partition(":")
    size, number = find_size(config.model, config.data), float(kind[2] or 1)
    batches = config.epochs * (IMAGES[config.data] // config.batch_size)
    passes = batches * (config.dim or 1) if config.method == "rbd-nes" else batches
    rows = 0.0 if config.method == "sgd" else 1.0 if "nes" in config.method else config.dim or size / number
    width = size / number if kind[0] in ("even", "by_ratio") else size  # a row spans one compartment
    part = 0.4 if "nes" in config.method else 1.0  # of a pass, when only forward
    pixels = passes * part * config.batch_size / 32 * BATCH[config.model][colour]
    return pixels + 2 * passes * rows * width * ENTRY[config.distribution]  # project and expand; nes: disturb and move


def calibrate(records: Iterable[Record]) -> Callable[[RunConfig], float]:
    """`estimate` × the median of seconds / estimate over the records of the same network, method, distribution and workers.

    Over all records where there are none of these. Those made on a GPU, and of runs that switch the method, do not count.
    """
    ratios: dict[tuple, list[float]] = {}
    for r in records:
        on_cpu = r.environment.get("device") == r.environment.get("cpu")
        if r.outcome == "finished" and r.seconds and on_cpu and r.config.switch is None:
            for group in (_group(r.config), ()):
                ratios.setdefault(group, []).append(r.seconds[-1] / estimate(r.config))
    typical = {group: median(values) for group, values in ratios.items()}
    return lambda config: sum(_cost(part) * typical.get(_group(part), typical.get((), 1.0)) for part in split(config))


def _group(config: RunConfig) -> tuple:
    return config.model, config.method, config.distribution, config.workers, config.variant


def load_readable(results: str | os.PathLike[str]) -> Iterator[Record]:
    """All records under <results>/runs but the damaged ones, which the experiments that need them report."""
    for path in sorted(Path(results).glob("runs/*/[!.]*.json")):
        with suppress(ValueError):
            yield record.load(path)


def count_cores() -> int:
    """CPU cores that this process may use: those of its affinity, and no more than the CPU quota of its container."""
    from loky import cpu_count  # 80 ms

    return cpu_count()


def format_duration(seconds: float) -> str:
    """About how long, for a person: "40 s", "12 min", "3.5 h", "2.1 days"."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"
