"""Run benchmarks in this process, without asv: each once for the tests, or for a machine without asv, in asv's format.

    python -m benchmarks.run --quick                                 # RBD_BENCH=quick: smallest cells, once, nothing saved
    python -m benchmarks.run --only gpu --save results/asv           # what benchmarks/on_gpu does
    python -m benchmarks.run --save results/asv --check-commit       # whether it could be saved, before anything is measured

asv itself starts a process for every cell, which takes minutes for hundreds of cells, and needs virtualenv and a mirror.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import math
import os
import pkgutil
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks._suite import suite

HERE = Path(__file__).parent
COLUMNS = ("result", "params", "version", "started_at", "duration")
FIRST = ("ratios", "step", "generation")  # the modules that answer most, in case there is no time for the others
AT_ONCE = 2  # modules of the quick set that run side by side, since its times mean nothing


@dataclass(frozen=True, eq=False)
class Benchmark:
    """One function that asv would find. Names, params and versions are those that asv gives it."""

    name: str
    function: Callable
    owner: Any  # instance of its class, or its module
    module: Any

    @property
    def params(self) -> list[list]:
        return [list(values) for values in getattr(self.owner, "params", [])]

    @property
    def version(self) -> str:
        return getattr(self.function, "version", getattr(self.owner, "version", None))

    @property
    def unit(self) -> str:
        return getattr(self.function, "unit", getattr(self.owner, "unit", ""))

    def on(self, device: str) -> bool:
        """Whether it has cells of a device."""
        return any(device in values for values in self.params)

    @property
    def cells(self) -> list[tuple]:
        return list(itertools.product(*self.params))


@dataclass(frozen=True)
class Outcome:
    """What the cells of a benchmark gave: values (nan: n/a; None: failed), reasons, when, and how long."""

    values: list[float | None]
    reasons: list[str]
    started: float  # seconds since 1970
    took: float  # seconds


def benchmarks(pattern: str = "") -> list[Benchmark]:
    """All functions track_... of the modules beside this one whose name contains the pattern (a regular expression)."""
    found = []
    for info in pkgutil.iter_modules([str(HERE)]):
        if info.name.startswith("_") or f"benchmarks.{info.name}" == __name__ or info.name == Path(__file__).stem:
            continue
        module = importlib.import_module(f"benchmarks.{info.name}")
        owners = [(f"{info.name}.", module)]
        classes = inspect.getmembers(module, inspect.isclass)
        own = [(name, of) for name, of in classes if of.__module__ == module.__name__ and _tracks(of)]
        owners += [(f"{info.name}.{name}.", of()) for name, of in own]
        found += [Benchmark(prefix + f.__name__, f, owner, module) for prefix, owner in owners for f in _tracks(owner)]
    found.sort(key=lambda b: (FIRST + (b.name.split(".")[0],)).index(b.name.split(".")[0]))
    return [b for b in found if re.search(pattern, b.name)]


def _tracks(owner: Any) -> list[Callable]:
    own = inspect.getmembers(owner, callable)
    return [f for name, f in own if name.startswith("track_")]


def run(benchmark: Benchmark, cache: object) -> Outcome:
    """Setup and function for every cell."""
    began = time.time()
    pairs = [_value(benchmark, cache, cell) for cell in benchmark.cells]
    return Outcome([v for v, _ in pairs], [r for _, r in pairs], began, time.time() - began)


def _value(benchmark: Benchmark, cache: object, cell: tuple) -> tuple[float | None, str]:
    arguments = cell if cache is None else (cache, *cell)
    try:
        try:
            getattr(benchmark.owner, "setup", lambda *_: None)(*arguments)
        except NotImplementedError as reason:
            return math.nan, str(reason)
        return float(benchmark.function(*arguments)), ""
    except Exception:
        return None, traceback.format_exc()


def everything(chosen: list[Benchmark]) -> Iterator[tuple[Benchmark, Outcome]]:
    """All of them, each module's setup_cache called once."""
    caches: dict[str, object] = {}
    for benchmark in chosen:
        module = benchmark.module
        if module.__name__ not in caches:
            caches[module.__name__] = module.setup_cache() if hasattr(module, "setup_cache") else None
        yield benchmark, run(benchmark, caches[module.__name__])


