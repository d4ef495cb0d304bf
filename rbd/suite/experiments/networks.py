"""What do ResNets reach when every layer has a basis of its own, under different compression factors?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rbd.suite.config import RunConfig, find_size
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

RATIOS = {"quick": (10, 75, 500), "paper": (10, 25, 75, 250)}
DEEP: dict[str, Any] = {"model": "resnet32", "data": "cifar10", "epochs": 5}  # 100 take a core eight hours and more
DEEP_LR = 4.0  # of RBD at d = 500: the rate chosen for ResNet-8, 2, times the root of 6, by how much D is larger; 2^k


def runs(profile: str) -> Iterator[RunConfig | Request]:
    """One seed of everything before the next one; ResNet-32 for five epochs, once, in one basis as in figure 1."""
    quick = profile == "quick"
    base: dict[str, Any] = {"data": "fmnist-embedded", "epochs": 5} if quick else {"data": "cifar10"}
    for seed in SEEDS[:2] if quick else SEEDS:
        yield tuned(model="resnet8", **base, method="sgd", seed=seed)
        for ratio in RATIOS[profile]:
            yield tuned(model="resnet8", **base, method="rbd", partition=f"by_ratio:{ratio}", seed=seed)
        if not (quick or seed):
            yield from list_deep()


def list_deep() -> Iterator[RunConfig]:
    """SGD at ResNet-8's rate, RBD with d = 500 dense signs, and with a sparse basis at d = D/10 at the rate of the rule."""
    yield RunConfig(**DEEP, method="sgd")
    yield RunConfig(**DEEP, method="rbd", dim=500, lr=DEEP_LR)
    yield RunConfig(**DEEP, method="rbd", dim=round(find_size("resnet32", "cifar10") / 10), distribution="countsketch")


EXPERIMENT = Experiment("networks", __doc__, runs)
