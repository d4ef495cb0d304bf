"""What does switching between RBD and SGD during training cost or gain, either way?"""

from __future__ import annotations

from rbd.suite.sweep import LAW, SEEDS

SWITCHES = {"quick": (5, 10, 15), "paper": (10, 50, 90)}  # epochs


def configs(profile, tuned):
    sets = ("mnist-embedded", "fmnist-embedded") if profile == "quick" else ("mnist", "fmnist")
    for data in sets:
        for seed in SEEDS:
            base = {"model": "fc", "data": data, "epochs": 20 if profile == "quick" else 100, "seed": seed}
            yield tuned(**base, method="sgd")
            yield tuned(**base, method="rbd", distribution=LAW)
            for switch in SWITCHES[profile]:  # at the rates of the pure methods
                yield tuned(**base, method="rbd", distribution=LAW, switch=switch)
                yield tuned(**base, method="sgd", distribution=LAW, switch=switch)
