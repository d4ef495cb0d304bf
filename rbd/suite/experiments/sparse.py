"""What does a sparse basis (countsketch) reach in the rows of table 1, at d = 250 and at d = D/10? (Full data only.)"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.paper import LEARNING_RATES, SIZES

DIM = 250


def runs(profile: str) -> Iterator[RunConfig]:
    """One seed of everything before the next one; the FC net, whose runs take minutes, before the CNN."""
    if profile != "paper":
        return
    for seed, (model, data), augment in product(SEEDS, LEARNING_RATES, (None, "none")):
        for dim, lr in choose_rates(model, data).items():
            yield RunConfig(model, data, "rbd", dim=dim, distribution="countsketch", lr=lr, seed=seed, augment=augment)


def choose_rates(model: str, data: str) -> dict[int, float]:
    """d -> rate: the paper's for RBD at 250; at D/10, where none is known, the paper's for SGD times √(D/d).

    E ‖ΦᵀΦ g‖² = (d/D) ‖g‖², so at that rate an update is as long as SGD's.
    """
    size, known = SIZES[model, 3 if data == "cifar10" else 1], LEARNING_RATES[model, data]
    dim = round(size / 10)
    return {DIM: known["rbd"], dim: float(f"{known['sgd'] * math.sqrt(size / dim):.3g}")}


EXPERIMENT = Experiment("sparse", __doc__, runs)
