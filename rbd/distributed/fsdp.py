"""Parameters that FSDP2 has sharded: a worker has some columns of each basis, and the values that belong to them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate

import torch
from torch import Tensor

from rbd import kernels
from rbd.compartment import Compartment
from rbd.distributed.exchange import Workers
from rbd.distributed.variants import Direction, Part, find_by_dtype

FLATTENED = "a parameter of FullyShardedDataParallel, of which each worker would train a part alone: use fully_shard (FSDP2)"


def local_pieces(shapes: Sequence[tuple[int, ...]], worker: int, workers: int) -> tuple[tuple[int, int], ...]:
    """Where worker r's rows of each parameter lie in the vector of all: [start, stop), cut as torch.chunk along dim 0."""
    pieces, at = [], 0
    for shape in shapes:
        rows, row = shape[0], torch.Size(shape[1:]).numel()
        tall = -(-rows // workers)
        first, last = min(worker * tall, rows), min((worker + 1) * tall, rows)
        pieces.append((at + first * row, at + last * row))
        at += rows * row
    return tuple(pieces)


@dataclass(frozen=True, slots=True)
class Columns:
    """A worker's columns of a basis.

    Attributes:
        parts: of compartments; they cover the local values in order.
        rows: which of all d coordinates belong to each of them.
    """

    parts: tuple[Compartment, ...]
    rows: tuple[slice, ...]


@lru_cache(maxsize=256)  # looked up every step
def columns(compartments: tuple[Compartment, ...], pieces: tuple[tuple[int, int], ...]) -> Columns:
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
    """Adjacent pieces joined, empty ones dropped."""
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


def sharded_directions(workers: Workers, parts: Sequence[Part], mine: Sequence[Columns]) -> list[Direction]:
    """As ``Workers.directions``, but only with this worker's shard of the parameters and gradients."""
    return find_by_dtype(partial(_sharded_directions, workers), parts, mine)


def _sharded_directions(workers: Workers, parts: Sequence[Part], mine: Sequence[Columns]) -> list[Direction]:
    summands = [project_columns(part, own) for part, own in zip(parts, mine)]
    sums = workers.sum(torch.cat(summands)).split([len(c) for c in summands])
    return [Direction(expand_columns(part, own, c), [c]) for part, own, c in zip(parts, mine, sums)]


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as the parameters of a module under fully_shard are."""
    tensors = sys.modules.get("torch.distributed.tensor")  # takes two seconds to import, so not imported for this alone
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def is_flattened(tensor: Tensor) -> bool:
    """Whether it is a parameter of FullyShardedDataParallel (FSDP1): an ordinary tensor of this worker's values, which only
    a private mark of torch's tells from others."""
    return getattr(tensor, "_fsdp_flattened", False)


def sharded_workers(params: Sequence[Tensor]) -> Workers:
    """The workers that share out these parameters.

    Raises:
        ValueError: some are not sharded, or not along dim 0 over one dimension of one mesh.
    """
    placements = {(p.device_mesh, tuple(p.placements)) if is_sharded(p) else None for p in params}  # type: ignore[attr-defined]
    (first, *others) = placements
    if first is None or others or first[0].ndim != 1 or not first[1][0].is_shard(0):
        got = ", ".join("not sharded" if place is None else f"{place[1]} over {place[0]}" for place in placements)
        raise ValueError(f"sharded parameters must all be (Shard(dim=0),) over one mesh of one dimension, got {got}")
    return Workers("sharded", first[0].get_group())
