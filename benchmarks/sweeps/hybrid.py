"""What does switching between RBD and SGD during training cost or gain, either way?"""

from __future__ import annotations

from dataclasses import replace

from rbd.sweep import LAW, SEEDS

SWITCHES = {"quick": (5, 10, 15), "paper": (10, 50, 90)}  # epochs


def configs(profile, tuned):
    sets = ("mnist-embedded", "fmnist-embedded") if profile == "quick" else ("mnist", "fmnist")
    epochs = 20 if profile == "quick" else 100
    for data in sets:
        for seed in SEEDS:
            sgd = tuned(model="fc", data=data, method="sgd", epochs=epochs, seed=seed)
            rbd = tuned(model="fc", data=data, method="rbd", distribution=LAW, epochs=epochs, seed=seed)
            yield from (sgd, rbd)
            if sgd and rbd:
                for switch in SWITCHES[profile]:
                    yield replace(rbd, switch=switch, then_lr=sgd.lr)
                    yield replace(sgd, switch=switch, then_lr=rbd.lr, dim=rbd.dim, distribution=LAW)
