"""E[ΦᵀΦ g] = (d/D) g: does RBD at rate η follow SGD at η d/D, and where does the noise of the projection begin to cost?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite.config import RunConfig, find_size
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.paper import LEARNING_RATES, SIZES, TABLE1

RATES = tuple(2.0**octave for octave in range(-10, 0, 2))  # η d/D, to beyond SGD's best, 2 ** -2
BASES = {"rademacher": (50, 250), "countsketch": (50, 250, 2500, 10_000)}  # d
PAIRS = (("fc", "mnist"), ("fc", "fmnist"), ("cnn", "cifar10"))  # with multiples of the rate, and countsketch
FACTORS = (1, 4, 16)  # times the paper's rate for d = 250


def runs(profile: str) -> Iterator[RunConfig]:
    return list_quick() if profile == "quick" else list_full()


def list_quick() -> Iterator[RunConfig]:
    base: dict[str, Any] = {"model": "fc", "data": "mnist-embedded", "epochs": 20}
    for seed, rate in product(SEEDS, RATES):
        yield RunConfig(**base, method="sgd", lr=rate, seed=seed)
        for distribution, dims in BASES.items():
            for dim in dims:
                lr = rate * SIZES["fc", 1] / dim
                yield RunConfig(**base, method="rbd", dim=dim, distribution=distribution, lr=lr, seed=seed)


def list_full() -> Iterator[RunConfig]:
    """One seed, SGD before the others; of every row of table 1 at the paper's rate, of PAIRS at its multiples too."""
    for factor in FACTORS:
        for (model, data), augment in product(TABLE1 if factor == 1 else PAIRS, (None, "none")):
            base: dict[str, Any] = {"model": model, "data": data, "augment": augment}
            lr, size = factor * LEARNING_RATES[model, data]["rbd"], find_size(model, data)
            yield RunConfig(**base, method="sgd", lr=lr * 250 / size)
            compared = (model, data) in PAIRS
            for distribution in BASES if compared else ("rademacher",):
                yield RunConfig(**base, method="rbd", dim=250, distribution=distribution, lr=lr)
            if compared:
                dim = round(size / 10)
                yield RunConfig(**base, method="rbd", dim=dim, distribution="countsketch", lr=lr * 250 / dim)


EXPERIMENT = Experiment("effective_rate", __doc__, runs)