def side_by_side(chosen: list[Benchmark]) -> Iterator[tuple[Benchmark, Outcome]]:
    """As `everything`, but several modules at once, so that no time is worth keeping."""
    modules = [list(group) for _, group in itertools.groupby(chosen, lambda benchmark: benchmark.module.__name__)]
    names = [[benchmark.name for benchmark in module] for module in modules]
    with ProcessPoolExecutor(AT_ONCE, get_context("spawn")) as pool:
        for module, outcomes in zip(modules, pool.map(_run_named, names)):
            yield from zip(module, outcomes)


def _run_named(names: list[str]) -> list[Outcome]:
    return [outcome for _, outcome in everything([b for b in benchmarks() if b.name in names])]


def save(results: dict[Benchmark, Outcome], folder: Path, commit: str, date: int) -> Path:
    """Write one result file and machine.json into folder/<machine>, and benchmarks.json, as asv does; returns the first.

    Benchmarks of this commit and environment that are there already, and are not among the results, stay.

    Args:
        commit: its whole hash; date: seconds since 1970 of the commit.
    """
    machine, requirements = this_machine(), _versions()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = f"process-py{python}-" + "-".join(f"{name}{version}" for name, version in requirements.items())
    environment = environment.replace("+", "_")  # as in 2.11.0+cu130: odd characters in names do not survive every transfer
    place = folder / machine["machine"]
    place.mkdir(parents=True, exist_ok=True)
    _write(place / "machine.json", machine | {"version": 1})
    _announce(results, folder / "benchmarks.json")
    path = place / f"{commit[:8]}-{environment}.json"
    known = _read(path, "results")["results"] if path.exists() else {}
    _write(path, {
        "commit_hash": commit, "env_name": environment, "date": date * 1000, "python": python, "requirements": requirements,
        "params": machine | {"python": python} | requirements, "env_vars": {}, "result_columns": COLUMNS, "durations": {},
        "results": known | {b.name: [_json(o.values), [[repr(v) for v in values] for values in b.params], b.version,
                                     int(o.started * 1000), round(o.took, 3)] for b, o in results.items()},
        "version": 2,
    })  # fmt: skip
    return path


