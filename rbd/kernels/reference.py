"""The definition of project and expand: rows of the basis by tiles, multiplied out in float64. Slow and obvious."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rbd.distribution import Distribution
from rbd.kernels.compartments import length
from rbd.philox import words

TILE = 2**20  # entries in a tile of rows


def rows(compartment: tuple[int, ...], distribution: Distribution, seed: int, stream: int, step: int,
         first: int, last: int) -> np.ndarray:  # fmt: skip
    """Levels of the rows first ... last - 1 of a compartment, counted from its first, where there are values: float32."""
    number, start, stop, _, row, before, _ = compartment
    chunks = np.arange(-(-(before + stop - start) // distribution.columns))
    made = words(row + np.arange(first, last), chunks, seed, stream, step, number)  # (rows, chunks, 64)
    return distribution.entries(made).reshape(last - first, -1)[:, before : before + stop - start]


def _tiles(compartment: tuple[int, ...], distribution: Distribution, seed: int, stream: int,
           step: int) -> Iterator[tuple[slice, np.ndarray]]:  # fmt: skip
    _, start, stop, dim, *_ = compartment
    tall = max(1, TILE // (stop - start))
    for first in range(0, dim, tall):
        last = min(first + tall, dim)
        yield slice(first, last), rows(compartment, distribution, seed, stream, step, first, last)


def project(g: torch.Tensor, compartments, distribution: Distribution, seed: int, stream: int, step: int,
            out: torch.Tensor) -> None:  # fmt: skip
    """c = scale * (levels @ g) for each compartment (arXiv 2011.04720, with directions of unit expected norm).

    Args:
        g: (D,) float32 or float64, contiguous.
        compartments: tuples (number, start, stop, dim, row, before, after): dim rows from row on, over g[start:stop], which
            is what there is of a compartment with as many values more before it and after it.
        distribution: law of the entries; seed, stream, step: the rest of their name.
        out: (sum of dims,) of g's dtype, overwritten.
    """
    at = 0
    for k in compartments:
        x = g[k[1] : k[2]].double().numpy()
        total = np.concatenate([levels @ x for _, levels in _tiles(k, distribution, seed, stream, step)])
        c = torch.from_numpy(total).to(g.dtype)  # (d_k,)
        out[at : at + k[3]] = c * distribution.scale(length(k))
        at += k[3]


def expand(c: torch.Tensor, compartments, distribution: Distribution, seed: int, stream: int, step: int,
           out: torch.Tensor) -> None:  # fmt: skip
    """u = levels^T @ (scale * c) for each compartment.

    Args:
        c: (sum of dims,) float32 or float64, contiguous; the others as in ``project``.
        out: (D,) of c's dtype; out[start:stop] of every compartment is overwritten.
    """
    at = 0
    for k in compartments:
        scaled = (c[at : at + k[3]] * distribution.scale(length(k))).double().numpy()
        u = sum(levels.T @ scaled[tile] for tile, levels in _tiles(k, distribution, seed, stream, step))
        out[k[1] : k[2]] = torch.from_numpy(u).to(c.dtype)  # (D_k,)
        at += k[3]


def add(c: torch.Tensor, compartments, distribution: Distribution, seed: int, stream: int, step: int,
        params: Sequence[torch.Tensor]) -> None:  # fmt: skip
    """params += levels^T @ (scale * c), the params being the vector of length D cut into tensors.

    Args:
        params: contiguous tensors of one dtype with D values in all, updated in place; the others as in ``expand``.
    """
    u = torch.empty(sum(p.numel() for p in params), dtype=c.dtype)
    expand(c, compartments, distribution, seed, stream, step, u)
    for p, v in zip(params, u.split([p.numel() for p in params])):
        p += v.view_as(p)
