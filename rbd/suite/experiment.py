"""Sweep: named sets of runs. Only what the results directory does not hold yet is run, and by one process at a time."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import ModuleType

from filelock import FileLock, Timeout

from rbd.suite import rates, record, store
from rbd.suite.config import RunConfig
from rbd.suite.record import Record

PROFILES = ("quick", "paper")
SEEDS = (0, 1, 2)  # n = 3, as in the paper
QUICK_EPOCHS = {"fc": 20, "cnn": 10}
QUICK_SEEDS = {"fc": SEEDS, "cnn": SEEDS[:2]}  # what fits into ten minutes on two cores
LAW = "rademacher"  # signs: a tenth of the cost of normals on a CPU, and no worse (the distributions sweep)
SCRIPTS = Path("benchmarks") / "sweeps"
ALL = "all"  # the name that stands for every script, in this order, then the others
ORDER = ("learning_rate", "table1", "curves", "dimension", "compartments", "networks", "distributions", "redraw",
         "augmentation", "correlation", "orthogonality", "workers", "hybrid", "landscape")  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """Runs that answer one question; their records stand in <results>/runs/<name>/, or in the folder of another sweep.

    Attributes:
        name: experiment and profile, such as "table1-quick".
        configs: the runs.
        question: what they answer.
        waiting: runs that have no learning rate yet, with a default one; so their ids are not known.
        untuned: the keys (see rbd.suite.rates) that lack a learning rate.
    """

    name: str
    configs: tuple[RunConfig, ...]
    question: str = ""
    waiting: tuple[RunConfig, ...] = ()
    untuned: tuple[str, ...] = ()

    def directory(self, results: str | os.PathLike[str]) -> Path:
        """Where new records go."""
        return Path(results) / "runs" / self.name

    def records(self, results: str | os.PathLike[str]) -> list[Record]:
        """The records that are there, finished or diverged, in the order of the configurations.

        Raises:
            ValueError: records are damaged (the files are named).
        """
        records, damaged = self.look(results)
        if damaged:
            raise ValueError("\n".join(damaged))
        return records

    def look(self, results: str | os.PathLike[str]) -> tuple[list[Record], list[str]]:
        """The records that `records` gives, and what is wrong with each of those that are damaged."""
        records, damaged = [], []
        for config in self.configs:
            try:
                found = find(config, self.directory(results), results)
            except ValueError as error:
                damaged.append(str(error))
                continue
            if found and found.outcome != "interrupted":
                records.append(found)
        return records, damaged

    def missing(self, records: Iterable[Record]) -> tuple[RunConfig, ...]:
        """The runs that the records lack."""
        there = {r.config.id for r in records}
        return tuple(c for c in self.configs if c.id not in there)

    def with_seeds(self, seeds: Iterable[int]) -> Sweep:
        """The same runs with these seeds, every one with each of them."""
        return replace(self, configs=tuple(dict.fromkeys(replace(c, seed=seed) for c in self.configs for seed in seeds)))

    def manifest(self) -> str:
        """The runs as JSON, one a line: what whoever reads the results should find there."""
        about = {"name": self.name, "question": self.question, "untuned": self.untuned}
        lines = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in about.items()]
        waiting = ",\n".join(c.canonical() for c in self.waiting)
        runs = ",\n".join(f'{{"id": "{c.id}", "config": {c.canonical()}}}' for c in self.configs)
        return "{" + ",\n".join([*lines, f'"waiting": [\n{waiting}\n]', f'"runs": [\n{runs}\n]']) + "}\n"


def manifest_path(name: str, results: str | os.PathLike[str]) -> Path:
    """Where the list of a sweep's runs is."""
    return Path(results) / "sweeps" / f"{name}.json"


def grid(**axes) -> Iterator[dict]:
    """All combinations of the values of the axes, the last axis fastest."""
    return (dict(zip(axes, values)) for values in product(*axes.values()))


def table1(profile: str, results: str | os.PathLike[str] = "results") -> Sweep:
    """NES, FPD, RBD and SGD with the FC net and the CNN (arXiv 2011.04720, table 1), at learning rates found by a sweep.

    quick: the embedded images, few epochs. paper: full data sets, 100 epochs. Both with signs for entries.

    Raises:
        ValueError: an unknown profile, or no learning rate is known for any of the runs.
    """
    tuned = rates.load(_checked(profile), results)
    made = _planned(f"table1-{profile}", str(table1_configs.__doc__), table1_configs(profile, tuned), tuned)
    if not made.configs:
        raise ValueError(f"{made.name}: {untuned(made.untuned, profile)}")
    return made


def table1_configs(profile: str, tuned: Callable[..., RunConfig | None]) -> Iterator[RunConfig | None]:
    """How accurate are NES, FPD, RBD and SGD on each pair of network and data (table 1)?"""
    names = ("mnist-embedded", "fmnist-embedded") if profile == "quick" else ("mnist", "fmnist", "cifar10")
    for model, data, method, seed in product(("fc", "cnn"), names, ("nes", "fpd", "rbd", "sgd"), SEEDS):
        if profile == "paper" or seed in QUICK_SEEDS[model]:
            law = {} if method == "sgd" else {"distribution": LAW}
            epochs = QUICK_EPOCHS[model] if profile == "quick" else 100
            yield tuned(model=model, data=data, method=method, **law, epochs=epochs, seed=seed)


def _checked(profile: str) -> str:
    if profile not in PROFILES:
        raise ValueError(f"profile: got {profile!r}, allowed {', '.join(PROFILES)}")
    return profile


