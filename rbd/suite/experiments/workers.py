"""What do W workers that share seeds cost and bring: accuracy, seconds and bytes against W, in every variant, and DDP?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

COUNTS = {"quick": (1, 2, 3, 4), "paper": (1, 2, 4, 8)}
# The mean of W batches takes W ** POWER times the rate, as its epoch has 1/W of the steps; sums of W updates keep it. After
# one run each with seed 100, W = 4: common 68.7, 78.0, 80.6 % at 1, 2, 4 times the rate, ddp 92.2, 92.7, 82.9 %.
POWER = {"common": 1.0, "ddp": 0.5}
SPARSE = 10_000  # d with countsketch; with dense signs a product takes forty times as long as at d = 250
# W bases of so many directions are one of W d, whose rate is smaller by √W. After one run each with seed 100, W = 4:
# directions 88.6, 92.0, 91.4 % at 1, 1/2, 1/4 of the rate; common 87.5, 90.1, 91.2 % at 1, 2, 4 times the rate.
SPARSE_POWER = POWER | {"directions": -0.5}


def runs(profile: str) -> Iterator[Request]:
    """Equal images for all variants: own batches make 1/W of the steps, a common batch all of them on every worker."""
    data, epochs = ("mnist-embedded", 10) if profile == "quick" else ("mnist", 100)
    variants = ("common", "bases", "directions", "shares", "ddp")
    for seed in SEEDS:
        base: dict[str, Any] = {"model": "fc", "data": data, "epochs": epochs, "seed": seed}
        for count, variant in product(COUNTS[profile], variants):
            method = "sgd" if variant == "ddp" else "rbd"
            yield tuned(count ** POWER.get(variant, 0), **base, method=method, workers=count, variant=variant)
        for count, variant in product((1, COUNTS[profile][-1]), ("common", "directions", "shares")):
            yield tuned(count ** SPARSE_POWER.get(variant, 0), **base, method="rbd", dim=SPARSE, distribution="countsketch",
                        workers=count, variant=variant)  # fmt: skip


EXPERIMENT = Experiment("workers", __doc__, runs, alone=True)
