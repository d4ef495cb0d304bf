"""Workers that share seeds: any worker regenerates any other's basis, so only coordinates cross the wire.

The fourth claim of arXiv 2011.04720 on torch.distributed (gloo on CPUs, NCCL on GPUs). W workers, d directions over D
parameters; Φ_r and g_r are worker r's basis and the gradient on its batch:

    variant      batch  basis               θ ← θ - η u                values a worker sends in a step
    common       own    one, Φ              u = Φᵀ (1/W) Σ_r Φ g_r     2 d (W-1)/W
    bases        own    own, Φ_r            u = Σ_r Φ_rᵀ Φ_r g_r       d (W-1)
    directions   one    own, Φ_r            u = Σ_r Φ_rᵀ Φ_r g         d (W-1)
    shares       one    rows R_r of one, Φ  u = Σ_r Φ[R_r]ᵀ Φ[R_r] g   ⌈d/W⌉ (W-1)
    sharded      own    columns of one, Φ   u = Φᵀ Σ_r Φ[:, r] g[r]    2 d (W-1)/W, beside what FSDP2 sends
    ddp          own    none                u = (1/W) Σ_r g_r          2 D (W-1)/W

Own bases differ in the word `stream` of their names, the worker's number; shares and columns are parts of one basis. Every
sum is taken in the order of the workers, so W processes, and one process that does the same in turn, agree bit for bit.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from rbd import kernels
from rbd.basis import WORD, check_word
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import distribution as distribution_of
from rbd.partition import by_tensor
from rbd.philox import STREAM_VERSION

VARIANTS = ("common", "bases", "directions", "shares")  # what a user picks; FSDP2 parameters are always "sharded"
OWN_BATCH = ("common", "bases", "ddp")
OWN_BASIS = ("bases", "directions")
TIMEOUT = 60.0  # seconds that workers started by the suite wait for each other
CHECK = 100  # steps between two comparisons of the workers' parameters, too dear for every step

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """What a parameter group brings to a step.

    Attributes:
        g: (D,) gradient, float32 or float64.
        spec: names its bases, with stream 0; own bases have the worker's number there.
    """

    g: Tensor
    spec: BasisSpec


# ---------------------------------------------------------------- the equations, for any worker


@lru_cache(maxsize=256)  # looked up every step
def worker_rows(compartments: tuple[Compartment, ...], worker: int, workers: int) -> tuple[Compartment, ...]:
    """Worker r's rows of all compartments together: numbers ⌊r d / W⌋ ... ⌊(r+1) d / W⌋ - 1, so one more or less."""
    d, at, mine = sum(k.dim for k in compartments), 0, []
    low, high = worker * d // workers, (worker + 1) * d // workers
    for k in compartments:
        first, last = max(low - at, 0), min(high - at, k.dim)
        if first < last:
            mine.append(replace(k, dim=last - first, row=k.row + first))
        at += k.dim
    return tuple(mine)


@lru_cache(maxsize=256)
def _shift_to_start(compartments: tuple[Compartment, ...]) -> tuple[Compartment, ...]:
    """The same compartments in a vector that begins where the first of them does."""
    start = compartments[0].start
    return tuple(replace(k, start=k.start - start, stop=k.stop - start) for k in compartments)


def project(part: Part, variant: str, worker: int, workers: int) -> Tensor:
    """c_r, the coordinates that worker r finds and sends: (d,), or as many as it has rows with the variant shares."""
    if variant != "shares":
        return kernels.project(part.g, replace(part.spec, stream=worker if variant in OWN_BASIS else 0))
    mine = worker_rows(part.spec.compartments, worker, workers)
    if not mine:  # more workers than directions
        return part.g.new_empty(0)
    spec = replace(part.spec, compartments=_shift_to_start(mine))
    return kernels.project(part.g[mine[0].start : mine[-1].stop], spec)