def _read(path: Path, *needed: str) -> dict[str, dict]:
    """The objects in a file of asv, by name, with those that are needed; ends here, naming the file, if it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if wrong := [name for name in needed if type(found[name]) is not dict]:
            raise ValueError(f"{wrong[0]}: got {found[wrong[0]]!r}, allowed a dict")
        return dict(found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SystemExit(f"--save: {path} is not a file of results: {error!r}; move it away") from error


def _announce(benchmarks: Iterable[Benchmark], path: Path) -> None:
    """Put into asv's list what it lacks or has otherwise: readers skip results that are not of the list's version."""
    known = _read(path) if path.exists() else {"version": 2}  # of the format
    for b in benchmarks:
        params = [[repr(v) for v in values] for values in b.params]
        about = {"name": b.name, "params": params, "version": b.version, "type": "track", "unit": b.unit,
                 "param_names": list(getattr(b.owner, "param_names", ()))}  # fmt: skip
        if any(known.get(b.name, {}).get(name) != value for name, value in about.items()):
            known[b.name] = about | {"code": ""}
    suite("store").write(path, json.dumps(known, indent=4, sort_keys=True) + "\n")


def _json(values: list[float | None]) -> list:
    return [v if v is None or math.isfinite(v) else math.nan for v in values]  # asv writes NaN too


def _write(path: Path, value: dict) -> None:
    suite("store").write(path, json.dumps(value) + "\n")


def this_machine() -> dict[str, str]:
    """As `asv machine` describes one; its name and its processor include the GPU."""
    name, cpu = platform.node() or "unknown", suite("record")._cpu_name()
    if gpu := _gpu():
        name, cpu = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-").lower(), f"{cpu} with {gpu}"
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"machine": name, "cpu": cpu, "num_cpu": str(os.cpu_count()), "ram": str(ram), "arch": platform.machine(),
            "os": f"{platform.system()} {platform.release()}"}  # fmt: skip


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "triton", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _commit(given: str | None) -> tuple[str, int]:
    """Hash and time, as `git log -1 --format='%H %ct'` prints them, of the argument, this checkout, or what is stated."""
    try:
        log = ["git", "-C", str(HERE), "log", "-1", "--format=%H %ct"]
        stated = "" if given or (HERE.parent / ".git").exists() else " ".join(suite("record").stated_commit(HERE.parent))
        text = given or stated or subprocess.run(log, capture_output=True, text=True, check=True).stdout
        commit, date = text.split()
        assert re.fullmatch("[0-9a-f]{40}", commit)
        return commit, int(date)
    except (OSError, subprocess.CalledProcessError, ValueError, AssertionError) as error:
        how = "\"$(git log -1 --format='%H %ct')\" of the commit; or put that into RBD_COMMIT, or a file COMMIT here"
        raise SystemExit(f"--commit: got {given!r} and no git checkout here, allowed {how}: {error}") from None


def _require_clean() -> None:
    """End here if files of the checkout differ from its commit: results would be filed under what did not give them."""
    git = ["git", "-C", str(HERE.parent), "status", "--porcelain", "--untracked-files=no", "--", "rbd", "benchmarks"]
    if (HERE.parent / ".git").exists() and (changes := subprocess.run(git, capture_output=True, text=True).stdout):
        raise SystemExit(f"--save: commit these changes first, or state a commit with --commit:\n{changes.rstrip()}")


def _require_writable(folder: Path) -> None:
    """End here, rather than after the first measurement, if results cannot be saved."""
    try:
        suite("store").check_writable(folder)
    except OSError as error:
        raise SystemExit(f"--save: {folder}: {error.strerror}") from error


def _check_pattern(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise SystemExit(f"--bench: got {text!r}, allowed a regular expression: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--bench", default="", metavar="REGEX", help="benchmarks whose name matches (default: all)")
    parser.add_argument("--only", choices=("cpu", "gpu"), help="only cells of that device")
    parser.add_argument("--quick", action="store_true", help="the smallest cells, once (RBD_BENCH=quick)")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write results in asv's format under FOLDER")
    parser.add_argument("--commit", metavar="'HASH TIME'", help="what `git log -1 --format='%%H %%ct'` prints")
    parser.add_argument("--check-commit", action="store_true", help="only see that the commit is known, and run nothing")
    given = parser.parse_args(arguments)
    _check_pattern(given.bench)
    if given.save and not given.commit:
        _require_clean()
    if given.check_commit:
        print(*_commit(given.commit))
        return 0
    if given.quick:
        os.environ["RBD_BENCH"] = "quick"
    if given.only:
        os.environ["RBD_BENCH_DEVICE"] = given.only
    commit = _commit(given.commit) if given.save else None
    if commit:
        _require_writable(given.save)
    if commit and (known := given.save / "benchmarks.json").exists():
        _read(known)
    for path in given.save.glob(f"*/{commit[0][:8]}-*.json") if commit else ():
        _read(path, "results")
        if given.quick:
            raise SystemExit(f"--quick: got --save with {path}, allowed a folder without results of that commit")
    results, chosen = {}, [b for b in benchmarks(given.bench) if given.only is None or b.on(given.only)]
    for benchmark, outcome in (side_by_side if given.quick and not commit else everything)(chosen):
        results[benchmark] = outcome
        _show(benchmark, outcome)
        if commit:  # each time, so that an interruption loses little
            path = save(results, given.save, *commit)
    failed = [b.name for b, o in results.items() if None in o.values]
    measured = sum(v is not None and math.isfinite(v) for o in results.values() for v in o.values)
    if commit and results:
        print(f"saved {path}")
    print(f"{len(results)} benchmarks, {measured} cells measured, {len(failed)} benchmarks failed {' '.join(failed)}")
    return 1 if failed or not measured else 0


def _show(benchmark: Benchmark, outcome: Outcome) -> None:
    print(f"{benchmark.name}  ({benchmark.unit}; {outcome.took:.1f} s)")
    for cell, value, reason in zip(benchmark.cells, outcome.values, outcome.reasons):
        if value is None:
            print(f"  {', '.join(map(str, cell))}: FAILED\n{reason}")
        elif not math.isnan(value):
            print(f"  {', '.join(map(str, cell))}: {value:.4g}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
