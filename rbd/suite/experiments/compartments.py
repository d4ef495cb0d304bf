"""Do independent bases for compartments of the parameters help, at the same total d: even cuts and one for each layer?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

CUTS = {"quick": (2, 4, 16, 64), "paper": (2, 4, 8, 16, 32, 64, 125)}  # K; d = 250 leaves 2 directions to each of 125
CNN = ("whole", "by_layer", "even:4", "even:16")  # partitions; full data, dense signs


def runs(profile: str) -> Iterator[Request]:
    """One seed of everything before the next one; the FC net, whose runs take minutes, before the CNN.

    All at the short search's rates, which `full_length` checks for the whole basis only: that would favour it.
    """
    return (replace(request, searched=True) for request in _list_tuned(profile))


def _list_tuned(profile: str) -> Iterator[Request]:
    sets = ("mnist-embedded",) if profile == "quick" else ("mnist", "fmnist")
    epochs = 20 if profile == "quick" else 100
    partitions = ("whole", "by_layer", *(f"even:{count}" for count in CUTS[profile]))
    for seed in SEEDS:
        for distribution, data, partition in product(("rademacher", "countsketch"), sets, partitions):
            yield tuned(model="fc", method="rbd", epochs=epochs, data=data, partition=partition, distribution=distribution,
                        seed=seed)  # fmt: skip
        for partition in CNN if profile == "paper" else ():
            yield tuned(model="cnn", data="mnist", method="rbd", partition=partition, seed=seed)


EXPERIMENT = Experiment("compartments", __doc__, runs)
