"""What do ResNets reach when every layer has a basis of its own, under different compression factors?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

RATIOS = {"quick": (10, 75, 500), "paper": (10, 25, 75, 250)}


def runs(profile: str) -> Iterator[Request]:
    """One seed of everything before the next one."""
    quick = profile == "quick"
    base: dict[str, Any] = {"data": "fmnist-embedded", "epochs": 5} if quick else {"data": "cifar10"}
    for seed, model in product(SEEDS[:2] if quick else SEEDS, ("resnet8",) if quick else ("resnet8", "resnet32")):
        yield tuned(model=model, **base, method="sgd", seed=seed)
        for ratio in RATIOS[profile]:
            yield tuned(model=model, **base, method="rbd", partition=f"by_ratio:{ratio}", seed=seed)


EXPERIMENT = Experiment("networks", __doc__, runs)
