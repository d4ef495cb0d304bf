"""`rbd dimension`: a user's own function(dim, seed) -> metric at many d, its records, and the d that the task needs."""

from __future__ import annotations

import ast
import glob
import inspect
import json
import math
import os
import random
import sys
import sysconfig
import tokenize
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from numbers import Real
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, TypeGuard

from tqdm import tqdm

from rbd.suite import cost, looks, record, store, tables
from rbd.suite.bootstrap import summary
from rbd.suite.executor import Processes, wait_for_one
from rbd.suite.intrinsic import SHARE, Dimension, find_dimension

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Modules = tuple[tuple[str, str], ...]  # path below the script's folder, hash of the file
FORMAT = 1
MAIN = ("__main__", "__mp_main__")  # the command itself
OTHERS = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), Path(__file__).parents[1])  # Python and rbd


@dataclass(frozen=True)
class Run:
    """One call of the function."""

    dim: int
    seed: int

    def __str__(self) -> str:
        return f"dim={self.dim} seed={self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What the function returned, and after how many wall seconds."""

    metric: float
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why there is no metric."""

    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Target:
    """A function in a script, and the folder of its records.

    Attributes:
        text: of the script.
        modules: those that the script loads from below its own folder when it is imported.
    """

    script: Path
    function: str
    text: str
    results: Path
    modules: Modules = ()

    @cached_property
    def folder(self) -> Path:
        """<results>/dimension/<script>-<function>-<8 hex digits of place, function, text and modules>.

        So a table never mixes runs of different versions, save for modules that are first imported during a call.
        """
        where = store.relate(self.script.resolve(), self.results.resolve())  # stays when both move
        version = [where, self.function, self.text, *[self.modules] * bool(self.modules)]
        key = sha256(json.dumps(version).encode()).hexdigest()[:8]
        return self.results / "dimension" / f"{self.script.stem}-{self.function}-{key}"

    def path(self, run: Run) -> Path:
        """Of the record."""
        return self.folder / f"dim{run.dim}-seed{run.seed}.json"

    def error_path(self, run: Run) -> Path:
        """Of the traceback of a run that failed, until it succeeds."""
        return self.folder / f"dim{run.dim}-seed{run.seed}.error.txt"


# ---------------------------------------------------------------- the script


def find_target(name: str, results: Path) -> Target:
    """The function that "script.py:function" names; a worker loads the script, to see which modules it imports.

    Raises:
        ValueError: the name has another form, the script has no such function, or it cannot be loaded.
        FileNotFoundError: there is no script.
    """
    target = _read_script(name, results)
    workers = Processes(attempt)
    try:
        found = _get(workers.submit(target, None, None))
    finally:
        workers.stop()
    if isinstance(found, Failure):
        raise ValueError(f"{target.script}: {found.message}\n{found.traceback}".rstrip())
    assert isinstance(found, tuple)
    return replace(target, modules=found)


def _read_script(name: str, results: Path) -> Target:
    """The target, whose modules are not known yet. Raises ValueError and FileNotFoundError as `find_target` does."""
    place, _, function = name.rpartition(":")
    script = Path(place)
    if script.suffix != ".py" or not function.isidentifier():
        raise ValueError(f"SCRIPT:FUNCTION: got {name!r}, allowed a script and a function in it, as train.py:evaluate")
    if not script.is_file():
        raise FileNotFoundError(f"{script}: there is no such script")
    try:
        with tokenize.open(script) as file:  # in its encoding, as Python reads it, without a mark of the byte order
            text = file.read()
        tree = ast.parse(text, script.name)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{script}: not a Python script: {error}") from error
    if not {function, "*"} & _list_names(tree):
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        raise ValueError(f"{script}: got no function {function!r}, allowed {', '.join(functions) or 'none: it has none'}")
    return Target(script, function, text, results)


def _list_names(tree: ast.Module) -> set[str]:
    """What a script defines, assigns and imports."""
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    aliases = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return defined | assigned | {alias.asname or alias.name for alias in aliases}


def attempt(target: Target, threads: int | None, run: Run | None) -> Outcome | Failure | Modules:
    """In a worker: call the function; or without a run only load the script, and list the modules that it has loaded."""
    try:
        loaded = _load(target, threads)
        if run is None:
            return loaded.modules
        if changed := sorted({name for name, _ in {*loaded.modules} ^ {*target.modules}}):
            raise RuntimeError(f"{', '.join(changed)}: changed since the command began; run the same command again")
        return _measure(loaded.function, run)
    except (Exception, SystemExit) as error:
        return Failure(f"{type(error).__name__}: {error}", _format_traceback(error))


def _format_traceback(error: BaseException) -> str:
    """From the user's script on; "" where the error is not of the script."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)) if trace else ""


