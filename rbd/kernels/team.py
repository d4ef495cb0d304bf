"""A team of threads for one product, running code that has released the GIL.

Numba's own threading layers abort on concurrent calls (workqueue), on fork (omp) or need a library that few platforms have
(tbb).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads stayed in the parent


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_pool)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="rbd")
    return _pool


def share(work: Callable[[], None], threads: int) -> None:
    """Call work() in this thread and in others at once, and return when all are done.

    Args:
        work: takes pieces until none is left, so that fewer threads do it all, if later.
        threads: how many, this one included. A process that is ending gives no others (a step in a thread that outlives
            the main one, in atexit, in __del__), nor does a system that has no more of them.
    """
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
