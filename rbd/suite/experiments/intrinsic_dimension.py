"""How many dimensions do two tasks need: accuracy against d for Adam in a fixed subspace, and d90 (Li et al. 2018)?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite import paper
from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment

BUDGET: dict[str, dict[str, Any]] = {  # paper: that of Li et al.; batches and no augmentation as in their released code
    "quick": {"data": "mnist-embedded", "epochs": 10, "batch_size": 32, "augment": "none"},
    "paper": {"data": "mnist", "epochs": 100, "batch_size": 128, "augment": "none"},
}
FIRST = {"quick": (100, 500, 5000), "paper": (100, 200, 250, 300, 500, 750)}  # the d of Li et al. are in the latter
THEN = {"quick": (10, 250, 1000), "paper": (10, 50, 1000, 2500, 5000)}
DENSE = {  # dense bases cost d D a step, so they stop earlier
    "quick": {"rademacher": (100, 500, 1000), "normal": (100,)},
    "paper": {"rademacher": (100, 200, 300, 500, 750), "normal": (100, 300)},
}


def runs(profile: str) -> Iterator[RunConfig]:
    """One seed of everything before the next one; within a seed, what is sparse first.

    The baseline is d = D: countsketch is then a signed permutation, and Adam in it is Adam in all parameters.
    """
    for seed in SEEDS:
        for sparse, (model, size) in product((FIRST, THEN), paper.LI_SIZES.items()):
            for dim in (size,) * (sparse is FIRST) + sparse[profile]:
                yield make(profile, model, "countsketch", dim, seed)
        for (distribution, dims), model in product(DENSE[profile].items(), paper.LI_SIZES):
            for dim in dims:
                yield make(profile, model, distribution, dim, seed)


def make(profile: str, model: str, distribution: str, dim: int, seed: int) -> RunConfig:
    """At the default rate, 0.001 √(D/d)."""
    return RunConfig(model, method="subspace-adam", dim=dim, distribution=distribution, seed=seed, **BUDGET[profile])


EXPERIMENT = Experiment("intrinsic_dimension", __doc__, runs)
