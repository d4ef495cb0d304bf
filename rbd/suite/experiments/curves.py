"""How do all methods learn over the epochs with ResNet-8 and d = 500 (figure 1, right)?"""

from __future__ import annotations

from rbd.suite.sweep import LAW, SEEDS


def configs(profile, tuned):
    quick = profile == "quick"
    base = {"model": "resnet8", **({"data": "fmnist-embedded", "epochs": 5} if quick else {"data": "cifar10"})}
    for seed in SEEDS:
        yield tuned(**base, method="sgd", seed=seed)
        yield tuned(**base, method="rbd", dim=500, distribution=LAW, seed=seed)
        yield tuned(**base, method="fpd", dim=500, distribution=LAW, seed=seed)
        yield tuned(**base, method="nes", dim=50 if quick else 500, distribution=LAW, seed=seed)  # 5 epochs: 780 batches
