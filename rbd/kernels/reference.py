"""The definition of project and expand, in float64. Slow and obvious.

Dense bases: their rows are made in tiles and multiplied. Sparse ones: the row and the sign of every column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import sketch
from rbd.philox import words

TILE = 2**20  # entries in a tile of rows


def rows(k: Compartment, spec: BasisSpec, first: int, last: int) -> np.ndarray:
    """Levels of the rows first ... last - 1 of a compartment, counted from its first: (last - first, size) float32."""
    if spec.distribution.sparse:
        of_column, signs = _sketch(k, spec)
        return np.where(of_column == np.arange(first, last, dtype=np.int64)[:, None], signs, np.float32(0))
    chunks = np.arange(-(-(k.before + k.size) // spec.distribution.columns), dtype=np.int64)
    numbers = k.row + np.arange(first, last, dtype=np.int64)
    made = words(numbers, chunks, spec.seed, spec.stream, int(spec.step), k.number)  # (rows, chunks, 64)
    return spec.distribution.entries(made).reshape(last - first, -1)[:, k.before : k.before + k.size]


def _sketch(k: Compartment, spec: BasisSpec) -> tuple[np.ndarray, np.ndarray]:
    """Of every column, the row, minus the compartment's first (so maybe not in 0 ... dim - 1), and the sign: (size,)."""
    columns = k.before + np.arange(k.size, dtype=np.int64)
    of_column, signs = sketch(columns, k.total, spec.seed, spec.stream, int(spec.step), k.number)
    return of_column - k.row, signs


def _project_sparse(x: np.ndarray, k: Compartment, spec: BasisSpec) -> np.ndarray:
    """Signed values by row and segment, then summed over the segments: (size,) -> (dim,)."""
    of_column, signs = _sketch(k, spec)
    here = (of_column >= 0) & (of_column < k.dim)
    terms = np.zeros((k.dim, -(-k.length // k.total)))  # (dim, segments)
    terms[of_column[here], (k.before + np.flatnonzero(here)) // k.total] = (signs * x)[here]
    return terms.sum(1)


def _expand_sparse(c: np.ndarray, k: Compartment, spec: BasisSpec) -> np.ndarray:
    """The signed coordinate of every column's row, 0 if that row is not here: (dim,) -> (size,)."""
    of_column, signs = _sketch(k, spec)
    here = (of_column >= 0) & (of_column < k.dim)
    u = np.zeros(k.size)
    u[here] = signs[here] * c[of_column[here]]
    return u


def _tiles(k: Compartment, spec: BasisSpec) -> Iterator[tuple[slice, np.ndarray]]:
    tall = max(1, TILE // k.size)
    for first in range(0, k.dim, tall):
        last = min(first + tall, k.dim)
        yield slice(first, last), rows(k, spec, first, last)


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """c = scale * (levels @ g) for each compartment (arXiv 2011.04720, with directions of unit expected norm).

    Args:
        g: (D,) float32 or float64, contiguous.
        spec: names the bases; its step is an integer in 0 ... 2**32 - 1.
        out: (d,) of g's dtype, in other memory than g, overwritten.
    """
    at = 0
    for k in spec.compartments:
        x = g[k.start : k.stop].double().numpy()
        if spec.distribution.sparse:
            total = _project_sparse(x, k, spec)
        else:
            total = np.concatenate([levels @ x for _, levels in _tiles(k, spec)])
        c = torch.from_numpy(total).to(g.dtype)  # (d_k,)
        out[at : at + k.dim] = c * spec.distribution.scale(dim=k.total, size=k.length)
        at += k.dim


def expand(c: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """u = levels^T @ (scale * c) for each compartment.

    Args:
        c: (d,) float32 or float64, contiguous; spec: as in ``project``.
        out: (D,) of c's dtype, in other memory than c; out[start:stop] of every compartment is overwritten.
    """
    at = 0
    for k in spec.compartments:
        scaled = (c[at : at + k.dim] * spec.distribution.scale(dim=k.total, size=k.length)).double().numpy()
        if spec.distribution.sparse:
            u = _expand_sparse(scaled, k, spec)
        else:
            u = sum(levels.T @ scaled[tile] for tile, levels in _tiles(k, spec))
        out[k.start : k.stop] = torch.from_numpy(u).to(c.dtype)  # (D_k,)
        at += k.dim


def add(c: torch.Tensor, spec: BasisSpec, params: Sequence[torch.Tensor]) -> None:
    """params += levels^T @ (scale * c), the params being the vector of length D cut into tensors.

    Args:
        c, spec: as in ``expand``.
        params: contiguous tensors of one dtype with D values in all, in other memory than c, updated in place.
    """
    u = torch.empty(spec.size, dtype=c.dtype, device=c.device)
    expand(c, spec, u)
    for p, v in zip(params, u.split([p.numel() for p in params])):
        p += v.view_as(p)
