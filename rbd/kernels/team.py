"""Threads for one product, running code that has released the GIL: torch's own OpenMP threads, or a pool of Python's.

After an operation on several threads, torch's OpenMP threads spin for milliseconds, waiting for the next one. A pool's
threads must first get a core from them, and take 25 to 50 µs to wake up; the spinning threads themselves start in 2 µs. So
a product on as many threads as torch has borrows them. OpenMP waits for a thread whose core is taken by another process; a
pool does not. After three such waits in a row, OpenMP is avoided for 100 times the length of the last wait.

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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

_count: int | None = None


def set_threads(count: int | None) -> None:
    """Use this number of threads from now on; None: as many as torch (torch.get_num_threads())."""
    global _count
    _count = count


def thread_count() -> int:
    """How many threads a product may use."""
    return _count or torch.get_num_threads()


_pool: ThreadPoolExecutor | None = None
_forked = False  # OpenMP's threads, and the pool's, stayed in the parent
_late = 0  # how often in a row OpenMP's threads came late
_resting = 0.0  # time.perf_counter() until which they are not used

LATE = 2e-4  # seconds of waiting that count as late; a start takes 2e-6


def _forget_threads() -> None:
    global _pool, _forked
    _pool, _forked = None, True


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


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="rbd")
    return _pool


class _Help:
    """work() for the threads of a pool, which none of them begins after ``close``."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._begun, self._ended, self._closed = work, list[None](), list[None](), False

    def __call__(self) -> None:
        self._begun.append(None)  # before closed is read, as close() sets it before begun is read
        try:
            if not self._closed:
                self._work()
        finally:
            self._ended.append(None)

    def close(self, others: list[Future[None]]) -> None:
        """Wait until all threads that have begun have ended. Ctrl-C during the wait is raised after it."""
        self._closed = True
        try:
            for other in others:
                if not other.cancel():
                    other.exception()
            while self._is_running():  # only if submit has queued a call and raised: there is no Future to wait for
                time.sleep(1e-4)
        finally:
            if self._is_running():
                self.close(others)

    def _is_running(self) -> bool:
        return len(self._ended) < len(self._begun)


def _ask_pool(work: Callable[[], None], threads: int) -> None:
    """``share`` with a pool. If work() raises here, the others are waited for too: their memory may be freed after it."""
    help, others = _Help(work), list[Future[None]]()
    try:
        with suppress(RuntimeError):  # no new threads, see ``share``
            for _ in range(threads - 1):
                others.append(_threads().submit(help))
        work()
    finally:
        help.close(others)
    for other in others:
        if not other.cancelled():
            other.result()
