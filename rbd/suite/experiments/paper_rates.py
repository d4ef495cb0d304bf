"""What do the paper's own learning rates give in table 1, where they are known? (Full data sets only.)"""

from __future__ import annotations

from collections.abc import Iterator

from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.paper import LEARNING_RATES


def runs(profile: str) -> Iterator[RunConfig]:
    for (model, data), found in LEARNING_RATES.items() if profile == "paper" else ():
        for method, lr in found.items():
            for seed in SEEDS:
                yield RunConfig(model=model, data=data, method=method, lr=lr, seed=seed)


EXPERIMENT = Experiment("paper_rates", __doc__, runs)
