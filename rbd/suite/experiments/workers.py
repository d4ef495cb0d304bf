"""What do W workers that share seeds cost and bring: accuracy, seconds and bytes against W, in every variant, and DDP?"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

COUNTS = {"quick": (1, 2, 3, 4), "paper": (1, 2, 4, 8)}
SEEDS = (0, 1, 2)
# The mean of W batches takes W ** POWER times the rate, as its epoch has 1/W of the steps; sums of W updates keep it. After
# one run each with seed 100, W = 4: common 68.7, 78.0, 80.6 % at 1, 2, 4 times the rate, ddp 92.2, 92.7, 82.9 %.
POWER = {"common": 1.0, "ddp": 0.5}
alone = True  # one run at a time: its seconds count


def configs(profile, tuned):
    """Equal images for all variants: own batches make 1/W of the steps, a common batch all of them on every worker."""
    quick = profile == "quick"
    base = {"model": "fc", "data": "mnist-embedded" if quick else "mnist", "epochs": 10 if quick else 100}
    variants = ("common", "bases", "directions", "shares", "ddp")
    for workers, variant, seed in product(COUNTS[profile], variants, SEEDS):
        method = "sgd" if variant == "ddp" else "rbd"
        law = {} if variant == "ddp" else {"distribution": "rademacher"}
        one = tuned(**base, **law, method=method, seed=seed)
        yield one and replace(one, workers=workers, variant=variant, lr=one.lr * workers ** POWER.get(variant, 0))
