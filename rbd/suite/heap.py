"""Freed memory stays with the process while a run lasts, since a network takes the same sizes again and again."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # parameters of mallopt, in glibc's malloc.h
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 2**26}  # map no allocation, give nothing back, grow by 64 MiB
_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17, _MMAP_THRESHOLD: 2**25}  # see keep_memory


@contextmanager
def keep_memory() -> Iterator[None]:
    """Have glibc's malloc keep what is freed; at the end of the context, what is free goes back to the system.

    Otherwise tensors above some size are mapped anew each time, and the system fills them with zeros page by page: half of
    the time that a CNN takes for validation. The settings after the context are those to which glibc comes by itself once
    32 MiB were freed. Nothing is changed with another C library, or where the environment has settings for malloc.
    """
    set_option, trim = _find("mallopt"), _find("malloc_trim")
    if set_option is None or trim is None or _is_set_by_user():
        yield
        return
    _set(set_option, _KEEP)
    try:
        yield
    finally:
        _set(set_option, _USUAL)
        trim(ctypes.c_size_t(0))


def _find(name: str) -> Callable | None:
    """A function of the C library, or None."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _is_set_by_user() -> bool:
    return "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ)


def _set(set_option: Callable, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        set_option(parameter, value)
