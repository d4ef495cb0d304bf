"""What do W workers that share seeds cost and bring: accuracy, seconds and bytes against W, in every variant, and DDP?"""

from __future__ import annotations

from itertools import product

from rbd.config import RunConfig

COUNTS = {"quick": (1, 2, 3, 4), "paper": (1, 2, 4, 8)}
SEEDS = (0, 1, 2)
# Rates of one worker. The means of W batches take W times the rate: as many images make 1/W of the steps. Sums of W updates
# and all shares keep it. Hand-picked after single runs with seed 100 and W = 4, as those of the quick profile of table 1.
LR = {"quick": {"rbd": 4.0, "sgd": 0.125}, "paper": {"rbd": 1.0, "sgd": 0.125}}  # paper: its rates, for one worker
MEANS = ("common", "ddp")


def configs(profile, tuned=None):
    """Equal images for all variants: own batches make 1/W of the steps, a common batch all of them on every worker."""
    quick = profile == "quick"
    base = {"model": "fc", "data": "mnist-embedded" if quick else "mnist", "epochs": 10 if quick else 100}
    variants = ("common", "bases", "directions", "shares", "ddp")
    for workers, variant, seed in product(COUNTS[profile], variants, SEEDS):
        method = "sgd" if variant == "ddp" else "rbd"
        law = {} if variant == "ddp" else {"distribution": "rademacher"}
        lr = LR[profile][method] * (workers if variant in MEANS else 1)
        yield RunConfig(**base, **law, method=method, workers=workers, variant=variant, lr=lr, seed=seed)
