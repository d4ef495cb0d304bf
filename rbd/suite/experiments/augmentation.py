"""What does each part of the augmentation cost, for FPD, RBD and SGD: crop and brightness, one of them, none?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.paper import LEARNING_RATES
from rbd.suite.rates import Request, tuned

PARTS = (None, "none", "brightness", "crop")  # None: both


def runs(profile: str) -> Iterator[RunConfig | Request]:
    """One seed of everything before the next one; at the paper's rates where its numbers are to be explained."""
    names = ("mnist-embedded", "fmnist-embedded") if profile == "quick" else ("mnist", "fmnist")
    for seed, part, data, method in product(SEEDS, PARTS, names, ("sgd", "rbd", "fpd")):
        base: dict[str, Any] = {"model": "fc", "data": data, "method": method, "seed": seed, "augment": part}
        yield tuned(**base, epochs=20) if profile == "quick" else RunConfig(**base, lr=LEARNING_RATES["fc", data][method])


EXPERIMENT = Experiment("augmentation", __doc__, runs)
