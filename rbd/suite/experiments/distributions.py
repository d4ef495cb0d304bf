"""Do normal, uniform and Rademacher entries train RBD to different accuracies, at the same learning rate?"""

from __future__ import annotations

from rbd.suite.config import DISTRIBUTIONS
from rbd.suite.sweep import SEEDS


def configs(profile, tuned):
    small, full = (("mnist-embedded", "fmnist-embedded"), 10, range(10)), (("mnist", "fmnist"), 100, SEEDS)
    sets, epochs, seeds = small if profile == "quick" else full
    for seed in seeds:
        for data in sets:
            for law in DISTRIBUTIONS:
                yield tuned(model="fc", data=data, method="rbd", distribution=law, epochs=epochs, seed=seed)