def expand(part: Part, c: Tensor, stream: int = 0) -> Tensor:
    """Φᵀ c, (d,) -> (D,)."""
    return kernels.expand(c, replace(part.spec, stream=stream))


def update(part: Part, variant: str, c: Sequence[Tensor]) -> Tensor:
    """u (D,) from the coordinates of all workers, in their order."""
    if variant in OWN_BASIS:
        return ordered_sum(expand(part, c_r, stream) for stream, c_r in enumerate(c))
    return expand(part, ordered_sum(c) / len(c) if variant == "common" else torch.cat(list(c)))


def ordered_sum(terms: Iterable[Tensor]) -> Tensor:
    """((x_0 + x_1) + x_2) + ... in the order of the workers."""
    terms = iter(terms)  # one at a time, as W of them may not fit into memory
    total = next(terms).clone()
    for term in terms:
        total += term
    return total


def in_turn(parts: Sequence[Part], variant: str) -> Tensor:
    """u (D,) of W workers, computed by one process in turn: the definition that W processes equal bit for bit.

    Args:
        parts: one for each worker, alike in all but their gradients; variant: one of VARIANTS.
    """
    return update(parts[0], variant, [project(part, variant, r, len(parts)) for r, part in enumerate(parts)])


# ---------------------------------------------------------------- one worker among others


