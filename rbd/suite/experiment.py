"""Experiments: a question, and the runs or the measurement that answer it. Records hold what has been done.

No torch: `rbd sweep --list` looks at every experiment.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from rbd.suite import cost, looks, rates, record, store
from rbd.suite.config import RunConfig
from rbd.suite.rates import Request
from rbd.suite.record import Record

PROFILES = ("quick", "paper")
SEEDS = (0, 1, 2)  # n = 3, as in the paper
PACKAGED = Path(__file__).parent / "experiments"
ORDER = ("learning_rate", "full_length", "table1", "curves", "dimension", "compartments", "networks", "distributions",
         "redraw", "augmentation", "correlation", "orthogonality", "workers", "hybrid", "landscape",
         "countsketch", "price", "intrinsic_dimension")  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """A question and what answers it: runs, or a measurement.

    Attributes:
        name: also the name of its script.
        question: in one sentence.
        runs: profile -> the runs, with a given learning rate or a request for the chosen one (rates.tuned).
        measure: (profile, directory of the full data sets) -> values for JSON; with parts, (part, profile, directory) -> the
            row of a part.
        parts: profile -> what is measured one after the other; each row is kept when it is there, so that a measurement
            goes on after an interruption. Parts are told apart by their repr.
        conclude: (profile, configs, records, results directory) -> warnings, or None; called when its runs have
            ended or stopped.
        cost: profile -> about how many seconds `measure` takes.
        alone: whether its runs are done one at a time, because their seconds are a result.

    Raises:
        ValueError: there is no question, not exactly one of runs and measure, or parts without measure.
    """

    name: str
    question: str
    runs: Callable[[str], Iterable[RunConfig | Request]] | None = None
    measure: Callable[..., Any] | None = None
    parts: Callable[[str], Iterable[Any]] | None = None
    conclude: Callable[[str, Iterable[RunConfig], Iterable[Record], str | os.PathLike[str]], list[str] | None] | None = None
    cost: Callable[[str], float] | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        if self.question is None:  # __doc__ under python -OO
            object.__setattr__(self, "question", _read_docstring(self.runs or self.measure))
        if not self.question:
            raise ValueError(f"experiment {self.name}: it needs a question")
        if (self.runs is None) == (self.measure is None):
            raise ValueError(f"experiment {self.name}: it needs either runs or measure")
        if self.parts and not self.measure:
            raise ValueError(f"experiment {self.name}: parts are of a measurement, and it has runs")

    def plan(self, profile: str, results: str | os.PathLike[str]) -> Plan:
        """Its runs in a profile, at the learning rates that have been chosen so far; none if it measures.

        Raises:
            ValueError: an unknown profile, the file of the learning rates is damaged (it is named), or runs raises or yields
                something else.
        """
        _check(profile)
        runs = self.runs
        wanted = self.call(lambda: list(runs(profile))) if runs else []
        for run in wanted:
            if not isinstance(run, (RunConfig, Request)):
                raise ValueError(f"experiment {self.name}: runs: got {run!r}, allowed RunConfig(...) and tuned(...)")
        found = rates.resolve(wanted, rates.load(profile, results))
        return Plan(f"{self.name}-{profile}", found.configs, self.question, found.waiting, found.untuned)

    def estimate(self, profile: str) -> float | None:
        """About how many seconds `measure` takes; None where the script does not say. Raises as `call` does."""
        seconds = self.call(self.cost, profile) if self.cost else None
        if seconds is not None and not isinstance(seconds, Real):
            raise ValueError(f"experiment {self.name}: cost: got {seconds!r}, allowed a number of seconds")
        return None if seconds is None else float(seconds)

    def call(self, function: Callable, *arguments) -> Any:
        """What a function of the script returns.

        Raises:
            ValueError, OSError: as it raises them; anything else becomes a ValueError that names the experiment.
        """
        try:
            return function(*arguments)
        except (ValueError, OSError):
            raise
        except Exception as error:
            raise ValueError(f"experiment {self.name}: {type(error).__name__}: {error}") from error


def _read_docstring(function: Callable | None) -> str | None:
    """The docstring of the script that defines a function; None where there is none."""
    with suppress(TypeError, OSError):
        return ast.get_docstring(ast.parse(Path(inspect.getfile(function)).read_bytes()), clean=False)  # type: ignore[arg-type]
    return None


def _check(profile: str) -> None:
    if profile not in PROFILES:
        raise ValueError(f"profile: got {profile!r}, allowed {', '.join(PROFILES)}")


# ---------------------------------------------------------------- scripts


def list_names(folder: str | os.PathLike[str] | None = None) -> list[str]:
    """The experiments of a folder of scripts, by default those of the package, in the order in which they are done.

    Those of ORDER come first: learning rates before whatever is trained at them.

    Raises:
        ValueError: there are none.
    """
    names = sorted(path.stem for path in Path(folder or PACKAGED).glob("[!_]*.py"))
    if not names:
        raise ValueError(f"sweeps-dir: there are no experiment scripts (*.py) in {folder or PACKAGED}")
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Experiment:
    """The EXPERIMENT of the script <folder>/<name>.py, which is executed.

    Raises:
        ValueError: there is no such script, it raises, it does not define an Experiment of that name, or the package has
            another of that name, whose list of runs would be overwritten.
    """
    path = Path(folder or PACKAGED) / f"{_find_name(name, folder)}.py"
    if path.parent.resolve() != PACKAGED.resolve() and (PACKAGED / path.name).exists():
        raise ValueError(f"{path}: rbd has an experiment {name!r} of its own: rename this one")
    try:
        found = vars(_execute(path)).get("EXPERIMENT")
    except (Exception, SystemExit) as error:  # whatever a script may raise
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Experiment) or found.name != name:
        raise ValueError(f"{path}: define EXPERIMENT = Experiment({name!r}, ...), see rbd.suite.experiment")
    return found


def _find_name(name: str, folder: str | os.PathLike[str] | None) -> str:
    """The name, if a script of the folder has it. Raises ValueError if not."""
    if name not in (names := list_names(folder)):
        raise ValueError(f"name: got {name!r}, allowed {', '.join(names)}")
    return name


def _execute(path: Path) -> ModuleType:
    """The script as a module, which stays in sys.modules unless it fails: dataclasses look theirs up there."""
    spec = importlib.util.spec_from_file_location(f"rbd_experiment_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def experiments(folder: str | os.PathLike[str] | None = None) -> list[Experiment]:
    """All experiments of a folder, by default those of the package, in order. Raises ValueError as `load` does."""
    return [load(name, folder) for name in list_names(folder)]


# ---------------------------------------------------------------- runs


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment in a profile. Their records are in <results>/runs/<name>/, or in the folder of another plan.

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
        """Folder of new records."""
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
        """The runs that the records lack, and whose learning rates are known."""
        there = {r.config.id for r in records}
        return tuple(c for c in self.configs if c.id not in there)

    def with_seeds(self, seeds: Iterable[int]) -> Plan:
        """The same runs with these seeds, every one with each of them."""
        return replace(self, configs=tuple(dict.fromkeys(replace(c, seed=seed) for c in self.configs for seed in seeds)))

    def manifest(self) -> str:
        """The runs as JSON, one a line, for readers of the results."""
        about = {"name": self.name, "question": self.question, "untuned": self.untuned}
        lines = [f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in about.items()]
        waiting = ",\n".join(c.canonical() for c in self.waiting)
        runs = ",\n".join(f'{{"id": "{c.id}", "config": {c.canonical()}}}' for c in self.configs)
        return "{" + ",\n".join([*lines, f'"waiting": [\n{waiting}\n]', f'"runs": [\n{runs}\n]']) + "}\n"


def find(config: RunConfig, directory: str | os.PathLike[str], results: str | os.PathLike[str]) -> Record | None:
    """The record of a run: one that has ended, in the directory or in any <results>/runs/*/; else the directory's own.

    Raises:
        ValueError: a record is damaged, or of other bases (the file is named).
    """
    own, *others = store.record_paths(config, directory, results)
    found = record.find(config, own.parent)
    if found and found.outcome != "interrupted":
        return _check_stream(found, own)
    for path in others:
        if (other := record.load(path)).outcome != "interrupted":
            return _check_stream(other, path)
    return found


def _check_stream(found: Record, path: Path) -> Record:
    """The record, of a run in the bases of today. Raises ValueError naming the file if they have changed since."""
    from rbd.philox import STREAM_VERSION  # here, as NumPy takes a while to load

    if (version := found.environment.get("stream_version", STREAM_VERSION)) != STREAM_VERSION:
        raise ValueError(f"{path}: made with bases of stream version {version}, now {STREAM_VERSION}: not comparable; "
                         "use another --results-dir")  # fmt: skip
    return found


def place(found: Record, directory: str | os.PathLike[str], results: str | os.PathLike[str]) -> Path:
    """The file of a record that `find` gave."""
    paths = store.record_paths(found.config, directory, results)
    return next(path for path in paths if path.exists() and record.load(path).outcome == found.outcome)


# ---------------------------------------------------------------- overview


def survey(results: str | os.PathLike[str], profiles: Iterable[str] = PROFILES,
           folder: str | os.PathLike[str] | None = None, names: Iterable[str] | None = None) -> Iterator[str]:  # fmt: skip
    """Lines for a person: each experiment, its question, and how far it is in the profiles; or why it cannot be loaded."""
    for found in survey_values(results, profiles, folder, names):
        yield f"{found['name']}: {found['error'] or found['question']}"
        for profile, values in found["profiles"].items():
            yield f"    {profile}: {summarise(values)}"


def survey_values(results: str | os.PathLike[str], profiles: Iterable[str] = PROFILES,
                  folder: str | os.PathLike[str] | None = None, names: Iterable[str] | None = None,
                  ) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The same for a script: name, question, error (None: there is none), and for every profile what `count` gives."""
    seconds, profiles = cost.calibrate(cost.load_readable(results)), tuple(profiles)
    for name in list_names(folder) if names is None else [_find_name(name, folder) for name in names]:
        question, error, counts = "", None, {}
        try:
            found = load(name, folder)
            question, counts = found.question, {profile: count(found, profile, results, seconds) for profile in profiles}
        except ValueError as problem:
            error = str(problem)
        yield {"name": name, "question": question, "error": error, "profiles": counts}


def count(experiment: Experiment, profile: str, results: str | os.PathLike[str],
          seconds: Callable[[RunConfig], float] = cost.estimate) -> dict[str, Any]:  # fmt: skip
    """How many runs an experiment has in a profile, done and missing, and how long the missing ones take here.

    Args:
        seconds: what a run costs on a core.

    Returns:
        measures, whether it is a measurement; runs, done, missing; of those missing: waiting, runs for learning_rates
        that are not chosen yet, and failed, the last time; damaged, lines about records; seconds, of wall time on cores.
    """
    if experiment.measure:
        done = store.measurement_path(f"{experiment.name}-{profile}", results).exists()
        wall = None if done else experiment.estimate(profile)
        return {"measures": True, "runs": 1, "done": int(done), "missing": int(not done), "seconds": wall}
    plan, cores = experiment.plan(profile, results), cost.count_cores()
    records, damaged = plan.look(results)
    missing = (*plan.missing(records), *plan.waiting)
    return {
        "measures": False, "runs": len(plan.configs) + len(plan.waiting), "done": len(records), "missing": len(missing),
        "waiting": len(plan.waiting), "learning_rates": len(plan.untuned),
        "failed": sum(store.failure_path(config, results).exists() for config in missing), "damaged": damaged,
        "seconds": sum(map(seconds, missing)) / cores, "cores": cores,
    }  # fmt: skip


def summarise(counts: dict[str, Any]) -> str:
    """What `count` gave, in words."""
    wall = "" if counts["seconds"] is None else f", about {cost.format_duration(counts['seconds'])}"
    if counts["measures"]:
        return "done" if counts["done"] else f"1 measurement missing{wall}"
    text = f"{looks.count(counts['runs'], 'run')}, {counts['done']} done, {counts['missing']} missing"
    awaited = looks.count(counts["learning_rates"], "learning rate")
    parts = [
        text + (f"{wall} on {counts['cores']} cores" if counts["missing"] else ""),
        f"waiting for {awaited}: {counts['waiting']} of them" if counts["waiting"] else "",
        f"{counts['failed']} of them failed the last time" if counts["failed"] else "",
    ]
    return "; ".join([*filter(None, parts), *counts["damaged"]])
