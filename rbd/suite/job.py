"""One run: the record that is there, or a new one, made under a lock and saved; and what becomes of a run that fails."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rbd.suite import record, store
from rbd.suite.config import RunConfig
from rbd.suite.experiment import find
from rbd.suite.record import Record

Train = Callable[..., Record]  # takes what rbd.suite.train.train takes


def run(config: RunConfig, directory: Path, results: str | os.PathLike[str], wait: float = -1, train: Train | None = None,
        **options) -> Record:  # fmt: skip
    """The record of a run: one that is there, or a new one saved in directory.

    It comes from train(config, checkpoints, **options), by default rbd.suite.train.train.

    Checkpoints are in <results>/checkpoints/ until the run has ended; an interrupted run goes on from there. While it
    runs it is locked, on this machine or any that shares the file system; the lock ends with the process.

    Args:
        wait: seconds to wait for another process that is doing the run; below 0: as long as it takes.

    Raises:
        store.Busy: another process is doing it, still after these seconds.
        ValueError, OSError: what train, record.find and record.save raise; a directory that cannot be written is found
            out before the run.
    """
    with _claim(config, directory, results, wait) as found:
        return _complete(found, config, directory, results, train, options)


def _complete(found: Record | None, config: RunConfig, directory: Path, results: str | os.PathLike[str],
              train: Train | None, options: dict) -> Record:  # fmt: skip
    """The record that was found, if that run has ended; else one that train makes, saved."""
    checkpoint = store.checkpoint_path(config, results)
    if not found or not _has_ended(found):
        found = (train or _import_train())(config, checkpoint.parent, **options)
        record.save(found, directory)
    if _has_ended(found):
        _remove_left(checkpoint)
    return found


def _remove_left(checkpoint: Path) -> None:
    """Remove a checkpoint, also one that a crash left after the record was saved, and what killed processes had begun."""
    for path in (checkpoint, *checkpoint.parent.glob(f".{checkpoint.stem}.*.tmp")):
        if path.exists():  # a read-only folder refuses even to remove what is not there
            path.unlink(missing_ok=True)


@contextmanager
def _claim(config: RunConfig, directory: Path, results: str | os.PathLike[str], wait: float) -> Iterator[Record | None]:
    """Yield the record if the run has ended; else lock the run, and yield its unfinished record, or None."""
    found = find(config, directory, results)
    if found and _has_ended(found):
        yield found
        return
    for needed in (directory, store.checkpoint_path(config, results).parent, store.lock_path(config.id, results).parent):
        store.check_writable(needed)
    with store.claim(config, results, wait):
        yield find(config, directory, results)  # another process may have ended it meanwhile


def _has_ended(found: Record) -> bool:
    return found.outcome != "interrupted"


def _import_train() -> Train:
    from rbd.suite import train  # it imports torch, which readers of records need not wait for

    return train.train


def count_torchrun() -> int:
    """Processes that torchrun started together with this one; 1 without it. Raises ValueError as `read_integer` does."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 1
    from rbd.distributed.launch import read_integer  # with torch, which a process of torchrun needs anyway

    return read_integer("WORLD_SIZE", 1)


def run_together(config: RunConfig, directory: Path, results: Path, timeout: float, **options) -> Record | None:
    """`run` in each of torchrun's processes: worker 0 keeps record and checkpoints; None on the others.

    Raises:
        store.Busy, ValueError, OSError: as `run`, on all workers: another process is doing it, worker 0 found a damaged
            record, or cannot write.
    """
    from rbd.distributed import Workers, join
    from rbd.suite.train import train

    assert config.workers is not None and config.variant is not None
    with join(config.workers, timeout, options["device"]):
        workers = Workers(config.variant)
        with ExitStack() as claimed:
            found, problem = None, None
            if workers.rank == 0:
                try:
                    found = claimed.enter_context(_claim(config, directory, results, wait=0))
                except (store.Busy, ValueError, OSError) as error:
                    problem = error
            found, problem = workers.tell((found, problem))
            if problem:
                raise problem
            if workers.rank == 0:
                return _complete(found, config, directory, results, train, options)
            if not found or not _has_ended(found):
                train(config, store.checkpoint_path(config, results).parent, **options)
            return None


@dataclass(frozen=True)
class Failure:
    """A run that raised, or whose process died."""

    config: RunConfig
    message: str
    traceback: str = ""

    def save(self, results: str | os.PathLike[str]) -> Path:
        """Note it until the run has ended; return the file."""
        content = {"config": json.loads(self.config.canonical()), "message": self.message, "traceback": self.traceback}
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        return store.write(store.failure_path(self.config, results), text, "a failure")


Ended = Record | Failure | None  # None: another process is doing it


def attempt(
    config: RunConfig, directory: Path, results: Path, wait: float, options: dict, train: Train | None = None
) -> Ended:
    """Do a run and return how it ended; an exception becomes a Failure, so nothing is raised."""
    try:
        return run(config, directory, results, wait, train, **options)
    except store.Busy:
        return None
    except Exception as error:
        return Failure(config, f"{type(error).__name__}: {error}", traceback.format_exc())
