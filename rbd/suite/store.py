"""Files of the results directory: where each one is, locks of runs, atomic writes. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from rbd.suite.config import RunConfig


def record_paths(config: RunConfig, directory: str | os.PathLike[str], results: str | os.PathLike[str]) -> list[Path]:
    """Where the record of a run may stand: in the directory, there or not, then in those of other experiments."""
    own = Path(directory) / f"{config.id}.json"
    return [own, *sorted(path for path in Path(results).glob(f"runs/*/{config.id}.json") if path != own)]


def checkpoint_path(config: RunConfig, results: str | os.PathLike[str]) -> Path:
    """The checkpoint of a run, until it has ended."""
    return Path(results) / "checkpoints" / f"{config.id}.safetensors"


def lock_path(name: str, results: str | os.PathLike[str]) -> Path:
    """The lock of the process that does the run of this id (see `claim`), or writes the file of this name."""
    return Path(results) / "locks" / f"{name}.lock"


def failure_path(config: RunConfig, results: str | os.PathLike[str]) -> Path:
    """Where the failure of a run is noted until it has ended."""
    return Path(results) / "failures" / f"{config.id}.json"


def manifest_path(name: str, results: str | os.PathLike[str]) -> Path:
    """The list of the runs of an experiment in a profile, such as "table1-quick"."""
    return Path(results) / "sweeps" / f"{name}.json"


def measurement_path(name: str, results: str | os.PathLike[str]) -> Path:
    """What an experiment that measures found in a profile."""
    return Path(results) / "measurements" / f"{name}.json"


class Busy(RuntimeError):
    """Another process is doing this run, this measurement, or writing this file."""


@contextmanager
def claim(config: RunConfig, results: str | os.PathLike[str], wait: float = -1) -> Iterator[None]:
    """Be the only process at a run, on this machine and on any that shares the file system; the lock ends with the process.

    Args:
        wait: seconds to wait for another process; below 0 as long as it takes.

    Raises:
        Busy: another process is doing it, still after these seconds.
    """
    path = lock_path(config.id, results)
    with lock(path, f"{config.id}: another process is doing this run", wait):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows cannot remove an open file; who waits for this one checks if it is gone
                path.unlink()


@contextmanager
def lock(path: Path, told: str, wait: float = -1) -> Iterator[None]:
    """Be the only process in this block, as in `claim`; raises Busy with this message."""
    from filelock import FileLock, Timeout  # of the extra `suite`: `rbd --help` and readers do without

    held = FileLock(path, timeout=wait)
    try:
        held.acquire()
    except Timeout as error:
        raise Busy(told) from error
    try:
        yield
    finally:
        held.release()


def write(path: Path, content: str | bytes, what: str = "a file") -> Path:
    """Write content (text as UTF-8) to the file atomically; make its directory; return the path. Permissions stay.

    Raises OSError naming the directory if that cannot be made or written.
    """
    temporary = path.with_name(f".{path.stem}.{token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):  # there is none yet
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot save {what}: {error.strerror}", str(path.parent)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def update(path: Path, text: str, what: str = "a file") -> None:
    """``write``, unless the file has that text: the directory may be read-only then."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write(path, text, what)


def relate(path: Path, folder: Path) -> str:
    """The path as seen from a folder, with slashes; whole where there is no way, from one drive of Windows to another."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Make the directory. Raises OSError naming it if records cannot be saved there, before hours of work are lost."""
    probe = Path(directory) / f".{token_hex(8)}.tmp"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"cannot save a record: {error.strerror}", str(directory)) from error
