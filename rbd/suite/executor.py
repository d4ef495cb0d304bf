"""Many runs side by side: worker processes, failures, the time left, and what is concluded from the records."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock, Thread
from time import perf_counter
from typing import Protocol

from tqdm import tqdm

from rbd.suite import cost, experiment, looks, measurement, rates, record, store
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment, Plan
from rbd.suite.job import Ended, Failure, attempt
from rbd.suite.record import Record

PATIENCE = 5.0  # s that a worker waits for a run that another process is doing, before it goes on to other runs


# ---------------------------------------------------------------- experiments


@dataclass(frozen=True)
class Resources:
    """What runs may use. None for jobs: as many as the cores here, or the places of the cluster, allow.

    Attributes:
        data_dir: root of the full data sets, see rbd.suite.datasets.data_dir.
        device: where tensors live, "cpu" or "cuda".
        jobs: runs at a time.
        threads: CPU threads of a run, one if None: convolutions add up by thread, so with two a run has other bits.
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
        if self.gpus is not None and not self.ray:
            raise ValueError("gpus: needs --ray")


def perform_all(profile: str, results: Path, resources: Resources, seeds: Iterable[int] | None = None, dry: bool = False,
                folder: str | os.PathLike[str] | None = None) -> Iterator[str]:  # fmt: skip
    """`perform` every experiment of a folder, in order; one that raises, or cannot be loaded, does not stop the others.

    With other seeds, those that measure are left out, and those that conclude something: they have seeds of their own.

    Yields:
        What `perform` yields, and a line for every experiment that raised.
    """
    for name in experiment.list_names(folder):
        try:
            wanted = experiment.load(name, folder)
            if not (seeds and (wanted.conclude or wanted.measure)):
                yield from perform(wanted, profile, results, resources, seeds, dry)
        except Exception as error:  # whatever a script may raise
            yield f"failed: {name}: {error}"


def perform(wanted: Experiment, profile: str, results: Path, resources: Resources, seeds: Iterable[int] | None = None,
            dry: bool = False) -> Iterator[str]:  # fmt: skip
    """Do the missing runs of an experiment, or its measurement, with lines on stdout, and conclude from all that have ended.

    The list of its runs is written first. Runs with other seeds are not in that list, and conclusions do not use them.

    Args:
        seeds: other seeds than the experiment's own.
        dry: show what is missing, and run nothing.

    Yields:
        A line for each problem: learning rates not chosen yet, runs that failed, records that are damaged.

    Raises:
        ValueError, OSError: what it needs is missing or damaged: a data set, a file of learning rates, a device, a cluster
            or a directory; or seeds were given to a measurement.
    """
    if wanted.measure:
        if seeds is not None:
            raise ValueError(f"seeds: {wanted.name} measures, it has no runs with seeds")
        print(measurement.measure(wanted, profile, results, resources.data_dir, dry), flush=True)
        return
    plan = wanted.plan(profile, results)
    store.update(store.manifest_path(plan.name, results), plan.manifest(), "a list of runs")
    if plan.untuned:
        yield f"rbd: warning: {plan.name}: {rates.explain(plan.untuned, profile)}"
    asked = plan if seeds is None else plan.with_seeds(seeds)
    records, damaged = asked.look(results)
    missing = asked.missing(records)  # damaged ones too: their runs fail before any training, and say why
    asked_for = looks.count(len(asked.configs), "run")
    print(f"{plan.name}: {asked_for}, {len(missing)} to do, records in {plan.directory(results)}", flush=True)
    if dry:
        print(*(f"{c.id} {describe(c)}" for c in missing), sep="\n", end="\n" * bool(missing))
        yield from damaged
        return
    try:
        failures = run_missing(asked, missing, results, resources, wanted.alone)
    finally:  # also when interrupted: the runs that ended may be enough for a part
        conclude(wanted, profile, plan, results)
    left = len(asked.missing(asked.look(results)[0])) if resources.deadline else 0
    if left > len(failures):
        yield (f"rbd: warning: {plan.name}: the deadline came before {left} of {len(asked.configs)} runs had ended; "
               "run the same command again to continue")  # fmt: skip
    for failure in failures:
        where = store.failure_path(failure.config, results)
        yield f"failed: {describe(failure.config)}: {failure.message}{f' ({where})' * where.exists()}"


