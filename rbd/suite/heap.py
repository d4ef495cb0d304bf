"""Freed memory stays with the process, as training gets the same sizes again at every step."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt's parameters, in malloc.h
_PAD = 2**26  # bytes by which the heap grows: with room above, holes between aligned tensors fill sooner


@contextmanager
def kept() -> Iterator[None]:
    """Have glibc's malloc keep what is freed, until the end of the context; what is free then goes back to the system.

    Otherwise each large tensor is mapped and unmapped anew, and the system fills it with zeros page by page: a third of a
    CNN's step, half of its validation. Elsewhere (other C libraries, macOS, Windows) nothing is changed. The settings are
    the process's and cannot be read, so they stay: memory freed later is kept too.
    """
    set_option, trim = _find("mallopt"), _find("malloc_trim")
    if set_option and trim:
        set_option(_MMAP_MAX, 0)  # no mapping of its own for any allocation
        set_option(_TRIM_THRESHOLD, -1)  # never give back the top
        set_option(_TOP_PAD, _PAD)
    try:
        yield
    finally:
        if set_option and trim:
            trim(ctypes.c_size_t(0))


def _find(name: str) -> Callable | None:
    """A function of the C library, or None."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
