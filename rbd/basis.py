"""Basis: the name of a random basis Φ (d, D), and the products with it. A Basis owns no memory."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch

from rbd import kernels
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import distribution as distribution_of

WORD = 2**32


def check_word(name: str, value: int) -> int:
    """value, if it is an integer that fits a 32-bit word of the generator.

    Raises:
        TypeError, ValueError: it is not.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: got {value!r}, allowed an integer from 0 to {WORD - 1}")
    if not 0 <= operator.index(value) < WORD:
        raise ValueError(f"{name}: got {value}, allowed 0 ... {WORD - 1}")
    return operator.index(value)


@dataclass(frozen=True)
class Basis:
    """d random directions in R^D, each of unit expected norm, regenerated whenever they are used.

    Every entry is a pure function of (seed, stream, compartment, step, row, column) and the distribution, with mean 0
    and variance 1 / D (arXiv 2011.04720).

    Attributes:
        dim: d, number of directions, 1 ... size.
        size: D, length of a direction.
        distribution: "normal", "uniform" or "rademacher".
        seed, stream, compartment, step: integers in 0 ... 2**32 - 1; bases that differ in one of them are independent.
        row: number of the first direction, for some rows of a larger basis.

    Raises:
        TypeError, ValueError: a field is out of its range.
    """

    dim: int
    size: int
    distribution: str = "rademacher"
    seed: int = 0
    stream: int = 0
    compartment: int = 0
    step: int = 0
    row: int = 0

    def __post_init__(self) -> None:
        for name in ("seed", "stream", "compartment", "step", "row", "dim", "size"):
            object.__setattr__(self, name, check_word(name, getattr(self, name)))  # a plain int
        if self.size < 1:
            raise ValueError(f"size: got {self.size}, allowed 1 ... {WORD - 1}")
        if not 1 <= self.dim <= self.size:
            raise ValueError(f"dim: got {self.dim}, allowed 1 ... {self.size} (the size)")
        if self.row + self.dim > WORD:
            raise ValueError(f"row: got {self.row}, allowed 0 ... {WORD - self.dim} with {self.dim} rows")
        distribution_of(self.distribution)

    def _spec(self) -> BasisSpec:
        one = Compartment(self.compartment, 0, self.size, self.dim, self.row)
        return BasisSpec((one,), distribution_of(self.distribution), self.seed, self.stream, self.step)

    def project(self, g: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """c = Φ g, (D,) -> (d,): float64 for float64 g, else float32. NaN and infinities pass through.

        Raises:
            TypeError, ValueError: g is not a real floating-point tensor of shape (D,), or out does not fit.
            RuntimeError: there are no kernels for g's device.
        """
        return kernels.project(g, self._spec(), out)

    def expand(self, c: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """u = Φᵀ c, (d,) -> (D,): float64 for float64 c, else float32. Errors as in ``project``."""
        return kernels.expand(c, self._spec(), out)

    def dense(self) -> torch.Tensor:
        """Φ itself, (d, D) float32: for looking at it; training never makes one."""
        from rbd.kernels.reference import rows

        spec = self._spec()
        return torch.from_numpy(rows(spec.compartments[0], spec, 0, self.dim)) * spec.distribution.scale(self.size)
