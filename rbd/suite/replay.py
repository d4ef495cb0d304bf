"""How the steps of a run are done: called one by one, or queued on a GPU as CUDA graphs of many.

On a GPU, the operations of a small network take less time than it takes Python to launch them. A CUDA graph launches all
operations of 32 steps at once. Nothing in such a chunk may wait for the device: losses stay there until the epoch's end.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST = 32  # steps of a chunk
PAUSE = 20.0  # s, at least, between two checkpoints: an epoch may be a tenth of a second
AHEAD = 2  # chunks of a run that may wait on the device: enough to keep it busy while other runs have their turn

Work = Callable[[], tuple[Tensor, ...]]  # a step; gives () tensors
Ready = Callable[[], bool]  # whether a run can go on without waiting


@dataclass(frozen=True)
class Chunk:
    """Steps that are done together; one whose cosine is taken is a chunk of its own."""

    steps: range
    is_sampled: bool = False


def schedule(steps: range, is_sampled: Callable[[int], bool], longest: int = LONGEST) -> Iterator[Chunk]:
    """Steps as chunks: each sampled one alone, the others by powers of two, at most `longest` (a power of two)."""
    start = steps.start
    for stop in (*filter(is_sampled, steps), steps.stop):
        while start < stop:
            count = min(longest, 1 << (stop - start).bit_length() - 1)
            yield Chunk(range(start, start + count))
            start += count
        if stop < steps.stop:
            yield Chunk(range(stop, stop + 1), True)
            start = stop + 1


class Eager:
    """Calls the work directly, step by step."""

    queues = False  # whether nothing is read before the epoch's end: optimizers and batches have to allow for that
    pause = 0.0  # s between two checkpoints

    def run(self, name: str, work: Work, count: int = 1) -> list[Tensor]:
        """Do the work `count` times.

        Args:
            name: the same for the same work.

        Returns:
            For each of its tensors, the values of all times, (count,).
        """
        made = [work() for _ in range(count)]
        return [torch.stack(values) for values in zip(*made)]

    def is_ready(self) -> bool:
        return True

    def read(self, *groups: list[Tensor]) -> Generator[Ready, None, list[Tensor]]:
        """The tensors of each group as one vector on the host; a generator that yields until the device has made them."""
        return [torch.cat(group).cpu() if group else torch.empty(0) for group in groups]
        yield

    def forget(self) -> None:
        """Drop what was captured, as the work has changed."""

    @contextmanager
    def device(self) -> Iterator[None]:
        """The context (on a GPU, the run's stream) for everything else that a run does with its tensors."""
        yield


class Captured(Eager):
    """Queues the work on a stream of the run's own, as a CUDA graph from the second time on.

    The first time the work is called directly, which compiles and loads what it needs. Both ways launch the same kernels in
    the same order, so the bits are the same. Graphs of a run share memory: what one leaves behind is copied before the next
    one is queued.
    """

    queues, pause = True, PAUSE

    def __init__(self) -> None:
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.stream.wait_stream(torch.cuda.current_stream())  # which has made the run's tensors
        self.graphs: dict[tuple[str, int], tuple[torch.cuda.CUDAGraph, list[Tensor]] | None] = {}
        self.under_way: deque[torch.cuda.Event] = deque()

    def run(self, name: str, work: Work, count: int = 1) -> list[Tensor]:
        with self.device():
            if (name, count) not in self.graphs:
                self.graphs[name, count] = None
                made = super().run(name, work, count)
            else:
                graph, left = self.graphs[name, count] or self._capture(name, work, count)
                graph.replay()
                made = [x.clone() for x in left]
            self.under_way.append(self.stream.record_event())
        return made

    def _capture(self, name: str, work: Work, count: int) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # what it frees may be what a capture does not allow
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            left = super().run(name, work, count)
        finally:
            graph.capture_end()
            gc.enable()
        self.graphs[name, count] = graph, left
        return graph, left

    def is_ready(self) -> bool:
        while self.under_way and self.under_way[0].query():
            self.under_way.popleft()
        return len(self.under_way) < AHEAD

    def read(self, *groups: list[Tensor]) -> Generator[Ready, None, list[Tensor]]:
        with self.device():
            flat = torch.cat([x.double() for group in groups for x in group])
            host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)
            done = self.stream.record_event()
        while not done.query():
            yield done.query
        parts = host.split([sum(len(x) for x in group) for group in groups])
        return [part.to(group[0].dtype) if group else part for part, group in zip(parts, groups)]

    def forget(self) -> None:
        self.graphs.clear()

    @contextmanager
    def device(self) -> Iterator[None]:
        with torch.cuda.stream(self.stream):
            yield


def choose(device: str, needs_host: bool) -> Eager:
    """Graphs on a GPU, but for runs whose steps need the host: to exchange with other workers, or to place coordinates."""
    return Captured() if device == "cuda" and not needs_host else Eager()


@contextmanager
def reproducible(device: str) -> Iterator[None]:
    """On a GPU: float32 without TF32, algorithms that add up in one order, and what cuBLAS needs for that.

    torch's settings are put back afterwards.
    """
    if device != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    cudnn, filler = torch.backends.cudnn, torch.utils.deterministic
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, filler.fill_uninitialized_memory
    was, only_warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32, cudnn.benchmark = False, False
        filler.fill_uninitialized_memory = False  # a kernel more for every new tensor
        torch.use_deterministic_algorithms(True, warn_only=True)  # where torch has them; max-pooling's do not overlap here
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark, filler.fill_uninitialized_memory = before[1:]
        torch.use_deterministic_algorithms(was, warn_only=only_warned)
