"""How often must the basis be drawn anew: at every step (RBD), every n steps, never (FPD)?"""

from __future__ import annotations

from rbd.suite.sweep import LAW, SEEDS

INTERVALS = {"quick": (1, 4, 16, 64, 256, 1024), "paper": (1, 10, 100, 1000, 10_000)}  # steps


def configs(profile, tuned):
    base = {"model": "fc", **({"data": "mnist-embedded", "epochs": 20} if profile == "quick" else {"data": "mnist"})}
    for seed in SEEDS:
        for redraw in INTERVALS[profile]:
            yield tuned(**base, method="rbd", redraw=redraw, distribution=LAW, seed=seed)
        yield tuned(**base, method="fpd", distribution=LAW, seed=seed)