def conclude(wanted: Experiment, profile: str, plan: Plan, results: Path) -> None:
    """Let an experiment conclude from its own runs, if it does; warnings on stderr."""
    if function := wanted.conclude:
        records, _ = plan.look(results)
        for line in wanted.call(lambda: list(function(profile, plan.configs, records, results) or ())):
            print(f"rbd: warning: {line}", file=sys.stderr)


def run_missing(plan: Plan, missing: tuple[RunConfig, ...], results: Path, resources: Resources, alone: bool = False,
                ) -> list[Failure]:  # fmt: skip
    """Run what a plan lacks, with a line on stdout for each run that ends, and a bar on stderr if that is a terminal, else
    a line on stdout for each run that begins.

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
    if not resources.ray:  # each node has its own data sets and devices
        _require_data(missing, resources.data_dir)
        if resources.device != "cpu":  # torch takes seconds to import
            from rbd.suite import train

            train.check_place(resources.device, resources.threads)
    crew = hire(resources, len(missing), alone)
    options = {"data_dir": resources.data_dir, "device": resources.device, "threads": crew.threads}
    try:
        with show_progress(plan, missing, results, crew.jobs) as progress:
            return run_all(missing, plan.directory(results), results, crew.jobs, crew.workers, options, progress.tell,
                           progress.begin)  # fmt: skip
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
        """End now, also what is under way."""


@dataclass(frozen=True)
class Crew:
    """What runs are done with: workers, how many at a time, and the threads of each."""

    workers: Workers
    jobs: int
    threads: int


def hire(resources: Resources, missing: int, alone: bool = False) -> Crew:
    """Workers for a number of runs, here or on the cluster. Raises as cluster.Cluster does."""
    threads = resources.threads or 1
    if resources.lanes:
        from rbd.suite.streams import Streams

        streams = Streams(resources.lanes, resources.deadline)
        return Crew(streams, resources.lanes, threads)
    if resources.ray:
        from rbd.suite.cluster import Cluster

        gpus = resources.gpus if resources.gpus is not None else 0.25 if resources.device == "cuda" else 0.0
        cluster = Cluster(resources.ray, threads, gpus)
        return Crew(cluster, resources.jobs or cluster.places, threads)
    jobs = resources.jobs or (1 if alone else max(1, cost.count_cores() // threads))
    return Crew(Processes(), min(jobs, missing), threads)


class Processes:
    """Worker processes, each doing one run at a time; if one dies, only its run fails.

    Args:
        task: what they do, a function of a module.
    """

    def __init__(self, task: Callable = attempt) -> None:
        self.task = task
        self.at_work: dict[Future, Worker] = {}
        self.idle: list[Worker] = []
        self.before = set(active_children())

    def submit(self, *arguments) -> Future:
        """task(*arguments) in an idle worker, or in a new one. The future's exception says why one died or never began."""
        for ended in [f for f in self.at_work if f.done()]:
            worker = self.at_work.pop(ended)
            if not ended.exception():
                self.idle.append(worker)
        future: Future = Future()
        try:
            worker = self.idle.pop() if self.idle else Worker()
            self.at_work[future] = worker
            worker.submit(future, self.task, *arguments)
        except (OSError, ImportError, NotImplementedError, RuntimeError) as error:
            self.at_work.pop(future, None)
            hint = _START_HINTS.get(getattr(error, "errno", None) or 0, "see `ulimit -a` and the limits of the container")
            future.set_exception(OSError(f"no worker process could be started: {error}; {hint}"))
        return future

    def is_over(self) -> bool:
        return False

    def stop(self) -> None:
        """End the workers at once: checkpoints keep all epochs that were finished."""
        if not all(future.done() for future in self.at_work):
            for process in set(active_children()) - self.before:
                process.kill()
        for worker in (*self.idle, *self.at_work.values()):
            worker.pool.shutdown(cancel_futures=True)


