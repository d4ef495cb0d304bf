"""Many runs side by side: worker processes, failures, what a run costs, and how long it will all take."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter
from types import ModuleType
from typing import Protocol

from tqdm import tqdm

from rbd import record, sweep
from rbd.config import RunConfig
from rbd.record import Record


@dataclass(frozen=True)
class Failure:
    """A run that raised, or whose process died."""

    config: RunConfig
    message: str
    traceback: str = ""

    def path(self, results: str | os.PathLike[str]) -> Path:
        """Where it is noted until the run succeeds."""
        return Path(results) / "failures" / f"{self.config.id}.json"

    def save(self, results: str | os.PathLike[str]) -> None:
        """Write it."""
        content = {"config": json.loads(self.config.canonical()), "message": self.message, "traceback": self.traceback}
        record.write(self.path(results), json.dumps(content, indent=1, sort_keys=True) + "\n", "a failure")


Ended = Record | Failure | None  # None: another process is at it
PATIENCE = 5.0  # s that a worker waits for such a one; then others have their turn, and who wants to stop can


def attempt(
    config: RunConfig, directory: Path, results: Path, wait: float, options: dict, train: sweep.Train | None = None
) -> Ended:
    """What became of a run, for the process that asked for it: nothing is raised."""
    try:
        return sweep.run(config, directory, results, wait, train, **options)
    except sweep.Busy:
        return None
    except Exception as error:
        return Failure(config, f"{type(error).__name__}: {error}", traceback.format_exc())


class Workers(Protocol):
    """Whatever runs configurations somewhere else."""

    def submit(self, config: RunConfig, directory: Path, results: Path, wait: float, options: dict) -> Future:
        """The future result of `attempt` with these arguments."""

    def stop(self) -> None:
        """End now, whatever is under way."""


class Processes:
    """Worker processes, each with a run at a time; one that dies takes only its own run along."""

    def __init__(self) -> None:
        self.at_work: dict[Future, ProcessPoolExecutor] = {}
        self.idle: list[ProcessPoolExecutor] = []
        self.before = set(active_children())

    def submit(self, *task) -> Future:
        """attempt(*task) in an idle worker, or in a new one."""
        for future in [f for f in self.at_work if f.done()]:
            pool = self.at_work.pop(future)
            if not isinstance(future.exception(), BrokenProcessPool):
                self.idle.append(pool)
        spawn = get_context("spawn")  # fork mixes ill with threads
        pool = self.idle.pop() if self.idle else ProcessPoolExecutor(1, spawn, _obey)
        future = pool.submit(attempt, *task)
        self.at_work[future] = pool
        return future

    def stop(self) -> None:
        """End the workers, whatever they are at: checkpoints keep all but the epoch in flight."""
        if not all(future.done() for future in self.at_work):
            for process in set(active_children()) - self.before:
                process.kill()
        for pool in (*self.idle, *self.at_work.values()):
            pool.shutdown(cancel_futures=True)


def _obey() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when that is gone, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


def run_all(configs: Iterable[RunConfig], directory: Path, results: Path, jobs: int, workers: Workers, options: dict,
            tell: Callable[[RunConfig, Record | Failure], None]) -> list[Failure]:  # fmt: skip
    """Run what is to be run, `jobs` at a time; those that another process is at come last, when it may have ended them.

    Args:
        configs: the runs, in their order.
        workers: submit(config, directory, results, wait, options) gives a Future of what `attempt` returns.
        options: for train.
        tell: called with every run that ended.

    Returns:
        The failures, each also noted under <results>/failures/.
    """
    todo, busy, failures = deque(configs), set(), []
    running: dict[Future, RunConfig] = {}
    while todo or running:
        while todo and len(running) < jobs:
            config = todo.popleft()
            patience = PATIENCE if config in busy else 0.0
            running[workers.submit(config, directory, results, patience, options)] = config
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            config, ended = running.pop(future), _result(future)
            if ended is None:
                busy.add(config)
                todo.append(config)
                continue
            ended = Failure(config, ended) if isinstance(ended, str) else ended
            if isinstance(ended, Failure):
                ended.save(results)
                failures.append(ended)
            else:
                Failure(config, "").path(results).unlink(missing_ok=True)
            tell(config, ended)
    return failures


def _result(future: Future) -> Ended | str:
    error = future.exception()  # of the worker, not of the run
    return future.result() if error is None else f"{type(error).__name__}: the process died: {error}"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------- cost

IMAGES = {"mnist": 50_000, "fmnist": 50_000, "cifar10": 40_000, "mnist-embedded": 5_000, "fmnist-embedded": 5_000}
SIZE = {  # D on grey and on colour images
    "fc": (101_770, 394_634), "cnn": (93_322, 122_570), "resnet8": (78_042, 78_330), "resnet32": (466_906, 467_194),
}  # fmt: skip
BATCH = {"fc": (6e-4, 2e-3), "cnn": (1e-2, 2e-2), "resnet8": (5e-2, 7e-2), "resnet32": (0.25, 0.35)}  # s a batch of 32
ENTRY = {"countsketch": 0.0, "rademacher": 4e-11, "uniform": 3e-10, "normal": 4e-10, None: 0.0}  # s


def cost(config: RunConfig) -> float:
    """Seconds that a run takes on one core, roughly; where another method takes over, of both parts."""
    return sum(map(_cost, parts(config)))


def parts(config: RunConfig) -> tuple[RunConfig, ...]:
    """A run as runs of one method each."""
    if config.switch is None:
        return (config,)
    ends = config.switch, config.epochs - config.switch
    return tuple(replace(config.at(start), epochs=length) for start, length in zip((0, config.switch), ends))


def _cost(config: RunConfig) -> float:
    """Passes × a pass + entries of Φ generated × an entry."""
    colour, kind = config.data == "cifar10", str(config.partition).partition(":")
    size, number = SIZE[config.model][colour], float(kind[2] or 1)
    batches = config.epochs * (IMAGES[config.data] // config.batch_size)
    passes = batches * (config.dim or 1) if config.method == "rbd-nes" else batches
    rows = 0.0 if config.method == "sgd" else 1.0 if "nes" in config.method else config.dim or size / number
    width = size / number if kind[0] in ("even", "by_ratio") else size  # a row spans one compartment
    share = 0.4 if "nes" in config.method else 1.0  # of a pass, when only forward
    pixels = passes * share * config.batch_size / 32 * BATCH[config.model][colour]
    return pixels + 2 * passes * rows * width * ENTRY[config.distribution]  # project and expand; nes: disturb and move


def calibrated(records: Iterable[Record]) -> Callable[[RunConfig], float]:
    """`cost`, corrected by the seconds of records of the same network, method, law and workers (median), else of all.

    Records from a GPU say nothing of cores, nor those of two methods of either.
    """
    ratios: dict[tuple, list[float]] = {}
    for r in records:
        on_cpu = r.environment.get("device") == r.environment.get("cpu")
        if r.outcome == "finished" and r.seconds and on_cpu and r.config.switch is None:
            for group in (_group(r.config), ()):
                ratios.setdefault(group, []).append(r.seconds[-1] / cost(r.config))
    typical = {group: median(values) for group, values in ratios.items()}
    return lambda config: sum(_cost(part) * typical.get(_group(part), typical.get((), 1.0)) for part in parts(config))


def _group(config: RunConfig) -> tuple:
    return config.model, config.method, config.distribution, config.workers, config.variant


def readable(results: Path) -> Iterator[Record]:
    """All records under <results>/runs, to learn from; the sweep that asks for a damaged one tells of it."""
    for path in sorted(results.glob("runs/*/[!.]*.json")):
        with suppress(ValueError):
            yield record.load(path)


@dataclass
class Progress:
    """Tells of runs as they end, with the time left, in proportion to what they cost."""

    names: dict[str, int]  # id -> number in the sweep
    seconds: Callable[[RunConfig], float]  # what a run costs on a core
    jobs: int
    left: float  # s, cost of what is not done
    bar: tqdm
    done: float = 0.0  # s, cost of what is done
    began: float = 0.0

    def remaining(self, now: float) -> float:
        """Wall seconds left: as many for a second of cost as up to now; before the first run has ended, 1 / jobs."""
        pace = (now - self.began) / self.done if self.done else 1 / self.jobs
        return max(self.left, 0.0) * pace

    def tell(self, config: RunConfig, ended: Record | Failure) -> None:
        """A run has ended."""
        self.done, self.left = self.done + self.seconds(config), self.left - self.seconds(config)
        what = f"failed: {ended.message}" if isinstance(ended, Failure) else record.summary(ended)
        left = duration(self.remaining(perf_counter()))
        title = f"[{self.names[config.id]}/{len(self.names)}] {describe(config)}"
        self.bar.write(f"{title}: {what}; {left} left", file=sys.stdout)
        self.bar.set_postfix_str(f"{left} left", refresh=False)
        self.bar.update()


def describe(config: RunConfig) -> str:
    """A run in a few words: "fc mnist rbd dim=250 lr=1 seed=0"; fields at their defaults are left out."""
    usual = RunConfig(model=config.model, data=config.data, method=config.method)
    given = json.loads(config.canonical())
    parts = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in sorted(given.items())
             if name not in ("model", "data", "method", "seed") and value != getattr(usual, name)]  # fmt: skip
    return " ".join([config.model, config.data, config.method, *parts, f"seed={config.seed}"])


def duration(seconds: float) -> str:
    """About how long, for a person: "40 s", "12 min", "3.5 h", "2.1 days"."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def perform(made: sweep.Sweep, results: Path, jobs: int, workers: Workers, options: dict) -> list[Failure]:
    """Run what a sweep lacks, with a line on stdout for each run that ends and a bar on stderr if that is a terminal."""
    missing = made.missing(made.look(results)[0])  # damaged ones too: to run them tells what is wrong, and trains nothing
    seconds = calibrated(readable(results)) if missing else cost
    names = {c.id: number for number, c in enumerate(made.configs, 1)}
    with tqdm(total=len(names), initial=len(names) - len(missing), unit="run", disable=None,
              bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}", desc=made.name) as bar:  # fmt: skip
        progress = Progress(names, seconds, jobs, sum(map(seconds, missing)), bar, began=perf_counter())
        try:
            return run_all(missing, made.directory(results), results, jobs, workers, options, progress.tell)
        finally:
            workers.stop()


