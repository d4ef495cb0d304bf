"""What do NES and RBD-NES reach with as many images as RBD, and with as many forward passes?"""

from __future__ import annotations

from rbd.suite.sweep import LAW, SEEDS


def configs(profile, tuned):
    """Runs of d = E directions, where E is the number of RBD's epochs, which makes budgets meet.

    rbd: E epochs. nes, E epochs: as many images and as many forward passes, in an E-th of the steps. rbd-nes, 1 epoch: as
    many forward passes, an E-th of the images. rbd-nes, E epochs: as many images and steps, E times the forward passes.
    """
    sets = ("mnist-embedded", "fmnist-embedded") if profile == "quick" else ("mnist", "fmnist")
    epochs = 20 if profile == "quick" else 100
    for data in sets:
        for seed in SEEDS:
            for method, length in (("rbd", epochs), ("nes", epochs), ("rbd-nes", 1), ("rbd-nes", epochs)):
                yield tuned(model="fc", data=data, method=method, dim=epochs, distribution=LAW, epochs=length, seed=seed)
