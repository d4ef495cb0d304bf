"""What does switching between RBD and SGD during training cost or gain, either way?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

SWITCHES = {"quick": (5, 10, 15), "paper": (10, 50, 90)}  # epochs


def runs(profile: str) -> Iterator[Request]:
    """Both pure methods, and every switch at their rates; one seed of everything before the next one."""
    sets = ("mnist-embedded", "fmnist-embedded") if profile == "quick" else ("mnist", "fmnist")
    for seed, data in product(SEEDS, sets):
        base: dict[str, Any] = {"data": data, "epochs": 20 if profile == "quick" else 100, "seed": seed}
        yield tuned(model="fc", **base, method="sgd")
        yield tuned(model="fc", **base, method="rbd")
        for switch in SWITCHES[profile]:
            yield tuned(model="fc", **base, method="rbd", switch=switch)
            yield tuned(model="fc", **base, method="sgd", switch=switch)


EXPERIMENT = Experiment("hybrid", __doc__, runs)
