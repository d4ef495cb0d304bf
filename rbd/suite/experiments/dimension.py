"""How does accuracy depend on the number of directions d, for RBD and FPD, with SGD as the line to reach?"""

from __future__ import annotations

from rbd.suite.sweep import LAW, SEEDS

DIMS = {"quick": (2, 10, 50, 250, 1000, 2500), "paper": (2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)}
LARGE = 1000  # above it one seed in the paper profile: hours a run


def configs(profile, tuned):
    base = {"model": "fc", **({"data": "mnist-embedded", "epochs": 20} if profile == "quick" else {"data": "mnist"})}
    for seed in SEEDS:
        yield tuned(**base, method="sgd", seed=seed)
    for dim in DIMS[profile]:
        for method in ("rbd", "fpd"):
            for seed in SEEDS if profile == "quick" or dim <= LARGE else SEEDS[:1]:
                yield tuned(**base, method=method, dim=dim, distribution=LAW, seed=seed)
