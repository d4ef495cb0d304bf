"""How orthogonal are two random directions: E|cos| against D, for each distribution, beside √(2/(πD)) = 0.798/√D?"""

from __future__ import annotations

import math
from statistics import mean, stdev
from typing import Any

from rbd.suite.experiment import Experiment

DISTRIBUTIONS = ("normal", "uniform", "rademacher")  # the place in this list is part of a basis's seed
SIZES = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # D
PAIRS = {"quick": 400, "paper": 4000}
BLOCKS = 40  # of pairs, whose means are kept: enough to resample, few enough to commit
SEED = 100


def parts(profile: str) -> list[tuple[str, int]]:
    """Every distribution and D."""
    return [(name, size) for name in DISTRIBUTIONS for size in SIZES]


def measure(part: tuple[str, int], profile: str, data_dir=None) -> dict[str, Any]:
    """Mean and standard deviation of |cos| over n independent pairs of directions, and the means of blocks of them."""
    distribution, size = part
    pairs = PAIRS[profile]
    cosines = [abs(draw_cosine(distribution, size, step)) for step in range(pairs)]
    expected = math.sqrt(2 / (math.pi * size))  # of normal entries, as D grows; arXiv 2011.04720
    blocks = [float(f"{mean(cosines[block::BLOCKS]):.6g}") for block in range(BLOCKS)]
    return {"distribution": distribution, "size": size, "n": pairs, "mean": mean(cosines), "std": stdev(cosines),
            "expected": expected, "blocks": blocks}  # fmt: skip


def cost(profile: str) -> float:
    """Seconds: 250 µs a pair, and 10 ns a column."""
    return len(DISTRIBUTIONS) * PAIRS[profile] * sum(2.5e-4 + 1e-8 * size for size in SIZES)


def draw_cosine(distribution: str, size: int, step: int) -> float:
    """Of two directions of one basis; every distribution and size has bases of its own."""
    import torch

    from rbd import Basis

    name = {"seed": SEED + DISTRIBUTIONS.index(distribution), "stream": size, "step": step}
    a, b = (Basis(1, size, distribution, **name, row=row).expand(torch.ones(1)).double() for row in (0, 1))
    return float(a @ b / (a.norm() * b.norm()))


EXPERIMENT = Experiment("orthogonality", __doc__, measure=measure, parts=parts, cost=cost)
