"""What do the paper's own learning rates give in table 1, where they are known? (Full data sets only.)"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.paper import LEARNING_RATES


def runs(profile: str) -> Iterator[RunConfig]:
    """One seed of everything before the next one."""
    for seed, ((model, data), found) in product(SEEDS, LEARNING_RATES.items()) if profile == "paper" else ():
        for method in ("sgd", "rbd", "fpd"):
            yield RunConfig(model=model, data=data, method=method, lr=found[method], seed=seed)


EXPERIMENT = Experiment("paper_rates", __doc__, runs)
