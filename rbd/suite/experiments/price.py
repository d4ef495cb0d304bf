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
    """One seed of everything before the next one, two of the CNN."""
    quick = profile == "quick"
    fc: dict[str, Any] = {"model": "fc", **({"data": "mnist-embedded", "epochs": 20} if quick else {"data": "mnist"})}
    cnn: dict[str, Any] = {"model": "cnn", **({"data": "mnist-embedded", "epochs": 10} if quick else {"data": "cifar10"})}
    for seed in SEEDS:
        yield from list_points(fc, DENSE if quick else (250,), (*SPARSE, paper.SIZES["fc", 1]), seed)
        for distribution in ("uniform", "normal") if quick else ():
            yield tuned(**fc, method="rbd", dim=250, distribution=distribution, seed=seed)
        if seed in SEEDS[:2]:
            yield from list_points(cnn, (250,), (250, 2500, 10_000), seed)


def list_points(base: dict[str, Any], dense: tuple[int, ...], sparse: tuple[int, ...], seed: int) -> Iterator[Request]:
    yield tuned(**base, method="sgd", seed=seed)
    for distribution, dims in (("rademacher", dense), ("countsketch", sparse)):
        for dim in dims:
            yield tuned(**base, method="rbd", dim=dim, distribution=distribution, seed=seed)


EXPERIMENT = Experiment("price", __doc__, runs)