@dataclass(frozen=True)
class _Loaded:
    """The function of a script, and the modules that the script has loaded from below its folder."""

    function: Callable
    modules: Modules


@cache
def _load(target: Target, threads: int | None) -> _Loaded:
    """The function, of the script's text that the sweep began with.

    Raises:
        Exception, SystemExit: what the script raises. TypeError: it is no function of (dim, seed).
    """
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    path = target.script.resolve()
    sys.path.insert(0, str(path.parent))
    module = sys.modules[path.stem] = ModuleType(path.stem)  # where pickle looks for its classes
    module.__file__ = str(path)
    exec(compile(target.text, path, "exec"), vars(module))
    found = vars(module).get(target.function)
    if not callable(found):
        raise TypeError(f"{target.function}: got {found!r}, allowed a function of (dim, seed)")
    try:
        inspect.signature(found).bind(1, 0)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{target.function}: {error}; allowed a function of (dim, seed)") from None
    return _Loaded(found, _list_modules(path))


def _list_modules(script: Path) -> Modules:
    """What has been loaded from below the folder of a script, except itself, installed packages, Python and rbd."""
    files = [getattr(module, "__dict__", {}).get("__file__") for name, module in [*sys.modules.items()] if name not in MAIN]
    found = {}
    for file in filter(None, files):
        for path in (Path(file).absolute(), Path(file).resolve()):  # a link there, or a folder that a link leads to
            if path.is_relative_to(script.parent) and path != script and path.is_file() and not _is_installed(path, script):
                found[path.relative_to(script.parent).as_posix()] = sha256(path.read_bytes()).hexdigest()
                break
    return tuple(sorted(found.items()))


def _is_installed(path: Path, script: Path) -> bool:
    parts = path.relative_to(script.parent).parts
    return not {"site-packages", "dist-packages"}.isdisjoint(parts) or any(path.is_relative_to(other) for other in OTHERS)


def _measure(call: Callable, run: Run) -> Outcome:
    """The metric of a run. Raises what the function raises, TypeError or ValueError if it returns no finite number."""
    _seed_generators(run.seed)
    began = perf_counter()
    returned = call(run.dim, run.seed)
    seconds = perf_counter() - began
    value = returned.item() if hasattr(returned, "item") and getattr(returned, "ndim", 1) == 0 else returned
    if not _is_number(value):
        raise TypeError(f"the function returned {returned!r}, allowed a number: the metric, larger where better")
    if not math.isfinite(value):
        raise ValueError(f"the function returned {float(value)}, allowed a finite number")
    return Outcome(float(value), seconds)


