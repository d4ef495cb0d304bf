"""What accuracy does the time of a training step buy: dense and sparse bases at every d, with SGD as the line to reach?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rbd.suite import paper
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

DENSE = (10, 50, 250, 1000, 2500)  # d; a step costs d D
SPARSE = (10, 50, 250, 1000, 2500, 10_000, 30_000)  # d; a step costs D; the last one, D itself, is SGD


def runs(profile: str) -> Iterator[Request]:
    quick = profile == "quick"
    fc: dict[str, Any] = {"model": "fc", **({"data": "mnist-embedded", "epochs": 20} if quick else {"data": "mnist"})}
    cnn: dict[str, Any] = {"model": "cnn", **({"data": "mnist-embedded", "epochs": 10} if quick else {"data": "cifar10"})}
    for seed in SEEDS:
        yield tuned(**fc, method="sgd", seed=seed)
        for dim in DENSE if quick else (250,):
            yield tuned(**fc, method="rbd", dim=dim, seed=seed)
        for dim in (*SPARSE, paper.SIZES["fc", 1]):
            yield tuned(**fc, method="rbd", dim=dim, distribution="countsketch", seed=seed)
    for seed in SEEDS[:2]:
        yield tuned(**cnn, method="sgd", seed=seed)
        yield tuned(**cnn, method="rbd", dim=250, seed=seed)
        for dim in (250, 2500, 10_000):
            yield tuned(**cnn, method="rbd", dim=dim, distribution="countsketch", seed=seed)


EXPERIMENT = Experiment("price", __doc__, runs)
