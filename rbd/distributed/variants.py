"""What workers compute in each variant, without any communication: functions of a worker's number and their count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from rbd import kernels
from rbd.compartment import BasisSpec, Compartment

VARIANTS = ("common", "bases", "directions", "shares")  # what a user picks; FSDP2 parameters are always "sharded"
OWN_BATCH = ("common", "bases", "ddp")
OWN_BASIS = ("bases", "directions")


@dataclass(frozen=True, slots=True)
class Part:
    """Gradient and bases of a parameter group in a step.

    Attributes:
        g: (D,) gradient, float32 or float64.
        spec: names its bases, with stream 0; own bases have the worker's number there.
    """

    g: Tensor
    spec: BasisSpec


class Direction(NamedTuple):
    """The update of a parameter group in a step, before the learning rate.

    Attributes:
        u: (D,), or this worker's values of it where parameters are sharded.
        coordinates: those that u is made of: one vector where the workers' are summed, else one from each, in their order.
    """

    u: Tensor
    coordinates: list[Tensor]


@lru_cache(maxsize=256)  # looked up every step
def worker_rows(compartments: tuple[Compartment, ...], worker: int, workers: int) -> tuple[Compartment, ...]:
    """Worker r's rows of all compartments together: numbers ⌊r d / W⌋ ... ⌊(r+1) d / W⌋ - 1, equal to within one."""
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
    """The coordinates that worker r computes and sends: (d,); with the variant shares, one for each of its rows."""
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
        parts: one for each worker, alike in all but their gradients.
        variant: one of VARIANTS.
    """
    return update(parts[0], variant, [project(part, variant, r, len(parts)) for r, part in enumerate(parts)])


def find_by_dtype(find: Callable[..., list[Direction]], parts: Sequence[Part], *more: Sequence) -> list[Direction]:
    """``find(parts, *more)``, called for the parts of each dtype.

    Its exchange joins the coordinates of all parts to one vector. In one of float64, those of float32 would take twice the
    bytes, and be summed in float64, unlike ``in_turn``.
    """
    found: dict[int, Direction] = {}
    for dtype in dict.fromkeys(part.g.dtype for part in parts):
        places = [i for i, part in enumerate(parts) if part.g.dtype == dtype]
        found |= zip(places, find(*([each[i] for i in places] for each in (parts, *more))))
    return [found[i] for i in range(len(parts))]
