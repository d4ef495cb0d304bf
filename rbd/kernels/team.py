"""Threads for one product, running code that has released the GIL: torch's own OpenMP threads, or a pool of our own.

After an operation on several threads, torch's OpenMP threads spin for milliseconds, waiting for the next one. A pool's
threads must first get a core from them, and take 25 to 50 µs to wake up; the spinning threads themselves start in 2 µs. So
a product on as many threads as torch has borrows them. OpenMP waits for a thread whose core is taken by another process; a
pool does not. After three such waits in a row, OpenMP is avoided for 100 times the length of the last wait.

The pool is no ThreadPoolExecutor, whose futures and queue took some 70 µs of a product; here two locks hand a job over.

Numba's own threading layers abort on concurrent calls (workqueue), on fork (omp) or need a library that few platforms have
(tbb).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock, Thread

import torch

_count: int | None = None


def set_threads(count: int | None) -> None:
    """Use this number of threads from now on; None: as many as torch (torch.get_num_threads())."""
    global _count
    _count = count


def thread_count() -> int:
    """How many threads a product may use."""
    return _count or torch.get_num_threads()


_idle: list[_Helper] = []  # the pool: threads that wait for a job
_started = 0  # threads of the pool, idle or not
_forked = False  # OpenMP's threads, and the pool's, stayed in the parent
_late = 0  # how often in a row OpenMP's threads came late
_resting = 0.0  # time.perf_counter() until which they are not used

LATE = 2e-4  # seconds of waiting that count as late; a start takes 2e-6
MOST = 16 + 2 * (os.cpu_count() or 1)  # threads of the pool: one whose job was withdrawn may not be back at the next call


def _forget_threads() -> None:
    global _idle, _started, _forked
    _idle, _started, _forked = [], 0, True


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_threads)


def share(work: Callable[[], None], threads: int) -> None:
    """Call work() in this thread and in others at once, and return when all are done.

    Args:
        work: takes pieces until none is left, so fewer threads also do all of it.
        threads: how many, this one included. May run with fewer threads: during interpreter shutdown, or if the system
            refuses new threads to the pool. (If it refuses them to OpenMP, the process ends, as in any torch operation.)
    """
    borrows = threads == torch.get_num_threads() and time.perf_counter() > _resting and not (_forked or sys.is_finalizing())
    if borrows and (openmp := _openmp()):
        _borrow(openmp, work, threads)
    else:
        _ask_pool(work, threads)


def share_pieces(work: Callable[[Iterator[int]], None], count: int, threads: int) -> None:
    """``share`` of the pieces 0 ... count - 1: every thread calls work with an iterator over those that it is to do.

    A thread gets the next piece when it asks for it, so a slow thread does fewer.
    """
    taken = itertools.count()  # next() is atomic
    share(lambda: work(itertools.takewhile(lambda piece: piece < count, taken)), threads)


@cache
def _openmp() -> ctypes.CDLL | None:
    """The GNU OpenMP library that torch itself has loaded; None: it uses another, or none."""
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        library.GOMP_parallel_start.argtypes = [_TASK, ctypes.c_void_p, ctypes.c_uint]  # found in what torch depends on
        library.GOMP_parallel_start.restype = library.GOMP_parallel_end.restype = None
    except (OSError, AttributeError):
        return None
    return library


_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _borrow(openmp: ctypes.CDLL, work: Callable[[], None], threads: int) -> None:
    """``share`` with the OpenMP threads that serve this thread, all of them: a smaller team would end the others."""
    raised: list[BaseException] = []

    def help(_: None) -> None:
        try:
            work()
        except BaseException as error:  # it cannot pass through OpenMP
            raised.append(error)

    task, asked = _TASK(help), time.perf_counter()
    try:  # this thread works outside of OpenMP, so that Ctrl-C passes
        openmp.GOMP_parallel_start(task, None, threads)
        started = time.perf_counter()
        work()
        worked = time.perf_counter()
    finally:
        openmp.GOMP_parallel_end()  # which waits for the others
    _rest(max(started - asked, time.perf_counter() - worked - (worked - started)))
    for error in raised:
        raise error


def _rest(wait: float) -> None:
    """Leave OpenMP's threads alone for a while if they came late for the third time in a row.

    One that the pool's threads have crowded out is late once or twice, until the system gives it a core of its own.

    Args:
        wait: for the start, or for the others' end beyond this thread's own time, seconds.
    """
    global _late, _resting
    _late = _late + 1 if wait > LATE else 0
    if _late == 3:
        _late, _resting = 0, time.perf_counter() + 100 * wait


class _Job:
    """work() for one helper, unless it is withdrawn before the helper begins."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._taken, self._signal = work, Lock(), Lock()
        self._signal.acquire()  # until the helper releases it
        self._begun = self._over = False
        self.error: BaseException | None = None

    def run(self) -> None:
        """In the helper."""
        self._begun = True
        try:
            if self._taken.acquire(blocking=False):
                self._work()
        except BaseException as error:  # for the caller
            self.error = error
        finally:
            self._over = True
            self._signal.release()

    def end(self) -> None:
        """In the caller: withdraw the job if nobody has begun it, else wait until it has ended. May be called again."""
        self._taken.acquire(blocking=False)  # by this or an earlier call, or by the helper, which had begun before
        while self._begun and not self._over:
            self._signal.acquire()


class _Helper(Thread):
    """A thread of the pool. Raises RuntimeError if the system refuses to start it."""

    def __init__(self) -> None:
        super().__init__(name="rbd", daemon=True)  # at the end of the process it waits, and may be stopped
        self._job: _Job | None = None
        self._signal = Lock()
        self._signal.acquire()
        self.start()

    def give(self, job: _Job) -> None:
        self._job = job
        self._signal.release()

    def run(self) -> None:
        while True:
            self._signal.acquire()
            if self._job is not None:
                self._job.run()
                self._job = None  # its arrays may be freed
            _idle.append(self)


def _ask_pool(work: Callable[[], None], threads: int) -> None:
    """``share`` with a pool. If work() raises here, the others are waited for too: their memory may be freed after it."""
    jobs = [_Job(work) for _ in range(threads - 1)]  # all are known before one begins, whenever Ctrl-C comes
    try:
        with suppress(RuntimeError):  # no new threads, see ``share``
            for job in jobs:
                _take_helper().give(job)
        work()
    finally:
        try:
            _end(jobs)
        except BaseException:  # Ctrl-C as _end was entered
            _end(jobs)
            raise
    for job in jobs:
        if job.error is not None:
            raise job.error


def _take_helper() -> _Helper:
    """One that is idle, or a new one. Raises RuntimeError if there can be no more."""
    global _started
    try:
        return _idle.pop()
    except IndexError:
        if _started >= MOST or sys.is_finalizing():  # Python 3.11 would wait for ever for a thread that it starts then
            raise RuntimeError("no more threads") from None
        made = _Helper()
        _started += 1
        return made


def _end(jobs: list[_Job]) -> None:
    """End all jobs. Ctrl-C during the wait is raised after it."""
    try:
        for job in jobs:
            job.end()
    except BaseException:
        _end(jobs)
        raise
