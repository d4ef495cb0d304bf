"""What does a sparse basis (countsketch) reach in the rows of table 1 and figure 1, also at d = D/10? (Full data only.)"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite.config import DIM, RunConfig, find_size
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.experiments import settings
from rbd.suite.paper import LEARNING_RATES
from rbd.suite.rates import Request, tuned

FIGURE: dict[str, Any] = {"model": "resnet8", "data": "cifar10", "method": "rbd", "distribution": "countsketch"}  # figure 1


def runs(profile: str) -> Iterator[RunConfig | Request]:
    """One seed of everything before the next one; the FC net, whose runs take minutes, first, then the CNN, then ResNet-8.

    ResNet-8, for which the paper has no rates, at ours: at d = 500 that of the dense signs in `curves`; once at D/10 at
    the rule's, as the other rows.
    """
    if profile != "paper":
        return
    yield from list_fixed()
    for seed in SEEDS:
        for (model, data), augment in product(LEARNING_RATES, (None, "none")):
            for dim in (DIM, round(find_size(model, data) / 10)):  # at the default rates: the paper's; at D/10 by length
                yield RunConfig(model, data, "rbd", dim=dim, distribution="countsketch", seed=seed, augment=augment)
        tenth = round(find_size("resnet8", "cifar10") / 10)
        if seed == 0:
            yield RunConfig(**FIGURE, dim=tenth, seed=seed)
        for dim in (500, tenth):
            yield tuned(**FIGURE, dim=dim, seed=seed)


def list_fixed() -> Iterator[RunConfig]:
    """FPD in the row where dense signs at d = 250 are below the paper: is it the entries, or d? Dense: in `settings`."""
    pair = ("fc", "cifar10")
    for dim in settings.choose_dims(*pair):
        yield RunConfig(*pair, "fpd", dim=dim, distribution="countsketch", lr=LEARNING_RATES[pair]["fpd"])


EXPERIMENT = Experiment("sparse", __doc__, runs)
