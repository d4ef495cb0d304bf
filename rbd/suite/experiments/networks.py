"""What do ResNets reach when every layer has a basis of its own, under different compression factors?"""

from __future__ import annotations

from rbd.suite.sweep import LAW, SEEDS

RATIOS = {"quick": (10, 75, 500), "paper": (10, 25, 75, 250)}


def configs(profile, tuned):
    if profile == "quick":
        networks, base, seeds = ("resnet8",), {"data": "fmnist-embedded", "epochs": 5}, SEEDS[:2]
    else:
        networks, base, seeds = ("resnet8", "resnet32"), {"data": "cifar10"}, SEEDS
    for model in networks:
        for seed in seeds:
            yield tuned(model=model, **base, method="sgd", seed=seed)
        for ratio in RATIOS[profile]:
            for seed in seeds:
                yield tuned(model=model, **base, method="rbd", partition=f"by_ratio:{ratio}", distribution=LAW, seed=seed)