def _is_number(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _seed_generators(seed: int) -> None:
    """Python's, NumPy's and torch's, where the script has loaded them: so that no run depends on the one before it."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)  # noqa: NPY002  # the generator that a script may use without making one
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


# ---------------------------------------------------------------- records


def load(target: Target, run: Run) -> Outcome | None:
    """The record of a run, None where there is none. Raises ValueError if it is damaged (the file is named)."""
    path = target.path(run)
    try:
        content = json.loads(path.read_text("utf-8"))
        if (content["format"], content["dim"], content["seed"]) != (FORMAT, run.dim, run.seed):
            raise ValueError(f"got format, dim, seed = {content['format']}, {content['dim']}, {content['seed']}")
        return Outcome(_check_number("metric", content["metric"]), _check_number("seconds", content["seconds"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: damaged: {error}; remove it, and the run is done again") from error


def _check_number(name: str, value: object) -> float:
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name}: got {value!r}, allowed a finite number")
    return float(value)


def save(target: Target, run: Run, outcome: Outcome, environment: Mapping[str, str | int | bool | None]) -> None:
    """Write the record of a run, and the script as it was."""
    about = {"script": str(target.script), "function": target.function, "environment": dict(environment)}
    content = {"format": FORMAT, **about, **asdict(run), **asdict(outcome)}
    store.write(target.folder / target.script.name, target.text, "the script")
    store.write(target.path(run), json.dumps(content, indent=1, sort_keys=True) + "\n", "a record")
    target.error_path(run).unlink(missing_ok=True)


def count_earlier(target: Target) -> int:
    """Records of the same function in another version of the script or its modules, which are not used."""
    begin = glob.escape(f"{target.script.stem}-{target.function}-")
    folders = target.folder.parent.glob(begin + "[0-9a-f]" * 8)
    return sum(len(list(folder.glob("dim*-seed*.json"))) for folder in folders if folder != target.folder)


# ---------------------------------------------------------------- runs


def perform(target: Target, dims: Sequence[int], seeds: Sequence[int], results: Path, jobs: int = 1) -> list[str]:
    """Do the runs that are not there yet, one seed of every d before the next one, with a line on stdout for each.

    Returns:
        A line for every run that failed.

    Raises:
        ValueError: a record is damaged. store.Busy: another process is doing these runs.
    """
    runs = [Run(dim, seed) for seed in seeds for dim in dims]
    missing = [run for run in runs if load(target, run) is None]
    name = f"{target.script}:{target.function}"
    print(f"{name}: {looks.count(len(runs), 'run')}, {len(missing)} to do, records in {target.folder}", flush=True)
    if earlier := count_earlier(target):
        made = looks.count(earlier, "run")
        print(f"the script or its modules have changed: not used: {made} of other versions, see {target.folder.parent}")
    if not missing:
        return []
    store.check_writable(target.folder)
    path = results / "locks" / f"{target.folder.name}.lock"
    store.check_writable(path.parent)
    workers = Processes(attempt)
    try:
        with store.lock(path, f"{target.folder}: another process is doing these runs", wait=0):
            return list(_run_missing(target, missing, min(jobs, len(missing)), workers))
    finally:
        workers.stop()


def _run_missing(target: Target, missing: list[Run], jobs: int, workers: Processes) -> Iterator[str]:
    threads = max(1, cost.count_cores() // jobs) if jobs > 1 else None
    environment, todo = record.environment(), deque(missing)
    running: dict[Future, Run] = {}
    with _show_progress(len(missing)) as tell:
        while todo or running:
            while todo and len(running) < jobs:
                run = todo.popleft()
                running[workers.submit(target, threads, run)] = run
            done = wait_for_one(running)
            for future in [future for future in running if future in done]:  # in the order in which they began
                run, ended = running.pop(future), _get(future)
                if isinstance(ended, Outcome):
                    save(target, run, ended, environment)
                    tell(f"{run}: {ended.metric:g}, {cost.format_duration(ended.seconds)}")
                    continue
                assert isinstance(ended, Failure)
                path = store.write(target.error_path(run), ended.traceback or ended.message)
                tell(f"{run}: failed: {ended.message}")
                yield f"failed: {run}: {ended.message} ({path})"


def _get(future: Future) -> Outcome | Failure | Modules:
    error = future.exception()  # of the worker, not of the function
    if error is None:
        return future.result()
    died = "the process died: " if isinstance(error, BrokenProcessPool) else ""
    return Failure(f"{type(error).__name__}: {died}{error}")


@contextmanager
def _show_progress(runs: int) -> Iterator[Callable[[str], None]]:
    """A function that prints a line for a run that has ended, with the time left; a bar on stderr if that is a terminal."""
    began = perf_counter()
    with tqdm(total=runs, unit="run", disable=None) as bar:

        def tell(line: str) -> None:
            number = next(numbers)
            left = (perf_counter() - began) / number * (runs - number)
            bar.write(f"[{number}/{runs}] {line}; {cost.format_duration(left)} left", file=sys.stdout)
            sys.stdout.flush()
            bar.update()

        numbers = iter(range(1, runs + 1))
        yield tell


# ---------------------------------------------------------------- what they say


def read(target: Target, dims: Iterable[int], seeds: Iterable[int]) -> dict[int, list[float]]:
    """d -> metric of the runs that are there, in the order of the seeds; without the d that have none."""
    seeds = list(seeds)
    found = {dim: [made.metric for seed in seeds if (made := load(target, Run(dim, seed)))] for dim in sorted(set(dims))}
    return {dim: metrics for dim, metrics in found.items() if metrics}


def format_table(runs: Mapping[int, list[float]]) -> str:
    """Markdown: mean, standard deviation, n and interval at every d."""
    digits = _count_digits(max(abs(v) for metrics in runs.values() for v in metrics))
    made = {dim: summary(metrics) for dim, metrics in runs.items()}
    rows = [[f"{dim:,}", tables.number(s, digits=digits), tables.interval(s, digits)] for dim, s in made.items()]
    return tables.markdown(["d", "metric", "95 % interval"], rows).removesuffix("\n")


def _count_digits(largest: float) -> int:
    """After the point: three significant ones of the largest metric where that is small."""
    if largest >= 10:
        return 1
    return 3 if largest >= 0.01 or largest == 0 else 2 - math.floor(math.log10(largest))


def conclude(runs: Mapping[int, list[float]], dims: Iterable[int], baseline: float | None) -> tuple[str, Dimension | None]:
    """d90 in words, and as a number where it is known.

    Args:
        baseline: the metric of which d90 reaches 90 %; None: the mean at the largest of dims.
    """
    largest = max(dims)
    if baseline is None and largest not in runs:
        return f"d90: not known, there is no run at d = {largest:,}, the baseline", None
    try:
        found = find_dimension(runs, baseline)
    except ValueError as error:
        return f"d90: not known: {error}", None
    whose = f"the mean at d = {largest:,}" if baseline is None else "the baseline given"
    first = "no d tried reaches it" if found.first is None else f"the smallest d tried that reaches it: {found.first:,}"
    sign = "" if str(found)[0] in ">≤" else "= "
    return f"d90 {sign}{found}: the metric there is {found.target:.4g}, {100 * SHARE:g} % of {whose}; {first}", found


def draw(target: Target, runs: Mapping[int, list[float]], found: Dimension | None) -> Path:
    """The metric against d with its intervals, every run, and d90 with its interval, as <folder>/dimension.png."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nothing of the user's own settings, such as text.usetex
        figure = Figure(figsize=(5.5, 3.5), layout="constrained")
        _draw_metric(figure.subplots(), runs, found)
        figure.axes[0].set_title(f"{target.script.name}:{target.function}")
        path = target.folder / "dimension.png"
        figure.savefig(path, dpi=200)
    return path


def _draw_metric(ax: Axes, runs: Mapping[int, list[float]], found: Dimension | None) -> None:
    for dim, metrics in runs.items():
        ax.plot([dim] * len(metrics), metrics, ".", color=looks.GREY, markersize=4)
    x, made = list(runs), [summary(metrics) for metrics in runs.values()]
    y, bars = [s.value for s in made], [[s.value - s.low for s in made], [s.high - s.value for s in made]]  # NaN: no bar
    label = "mean, 95 % interval over seeds"
    ax.errorbar(x, y, yerr=bars, color=looks.BLUE, marker="o", markersize=4, capsize=2, label=label)
    if found:
        ax.axhline(found.target, color=looks.BLACK, linestyle="--", linewidth=0.8, label="90 % of the baseline")
        if math.isfinite(found.value):
            ax.axvline(found.value, color=looks.VERMILION, linewidth=1, label=f"d90 = {found}")
        if math.isfinite(found.low):
            ax.axvspan(found.low, min(found.high, x[-1]), color=looks.VERMILION, alpha=0.15, linewidth=0)
    ax.set(xscale="log", xlabel="dimension d", ylabel="metric")
    ax.legend(frameon=False, fontsize=7)