def state(name: str, profile: str, results: Path, folder: Path, seconds: Callable[[RunConfig], float] = cost) -> str:
    """How many runs an experiment has in a profile, how many are done, what the others cost, and what is wrong with them.

    Args:
        seconds: what a run costs on a core.
    """
    module = sweep.script(name, folder)
    if hasattr(module, "measure"):
        about = f", about {duration(module.cost(profile))}" if hasattr(module, "cost") else ""
        return "done" if measurement_path(f"{name}-{profile}", results).exists() else "1 measurement missing" + about
    made = sweep.plan(name, profile, results, folder)
    records, damaged = made.look(results)
    missing = (*made.missing(records), *made.waiting)
    text = f"{len(made.configs) + len(made.waiting)} runs, {len(records)} done, {len(missing)} missing"
    about = f", about {duration(sum(map(seconds, missing)) / cores())} on {cores()} cores" if missing else ""
    keys = f"; {len(made.waiting)} of them wait for {len(made.untuned)} learning rates" if made.waiting else ""
    failed = sum(Failure(c, "").path(results).exists() for c in missing)
    return "; ".join([text + about + keys, *([f"{failed} of them failed the last time"] if failed else []), *damaged])


def measurement_path(name: str, results: Path) -> Path:
    """Where what a measurement found is."""
    return results / "measurements" / f"{name}.json"


def measured(module: ModuleType, name: str, profile: str, results: Path,
             data_dir: str | os.PathLike[str] | None = None, dry: bool = False) -> str:  # fmt: skip
    """Measure, unless the file is there or the run is dry; write values, question and environment; say what was done."""
    path = measurement_path(name, results)
    if path.exists():
        return f"{path}: is there; remove it to measure again"
    if dry:
        return f"{path}: to be measured"
    began, values = perf_counter(), module.measure(profile, data_dir)
    content = {"name": name, "question": str(module.__doc__).strip(), "values": values, "environment": record.environment()}
    record.write(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", "a measurement")
    return f"{path}: measured in {duration(perf_counter() - began)}"
