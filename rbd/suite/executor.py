"""Many runs side by side: worker processes, what fails, how long it will all take, and what follows from the records."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import RLock, Thread
from time import perf_counter
from typing import Protocol

from tqdm import tqdm

from rbd.suite import cost, experiment, rates, record, store
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment, Plan
from rbd.suite.job import Ended, Failure, attempt
from rbd.suite.record import Record

PATIENCE = 5.0  # s that a worker waits for a run of another process; then other runs have their turn, and it can be stopped


# ---------------------------------------------------------------- experiments


@dataclass(frozen=True)
class Resources:
    """What runs may use. None for jobs and threads: what the cores here, or the places of the cluster, allow.

    Attributes:
        data_dir: root of the full data sets, see rbd.suite.datasets.data_dir.
        device: where tensors live, "cpu" or "cuda".
        jobs: runs at a time.
        threads: CPU threads of a run.
        ray: address of the Ray cluster to which runs are sent; None: they are done here.
        gpus: GPUs of a run there, a fraction below 1; None: a quarter with "cuda", else 0.
        lanes: runs at a time that take turns in this process, see streams; None: each has a process of its own.
        deadline: seconds after which runs in lanes end at their last full epoch and no other begins; None: never.
    """

    data_dir: Path | None = None
    device: str = "cpu"
    jobs: int | None = None
    threads: int | None = None
    ray: str | None = None
    gpus: float | None = None
    lanes: int | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.lanes and (self.jobs or self.ray):
            raise ValueError("lanes: not supported with jobs or ray, which start processes")
        if self.deadline and not self.lanes:
            raise ValueError("deadline: needs --lanes")


def perform_all(profile: str, results: Path, resources: Resources, seeds: Iterable[int] | None = None, dry: bool = False,
                folder: str | os.PathLike[str] | None = None) -> Iterator[str]:  # fmt: skip
    """`perform` every experiment of a folder, in order; one that raises, or cannot be loaded, does not stop the others.

    With other seeds, those that conclude something are left out: their choice rests on seeds of their own.

    Yields:
        What `perform` yields, and a line for every experiment that raised.
    """
    for name in experiment.list_names(folder):
        try:
            wanted = experiment.load(name, folder)
            if not (seeds and wanted.conclude):
                yield from perform(wanted, profile, results, resources, seeds, dry)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            yield f"failed: {name}: {error}"


def perform(wanted: Experiment, profile: str, results: Path, resources: Resources, seeds: Iterable[int] | None = None,
            dry: bool = False) -> Iterator[str]:  # fmt: skip
    """Do the runs that an experiment lacks, or its measurement, with lines on stdout, and conclude from what is there.

    The list of its runs is written first. Runs of other seeds are in no list, and nothing is concluded from them.

    Args:
        seeds: these instead of the experiment's own.
        dry: show what is missing, and do none of it.

    Yields:
        A line for everything that is wrong: learning rates not chosen yet, runs that failed, records that are damaged.

    Raises:
        ValueError, OSError: there is nothing to run with: a data set, a learning rate file, a cluster or a directory.
    """
    if wanted.measure:
        print(measure(wanted, profile, results, resources.data_dir, dry), flush=True)
        return
    plan = wanted.plan(profile, results)
    store.write(store.manifest_path(plan.name, results), plan.manifest(), "a list of runs")
    if plan.untuned:
        yield f"rbd: warning: {plan.name}: {rates.explain(plan.untuned, profile)}"
    asked = plan if seeds is None else plan.with_seeds(seeds)
    records, damaged = asked.look(results)
    missing = asked.missing(records)  # damaged ones too: their runs fail before any training, and say why
    print(f"{plan.name}: {len(asked.configs)} runs, {len(missing)} to do, records in {plan.directory(results)}", flush=True)
    if dry:
        print(*(f"{c.id} {describe(c)}" for c in missing), sep="\n", end="\n" * bool(missing))
        yield from damaged
        return
    try:
        failures = run_missing(asked, missing, results, resources, wanted.alone)
    finally:  # also when interrupted: what has ended may be enough for some of it
        conclude(wanted, profile, plan, results)
    left = len(asked.missing(asked.look(results)[0])) if resources.deadline else 0
    if left > len(failures):
        yield (f"rbd: warning: {plan.name}: the deadline came before {left} of {len(asked.configs)} runs had ended; "
               "the same command goes on")  # fmt: skip
    for failure in failures:
        where = store.failure_path(failure.config, results)
        yield f"failed: {describe(failure.config)}: {failure.message} ({where})"


def conclude(wanted: Experiment, profile: str, plan: Plan, results: Path) -> None:
    """Let an experiment conclude from its own runs, if it does; warnings on stderr."""
    if wanted.conclude:
        records, _ = plan.look(results)
        for line in wanted.conclude(profile, plan.configs, records, results):
            print(f"rbd: warning: {line}", file=sys.stderr)


def measure(wanted: Experiment, profile: str, results: Path, data_dir: str | os.PathLike[str] | None = None,
            dry: bool = False) -> str:  # fmt: skip
    """Measure, unless the file is there or the run is dry; write values, question and environment; say what was done."""
    assert wanted.measure
    name = f"{wanted.name}-{profile}"
    path = store.measurement_path(name, results)
    if path.exists():
        return f"{path}: is there; remove it to measure again"
    if dry:
        return f"{path}: to be measured"
    began, values = perf_counter(), wanted.measure(profile, data_dir)
    content = {"name": name, "question": wanted.question, "values": values, "environment": record.environment()}
    store.write(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", "a measurement")
    return f"{path}: measured in {cost.format_duration(perf_counter() - began)}"


def run_missing(plan: Plan, missing: tuple[RunConfig, ...], results: Path, resources: Resources, alone: bool = False,
                ) -> list[Failure]:  # fmt: skip
    """Run what a plan lacks, with a line on stdout for each run that ends and a bar on stderr if that is a terminal.

    Args:
        missing: the runs, of the plan's.
        alone: one run at a time, unless resources say how many.

    Returns:
        The failures, each also noted under <results>/failures/.

    Raises:
        ValueError, FileNotFoundError: a data set is missing or damaged. ValueError, ConnectionError: see cluster.Cluster.
    """
    if not missing:
        return []
    if not resources.ray:  # the nodes have data sets of their own
        _require_data(missing, resources.data_dir)
    crew = hire(resources, len(missing), alone)
    options = {"data_dir": resources.data_dir, "device": resources.device, "threads": crew.threads}
    try:
        with show_progress(plan, missing, results, crew.jobs) as progress:
            return run_all(missing, plan.directory(results), results, crew.jobs, crew.workers, options, progress.tell)
    finally:
        crew.workers.stop()


def _require_data(configs: Iterable[RunConfig], data_dir: Path | None) -> None:
    """Raise now, rather than hours later, if a data set is missing or damaged."""
    from rbd.suite import datasets

    for name in dict.fromkeys(c.data for c in configs):
        datasets.load(name, data_dir)


# ---------------------------------------------------------------- workers


class Workers(Protocol):
    """Whatever runs configurations somewhere else."""

    def submit(self, config: RunConfig, directory: Path, results: Path, wait: float, options: dict) -> Future:
        """The future result of `attempt` with these arguments."""

    def is_over(self) -> bool:
        """Whether no other run is to begin."""

    def stop(self) -> None:
        """End now, whatever is under way."""


@dataclass(frozen=True)
class Crew:
    """Who does the runs: workers, how many runs at a time, and the threads of each."""

    workers: Workers
    jobs: int
    threads: int


def hire(resources: Resources, missing: int, alone: bool = False) -> Crew:
    """Workers for a number of runs, here or on the cluster. Raises as cluster.Cluster does."""
    if resources.lanes:
        from rbd.suite.streams import Streams

        streams = Streams(resources.lanes, resources.deadline)
        return Crew(streams, resources.lanes, resources.threads or cost.count_cores())
    if resources.ray:
        from rbd.suite.cluster import Cluster

        gpus = resources.gpus if resources.gpus is not None else 0.25 if resources.device == "cuda" else 0.0
        cluster = Cluster(resources.ray, resources.threads or 1, gpus)
        return Crew(cluster, resources.jobs or cluster.places, resources.threads or 1)
    cores = cost.count_cores()
    jobs = resources.jobs or (1 if alone else max(1, min(cores // (resources.threads or 1), missing)))
    return Crew(Processes(), jobs, resources.threads or max(1, cores // jobs))


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

    def is_over(self) -> bool:
        return False

    def stop(self) -> None:
        """End the workers, whatever they are at: checkpoints keep all but the epoch in flight."""
        if not all(future.done() for future in self.at_work):
            for process in set(active_children()) - self.before:
                process.kill()
        for pool in (*self.idle, *self.at_work.values()):
            pool.shutdown(cancel_futures=True)


def _obey() -> None:
    """In a worker: leave Ctrl-C and SIGTERM to the parent, and end when that is gone, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tqdm.set_lock(RLock())  # its own is a semaphore of the system, which a worker that is killed would leave behind
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
        if workers.is_over():
            todo.clear()
        while todo and len(running) < jobs:
            config = todo.popleft()
            patience = PATIENCE if config in busy else 0.0
            running[workers.submit(config, directory, results, patience, options)] = config
        done = wait(running, return_when=FIRST_COMPLETED).done if running else set()
        for future in [future for future in running if future in done]:  # in the order in which they began
            config, ended = running.pop(future), _get(future)
            if ended is None:
                busy.add(config)
                todo.append(config)
                continue
            ended = Failure(config, ended) if isinstance(ended, str) else ended
            if isinstance(ended, Failure):
                ended.save(results)
                failures.append(ended)
            else:
                store.failure_path(config, results).unlink(missing_ok=True)
            tell(config, ended)
    return failures


