"""Partition: a parameter vector cut into compartments, each with a basis of its own, and the total d apportioned."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, groupby
from numbers import Integral

from rbd.compartment import Compartment

FORMS = ("whole", "by_layer", "by_tensor", "even:K", "by_ratio:R")
LONGEST = 2**32 - 1  # values of a compartment, as of a Basis
Layout = tuple[tuple[str, int], ...]  # (name, number of values) of each tensor, in the order of the vector


@dataclass(frozen=True)
class Partition:
    """Compartments that cover a vector of length D in order, without gaps.

    Attributes:
        compartments: of ``rbd.compartment.Compartment``; their number, start, stop and dim say which directions cover what.
    """

    compartments: tuple[Compartment, ...]

    @property
    def size(self) -> int:
        """D, the length of the vector."""
        return self.compartments[-1].stop

    @property
    def dim(self) -> int:
        """d, over all compartments."""
        return sum(k.dim for k in self.compartments)

    def renumber(self, first: int) -> Partition:
        """The same partition, its compartments numbered first, first + 1, ... (other numbers give other directions)."""
        if all(k.number == first + i for i, k in enumerate(self.compartments)):
            return self  # the same object, so that looking up a plan compares no fields
        return Partition(tuple(replace(k, number=first + i) for i, k in enumerate(self.compartments)))


def apportion(dim: int, sizes: Sequence[int]) -> list[int]:
    """Parts of dim in proportion to sizes: d_k nearest to dim D_k / D, with 1 <= d_k <= D_k and the sum dim exactly.

    Every part starts at its quota rounded down (at least 1). The rest is added (or taken) one by one, each time at the
    compartment furthest from its quota; in a tie, at the first.

    Raises:
        TypeError: dim is not an integer.
        ValueError: dim is less than the number of compartments or more than the sum of sizes.
    """
    total = sum(sizes)
    if not isinstance(dim, Integral):
        raise TypeError(f"dim: got {dim!r}, allowed an integer")
    dim = int(dim)  # NumPy's might overflow
    if not len(sizes) <= dim <= total:
        limits = "at least 1 per compartment, at most 1 per parameter"
        raise ValueError(f"dim: got {dim}, allowed {len(sizes)} ... {total} ({limits})")
    quotas = [dim * size / total for size in sizes]
    parts = [max(1, math.floor(q)) for q in quotas]
    while (left := dim - sum(parts)) != 0:
        sign = 1 if left > 0 else -1
        free = [k for k, size in enumerate(sizes) if (parts[k] < size if sign > 0 else parts[k] > 1)]
        free.sort(key=lambda k: sign * (parts[k] - quotas[k]))  # stable: in a tie, the first stays first
        for k in free[: abs(left)]:
            parts[k] += sign
    return parts


def _cut(sizes: Sequence[int], dims: Sequence[int]) -> Partition:
    if (longest := max(sizes, default=0)) > LONGEST:
        raise ValueError(f"partition: got a compartment of {longest} values, allowed at most {LONGEST} (columns are "
                         f"numbered in 32 bits): use by_layer, or even:K with a larger K")  # fmt: skip
    stops = accumulate(sizes)
    return Partition(tuple(Compartment(k, stop - n, stop, d) for k, (n, d, stop) in enumerate(zip(sizes, dims, stops))))


def _layer_sizes(layout: Layout) -> list[int]:
    if not all(name for name, _ in layout):
        raise ValueError("partition: by_layer and by_ratio need names, pass model.named_parameters()")
    layers = groupby(layout, key=lambda tensor: tensor[0].rpartition(".")[0])
    return [n for n in (sum(size for _, size in tensors) for _, tensors in layers) if n]  # no empty compartments


def whole(layout: Layout, dim: int) -> Partition:
    """One compartment."""
    size = sum(n for _, n in layout)
    return _cut([size], apportion(dim, [size]))


def by_layer(layout: Layout, dim: int) -> Partition:
    """One compartment for adjacent tensors of one module (names equal up to the last dot).

    A compartment is one stretch of the vector, so a module's tensors that others stand between make several.
    """
    sizes = _layer_sizes(layout)
    return _cut(sizes, apportion(dim, sizes))


def by_tensor(layout: Layout, dim: int) -> Partition:
    """One compartment for each tensor."""
    sizes = [n for _, n in layout if n]  # no empty compartments
    return _cut(sizes, apportion(dim, sizes))


def even(layout: Layout, dim: int, count: int) -> Partition:
    """count compartments of equal size (the first ones longer by 1 if it does not divide D), across tensor borders."""
    size = sum(n for _, n in layout)
    if not 1 <= count <= size:
        raise ValueError(f"partition: got even:{count}, allowed even:1 ... even:{size}")
    sizes = [size // count + (k < size % count) for k in range(count)]
    return _cut(sizes, apportion(dim, sizes))


def by_ratio(layout: Layout, ratio: float) -> Partition:
    """As by_layer, with d_k = max(ceil(D_k / ratio), 10) (arXiv 2011.04720), but never more than D_k."""
    sizes = _layer_sizes(layout)
    return _cut(sizes, [min(n, max(math.ceil(n / Fraction(repr(ratio))), 10)) for n in sizes])


def check_ordered(params: object) -> None:
    """Raise a TypeError for a set of parameters, whose order, and with it the basis, would differ between runs."""
    if isinstance(params, set | frozenset):
        raise TypeError("params must come in ordered collections, not in a set: the basis follows their order")


def parse(form: str) -> tuple[str, float]:
    """Name and number (1 if it has none) of a form such as "whole", "even:8" or "by_ratio:100".

    Raises:
        ValueError: it is none of FORMS, K is not a whole number >= 1, or R not a number >= 1.
    """
    name, _, number = form.partition(":") if isinstance(form, str) else (None, "", "")
    if form in ("whole", "by_layer", "by_tensor"):
        return form, 1
    if name == "even" and re.fullmatch(r"\d{1,18}", number) and int(number) >= 1:
        return name, int(number)
    if name == "by_ratio" and re.fullmatch(r"\d+(\.\d+)?", number) and 1 <= float(number) < math.inf:
        return name, float(number)
    raise ValueError(f"partition: got {form!r}, allowed {', '.join(FORMS)} with K >= 1 whole, R >= 1")


@lru_cache(maxsize=64)
def partition(form: str, layout: Layout, dim: int | None) -> Partition:
    """The partition a form names, of a vector made of the tensors in layout.

    Args:
        form: one of FORMS, with numbers in place of K and R.
        layout: (name, number of values) of each tensor, in order; only by_layer and by_ratio:R need the names.
        dim: d, total number of directions; not used by by_ratio:R (may be None), whose R gives it.

    Raises:
        ValueError: the form is unknown, dim does not fit, there is nothing to cut, or a compartment has more than 2**32 - 1
            values.
    """
    name, number = parse(form)
    if not any(n for _, n in layout):
        raise ValueError("params: got no values, allowed at least one in a parameter group")
    if name == "by_ratio":
        return by_ratio(layout, number)
    if dim is None:
        raise ValueError(f"dim: got None, allowed 1 ... {sum(n for _, n in layout)} with partition {form!r}")
    if name == "even":
        return even(layout, dim, int(number))
    return {"whole": whole, "by_layer": by_layer, "by_tensor": by_tensor}[name](layout, dim)
