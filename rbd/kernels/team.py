"""A team of threads for one product, running code that has released the GIL: torch's own, or a pool of Python's.

After an operation on several threads, torch's OpenMP threads spin for milliseconds in wait of the next one. A pool's threads
must first get a core from them, and take 25 to 50 µs to wake up; the spinning threads themselves start in 2 µs. So a
product that follows torch's operations borrows them, where it wants as many as torch has. OpenMP waits for a thread whose
core another process has, where a pool does not: after three such waits, a hundred times as long passes before the next.

Numba's own threading layers abort on concurrent calls (workqueue), on fork (omp) or need a library that few platforms have
(tbb).
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

_count: int | None = None


def set_threads(count: int | None) -> None:
    """Use so many threads from now on; None: as many as torch (torch.get_num_threads())."""
    global _count
    _count = count


def thread_count() -> int:
    """How many threads a product may use."""
    return _count or torch.get_num_threads()


_pool: ThreadPoolExecutor | None = None
_forked = False  # OpenMP's threads, and the pool's, stayed in the parent
_late = 0  # how often in a row OpenMP's threads came late
_resting = 0.0  # time.perf_counter() until which they are not asked

LATE = 2e-4  # seconds of waiting that say so; a start takes 2e-6


def _forget_threads() -> None:
    global _pool, _forked
    _pool, _forked = None, True


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_threads)


def share(work: Callable[[], None], threads: int) -> None:
    """Call work() in this thread and in others at once, and return when all are done.

    Args:
        work: takes pieces until none is left, so that fewer threads do it all, if later.
        threads: how many, this one included. A process that is ending gives no others (a step in a thread that outlives
            the main one, in atexit, in __del__), nor does a system that refuses the pool more of them. (Where it refuses
            them to OpenMP, the process ends, as in any operation of torch on several threads.)
    """
    borrows = threads == torch.get_num_threads() and time.perf_counter() > _resting and not (_forked or sys.is_finalizing())
    if borrows and (openmp := _openmp()):
        _borrow(openmp, work, threads)
    else:
        _ask_pool(work, threads)


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


def _ask_pool(work: Callable[[], None], threads: int) -> None:
    """``share`` with threads of Python's."""
    others, begun, ended = [], list[None](), list[None]()

    def help() -> None:
        begun.append(None)
        try:
            work()
        finally:
            ended.append(None)

    try:
        for _ in range(threads - 1):
            others.append(_threads().submit(help))
    except RuntimeError:
        work()
        while len(ended) < len(begun):  # one that submit has queued before it raised may have a piece in hand
            time.sleep(1e-4)
    else:
        work()
    for other in others:
        other.result()
