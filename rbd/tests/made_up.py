"""Made-up results directories for tests of analysis/: every experiment small, saved as the suite itself saves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from rbd.suite import record, store
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Plan
from rbd.suite.record import Point, Record

SEEDS = (0, 1, 2)
SIGNS, SPARSE = {"distribution": "rademacher"}, {"distribution": "countsketch"}
LEVELS = {"nes": 20.0, "rbd-nes": 25.0, "fpd": 60.0, "rbd": 80.0, "sgd": 92.0, "subspace-adam": 75.0}
SLOPING = ("rbd", "fpd", "subspace-adam")  # more accurate at larger d
COSINE = {"fc": 101_770, "cnn": 93_322}
VARIANTS = ("common", "bases", "directions", "shares", "ddp")
WHERE = {"stream_version": 1, "commit": "0123456789abcdef", "dirty": False}


def configs(name: str, profile: str) -> Iterator[dict[str, Any]]:
    """The runs of an experiment, as a sweep script would have them."""
    mnist, fmnist, cifar = (
        ("mnist", "fmnist", "cifar10") if profile == "paper" else ("mnist-embedded", "fmnist-embedded", "cifar10")
    )
    if name == "table1":
        for model, data, method, seed in product(("fc", "cnn"), (mnist, fmnist), ("nes", "fpd", "rbd", "sgd"), SEEDS):
            extra = {} if method == "sgd" else SIGNS
            yield dict(model=model, data=data, method=method, seed=seed, epochs=3, lr=2.0, **extra)
    elif name == "curves":
        extra = {"sgd": {}}
        yield from (dict(model="resnet8", data=cifar, method=m, seed=s, epochs=6, **extra.get(m, dict(dim=500, **SIGNS)))
                    for m, s in product(("nes", "fpd", "rbd", "sgd"), SEEDS))  # fmt: skip
    elif name in ("dimension", "correlation"):
        for d, method, seed in product((2, 10, 100, 1000, 10_000), ("fpd", "rbd"), SEEDS):
            yield dict(model="fc", data=mnist, method=method, dim=d, seed=seed, epochs=3, **SIGNS)
        yield from (dict(model="fc", data=mnist, method="sgd", seed=s, epochs=3) for s in SEEDS)
        for d, method, seed in product((10, 1000, 101_770) if name == "dimension" else (), ("fpd", "rbd"), SEEDS):
            yield dict(model="fc", data=mnist, method=method, dim=d, seed=seed, epochs=3, **SPARSE)
    elif name == "compartments":
        for partition, data, seed in product(("whole", "even:2", "even:8", "even:32", "by_layer"), (mnist, fmnist), SEEDS):
            yield dict(model="fc", data=data, method="rbd", partition=partition, seed=seed, epochs=3, **SIGNS)
            if data == mnist:
                yield dict(model="fc", data=data, method="rbd", partition=partition, seed=seed, epochs=3, **SPARSE)
    elif name == "networks":
        for model, ratio, seed in product(("resnet8", "resnet32"), (10, 60, 300), SEEDS):
            yield dict(model=model, data=cifar, method="rbd", partition=f"by_ratio:{ratio}", seed=seed, epochs=3, **SIGNS)
            if ratio == 10:
                yield dict(model=model, data=cifar, method="sgd", seed=seed, epochs=3)
                yield dict(model=model, data=cifar, method="rbd", seed=seed, epochs=3, **SIGNS)
    elif name == "distributions":
        distributions = ("normal", "uniform", "rademacher")
        for entries, data, method, seed in product(distributions, (mnist, fmnist), ("rbd", "fpd"), SEEDS):
            yield dict(model="fc", data=data, method=method, distribution=entries, seed=seed, epochs=3)
    elif name == "redraw":
        for every, data, seed in product((1, 10, 100, 1000), (mnist, fmnist), SEEDS):
            yield dict(model="fc", data=data, method="rbd", redraw=every, seed=seed, epochs=3, **SIGNS)
            if every == 1:
                yield dict(model="fc", data=data, method="fpd", seed=seed, epochs=3, **SIGNS)
                yield dict(model="fc", data=data, method="sgd", seed=seed, epochs=3)
            if every < 100 and data == mnist:
                yield dict(model="fc", data=data, method="rbd", redraw=every, seed=seed, epochs=3, **SPARSE)
        yield from (dict(model="fc", data=mnist, method="fpd", seed=seed, epochs=3, **SPARSE) for seed in SEEDS)
    elif name == "hybrid":
        for (method, switch), data, seed in product(
            (("rbd", None), ("sgd", None), ("rbd", 3), ("sgd", 3)), (mnist, fmnist), SEEDS
        ):
            extra = {"switch": switch, "then_lr": 0.1} if switch else {}
            extra |= SIGNS if method == "rbd" or switch else {}
            yield dict(model="fc", data=data, method=method, seed=seed, epochs=6, **extra)
    elif name == "augmentation":
        for method, part, data, seed in product(("sgd", "rbd", "fpd"), (None, "crop", "none"), (mnist, fmnist), SEEDS):
            extra = {} if method == "sgd" else SIGNS
            yield dict(model="fc", data=data, method=method, augment=part, seed=seed, epochs=3, **extra)
    elif name == "nes":
        for (method, epochs), seed in product((("rbd", 4), ("nes", 4), ("rbd-nes", 1), ("rbd-nes", 4)), SEEDS):
            yield dict(model="fc", data=mnist, method=method, dim=4, epochs=epochs, seed=seed, **SIGNS)
        yield from (dict(model="fc", data=mnist, method="nes", dim=4, epochs=4, sigma=0.01, seed=s, **SIGNS) for s in SEEDS)
    elif name == "workers":
        for count, variant, seed in product((1, 2, 4, 8) if profile == "paper" else (1, 2, 3, 4), VARIANTS, SEEDS):
            extra = {"method": "sgd"} if variant == "ddp" else {"method": "rbd", **SIGNS}
            yield dict(model="fc", data=mnist, workers=count, variant=variant, seed=seed, epochs=3, **extra)
        for count, variant, seed in product((1, 8 if profile == "paper" else 4), ("directions", "shares"), SEEDS):
            extra = {"method": "rbd", "dim": 10_000, **SPARSE}
            yield dict(model="fc", data=mnist, workers=count, variant=variant, seed=seed, epochs=3, **extra)
    elif name == "paper_rates":
        for method, seed in product(("fpd", "rbd", "sgd"), SEEDS):
            yield dict(model="fc", data=mnist, method=method, seed=seed, epochs=3, **({} if method == "sgd" else SIGNS))
    elif name == "normals":
        yield from (
            dict(model="fc", data=mnist, method=m, epochs=3, lr=2.0, distribution="normal") for m in ("nes", "fpd", "rbd")
        )
    elif name == "countsketch":
        cells = (("fc", mnist, 250), ("fc", fmnist, 250), ("fc", mnist, 2500), ("fc", fmnist, 2500), ("cnn", mnist, 250),
                 ("resnet8", fmnist, 500))  # fmt: skip
        for (model, data, d), method, entries, seed in product(cells, ("rbd", "fpd"), ("rademacher", "countsketch"), SEEDS):
            yield dict(model=model, data=data, method=method, dim=d, distribution=entries, seed=seed, epochs=3)
    elif name == "price":
        for model, seed in product(("fc", "cnn"), SEEDS):
            yield dict(model=model, data=mnist, method="sgd", lr=0.25, seed=seed, epochs=3)
            for d, entries in product((10, 250, 2500), ("rademacher", "countsketch")):
                yield dict(model=model, data=mnist, method="rbd", dim=d, distribution=entries, lr=2.0, seed=seed, epochs=3)
    elif name == "effective_rate":
        for rate, seed in product((2.0**-8, 2.0**-4), SEEDS):
            yield dict(model="fc", data=mnist, method="sgd", lr=rate, seed=seed, epochs=3)
            for d, entries in product((50, 250), ("rademacher", "countsketch")):
                lr = rate * COSINE["fc"] / d
                yield dict(model="fc", data=mnist, method="rbd", dim=d, distribution=entries, lr=lr, seed=seed, epochs=3)
    elif name == "intrinsic_dimension":
        for model, entries, seed in product(("fc200", "lenet"), ("countsketch", "rademacher", "normal"), SEEDS):
            sizes = {"fc200": 199_210, "lenet": 44_426}
            for d in (10, 100, 300, 1000, *([sizes[model]] if entries == "countsketch" else [])):
                extra = dict(method="subspace-adam", dim=d, distribution=entries, augment="none", lr=1.0)
                yield dict(model=model, data=mnist, seed=seed, epochs=3, **extra)
    elif name == "learning_rate":
        for model, method, power, seed in product(("fc", "cnn"), ("rbd", "fpd", "sgd"), range(-6, 5), (100, 101)):
            extra = {} if method == "sgd" else SIGNS
            yield dict(model=model, data=mnist, method=method, lr=2.0**power, seed=seed, epochs=2, **extra)
        for (d, partition), power in product(((10, "whole"), (1000, "whole"), (250, "even:4")), range(-6, 5)):
            yield dict(
                model="fc", data=mnist, method="rbd", dim=d, partition=partition, lr=2.0**power, seed=100, epochs=2, **SIGNS
            )


RUNS = ("table1", "curves", "dimension", "correlation", "compartments", "networks", "distributions", "redraw", "hybrid")
RUNS += ("augmentation", "nes", "workers", "learning_rate", "countsketch", "price", "effective_rate",
         "intrinsic_dimension")
RUNS += ("paper_rates", "normals")


def made_up(config: dict[str, Any]) -> Record:
    """A record with a plausible curve, the same every time."""
    rng = np.random.default_rng(int(RunConfig(**config).id, 16) % 2**32)
    d, rate = config.get("dim") or 250, math.log2(config.get("lr", 1.0))
    top = LEVELS[config["method"]] + (5 * math.log10(d / 250) if config["method"] in SLOPING else 0) - 0.6 * rate**2
    top -= 4 * math.log10(config.get("redraw") or 1)
    cosine = (
        math.sqrt(d / COSINE.get(config["model"], 78_330)) * rng.normal(1, 0.01) if "nes" not in config["method"] else None
    )
    epochs = range(1, config["epochs"] + 1)
    share = {e: (1 - 0.5**e) / (1 - 0.5 ** config["epochs"]) for e in epochs}  # of the final accuracy
    share |= {len(share) - 1: 1.04} if len(share) > 2 else {}  # the last epoch is not the best one
    points = tuple(
        Point(e, 100 * e, 3200 * e, 100 * e, 2.0 / e, float(np.clip(top * share[e] + rng.normal(0, 0.8), 1, 99)), cosine)
        for e in epochs
    )
    seconds, where = tuple(float(e) for e in epochs), WHERE
    if workers := config.get("workers"):  # 2 ms a step and worker, the first epoch compiles for 9 seconds
        seconds = tuple(9 + 0.2 * workers * e for e in epochs)
        sent = (100_000 if config["variant"] == "ddp" else 1000) * (workers - 1)
        where = WHERE | {"cpu": "a processor", "cpu_count": 2, "bytes_per_step": sent}
    return Record(RunConfig(**config), "finished", points, seconds, where)


def save(config: dict[str, Any], folder: Path) -> Path:
    """Save a made-up record."""
    return record.save(made_up(config), folder)


def manifest(results: Path, name: str, profile: str, wanted: Iterable[dict[str, Any]]) -> None:
    """results/sweeps/<name>-<profile>.json, as the suite writes it."""
    made = Plan(f"{name}-{profile}", tuple(RunConfig(**config) for config in wanted), "?")
    store.write(store.manifest_path(made.name, results), made.manifest())


def experiment(results: Path, name: str, profile: str = "quick") -> list[Path]:
    """The runs of one experiment and their list."""
    wanted = list(configs(name, profile))
    manifest(results, name, profile, wanted)
    return [save(config, results / "runs" / f"{name}-{profile}") for config in wanted]


def measurements(results: Path, profile: str = "quick") -> None:
    """Orthogonality, landscape, as_released and compression, without training."""
    rng = np.random.default_rng(0)
    rows = [{"distribution": name, "size": D, "n": 10_000, "std": 0.6 / math.sqrt(D), "expected": math.sqrt(2 / math.pi / D),
             "blocks": list(math.sqrt(2 / math.pi / D) * rng.normal(1, 0.048, 40))}
            for name, D in product(("normal", "rademacher"), (100, 1000, 10_000, 100_000))]  # fmt: skip
    rows = [row | {"mean": sum(row["blocks"]) / 40} for row in rows]
    distances = np.linspace(-5, 5, 11)
    around = {
        name: {
            "random": [list(low + (0.02 + 0.004 * rng.random()) * distances**2) for _ in range(5)],
            "descent": list(low + 0.1 * (distances - 1) ** 2),
        }
        for name, low in (("start", 2.3), ("trained", 0.3))
    }
    about = {"model": "fc", "data": "mnist-embedded", "images": 2000, "epochs": 5, "n": 5, "distances": list(distances)}
    kept = [{"model": "fc", "data": "mnist-embedded", "lr": 1.0, "dim": 250, "seed": 0, "augment": augment, "kept": k,
             "accuracy": [30.0, 50.0, 60.0 - 2 * k]} for augment in (None, "none") for k in (True, False)]  # fmt: skip
    ways = (("ddp", 0, None, 9e5, 92.0), ("powersgd", 4, None, 3e4, 91.0), ("topk", 250, None, 7e3, 89.0),
            ("rbd", 250, "rademacher", 4e3, 78.0), ("rbd", 2500, "countsketch", 3e4, 84.0),
            ("kept", 2500, "countsketch", 2e4, 90.0))  # fmt: skip
    shared = [{"model": "fc", "data": "mnist-embedded", "workers": 4, "epochs": 10, "way": way, "amount": amount,
               "distribution": entries, "lr": 0.5, "tried": [[0.25, 80.0], [0.5, 81.0], [1.0, 79.0]],
               "accuracy": [best - 0.5, best, best + 0.5], "bytes": [sent, sent, sent + 30]}
              for way, amount, entries, sent, best in ways]  # fmt: skip
    measurement(results, f"compression-{profile}", shared)
    measurement(results, f"as_released-{profile}", kept)
    measurement(results, f"orthogonality-{profile}", rows)
    measurement(results, f"landscape-{profile}", around | about)


def measurement(results: Path, name: str, values: Any) -> Path:
    """results/measurements/<name>.json."""
    path = results / "measurements" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": name, "question": "?", "values": values, "environment": WHERE}), "utf-8")
    return path


def asv(results: Path) -> None:
    """Results of two commits on one machine, in the format of asv 0.6."""
    root = results / "asv"
    (root / "here").mkdir(parents=True, exist_ok=True)
    (root / "here" / "machine.json").write_text('{"machine": "here", "version": 1}', "utf-8")
    ways, dims, sizes = ("normal", "uniform", "rademacher", "stored fp32", "randn"), (10, 100, 1000), (10**5, 10**6, 10**7)
    grids = {
        "kernels.Product.track_project": (("device", "basis", "d", "D"), (("cpu",), ways, dims, sizes)),
        "kernels.Product.track_expand": (("device", "basis", "d", "D"), (("cpu",), ways, dims, sizes)),
        "ratios.Ratio.track_project": (("device", "basis", "rival"), (("cpu",), ways[:3], ("stored fp32", "randn"))),
        "ratios.Ratio.track_expand": (("device", "basis", "rival"), (("cpu",), ways[:3], ("stored fp32", "randn"))),
        "memory.Peak.track_step": (("device", "basis", "d"), (("cpu",), ways[:4], (10, 100, 1000))),
        "memory.track_import": ((), ()),
        "step.Step.track_time": (("device", "network", "method"), (("cpu",), ("fc", "cnn"), ("sgd", "rbd rademacher"))),
    }
    known = {name: {"version": "1", "unit": "MiB" if "memory" in name else "ms", "param_names": list(names)}
             for name, (names, _) in grids.items()}  # fmt: skip
    (root / "benchmarks.json").write_text(json.dumps(known | {"version": 2}), "utf-8")
    speed = {"normal": 1e9, "uniform": 4e9, "rademacher": 3e10, "stored fp32": 4e9, "randn": 1.5e8}

    def value(name: str, point: tuple) -> float | None:
        if name.startswith("kernels"):
            entries = point[2] * point[3]
            return None if point[1] == "stored fp32" and entries > 2e9 else 1000 * entries / speed[point[1]] + 0.02
        if name.startswith("ratios"):
            return speed[point[2]] / speed[point[1]]
        if name.startswith("step"):
            return 0.5 if point[2] == "sgd" else 2.0
        return 750.0 if not point else 970.0 + (4 * point[2] * 1e6 / 2**20 if "stored" in point[1] else 0)

    for number, commit in enumerate(("a" * 40, "b" * 40)):
        stored = {}
        for name, (_, values) in grids.items():
            points = list(product(*values))
            params = [[repr(v) for v in axis] for axis in values]
            stored[name] = [[v and v * (1 + number) for v in (value(name, p) for p in points)], params, "1"]
        content = {"commit_hash": commit, "date": 1000 + number, "params": {"machine": "here"}, "version": 2,
                   "result_columns": ["result", "params", "version"], "results": stored}  # fmt: skip
        (root / "here" / f"{commit[:8]}-env.json").write_text(json.dumps(content), "utf-8")


def everything(results: Path, profile: str = "quick") -> Path:
    """All experiments; returns the results directory."""
    for name in RUNS:
        experiment(results, name, profile)
    measurements(results, profile)
    asv(results)
    return results


def load_all(directory: Path) -> list[Record]:
    """All records (*.json) in a directory, sorted by id."""
    return [record.load(path) for path in sorted(directory.iterdir()) if path.suffix == ".json"]