_SHARED_MEMORY = "semaphores stand in /dev/shm: it must be writable and not full"
_START_HINTS = {
    errno.EPIPE: "it ended at once; its output above may say why",
    **dict.fromkeys((errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.ENOENT), _SHARED_MEMORY),
}
_DEATH_HINTS = {
    "SIGKILL": "as the kernel or a container does when memory runs out: try fewer --jobs, or allow more memory",
    "SIGBUS": "as when /dev/shm or a disk is full",
}


class Worker:
    """A process that does one run after another."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _obey)  # fork is unsafe with threads
        self.process: BaseProcess | None = None

    def submit(self, future: Future, task: Callable, *arguments) -> None:
        """Set the future by task(*arguments), or by a BrokenProcessPool that says what the process died of."""
        before = set(active_children())
        inner = self.pool.submit(task, *arguments)
        self.process = next(iter(set(active_children()) - before), self.process)
        inner.add_done_callback(lambda done: self._pass_on(done, future))

    def _pass_on(self, done: Future, future: Future) -> None:
        if done.cancelled():
            future.cancel()
        elif done.exception():
            future.set_exception(BrokenProcessPool(self._explain_death() or str(done.exception())))
        else:
            future.set_result(done.result())

    def _explain_death(self) -> str:
        if self.process is None:
            return ""
        self.process.join(5)  # it is dead, or about to be
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit status {code}" if code else ""
        name = signal.Signals(-code).name
        return ", ".join([f"killed by {name}", *filter(None, [_DEATH_HINTS.get(name)])])


def _obey() -> None:
    """Loop of a worker: ignore Ctrl-C and SIGTERM, which the parent handles, and end when the parent is gone."""
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
            tell: Callable[[RunConfig, Record | Failure], None], begin: Callable[[RunConfig], None] = lambda config: None,
            ) -> list[Failure]:  # fmt: skip
    """Do the runs, `jobs` at a time; runs that another process is doing come last, as they may have ended by then.

    Args:
        configs: the runs, in their order.
        workers: submit(config, directory, results, wait, options) gives a Future of what `attempt` returns.
        options: for train.
        tell: called with every run that ended.
        begin: called with every run that is about to begin, or to wait for another process that is doing it.

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
            if config not in busy:
                begin(config)
            running[workers.submit(config, directory, results, patience, options)] = config
        done = wait_for_one(running) if running else set()
        for future in [future for future in running if future in done]:  # in the order in which they began
            config, ended = running.pop(future), _get(future)
            if ended is None:
                busy.add(config)
                todo.append(config)
                continue
            if isinstance(ended, str):
                ended = Failure(config, ended)
            ended = _note(config, ended, results)
            if isinstance(ended, Failure):
                failures.append(ended)
            tell(config, ended)
    return failures


def wait_for_one(running: Iterable[Future]) -> set[Future]:
    """Wait until a future is done, or a signal ends the process; returns all that are done.

    It looks every second: a signal that another thread gets, as after SIGCONT, or that comes just before the wait, does not
    wake this thread up, in which Python handles it.
    """
    while not (done := wait(running, timeout=1, return_when=FIRST_COMPLETED).done):
        pass
    return done


def _get(future: Future) -> Ended | str:
    error = future.exception()  # of the worker, not of the run
    if error is None:
        return future.result()
    died = "the process died: " if isinstance(error, BrokenProcessPool) else ""
    return f"{type(error).__name__}: {died}{error}"


def _note(config: RunConfig, ended: Record | Failure, results: Path) -> Record | Failure:
    """Keep a failure until the run has ended. A disk that is full, or read-only, is part of its message."""
    path = store.failure_path(config, results)
    try:
        if isinstance(ended, Failure):
            ended.save(results)
        elif ended.outcome != "interrupted" and path.exists():
            path.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(ended, Failure):
            return replace(ended, message=f"{ended.message}; {error}")
    return ended


