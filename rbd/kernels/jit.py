"""Kernels compiled by Numba and saved on disk for the next process; where that fails, each process compiles them.

Numba's own cache raises if no directory can be written, a file is damaged or the disk is full. And it reads its index of
a kernel's files and writes it back without a lock: if two processes compile at once, the code of one signature may be
stored under another. Here each signature has a file of its own, with a checksum.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from types import ModuleType
from typing import Any

import numba
from numba.core.caching import FunctionCache, NullCache
from numba.core.serialize import dumps

_SUM = sha256().digest_size  # bytes, at the start of a file
_log = logging.getLogger("rbd")


def jit(*included: ModuleType) -> Callable[[Callable], Callable]:
    """Decorator of a kernel that releases the GIL and is compiled once for each signature and kind of machine.

    Args:
        included: modules whose functions the kernel inlines: Numba itself does not notice changes in these.
    """
    sources = sha256(b"".join(Path(str(m.__file__)).read_bytes() for m in included)).hexdigest()

    def decorate(kernel: Callable) -> Callable:
        dispatcher = numba.njit(nogil=True, error_model="numpy")(kernel)
        dispatcher._cache = _open_cache(kernel, sources)
        return dispatcher

    return decorate


def _open_cache(kernel: Callable, sources: str) -> _Cache | _NoCache:
    try:
        return _Cache(kernel, sources)
    except RuntimeError:  # no directory can be written
        return _NoCache()


class _NoCache(NullCache):
    """Saves nothing; warns when a kernel would have been saved."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        _announce()

    def save_overload(self, sig: Any, data: Any) -> None:
        _warn("no directory for it can be written")


class _Cache(FunctionCache):
    """Numba's cache, but failures to load or save are never errors."""

    def __init__(self, kernel: Callable, sources: str) -> None:
        super().__init__(kernel)
        stamp = (numba.__version__, self._impl.locator.get_source_stamp(), sources)
        self._cache_file = _Files(Path(self._cache_path), self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = None
        with suppress(Exception):  # a damaged file may raise anything
            found = super().load_overload(sig, target_context)
        if found is None:
            _announce()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn(f"{self._cache_path}: {error.strerror or error}")


@dataclass(frozen=True)
class _Files:
    """The files of one kernel, with the methods that Numba's cache calls.

    Attributes:
        folder: that the files are in.
        name: the first part of their names.
        stamp: identifies the sources; code from other sources is not loaded, and is overwritten.
    """

    folder: Path
    name: str
    stamp: tuple

    def load(self, key: tuple) -> Any:
        """What was saved under a key, or None if that is damaged or out of date. Raises OSError if nothing was."""
        content = self._path(key).read_bytes()
        head, body = content[:_SUM], content[_SUM:]
        if sha256(body).digest() != head:
            return None
        found, data = pickle.loads(body)
        return data if found == (self.stamp, key) else None

    def save(self, key: tuple, data: Any) -> None:
        """Write a file atomically: other processes may read and write the same file."""
        body = dumps(((self.stamp, key), data))
        temporary = self.folder / f"{self.name}.{token_hex(8)}.tmp"
        try:
            temporary.write_bytes(sha256(body).digest() + body)
            os.replace(temporary, self._path(key))
        finally:
            with suppress(OSError):
                temporary.unlink()

    def flush(self) -> None:
        """Remove all files."""
        for path in self.folder.glob(f"{self.name}-*.nbc"):
            path.unlink(missing_ok=True)

    def _path(self, key: tuple) -> Path:
        signature, machine, _ = key
        return self.folder / f"{self.name}-{sha256(repr((signature, machine)).encode()).hexdigest()[:16]}.nbc"


@cache
def _announce() -> None:
    """Log once that there is a wait for the compiler. `rbd train` shows this; programs that configure no logging do not."""
    _log.info("compiling kernels, which takes some seconds")


@cache
def _warn(problem: str) -> None:
    """Warn once that code is not kept, and say what to do."""
    what = f"rbd: compiled kernels are not kept ({problem}), so every process compiles them anew, which takes seconds"
    what += "; set NUMBA_CACHE_DIR to a directory that can be written and has room"
    warnings.warn(what, RuntimeWarning, stacklevel=2)
