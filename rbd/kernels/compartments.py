"""What all backends ask about compartments, tuples (number, start, stop, dim, row, before, after): see kernels.project."""

from __future__ import annotations


def length(compartment: tuple[int, ...]) -> int:
    """D_k of the whole compartment."""
    _, start, stop, _, _, before, after = compartment
    return before + stop - start + after


def without_row(compartments: tuple) -> tuple[int, tuple]:
    """The first compartment's row, and all with their rows counted from it: plans are kept for those."""
    first = compartments[0][4]
    return first, compartments if first == 0 else tuple((*k[:4], k[4] - first, *k[5:]) for k in compartments)