# ---------------------------------------------------------------- progress

TRUST = 60.0  # s of cost that weigh as if they had been done at the estimated pace


@dataclass
class Progress:
    """Reports runs as they end, with the time left, which is estimated from what they cost."""

    names: dict[str, int]  # id -> number in the sweep
    seconds: Callable[[RunConfig], float]  # what a run costs on a core
    jobs: int
    left: float  # s, cost of what is not done
    bar: tqdm
    done: float = 0.0  # s, cost of the runs that have finished
    taken: float = 0.0  # s, that they took, as their records say
    running: dict[RunConfig, float] = field(default_factory=dict)  # and time.perf_counter() when it began

    def remaining(self, now: float) -> float:
        """Wall seconds left: what the runs cost, at the pace of those that have finished, divided among the jobs.

        At first the pace is 1, and short runs change it little.
        """
        pace = (self.taken + TRUST) / (self.done + TRUST)
        begun = sum(min(now - since, self.seconds(config) * pace) for config, since in self.running.items())
        return max(self.left * pace - begun, 0.0) / max(min(self.jobs, len(self.names) - self.bar.n), 1)

    def begin(self, config: RunConfig) -> None:
        """A run begins: a line, where no bar shows it, as in the log of a batch job."""
        self.running[config] = perf_counter()
        if self.bar.disable:
            left = cost.format_duration(self.remaining(perf_counter()))
            print(f"{self._name(config)}: begun; {left} left", flush=True)

    def tell(self, config: RunConfig, ended: Record | Failure) -> None:
        """A run has ended."""
        self.left -= self.seconds(config)
        self.running.pop(config, None)
        if isinstance(ended, Record) and ended.outcome == "finished":  # others stopped before they had cost so much
            self.done, self.taken = self.done + self.seconds(config), self.taken + ended.seconds[-1]
        what = f"failed: {ended.message}" if isinstance(ended, Failure) else record.summary(ended)
        self.bar.n += 1  # update() counts nothing where no bar shows
        self.show()
        left = cost.format_duration(self.remaining(perf_counter()))
        self.bar.write(f"{self._name(config)}: {what}; {left} left", file=sys.stdout)
        sys.stdout.flush()

    def _name(self, config: RunConfig) -> str:
        return f"[{self.names[config.id]}/{len(self.names)}] {describe(config)}"

    def show(self) -> None:
        """Runs under way, runs that wait for them, and the time left, behind the bar."""
        todo = len(self.names) - self.bar.n
        running, left = min(self.jobs, todo), cost.format_duration(self.remaining(perf_counter()))
        self.bar.set_postfix_str(f"{running} running, {todo - running} to come, {left} left")


@contextmanager
def show_progress(plan: Plan, missing: tuple[RunConfig, ...], results: Path, jobs: int) -> Iterator[Progress]:
    """The progress of a plan, with a bar for as long as the block runs."""
    seconds = cost.calibrate(cost.load_readable(results))
    names = {c.id: number for number, c in enumerate(plan.configs, 1)}
    with tqdm(total=len(names), initial=len(names) - len(missing), unit="run", disable=None,
              bar_format="{desc}: {n_fmt}/{total_fmt} done |{bar}| {elapsed}{postfix}", desc=plan.name) as bar:  # fmt: skip
        progress = Progress(names, seconds, jobs, sum(map(seconds, missing)), bar)
        progress.show()
        yield progress


def describe(config: RunConfig) -> str:
    """A run in a few words: "fc mnist rbd dim=250 lr=1 seed=0"; fields at their defaults are left out."""
    usual = RunConfig(model=config.model, data=config.data, method=config.method)
    given = json.loads(config.canonical())
    parts = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in sorted(given.items())
             if name not in ("model", "data", "method", "seed") and value != getattr(usual, name)]  # fmt: skip
    return " ".join([config.model, config.data, config.method, *parts, f"seed={config.seed}"])