def untuned(keys: Iterable[str], profile: str) -> str:
    """What is to be done about keys without a learning rate."""
    lacking = ", ".join(map(repr, dict.fromkeys(keys)))
    return f"no learning rate yet for {lacking}: run `rbd sweep learning_rate --profile {profile}`"


# ---------------------------------------------------------------- scripts


def experiments(folder: str | os.PathLike[str] = SCRIPTS) -> list[str]:
    """The names of the scripts in the folder.

    Raises:
        ValueError: there is none.
    """
    names = sorted(path.stem for path in Path(folder).glob("*.py"))
    if not names:
        raise ValueError(f"sweeps-dir: got {folder}, allowed a folder of sweep scripts, as benchmarks/sweeps in a clone")
    return names


def ordered(folder: str | os.PathLike[str] = SCRIPTS) -> list[str]:
    """The experiments, those of ORDER first: rates before all that trains at them. Raises as `experiments` does."""
    return sorted(experiments(folder), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def script(name: str, folder: str | os.PathLike[str] = SCRIPTS) -> ModuleType:
    """The script of an experiment, run: its docstring is the question.

    The work is configs(profile, tuned) or measure(profile, data_dir).
    `tuned` makes a RunConfig with the learning rate chosen for it, or None where there is none yet. conclude(profile,
    configs, records, results), if there, runs at the end of the sweep and returns warnings; cost(profile), if there, is
    about how many seconds measure takes; alone = True makes it one run at a time, because its seconds count.

    Raises:
        ValueError: there is no such script, or it lacks what it should have.
    """
    if name not in (names := experiments(folder)):
        raise ValueError(f"name: got {name!r}, allowed {', '.join(names)}")
    path = Path(folder) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"rbd_sweep_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not module.__doc__ or not (hasattr(module, "configs") or hasattr(module, "measure")):
        raise ValueError(f"{path}: got no docstring or neither of configs and measure, allowed a question and one of them")
    return module


def plan(name: str, profile: str, results: str | os.PathLike[str], folder: str | os.PathLike[str] = SCRIPTS) -> Sweep:
    """The sweep of an experiment in a profile. Raises ValueError as `script` does."""
    module, tuned = script(name, folder), rates.load(_checked(profile), results)
    return _planned(f"{name}-{profile}", str(module.__doc__).strip(), module.configs(profile, tuned), tuned)


def _planned(name: str, question: str, configs: Iterable[RunConfig | None], tuned: rates.Tuned) -> Sweep:
    """Each run once, also of those that wait, which `tuned` knows when the configurations have been made."""
    ready = tuple(dict.fromkeys(c for c in configs if c))
    return Sweep(name, ready, question, tuple(dict.fromkeys(tuned.waiting)), tuple(tuned.untuned))


# ---------------------------------------------------------------- one run


class Busy(RuntimeError):
    """Another process is at this run."""


def find(config: RunConfig, directory: str | os.PathLike[str], results: str | os.PathLike[str]) -> Record | None:
    """The record of a configuration in the directory; one that has ended there or under any <results>/runs/*/ comes first.

    Raises:
        ValueError: a record is damaged (the file is named).
    """
    return record.find(config, place(config, directory, results).parent)


def place(config: RunConfig, directory: str | os.PathLike[str], results: str | os.PathLike[str]) -> Path:
    """The file of the record that counts, there or not: see `find`."""
    own = Path(directory) / f"{config.id}.json"
    others = sorted(Path(results).glob(f"runs/*/{config.id}.json"))
    return next((path for path in (own, *others) if path.exists() and record.load(path).outcome != "interrupted"), own)


Train = Callable[..., Record]  # takes what rbd.suite.train.train takes


def run(config: RunConfig, directory: Path, results: str | os.PathLike[str], wait: float = -1, train: Train | None = None,
        **options) -> Record:  # fmt: skip
    """The record of a configuration: one that is there, or a new one saved in directory.

    It comes from train(config, checkpoints, **options), by default rbd.suite.train.train.

    Checkpoints stand in <results>/checkpoints/ until the run has ended; an interrupted run goes on from there. While it
    runs it is locked, on this machine or any that shares the file system; the lock ends with the process.

    Args:
        wait: seconds to wait for another process that is at the run; below 0 as long as it takes.

    Raises:
        Busy: another process is at it, still after these seconds.
        ValueError, OSError: what train, record.find and record.save raise; a directory that cannot be written is found
            out before the run.
    """
    checkpoint = Path(results) / "checkpoints" / f"{config.id}.safetensors"
    found = find(config, directory, results)
    if not found or found.outcome == "interrupted":
        for needed in (directory, checkpoint.parent, Path(results) / "locks"):
            store.check_writable(needed)
        with claim(config, results, wait):
            found = find(config, directory, results)  # another process may have ended it meanwhile
            if not found or found.outcome == "interrupted":
                found = (train or _here())(config, checkpoint.parent, **options)
                record.save(found, directory)
    if found.outcome != "interrupted":
        checkpoint.unlink(missing_ok=True)  # also one left by a crash after the record was saved
    return found


def _here() -> Train:
    from rbd.suite import train  # torch: not to be waited for by those who only read records

    return train.train


@contextmanager
def claim(config: RunConfig, results: str | os.PathLike[str], wait: float = -1) -> Iterator[None]:
    """Be the only process at a run. Raises Busy if another one is, still after `wait` seconds (below 0: never)."""
    lock = FileLock(Path(results) / "locks" / f"{config.id}.lock", timeout=wait)
    lock_file = Path(lock.lock_file)
    try:
        with lock:
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes no open file; who waits for this one looks whether it is gone
                    lock_file.unlink()
    except Timeout as error:
        raise Busy(f"{config.id}: another process is at this run") from error
