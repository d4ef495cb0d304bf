"""What the paper says (arXiv 2011.04720), and no more: a value that is not here is not known to us."""

from __future__ import annotations

TABLE1 = {  # (model, data) -> method -> (mean, standard deviation) of validation accuracy, %; 3 runs, d = 250, 100 epochs
    ("fc", "mnist"): {"nes": (22.5, 1.7), "fpd": (80, 0.4), "rbd": (93.893, 0.024), "sgd": (98.27, 0.09)},
    ("fc", "fmnist"): {"nes": (45, 6), "fpd": (77.3, 0.29), "rbd": (85.65, 0.2), "sgd": (87.32, 0.21)},
    ("fc", "cifar10"): {"nes": (17.8, 0.5), "fpd": (21.4, 1.2), "rbd": (43.77, 0.22), "sgd": (52.09, 0.22)},
    ("cnn", "mnist"): {"nes": (51, 6), "fpd": (88.9, 0.6), "rbd": (97.17, 0.1), "sgd": (99.41, 0.09)},
    ("cnn", "fmnist"): {"nes": (37, 4), "fpd": (77.8, 1.6), "rbd": (85.56, 0.1), "sgd": (91.95, 0.18)},
    ("cnn", "cifar10"): {"nes": (20.3, 1), "fpd": (37.2, 0.8), "rbd": (54.64, 0.33), "sgd": (81.4, 0.4)},
}
RUNS = 3  # behind each mean of table 1
GAPS = {"fpd": 20.5, "nes": 39.6}  # points below RBD at the end; figure 1: ResNet-8, CIFAR-10, d = 500
LR = {  # (model, data) -> method -> learning rate, already × batch size
    ("fc", "mnist"): {"rbd": 1.0, "fpd": 1.0, "sgd": 0.125},
    ("fc", "fmnist"): {"rbd": 0.5, "fpd": 0.5, "sgd": 0.25},
    ("fc", "cifar10"): {"rbd": 0.25, "fpd": 0.25, "sgd": 0.0078},
    ("cnn", "mnist"): {"rbd": 0.0625, "fpd": 0.0625, "sgd": 0.03125},
    ("cnn", "fmnist"): {"rbd": 0.125, "fpd": 0.125, "sgd": 0.0625},
    ("cnn", "cifar10"): {"rbd": 0.125, "fpd": 0.125, "sgd": 0.0156},
}
LAYERS = {  # (model, channels of the images) -> D_k of every layer, weights and biases; D is their sum
    ("fc", 1): (784 * 128 + 128, 1_290),
    ("fc", 3): (3_072 * 128 + 128, 1_290),
    ("cnn", 1): (320, 18_496, 36_928, 9 * 64 * 64 + 64, 650),
    ("cnn", 3): (896, 18_496, 36_928, 16 * 64 * 64 + 64, 650),
}
SIZES = {pair: sum(sizes) for pair, sizes in LAYERS.items()} | {("resnet8", 3): 78_330, ("resnet32", 3): 467_194}
LI = {100: (58, 61), 200: (75.5, 76.0), 300: (81.7, 81.9), 500: (86.2, 86.9), 750: (89.1, 90.0)}
# ^ d -> range of validation accuracy, %; FPD with Adam, MNIST, FC 784-200-200-10, 100 epochs (Li et al. 2018)


def pair(model: str, data: str) -> tuple[str, str]:
    """The key of TABLE1 and LR; an embedded subset stands for its full set."""
    return model, data.removesuffix("-embedded")


def channels(data: str) -> int:
    """Colours of an image."""
    return 3 if data.startswith("cifar10") else 1


def size(model: str, data: str) -> int | None:
    """D, None where PAPER has none (a ResNet on grey images)."""
    return SIZES.get((model, channels(data)))
