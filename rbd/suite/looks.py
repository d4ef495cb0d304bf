"""Names and numbers in print, and how things are drawn: a colour for a method, a marker for a distribution, in every figure.

Colours are those of seaborn's colour-blind palette, black and a grey; markers and dashes differ too, for print in grey.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"
BROWN, PINK, SKY = "#ca9161", "#fbafe4", "#56b4e9"
BLACK, GREY = "#000000", "#777777"
DASHES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)), (0, (5, 5)))
NAMES = {"sgd": "SGD", "rbd": "RBD", "fpd": "FPD", "nes": "NES", "rbd-nes": "RBD-NES",
         "subspace-adam": "Adam in a subspace", "subspace-sgd": "SGD in a subspace", "fc": "FC", "cnn": "CNN",
         "resnet8": "ResNet-8", "resnet32": "ResNet-32", "fc200": "FC 784-200-200-10", "lenet": "LeNet",
         "mnist": "MNIST", "fmnist": "F-MNIST", "cifar10": "CIFAR-10",
         "ddp": "DDP (SGD)", "rademacher": "signs"}  # fmt: skip
LOOKS: dict[str, dict[str, Any]] = {  # method, distribution, variant or stored basis -> how it is drawn
    "sgd": dict(color=BLACK, marker="s", linestyle="--"),
    "rbd": dict(color=VERMILION, marker="o", linestyle="-"),
    "fpd": dict(color=BLUE, marker="^", linestyle="-."),
    "nes": dict(color=GREY, marker="v", linestyle=":"),
    "rbd-nes": dict(color=GREEN, marker="D", linestyle=DASHES[4]),
    "subspace-adam": dict(color=PURPLE, marker="p", linestyle=DASHES[5]),
    "subspace-sgd": dict(color=SKY, marker=">", linestyle=DASHES[6]),
    "common": dict(color=VERMILION, marker="o", linestyle="-"),
    "bases": dict(color=BLUE, marker="^", linestyle="-."),
    "directions": dict(color=SKY, marker="v", linestyle=":"),
    "shares": dict(color=GREEN, marker="D", linestyle=DASHES[4]),
    "ddp": dict(color=BLACK, marker="s", linestyle="--"),
    "bf16": dict(color=GREY, marker="X", linestyle="-"),
    "powersgd": dict(color=PURPLE, marker="s", linestyle="-."),
    "topk": dict(color=BROWN, marker="^", linestyle=":"),
    "randomk": dict(color=SKY, marker="v", linestyle=DASHES[4]),
    "normal": dict(color=PURPLE, marker="X", linestyle="-"),
    "uniform": dict(color=ORANGE, marker="P", linestyle="--"),
    "rademacher": dict(color=GREEN, marker="d", linestyle="-."),
    "countsketch": dict(color=VERMILION, marker="h", linestyle=DASHES[5]),
    "stored fp32": dict(color=BLACK, marker="s", linestyle="--", markerfacecolor="none"),
    "stored bf16": dict(color=GREY, marker="^", linestyle=":", markerfacecolor="none"),
    "stored bits": dict(color=BROWN, marker="D", linestyle="--", markerfacecolor="none"),
    "randn": dict(color=BLUE, marker="v", linestyle=":", markerfacecolor="none"),
    "sklearn gaussian": dict(color=SKY, marker="<", linestyle="-.", markerfacecolor="none"),
    "sklearn sparse": dict(color=SKY, marker=">", linestyle=":", markerfacecolor="none"),
}
CYCLE = [  # for what has no look of its own, such as a network and data set
    dict(color=color, marker=marker, linestyle=dashes)
    for color, marker, dashes in zip((SKY, ORANGE, PURPLE, BROWN, GREEN, BLUE, PINK, GREY), "o^sDv<>p", DASHES)
]


def look(name: str, number: int = 0) -> dict[str, Any]:
    """How something is drawn: by its name, else by its number."""
    return dict(LOOKS.get(name) or CYCLE[number % len(CYCLE)])


def combine(method: str, distribution: str) -> dict[str, Any]:
    """How a method is drawn where several distributions are compared: its colour and dashes, the distribution's marker."""
    name = f"{label(method)}, {label(distribution)}"
    return look(method) | {"marker": look(distribution)["marker"], "label": name}


def label(name: str) -> str:
    """The name in print; an embedded subset is called as its full set."""
    return NAMES.get(name.removesuffix("-embedded"), name)


def count(number: int, noun: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_number(value: float, digits: int = 1, signed: bool = False) -> str:
    """ "43.7" for 43.65, "−0.5", and "+0.2" for 81.05 - 80.9: rounded as a decimal number, halves away from zero.

    With a minus sign (U+2212), also for a loss that is zero when rounded: "−0.0".
    """
    exact = round(float(value), digits + 6) + 0.0  # 81.05 - 80.9 is 0.1499999999999915 in binary; -0.0 + 0.0 is 0.0
    with localcontext() as context:
        context.rounding = ROUND_HALF_UP
        return f"{Decimal(repr(exact)):{'+' * signed}.{digits}f}".replace("-", "−")


def title(model: str, data: str) -> str:
    """ "fc", "mnist-embedded" -> "FC, MNIST"."""
    return f"{label(model)}, {label(data)}"
