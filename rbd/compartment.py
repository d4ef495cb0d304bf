"""Compartment and BasisSpec: which random basis a kernel multiplies by, as named values. No torch and no NumPy."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from rbd.distribution import Distribution

_FIELDS_BEFORE_TOTAL = 7


def _check_words(**fields: int) -> None:
    """Raise ValueError for what does not fit 32 bits: of more, each backend would read other bits."""
    for name, value in fields.items():
        if not 0 <= value < 2**32:
            raise ValueError(f"{name}: got {value}, allowed 0 ... {2**32 - 1}")


@dataclass(frozen=True, slots=True)
class Compartment:
    """dim random directions over the values start ... stop - 1 of a vector.

    Attributes:
        number: of the compartment, a 32-bit word of the generator's counter: other numbers give other directions.
        start, stop: where its values are in the vector.
        dim: number of directions that are used here.
        row: number of the first of them.
        before, after: numbers of values of the compartment before start and after stop that the vector does not hold.
        total: d_k, the number of directions of the whole compartment, of which these are row ... row + dim - 1; by default
            row + dim. Entries of the dense distributions do not depend on it.
    """

    number: int
    start: int
    stop: int
    dim: int
    row: int = 0
    before: int = 0
    after: int = 0
    total: int = None  # type: ignore[assignment]  # an integer once made
    _hash: int | None = field(default=None, init=False, repr=False, compare=False)  # cached, as every step looks up plans

    def __new__(cls, *fields: int, **named: int) -> Compartment:
        """Pickles of rbd 0.1, where this was a tuple of seven fields, call ``__new__`` and not ``__init__``."""
        made = object.__new__(cls)
        if len(fields) == _FIELDS_BEFORE_TOTAL:
            made.__init__(*fields)  # type: ignore[misc]
        return made

    def __post_init__(self) -> None:
        _check_words(number=self.number)
        if self.total is None:
            object.__setattr__(self, "total", self.row + self.dim)

    def __hash__(self) -> int:
        if self._hash is None:
            object.__setattr__(self, "_hash", hash(self.fields))
        return self._hash  # type: ignore[return-value]

    def __reduce__(self) -> tuple:
        return Compartment, self.fields

    @property
    def fields(self) -> tuple[int, ...]:
        """The arguments that make this compartment, in their order."""
        return (self.number, self.start, self.stop, self.dim, self.row, self.before, self.after, self.total)

    @property
    def size(self) -> int:
        """Number of values that are here."""
        return self.stop - self.start

    @property
    def length(self) -> int:
        """D_k, the number of values of the whole compartment."""
        return self.before + self.stop - self.start + self.after


@dataclass(frozen=True, slots=True)
class BasisSpec:
    """The name of the random bases of some compartments: all that their entries depend on.

    Attributes:
        compartments: cover the values 0 ... size - 1 in order, without gaps.
        distribution: of the entries.
        seed, stream: words of the generator's key, 0 ... 2**32 - 1.
        step: a word of its counter; on a GPU it may be a tensor of one int64 there, read when the kernel runs.
        first_row: added to the numbers of all rows, a tensor of one int64 that is read when the kernel runs; None: 0.
    """

    compartments: tuple[Compartment, ...]
    distribution: Distribution
    seed: int
    stream: int
    step: int | torch.Tensor
    first_row: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check_words(seed=self.seed, stream=self.stream)

    @property
    def dim(self) -> int:
        """d, the number of directions of all compartments."""
        return sum(k.dim for k in self.compartments)

    @property
    def size(self) -> int:
        """D, the number of values."""
        return self.compartments[-1].stop

    @property
    def row(self) -> int:
        """Number of the first compartment's first direction."""
        return self.compartments[0].row

    @property
    def from_first_row(self) -> tuple[Compartment, ...]:
        """The compartments with the first row subtracted from all rows.

        So one cached plan serves every row (kernels add it back). For dense bases total is dropped: it does not affect
        them, and would only split the cache.
        """
        return self.compartments if self.row == 0 else _subtract_row(self.compartments, self.distribution.sparse)


@lru_cache(maxsize=4096)
def _subtract_row(compartments: tuple[Compartment, ...], keep_total: bool) -> tuple[Compartment, ...]:
    first = compartments[0].row
    return tuple(
        replace(k, row=k.row - first, total=k.total if keep_total else None)  # type: ignore[arg-type]  # as in Compartment
        for k in compartments
    )  # fmt: skip


def find_tensors(k: Compartment, bounds: Sequence[int]) -> range:
    """Numbers of the tensors that hold values of a compartment; bounds: where each begins in the vector, and its end."""
    return range(bisect_right(bounds, k.start) - 1, bisect_left(bounds, k.stop))
