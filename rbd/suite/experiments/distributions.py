"""Do normal, uniform and Rademacher entries train RBD to different accuracies, at the same learning rate?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

DISTRIBUTIONS = ("normal", "uniform", "rademacher")


def runs(profile: str) -> Iterator[Request]:
    quick = profile == "quick"
    sets = ("mnist-embedded", "fmnist-embedded") if quick else ("mnist", "fmnist")
    seeds, epochs = (range(10), 10) if quick else (SEEDS, 100)
    for seed, data, distribution in product(seeds, sets, DISTRIBUTIONS):
        yield tuned(model="fc", data=data, method="rbd", distribution=distribution, epochs=epochs, seed=seed)


EXPERIMENT = Experiment("distributions", __doc__, runs)
