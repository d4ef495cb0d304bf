"""How accurate are NES, FPD, RBD and SGD on each pair of network and data (table 1)?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

QUICK_EPOCHS = {"fc": 20, "cnn": 10}
QUICK_SEEDS = {"fc": SEEDS, "cnn": SEEDS[:2]}  # what fits into ten minutes on two cores


def runs(profile: str) -> Iterator[Request]:
    """arXiv 2011.04720, table 1: the embedded images and few epochs, or the full data sets and 100 epochs.

    One seed of everything before the next one.
    """
    quick = profile == "quick"
    names = ("mnist-embedded", "fmnist-embedded") if quick else ("mnist", "fmnist", "cifar10")
    for seed, model, data, method in product(SEEDS, ("fc", "cnn"), names, ("sgd", "rbd", "fpd", "nes")):
        if not quick or seed in QUICK_SEEDS[model]:
            yield tuned(model=model, data=data, method=method, epochs=QUICK_EPOCHS[model] if quick else 100, seed=seed)


EXPERIMENT = Experiment("table1", __doc__, runs)
