"""Times and bytes of W workers of this machine, for benchmarks/workers.py, whose look-ups need no torch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from itertools import product
from statistics import median

import torch
import torch.distributed as dist

from benchmarks._suite import suite
from benchmarks.workers import RIVALS, VARIANTS, Found
from rbd import RBD, distributed
from rbd.distributed import Part, Workers
from rbd.distribution import distribution
from rbd.partition import Partition, partition

DIM, SIZE = 250, 101_770  # the paper's d, and the D of its FC net


def _seconds(function: Callable[[], object], times: int, group: dist.ProcessGroup) -> float:
    """Median time of a call that all workers begin together; that of the slowest worker, for which the others wait."""
    function()
    taken = []
    for _ in range(times):
        dist.barrier(group)
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    box: list[float] = [0.0] * dist.get_world_size(group)
    dist.all_gather_object(box, median(taken), group)
    return max(box)


def _bytes(function: Callable[[], object], times: int) -> float:
    """What this worker sends in a call; NaN, which is n/a, where the system does not count them."""
    if sys.platform != "linux":
        return math.nan
    function()
    before = _sent()
    for _ in range(times):
        function()
    return (_sent() - before) / times


def _sent() -> int:
    try:
        return suite("wire").count_bytes().sent
    except ModuleNotFoundError:  # a commit from before the suite had a folder
        return distributed.wire().sent


def _optimizer(group: dist.ProcessGroup | None, variant: str | None) -> RBD:
    theta = torch.nn.Parameter(torch.zeros(SIZE))
    theta.grad = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    return RBD([theta], lr=1e-3, dim=DIM, distribution="rademacher", variant=variant, process_group=group)


def _exchange(variant: str, group: dist.ProcessGroup) -> Callable[[], object]:
    """What a variant sends and waits for, and nothing else."""
    c, g = torch.randn(DIM), torch.randn(SIZE)
    if variant == "all_reduce":
        return lambda: dist.all_reduce(g, group=group)
    workers = Workers(variant, group)
    if variant in ("common", "ddp"):
        return lambda: workers.mean(c if variant == "common" else g)
    lengths = [DIM] * workers.size
    if variant == "shares":
        lengths = [(r + 1) * DIM // workers.size - r * DIM // workers.size for r in range(workers.size)]
    return lambda: workers.gather(c[: lengths[workers.rank]], lengths)()


def _part(g: torch.Tensor, cut: Partition) -> Part:
    signs = distribution("rademacher")
    try:
        from rbd.compartment import BasisSpec
    except ImportError:  # an rbd from before it, in which parts had these fields themselves
        return Part(g, cut.compartments, signs, 0, 0)  # type: ignore[call-arg, arg-type]
    return Part(g, BasisSpec(cut.compartments, signs, 0, 0, 0))


def _regeneration(variant: str, count: int) -> Callable[[], object]:
    """What a worker generates in a step: its own coordinates, and the update from everybody's."""
    g, cut = torch.randn(SIZE), partition("whole", (("", SIZE),), DIM)
    part = _part(g, cut)
    c = [distributed.project(part, variant, r, count) for r in range(count)]
    return lambda: (distributed.project(part, variant, 0, count), distributed.update(part, variant, c))


def measured(counts: tuple[int, ...], times: int) -> Found:
    """(what, variant, W) -> seconds or bytes, by worker 0 of the most workers."""
    found = {}
    for count in counts:
        group = dist.new_group(list(range(count)))
        if dist.get_rank() < count:
            for variant in (*VARIANTS, *RIVALS):
                exchange = _exchange(variant, group)
                found["exchange", variant, count] = _seconds(exchange, times, group)
                found["bytes", variant, count] = _bytes(exchange, times)
                if variant in VARIANTS:
                    found["step", variant, count] = _seconds(_optimizer(group, variant).step, times, group)
            if count == 1:
                found["step", "alone", 1] = _seconds(_optimizer(None, None).step, times, group)
                for variant, more in product(VARIANTS, counts):
                    found["regeneration", variant, more] = _seconds(_regeneration(variant, more), times, group)
        dist.barrier()
    return found
