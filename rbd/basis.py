"""Basis: names a random basis Φ (d, D) and multiplies by it. Φ itself is never stored."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from numbers import Real

import torch

from rbd import kernels
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import distribution as distribution_of
from rbd.kernels.compiled import has_tangent, is_transformed, sum_dtype
from rbd.partition import check_ordered

WORD = 2**32


def check_word(name: str, value: int) -> int:
    """value, if it is an integer that fits a 32-bit word of the generator.

    Raises:
        TypeError, ValueError: it is not.
    """
    if not 0 <= (number := check_integer(name, value, f"an integer from 0 to {WORD - 1}")) < WORD:
        raise ValueError(f"{name}: got {value}, allowed 0 ... {WORD - 1}")
    return number


def check_integer(name: str, value: int, allowed: str = "an integer") -> int:
    """value as an int; raise TypeError if it is no integer."""
    if type(value) is int:  # as it is: torch.compile would compile the function again for every value of an index
        return value
    if not isinstance(value, bool):
        with suppress(TypeError):  # of floats, and tensors of them
            return operator.index(value)
    raise TypeError(f"{name}: got {value!r}, allowed {allowed}")


def as_list(params: object) -> list:
    """What a user gives as parameters, as a list: of one item for a tensor, and for what is no collection."""
    return list(params) if isinstance(params, Iterable) and not isinstance(params, torch.Tensor) else [params]


def is_number(value: object) -> bool:
    """Whether it is a real number, or a tensor of one."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Basis:
    """d random directions in R^D, each of unit expected norm, regenerated whenever they are used.

    Every entry is a pure function of (seed, stream, compartment, step, row, column) and the distribution, with mean 0
    and variance 1 / D (arXiv 2011.04720). Entries of "countsketch" depend on (total, size) as well.

    Attributes:
        dim: d, number of directions, 1 ... size.
        size: D, length of a direction.
        distribution: "rademacher" (signs), "uniform" or "normal" (dense), or "countsketch" (one nonzero in every column).
        seed, stream, compartment, step: integers in 0 ... 2**32 - 1; bases that differ in one of them are independent.
        row: number of the first direction, for some rows of a larger basis.
        total: number of directions of that larger basis, by default row + dim. Dense entries do not depend on it.

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
    total: int | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "stream", "compartment", "step", "row", "dim", "size"):
            check = check_integer if name in ("dim", "size") else check_word
            object.__setattr__(self, name, check(name, getattr(self, name)))  # a plain int
        if not 1 <= self.size < WORD:
            raise ValueError(f"size: got {self.size}, allowed 1 ... {WORD - 1}")
        if not 1 <= self.dim <= self.size:
            raise ValueError(f"dim: got {self.dim}, allowed 1 ... {self.size} (the size)")
        if self.row + self.dim > WORD:
            raise ValueError(f"row: got {self.row}, allowed 0 ... {WORD - self.dim} with {self.dim} rows")
        if self.total is not None:
            object.__setattr__(self, "total", check_word("total", self.total))
            if not self.row + self.dim <= self.total <= self.size:
                least = self.row + self.dim
                raise ValueError(f"total: got {self.total}, allowed {least} (row + dim) ... {self.size} (the size)")
        elif distribution_of(self.distribution).sparse and self.row + self.dim > self.size:
            raise ValueError(f"row: got {self.row}, allowed 0 ... {self.size - self.dim} (size - dim)")
        total = self.row + self.dim if self.total is None else self.total
        one = Compartment(self.compartment, 0, self.size, self.dim, self.row, total=total)
        spec = BasisSpec((one,), distribution_of(self.distribution), self.seed, self.stream, self.step)
        object.__setattr__(self, "_made", spec)  # not in a cached function, of which torch.compile warns

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def _spec(self) -> BasisSpec:
        return self._made  # type: ignore[attr-defined]

    @lru_cache(maxsize=256)  # noqa: B019  # a Basis is small: a cache may keep it
    def _prepared(self, device: torch.device) -> kernels.Prepared | None:
        return kernels.prepare(self._spec(), (self.size,), device)

    def project(self, g: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """c = Φ g, (D,) -> (d,): float64 for float64 g, else float32. NaN and infinities pass through.

        Differentiable any number of times, in reverse and in forward mode, and by torch.func; the gradient of ``project`` is
        ``expand`` with the same basis.

        Args:
            out: (d,) contiguous, of the result's dtype, overwritten; without derivatives, and not under torch.func.

        Raises:
            TypeError, ValueError: g is not a real floating-point tensor of shape (D,), or out does not fit.
            RuntimeError: there are no kernels for g's device, or out must not be changed, or is given where derivatives are
                asked for.
        """
        if _is_tracked(g, out):
            return kernels.differentiable_project(g, self._spec())
        if _is_plain(g, self.size, out, self.dim) and (prepared := self._prepared(g.device)):
            c = prepared.project((g,), g.dtype, out=out)
            if c is not None:
                return c
        return kernels.project(g, self._spec(), out)

    def expand(self, c: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """u = Φᵀ c, (d,) -> (D,): float64 for float64 c, else float32. Errors and derivatives as in ``project``."""
        if _is_tracked(c, out):
            return kernels.differentiable_expand(c, self._spec())
        if _is_plain(c, self.dim, out, self.size) and (prepared := self._prepared(c.device)):
            u = prepared.expand(c, out)
            if u is not None:
                return u
        return kernels.expand(c, self._spec(), out)

    @torch.no_grad()
    def add_(self, params: torch.Tensor | Iterable[torch.Tensor], c: torch.Tensor, alpha: float | torch.Tensor = 1.0,
             first: int | None = None) -> None:  # fmt: skip
        """params += alpha Φᵀ c, in place and without a graph, the params being the vector of length D cut into tensors.

        Entries depend on the place in the whole vector, not on how it is cut or which worker holds which part. Every value
        is summed in float32 (float64 if it or c is) and rounded once. So adding and then subtracting leaves rounding errors,
        which add up; to restore the parameters exactly, copy saved values back.

        Args:
            params: a real floating-point tensor on c's device, of any shape, or several.
            c: (d,) coordinates, real and floating-point.
            alpha: a real number, or a tensor of one.
            first: index in the vector of the params' first value, if they are only a part of it (such as one worker's part).

        Raises:
            TypeError, ValueError: params or c are not such tensors, or do not fit the basis, params are a set, or alpha is
                not a real number.
            RuntimeError: there are no kernels for the device, or autograd forbids a change in place (as in torch).
        """
        check_ordered(params)
        params, spec = as_list(params), self._spec()
        bad = [p for p in params if not isinstance(p, torch.Tensor) or not p.is_floating_point() or hasattr(p, "to_local")]
        if bad or not params:
            got = ", ".join(f"{type(p).__name__} {getattr(p, 'dtype', '')}".strip() for p in bad) or "none"
            raise TypeError(f"params: got {got}, allowed real floating-point tensors (of sharded ones, the local part)")
        if first is not None:
            spec = self._part(check_word("first", first), sum(p.numel() for p in params))
        if not is_number(alpha):
            got = f"shape {tuple(alpha.shape)}" if isinstance(alpha, torch.Tensor) else repr(alpha)
            raise TypeError(f"alpha: got {got}, allowed a real number or a tensor of one")
        kernels.check_operand("c", c, self.dim)
        scale = alpha.reshape(()) if isinstance(alpha, torch.Tensor) else float(alpha)  # torch multiplies by no Fraction
        kernels.add(scale * c.to(sum_dtype(c.dtype)), spec, params)  # with its tangent, which add refuses
        forget_casts(c.device)

    def _part(self, first: int, count: int) -> BasisSpec:
        """The spec of the columns first ... first + count - 1."""
        after = self.size - first - count
        if count < 1 or after < 0:
            raise ValueError(f"params: got {count} values from {first} on, allowed 1 ... {max(self.size - first, 0)}")
        (k,) = self._spec().compartments
        part = Compartment(k.number, 0, count, k.dim, k.row, first, after, k.total)
        return replace(self._spec(), compartments=(part,))

    @torch.compiler.disable  # the compiler cannot trace the generator in NumPy
    def dense(self) -> torch.Tensor:
        """Φ itself, (d, D) float32, for inspection; training never builds it."""
        from rbd.kernels.reference import rows

        spec = self._spec()
        (k,) = spec.compartments
        return torch.from_numpy(rows(k, spec, 0, self.dim)) * spec.distribution.scale(dim=k.total, size=k.length)


def forget_casts(device: torch.device) -> None:
    """Clear autocast's cache of cast parameters, which is stale once they have been moved in place."""
    if torch.is_autocast_enabled(device.type):
        torch.clear_autocast_cache()


def _is_tracked(x: torch.Tensor, out: torch.Tensor | None) -> bool:
    """Whether autograd or a transform of torch.func has to follow a product with x."""
    if not isinstance(x, torch.Tensor):
        return False
    tracked = (torch.is_grad_enabled() and x.requires_grad) or is_transformed(x)
    if out is not None and (tracked or _has_stale_tangent(out)):
        raise RuntimeError("out= does not support automatic differentiation, but an argument requires a gradient or has a "
                           "tangent, or a transform of torch.func is under way")  # fmt: skip
    return tracked


def _has_stale_tangent(out: object) -> bool:
    """Whether out has a tangent, which would stay as it is while its values are overwritten."""
    return isinstance(out, torch.Tensor) and not torch.compiler.is_compiling() and has_tangent(out)


def _is_plain(x: torch.Tensor, length: int, out: torch.Tensor | None, result: int) -> bool:
    """Whether x and out have the shapes of a product, so that what ``kernels.prepare`` gives may compute it."""
    if not isinstance(x, torch.Tensor) or x.shape != (length,) or torch.compiler.is_compiling():
        return False
    return out is None or (isinstance(out, torch.Tensor) and out.shape == (result,))
