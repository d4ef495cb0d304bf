"""What do the paper's own learning rates give in table 1, where they are known? (Full data sets only.)"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.paper import LEARNING_RATES, find_learning_rate


def runs(profile: str) -> Iterator[RunConfig]:
    """One seed of everything before the next one."""
    if profile != "paper":
        return
    for seed, (model, data), method in product(SEEDS, LEARNING_RATES, ("sgd", "rbd", "fpd", "nes")):
        yield RunConfig(model, data, method, lr=find_learning_rate(model, data, method), seed=seed)


EXPERIMENT = Experiment("paper_rates", __doc__, runs)
