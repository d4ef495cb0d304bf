"""How does accuracy depend on the number of directions d, for RBD and FPD, dense and sparse, with SGD as the line?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite import paper
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

DIMS = {"quick": (2, 10, 50, 250, 1000, 2500), "paper": (2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)}
SPARSE = (10, 50, 250, 1000, 2500, 10_000, 30_000, paper.SIZES["fc", 1])  # to D: there both are SGD
LARGE = 1000  # above it one seed in the paper profile: hours a run


def runs(profile: str) -> Iterator[Request]:
    """One seed of everything before the next one; within a seed, large dense bases last."""
    quick = profile == "quick"
    base: dict[str, Any] = {"model": "fc", **({"data": "mnist-embedded", "epochs": 20} if quick else {"data": "mnist"})}
    small, large = ([dim for dim in DIMS[profile] if (dim > LARGE) == over] for over in (False, True))
    for seed in SEEDS:
        yield tuned(**base, method="sgd", seed=seed)
        for distribution, dims in (("rademacher", small), ("countsketch", SPARSE), ("rademacher", large)):
            for dim, method in product(dims, ("rbd", "fpd")):
                if quick or dims is not large or seed == SEEDS[0]:
                    yield tuned(**base, method=method, dim=dim, distribution=distribution, seed=seed)


EXPERIMENT = Experiment("dimension", __doc__, runs)
