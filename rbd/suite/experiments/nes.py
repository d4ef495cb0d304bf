"""What do NES and RBD-NES reach with as many images as RBD, and with as many forward passes?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

SHORT = 0.01  # length of a perturbation; the default is 0.01 √D


def runs(profile: str) -> Iterator[RunConfig | Request]:
    """Runs of d = E directions, where E is the number of RBD's epochs, which makes budgets meet.

    rbd: E epochs. nes, E epochs: as many images and as many forward passes, in an E-th of the steps. rbd-nes, 1 epoch: as
    many forward passes, an E-th of the images. rbd-nes, E epochs: as many images and steps, E times the forward passes.
    Last, nes whose perturbations are SHORT, with steps of the same length as at the default rate.
    """
    sets = ("mnist-embedded", "fmnist-embedded") if profile == "quick" else ("mnist", "fmnist")
    epochs = 20 if profile == "quick" else 100
    lengths = (("rbd", epochs), ("nes", epochs), ("rbd-nes", 1), ("rbd-nes", epochs))
    for seed, data in product(SEEDS, sets):
        for method, length in lengths:
            yield tuned(model="fc", data=data, method=method, dim=epochs, epochs=length, seed=seed)
        yield RunConfig("fc", data, "nes", dim=epochs, epochs=epochs, sigma=SHORT, seed=seed)


EXPERIMENT = Experiment("nes", __doc__, runs)
