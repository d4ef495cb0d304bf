"""Which setting gives table 1: with augmentation or without, d = 250 or D/400, at the paper's rates? (Full data only.)"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rbd.suite.config import RunConfig, find_size
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.paper import LEARNING_RATES
from rbd.suite.rates import Request, tuned
from rbd.suite.verdicts import RATIO

DIM = 250  # the default of the released configuration


def runs(profile: str) -> Iterator[RunConfig | Request]:
    """One seed of everything before the next one; NES at the rates that it inherits in the released code, and at ours."""
    if profile != "paper":
        return
    for seed, augment, (model, data) in product(SEEDS, (None, "none"), LEARNING_RATES):
        rates = LEARNING_RATES[model, data]
        yield RunConfig(model, data, "sgd", lr=rates["sgd"], seed=seed, augment=augment)
        for dim, method in product(choose_dims(model, data), ("rbd", "fpd")):
            yield RunConfig(model, data, method, dim=dim, lr=rates[method], seed=seed, augment=augment)
        for dim in choose_dims(model, data):
            yield RunConfig(model, data, "nes", dim=dim, seed=seed, augment=augment)
        yield tuned(model=model, data=data, method="nes", seed=seed, augment=augment)


def choose_dims(model: str, data: str) -> tuple[int, ...]:
    """250, and D/400 where that is more than a tenth away from it."""
    dim = round(find_size(model, data) / RATIO)
    return (DIM, dim) if abs(dim - DIM) > DIM / 10 else (DIM,)


EXPERIMENT = Experiment("settings", __doc__, runs)