class Workers:
    """This process among the workers of a group, and what they tell each other.

    Args:
        variant: one of VARIANTS, or "sharded" or "ddp" for what they need of it.
        group: a torch.distributed process group; None: the default one.

    Raises:
        ValueError: this process is not in the group.
        RuntimeError: torch.distributed is not initialised; from any method: a worker died, left, or kept the others waiting
            for longer than the group's timeout.
    """

    def __init__(self, variant: str, group: dist.ProcessGroup | None = None):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("process_group: torch.distributed is not initialised, allowed after "
                               "torch.distributed.init_process_group() in a script started by torchrun")  # fmt: skip
        self.variant, self.group = variant, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("process_group: got a group without this process, allowed one that it belongs to")

    def __deepcopy__(self, memo: dict) -> Workers:
        return self

    def directions(self, parts: Sequence[Part]) -> list[tuple[Tensor, list[Tensor]]]:
        """u (D,) and the coordinates it is made of, the same on all workers, for every parameter group.

        The coordinates of all groups travel together. With own bases, a worker expands its own while the others' come.
        """
        mine = [project(part, self.variant, self.rank, self.size) for part in parts]
        if self.variant == "common":
            means = _split_by_part(self.mean(torch.cat(mine)), parts, [len(c) for c in mine])
            return [(expand(part, c), [c]) for part, c in zip(parts, means)]
        lengths = [[self._length(part, r) for part in parts] for r in range(self.size)]  # (W, groups)
        arrived = self.gather(torch.cat(mine), [sum(each) for each in lengths])
        own = [expand(part, c, self.rank) for part, c in zip(parts, mine)] if self.variant in OWN_BASIS else []
        theirs = [_split_by_part(c, parts, each) for c, each in zip(arrived(), lengths)]
        found = []
        for i, part in enumerate(parts):
            c = [of_worker[i] for of_worker in theirs]
            found.append((self._update(part, c, own[i] if own else None), c))
        return found

    def sharded(self, parts: Sequence[Part], mine: Sequence[Columns]) -> list[tuple[Tensor, list[Tensor]]]:
        """As ``directions``, from and for this worker's values of parameters and gradients alone."""
        summands = [project_columns(part, own) for part, own in zip(parts, mine)]
        sums = _split_by_part(self.sum(torch.cat(summands)), parts, [len(c) for c in summands])
        return [(expand_columns(part, own, c), [c]) for part, own, c in zip(parts, mine, sums)]

    def _length(self, part: Part, worker: int) -> int:
        d = part.spec.dim
        return (worker + 1) * d // self.size - worker * d // self.size if self.variant == "shares" else d

    def _update(self, part: Part, c: list[Tensor], own: Tensor | None) -> Tensor:
        """``update`` with this worker's own summand, if there is one, at hand."""
        if own is None:
            return update(part, self.variant, c)
        return ordered_sum(own if r == self.rank else expand(part, c_r, r) for r, c_r in enumerate(c))

    def gather(self, x: Tensor, lengths: Sequence[int]) -> Callable[[], list[Tensor]]:
        """Send x, (lengths[rank],), to all; the function returned waits for all and returns theirs, in their order."""
        if self.size == 1:
            return lambda: [x]
        longest = max(lengths)
        everything = x.new_empty(self.size * longest)
        sent = pad(x, (0, longest - len(x)))
        work = self._try(lambda: dist.all_gather_into_tensor(everything, sent, self.group, async_op=True))

        def wait() -> list[Tensor]:
            self._try(work.wait)
            return [row[:n] for row, n in zip(everything.view(self.size, longest), lengths)]

        return wait

    def sum(self, x: Tensor) -> Tensor:
        """Σ_r x_r, (n,), in the order of the workers: every worker adds up its part of the places and sends the sums.

        No all-reduce, whose order of summation is the backend's own; it sends as many bytes as the best of them.
        """
        if self.size == 1:
            return x
        places = -(-len(x) // self.size)
        sent = pad(x, (0, self.size * places - len(x)))
        got, sums = torch.empty_like(sent), torch.empty_like(sent)
        self._try(lambda: dist.all_to_all_single(got, sent, group=self.group))
        part = ordered_sum(got.view(self.size, places))
        self._try(lambda: dist.all_gather_into_tensor(sums, part, self.group))
        return sums[: len(x)]

    def mean(self, x: Tensor) -> Tensor:
        """(1/W) Σ_r x_r, (n,)."""
        return self.sum(x) / self.size

    def tell(self, value: T) -> T:
        """Worker 0's value, on all workers."""
        box = [value]
        self._try(lambda: dist.broadcast_object_list(box, group=self.group, group_src=0))
        return box[0]

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with worker 0's."""
        for tensor in tensors:
            self._try(partial(dist.broadcast, tensor, group=self.group, group_src=0))

    def agree(self, facts: dict[str, Any]) -> None:
        """Return if the facts are the same on all workers.

        Raises:
            RuntimeError: they are not; names the first that differs and who has which.
        """
        everyone: list[dict[str, Any]] = [{}] * self.size
        self._try(lambda: dist.all_gather_object(everyone, facts, self.group))
        for name in dict.fromkeys(name for each in everyone for name in each):
            values: dict[str, list[int]] = {}
            for r, each in enumerate(everyone):
                values.setdefault(repr(each.get(name)), []).append(r)
            if len(values) > 1:
                got = ", ".join(f"{value} on worker {_numbers(who)}" for value, who in values.items())
                raise RuntimeError(f"{name}: got {got}, allowed the same on all workers")

    def _try(self, exchange: Callable[[], T]) -> T:
        try:
            return exchange()
        except RuntimeError as error:
            raise RuntimeError(f"worker {self.rank} of {self.size}: an exchange failed: another worker died, left or kept "
                               f"the others waiting beyond the timeout ({_first_line(error)})") from error  # fmt: skip


def _split_by_part(c: Tensor, parts: Sequence[Part], lengths: Sequence[int]) -> list[Tensor]:
    """Coordinates of all groups cut into those of each, in its dtype."""
    return [piece.to(part.g.dtype) for piece, part in zip(c.split(list(lengths)), parts)]


def _numbers(workers: list[int]) -> str:
    shown = ", ".join(map(str, workers[:8]))
    return shown if len(workers) <= 8 else f"{shown} and {len(workers) - 8} more"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def digest(tensors: Iterable[Tensor]) -> str:
    """16 hex digits that tell tensors apart by their bits."""
    sum = blake2b(digest_size=8)
    for tensor in tensors:
        sum.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sum.hexdigest()


# ---------------------------------------------------------------- parameters that FSDP2 has sharded


def local_pieces(shapes: Sequence[tuple[int, ...]], worker: int, workers: int) -> list[tuple[int, int]]:
    """Where worker r's rows of each parameter lie in the vector of all: [start, stop), cut as torch.chunk along dim 0."""
    pieces, at = [], 0
    for shape in shapes:
        rows, row = shape[0], torch.Size(shape[1:]).numel()
        tall = -(-rows // workers)
        first, last = min(worker * tall, rows), min((worker + 1) * tall, rows)
        pieces.append((at + first * row, at + last * row))
        at += rows * row
    return pieces


class Columns(NamedTuple):
    """A worker's columns of a basis: parts of compartments, and which of all d coordinates are theirs."""

    parts: tuple[Compartment, ...]
    rows: tuple[slice, ...]


def columns(compartments: Sequence[Compartment], pieces: Sequence[tuple[int, int]]) -> Columns:
    """Parts of compartments that cover the pieces, which stand one after another among the local values."""
    firsts, parts, rows, at = list(accumulate((k.dim for k in compartments), initial=0)), [], [], 0
    for start, stop in _merge(pieces):
        for k, first in zip(compartments, firsts):
            low, high = max(start, k.start), min(stop, k.stop)
            if low < high:
                beside = {"before": k.before + low - k.start, "after": k.after + k.stop - high}
                parts.append(replace(k, start=at, stop=at + high - low, **beside))
                rows.append(slice(first, first + k.dim))
                at += high - low
    return Columns(tuple(parts), tuple(rows))


def _merge(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces of which none begins where the one before it ends, and none is empty."""
    merged: list[tuple[int, int]] = []
    for start, stop in pieces:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        if start < stop:
            merged.append((start, stop))
    return merged


def project_columns(part: Part, mine: Columns) -> Tensor:
    """This worker's summand of all coordinates, (local values,) -> (d,); part.g has the local values only."""
    c = part.g.new_zeros(part.spec.dim)
    if mine.parts:
        found = kernels.project(part.g, replace(part.spec, compartments=mine.parts))
        for rows, summand in zip(mine.rows, found.split([k.dim for k in mine.parts])):
            c[rows] += summand
    return c


def expand_columns(part: Part, mine: Columns, c: Tensor) -> Tensor:
    """This worker's part of Φᵀ c, (d,) -> (local values,)."""
    if not mine.parts:
        return torch.empty_like(part.g)
    of_parts = torch.cat([c[rows] for rows in mine.rows])
    return kernels.expand(of_parts, replace(part.spec, compartments=mine.parts))


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as the parameters of a module under fully_shard are."""
    tensors = sys.modules.get("torch.distributed.tensor")  # two seconds to import, and who has none need not wait
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def sharded_workers(params: Sequence[Tensor]) -> Workers:
    """The workers that share out these parameters.

    Raises:
        ValueError: some are not sharded, or not along dim 0 over one dimension of one mesh.
    """
    kinds = {(p.device_mesh, tuple(p.placements)) if is_sharded(p) else None for p in params}  # type: ignore[attr-defined]
    (first, *others) = kinds
    if first is None or others or first[0].ndim != 1 or not first[1][0].is_shard(0):
        got = ", ".join("not sharded" if kind is None else f"{kind[1]} over {kind[0]}" for kind in kinds)
        raise ValueError(f"params: got {got}, allowed all of them (Shard(dim=0),) over one mesh of one dimension")
    return Workers("sharded", first[0].get_group())


# ---------------------------------------------------------------- a DDP communication hook


class CoordinatesState:
    """State of ``coordinates_hook``: a basis for each tensor of a model, redrawn every so many steps.

    Args:
        params: ``model.parameters()``, in the order that all workers have.
        dim: total number of random directions, at least one a tensor, shared out by size.
        distribution, seed, redraw: as in RBD.
        process_group: the one given to DistributedDataParallel; None: the default one.

    Attributes:
        step: number of the next step, which names its bases. Keep it in your checkpoints, and set it to go on from one.

    Raises:
        TypeError, ValueError: an argument is out of its range.
        RuntimeError: torch.distributed is not initialised, or the workers were given different arguments; from a backward
            pass, on all workers, if their steps or parameters differ (looked at in the first step and every CHECK).
    """

    def __init__(self, params: Iterable[Tensor], dim: int = 250, distribution: str = "rademacher", seed: int = 0,
                 redraw: int = 1, process_group: dist.ProcessGroup | None = None):  # fmt: skip
        kept = [p for p in params if p.requires_grad]
        cut = by_tensor(tuple(("", p.numel()) for p in kept), dim).compartments
        self.params = [p for p in kept if p.numel()]
        self.compartments = {id(p): k for p, k in zip(self.params, cut)}
        self.distribution, self.seed = distribution_of(distribution), check_word("seed", seed)
        self.redraw, self.step, self._calls = check_word("redraw", redraw), 0, 0
        self.workers = Workers("common", process_group)
        self.workers.agree({"stream_version": STREAM_VERSION, "dim": dim, "distribution": distribution, "seed": seed,
                            "redraw": redraw, "shapes": [tuple(p.shape) for p in kept]})  # fmt: skip

    def advance(self) -> None:
        """The next step; once in a while, are all workers at the same one, with the same parameters?"""
        if self._calls % CHECK == 0:
            self.workers.agree({"step": self.step, "parameters": digest(self.params)})
        self._calls, self.step = self._calls + 1, self.step + 1


def coordinates_hook(state: CoordinatesState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Send coordinates in place of gradients: g becomes Φᵀ (1/W) Σ_r Φ g_r, tensor by tensor.

    For ``DistributedDataParallel.register_comm_hook``, whatever optimizer is used; with plain SGD it is RBD by tensors with
    the variant common. Directions have unit expected norm and E[Φᵀ Φ g] = (d / D) g, so learning rates are RBD's, not SGD's.
    How DDP cuts its buckets does not matter: bases are named by tensors. A worker sends its d coordinates to each other one,
    d (W-1) values in a step, while the rest of the backward pass goes on.

    Raises:
        RuntimeError: from the backward pass: another worker died, left, or kept this one waiting for longer than the group's
            timeout; or as in CoordinatesState.
    """
    g, at, compartments = bucket.buffer(), 0, []
    for p in bucket.parameters():
        if p.numel():
            compartments.append(replace(state.compartments[id(p)], start=at, stop=at + p.numel()))
        at += p.numel()
    drawn = state.step // state.redraw % WORD if state.redraw else 0
    if bucket.is_last():
        state.advance()
    part = Part(g, BasisSpec(tuple(compartments), state.distribution, state.seed, 0, drawn))
    c = project(part, "common", state.workers.rank, state.workers.size)
    everyone = c.new_empty(state.workers.size * len(c))
    work = state.workers._try(lambda: dist.all_gather_into_tensor(everyone, c, state.workers.group, async_op=True))

    def finished(arrived: torch.futures.Future) -> Tensor:
        state.workers._try(arrived.wait)
        return g.copy_(update(part, "common", list(everyone.view(state.workers.size, len(c)))))

    return work.get_future().then(finished)


def ordered_hook(workers: Workers, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's mean of gradients, but summed in the order of the workers, so that one process can follow bit for bit."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer().copy_(workers.mean(bucket.buffer())))
    return done


if dist.is_available():  # DDP compares annotations with the types themselves, not with their names
    for _hook in (coordinates_hook, ordered_hook):
        _hook.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}


# ---------------------------------------------------------------- starting workers, and what they put on the wire


def launched() -> bool:
    """Whether torchrun, ``launch`` or the caller has made this process one of several workers."""
    return dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())


_joins = itertools.count()


def _own_gpu() -> int:
    """Number of this worker's GPU: NCCL wants one for each worker of a machine."""
    gpus, here = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if here > gpus:
        raise ValueError(f"device: got 'cuda' for {here} workers and {gpus} GPUs, allowed a GPU for each, or 'cpu'")
    return int(os.environ["LOCAL_RANK"])


@contextmanager
def joined(workers: int, timeout: float = TIMEOUT, device: str = "cpu") -> Iterator[None]:
    """The default process group, of torchrun's workers or of the caller, for as long as the block runs.

    Raises:
        ValueError: it has another number of workers; the device is "cuda", and there is no GPU for each of them.
    """
    ours = not dist.is_initialized()
    if ours:
        if device == "cuda":
            torch.cuda.set_device(_own_gpu())
        backend, limit = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timedelta(seconds=timeout)
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        # torchrun's store outlives its workers, and those of a restart would call at the addresses of the dead
        ours_alone = dist.PrefixStore(f"rbd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_joins)}", store)
        dist.init_process_group(backend, store=ours_alone, rank=rank, world_size=size, timeout=limit)
    try:
        if dist.get_world_size() != workers:
            raise ValueError(f"workers: got {workers}, allowed {dist.get_world_size()}, as many as were started")
        yield
    finally:
        if ours:
            dist.destroy_process_group()


def launch(function: Callable[..., T], workers: int, *args: Any, timeout: float = TIMEOUT) -> T:
    """Call a function in W new processes of this machine, all in one gloo group; returns worker 0's result.

    Args:
        function: importable by name, as are all its arguments (they are pickled).
        timeout: seconds that workers wait for each other.

    Raises:
        RuntimeError: a worker failed or was killed; the others are stopped, and its traceback is shown.
    """
    import torch.multiprocessing as mp

    store = dist.TCPStore("localhost", 0, None, True, timedelta(seconds=timeout), wait_for_workers=False)
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        context = mp.start_processes(_work, (function, workers, store.port, timeout, answer, args), workers, join=False,
                                     start_method="spawn")  # fmt: skip
        try:
            while not context.join():
                pass
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise RuntimeError(f"worker {error.error_index} of {workers} failed: {error}") from error
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        return pickle.loads(answer.read_bytes())


def _work(rank: int, function: Callable, workers: int, port: int, timeout: float, answer: Path, args: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is the parent's to tell of
    limit = timedelta(seconds=timeout)
    store = dist.TCPStore("localhost", port, None, False, limit)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers, timeout=limit)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    try:
        made = function(*args)
        if rank == 0:
            answer.write_bytes(pickle.dumps(made))
    finally:
        dist.destroy_process_group()


class Wire(NamedTuple):
    """Bytes that this process has put on and taken off its TCP connections, as the kernel counts them."""

    sent: int
    received: int


def wire() -> Wire:
    """What the TCP connections open now have carried, headers of TCP not counted (Linux: TCP_INFO).

    Raises:
        OSError: the system does not tell.
    """
    if sys.platform != "linux":
        raise OSError(f"platform: got {sys.platform!r}, allowed 'linux': bytes on the wire are read from TCP_INFO")
    infos = [info for fd in os.listdir("/proc/self/fd") if (info := _tcp_info(int(fd)))]
    sent, received = (sum(struct.unpack_from("Q", info, place)[0] for info in infos) for place in (200, 128))
    return Wire(sent, received)


def _tcp_info(fd: int) -> bytes | None:
    """struct tcp_info of linux/tcp.h: tcpi_bytes_received at 128, tcpi_bytes_sent at 200; None for another file."""
    with suppress(OSError):  # closed meanwhile
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            with socket.socket(fileno=os.dup(fd)) as s:
                if s.family in (socket.AF_INET, socket.AF_INET6) and s.type == socket.SOCK_STREAM:
                    return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return None