def _get(future: Future) -> Ended | str:
    error = future.exception()  # of the worker, not of the run
    return future.result() if error is None else f"{type(error).__name__}: the process died: {error}"


# ---------------------------------------------------------------- progress


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
        left = cost.format_duration(self.remaining(perf_counter()))
        title = f"[{self.names[config.id]}/{len(self.names)}] {describe(config)}"
        self.bar.write(f"{title}: {what}; {left} left", file=sys.stdout)
        sys.stdout.flush()
        self.bar.set_postfix_str(f"{left} left", refresh=False)
        self.bar.update()


@contextmanager
def show_progress(plan: Plan, missing: tuple[RunConfig, ...], results: Path, jobs: int) -> Iterator[Progress]:
    """The progress of a plan, with a bar for as long as the block runs."""
    seconds = cost.calibrate(cost.load_readable(results))
    names = {c.id: number for number, c in enumerate(plan.configs, 1)}
    with tqdm(total=len(names), initial=len(names) - len(missing), unit="run", disable=None,
              bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}", desc=plan.name) as bar:  # fmt: skip
        yield Progress(names, seconds, jobs, sum(map(seconds, missing)), bar, began=perf_counter())


def describe(config: RunConfig) -> str:
    """A run in a few words: "fc mnist rbd dim=250 lr=1 seed=0"; fields at their defaults are left out."""
    usual = RunConfig(model=config.model, data=config.data, method=config.method)
    given = json.loads(config.canonical())
    parts = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in sorted(given.items())
             if name not in ("model", "data", "method", "seed") and value != getattr(usual, name)]  # fmt: skip
    return " ".join([config.model, config.data, config.method, *parts, f"seed={config.seed}"])
