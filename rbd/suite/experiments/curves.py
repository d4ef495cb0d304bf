"""How do all methods learn over the epochs with ResNet-8 and d = 500 (figure 1, right)?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned


def runs(profile: str) -> Iterator[Request]:
    quick = profile == "quick"
    base: dict[str, Any] = {"data": "fmnist-embedded", "epochs": 5} if quick else {"data": "cifar10"}
    for seed in SEEDS:
        yield tuned(model="resnet8", **base, method="sgd", seed=seed)
        yield tuned(model="resnet8", **base, method="rbd", dim=500, seed=seed)
        yield tuned(model="resnet8", **base, method="fpd", dim=500, seed=seed)
        yield tuned(model="resnet8", **base, method="nes", dim=50 if quick else 500, seed=seed)  # 5 epochs: 780 batches


EXPERIMENT = Experiment("curves", __doc__, runs)
