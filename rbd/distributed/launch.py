"""Starting workers, and joining those that torchrun has started."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rbd.basis import check_integer

TIMEOUT = 60.0  # seconds, timeout of exchanges between workers of ``launch`` and ``join``
PER_CORE = 16  # processes that ``launch`` starts at most, of some 250 MiB each: a slip must not take all memory
_ANSWER, _FAILURE = "answer", "failure"  # files of ``launch``: worker 0's result; the traceback of the first that failed

T = TypeVar("T")


def is_launched() -> bool:
    """Whether torchrun, ``launch`` or the caller has made this process one of several workers."""
    return dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())


_joins = itertools.count()


def read_integer(name: str, low: int, high: int | None = None) -> int:
    """A variable of the environment that torchrun sets. Raises ValueError if it is no integer from low to high."""
    text = os.environ[name]
    with suppress(ValueError):
        if low <= (value := int(text)) and (high is None or value <= high):
            return value
    allowed = f"an integer {low} ... {high}" if high is not None else f"an integer >= {low}"
    raise ValueError(f"{name}: got {text!r} in the environment, allowed {allowed}, as torchrun sets it")


def _check_place() -> None:
    """Raise ValueError if WORLD_SIZE or RANK is wrong; where one is not set, torch says so."""
    if {"WORLD_SIZE", "RANK"} <= set(os.environ):
        read_integer("RANK", 0, read_integer("WORLD_SIZE", 1) - 1)


def _own_gpu() -> int:
    """Number of this worker's GPU: NCCL wants one for each worker of a machine."""
    if lacking := [name for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name not in os.environ]:
        needed = " and ".join(lacking)
        raise ValueError(f"device: got 'cuda', which needs {needed} in the environment, as torchrun sets them")
    gpus, here = torch.cuda.device_count(), read_integer("LOCAL_WORLD_SIZE", 1)
    if here > gpus:
        raise ValueError(f"device: got 'cuda' for {here} workers and {gpus} GPUs, allowed a GPU for each, or 'cpu'")
    return read_integer("LOCAL_RANK", 0, here - 1)


@contextmanager
def join(workers: int, timeout: float = TIMEOUT, device: str = "cpu") -> Iterator[None]:
    """The default process group, of torchrun's workers or of the caller, for as long as the block runs.

    Args:
        workers: how many there have to be.
        timeout: of an exchange between workers, seconds.
        device: "cpu" (gloo) or "cuda" (NCCL; each worker gets a GPU of its own).

    Raises:
        TypeError, ValueError: an argument, or RANK or WORLD_SIZE in the environment, is out of its range; the group has
            another number of workers; the device is "cuda", and there is no GPU for each of them.
    """
    workers = check_integer("workers", workers)
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, allowed 'cpu' or 'cuda'")
    ours = not dist.is_initialized()
    if ours:
        _check_place()
        if device == "cuda":
            torch.cuda.set_device(_own_gpu())
        backend, limit = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timedelta(seconds=timeout)
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        # torchrun keeps its store over a restart; without the prefix new workers would connect to addresses of dead ones
        ours_alone = dist.PrefixStore(f"rbd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_joins)}", store)
        dist.init_process_group(backend, store=ours_alone, rank=rank, world_size=size, timeout=limit)
    try:
        if dist.get_world_size() != workers:
            raise ValueError(f"workers: got {workers}, allowed {dist.get_world_size()}, as many as were started")
        yield
    finally:
        if ours:
            _leave()


def launch(function: Callable[..., T], workers: int, *args: Any, timeout: float = TIMEOUT) -> T:
    """Call a function in W new processes of this machine, all in one gloo group; returns worker 0's result.

    The workers share out the cores that this process may use. With OMP_NUM_THREADS, none has more threads than that.

    Args:
        function: importable by name; it, its arguments and its result are pickled.
        workers: W, number of processes.
        args: the function's arguments.
        timeout: of an exchange between workers, seconds.

    Raises:
        TypeError, ValueError: workers is not an integer, less than 1, or more than 16 for each core.
        RuntimeError: a worker failed or was killed; the others are stopped, and the traceback of the first one is shown. Or
            worker 0 ended without a result (``sys.exit``).
    """
    import torch.multiprocessing as mp

    most = PER_CORE * _count_cores()
    if not 1 <= (workers := check_integer("workers", workers)) <= most:
        raise ValueError(f"workers: got {workers}, allowed 1 ... {most} on this machine ({PER_CORE} a core)")
    store = dist.TCPStore("localhost", 0, None, True, timedelta(seconds=timeout), wait_for_workers=False)
    with TemporaryDirectory() as name:
        folder = Path(name)
        answer, failure = folder / _ANSWER, folder / _FAILURE
        context = mp.start_processes(_work, (function, workers, store.port, timeout, folder, args), workers, join=False,
                                     start_method="spawn")  # fmt: skip
        try:
            while not context.join():
                pass
        except mp.ProcessExitedException as error:  # a worker was killed: others say only that they lost it
            raise RuntimeError(f"worker {error.error_index} of {workers} failed: {error}") from error
        except mp.ProcessRaisedException as error:  # of the worker that ended first, maybe because another one had failed
            first = failure.read_text("utf-8") if failure.exists() else ""
            raise RuntimeError(first or f"worker {error.error_index} of {workers} failed: {error}") from error
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        if not answer.exists():
            raise RuntimeError(f"worker 0 of {workers} ended without a result: the function called sys.exit or os._exit")
        return pickle.loads(answer.read_bytes())


def _work(rank: int, function: Callable, workers: int, port: int, timeout: float, folder: Path, args: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent process reports Ctrl-C
    limit = timedelta(seconds=timeout)
    store = dist.TCPStore("localhost", port, None, False, limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers, timeout=limit)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), _count_cores() // workers)))  # torch follows OMP_NUM_THREADS
    try:
        made = function(*args)
        if rank == 0:
            (folder / _ANSWER).write_bytes(pickle.dumps(made))
    except BaseException:
        with suppress(OSError), (folder / _FAILURE).open("x", encoding="utf-8") as file:  # before others lose this one
            file.write(f"worker {rank} of {workers} failed: {traceback.format_exc()}")
        raise
    finally:
        _leave()


def _count_cores() -> int:
    """Of those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave() -> None:
    """Destroy the default process group, unless the function that has run in it did."""
    if dist.is_initialized():
        dist.destroy_process_group()
