"""The numbers of the paper (arXiv 2011.04720). A value that is not here is not known to us. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, sqrt


@dataclass(frozen=True)
class Accuracy:
    """Validation accuracy after 100 epochs on the full training set, %: mean and standard deviation of RUNS runs."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.mean:g} ± {self.std:g}"


METHODS = ("nes", "fpd", "rbd", "sgd")  # the columns of table 1
RUNS = 3  # behind each mean of table 1
TABLE1 = {  # (model, data) -> method -> accuracy; batches of 32
    pair: dict(zip(METHODS, (Accuracy(mean, std) for mean, std in cells)))
    for pair, cells in {
        ("fc", "mnist"): ((22.5, 1.7), (80, 0.4), (93.893, 0.024), (98.27, 0.09)),
        ("fc", "fmnist"): ((45, 6), (77.3, 0.29), (85.65, 0.2), (87.32, 0.21)),
        ("fc", "cifar10"): ((17.8, 0.5), (21.4, 1.2), (43.77, 0.22), (52.09, 0.22)),
        ("cnn", "mnist"): ((51, 6), (88.9, 0.6), (97.17, 0.1), (99.41, 0.09)),
        ("cnn", "fmnist"): ((37, 4), (77.8, 1.6), (85.56, 0.1), (91.95, 0.18)),
        ("cnn", "cifar10"): ((20.3, 1), (37.2, 0.8), (54.64, 0.33), (81.4, 0.4)),
    }.items()
}
GAPS = {"fpd": 20.5, "nes": 39.6}  # points below RBD at the end; figure 1 right: ResNet-8, CIFAR-10, d = 500
LEARNING_RATES = {  # (model, data) -> method -> learning rate, already × batch size, for directions scaled by 1/√D
    ("fc", "mnist"): {"rbd": 1.0, "fpd": 1.0, "sgd": 0.125},
    ("fc", "fmnist"): {"rbd": 0.5, "fpd": 0.5, "sgd": 0.25},
    ("fc", "cifar10"): {"rbd": 0.25, "fpd": 0.25, "sgd": 0.0078},
    ("cnn", "mnist"): {"rbd": 0.0625, "fpd": 0.0625, "sgd": 0.03125},
    ("cnn", "fmnist"): {"rbd": 0.125, "fpd": 0.125, "sgd": 0.0625},
    ("cnn", "cifar10"): {"rbd": 0.125, "fpd": 0.125, "sgd": 0.0156},
}
SIGMA = {"nes": 0.01, "rbd-nes": 0.002}  # standard deviation of the entries of a perturbation in the released code
LAYERS = {  # (model, channels of the images) -> D_k of every layer, weights and biases; D is their sum
    ("fc", 1): (784 * 128 + 128, 1_290),
    ("fc", 3): (3_072 * 128 + 128, 1_290),
    ("cnn", 1): (320, 18_496, 36_928, 9 * 64 * 64 + 64, 650),
    ("cnn", 3): (896, 18_496, 36_928, 16 * 64 * 64 + 64, 650),
}
SIZES = {pair: sum(sizes) for pair, sizes in LAYERS.items()} | {("resnet8", 3): 78_330, ("resnet32", 3): 467_194}  # D
LI = {  # Li et al. 2018, arXiv 1804.08838: network -> d -> range of validation accuracy, %; MNIST, Adam, 100 epochs
    "fc200": {100: (58, 61), 200: (75.5, 76.0), 300: (81.7, 81.9), 500: (86.2, 86.9), 750: (89.1, 90.0)},
    "lenet": {100: (76.3, 76.3), 250: (88.7, 88.7), 300: (90.3, 90.3)},
}
LI_SIZES = {"fc200": 199_210, "lenet": 44_426}  # D of their networks
LI_D90 = {"fc200": 750, "lenet": 290}  # theirs: network -> d that reaches 90 % of the accuracy of all D parameters


def find_accuracy(model: str, data: str, method: str) -> Accuracy | None:
    """Of table 1; an embedded subset stands for its full set; None where the paper has none."""
    return TABLE1.get(_key(model, data), {}).get(method)


def find_gap(model: str, data: str, method: str, rival: str) -> Accuracy | None:
    """By how many points of table 1 a method is above another, with the standard deviation of the difference; or None."""
    first, second = (find_accuracy(model, data, m) for m in (method, rival))
    return Accuracy(first.mean - second.mean, hypot(first.std, second.std)) if first and second else None


def find_learning_rate(model: str, data: str, method: str) -> float | None:
    """Already × batch size; an embedded subset stands for its full set; None where it is not known.

    NES inherits RBD's in the released configuration.
    """
    known = LEARNING_RATES.get(_key(model, data), {})
    if method == "nes" and known:
        return scale_learning_rate(known["rbd"], compute_length(method, SIZES[model, _channels(data)]))
    return known.get(method)


def compute_length(method: str, size: int) -> float:
    """σ √D, the length of a perturbation of NES or RBD-NES; three digits."""
    return _round(SIGMA[method] * sqrt(size))


def scale_learning_rate(lr: float, length: float) -> float:
    """NES's rate for perturbations of a length; lr: its rate in the released configuration. rate / length = lr / 0.01."""
    return _round(lr / SIGMA["nes"] * length)


def _round(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")


def find_layers(model: str, data: str) -> tuple[int, ...] | None:
    """D_k of every layer; None where the layers are not listed here (the ResNets)."""
    return LAYERS.get((model, _channels(data)))


def _key(model: str, data: str) -> tuple[str, str]:
    return model, data.removesuffix("-embedded")


def _channels(data: str) -> int:
    return 3 if data.startswith("cifar10") else 1
