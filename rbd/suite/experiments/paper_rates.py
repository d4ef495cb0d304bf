"""What do the paper's own learning rates give in table 1, where they are known? (Full data sets only.)"""

from __future__ import annotations

from rbd.suite.config import PAPER_LR, RunConfig
from rbd.suite.sweep import LAW, SEEDS


def configs(profile, tuned):
    if profile == "paper":
        for (model, data), found in PAPER_LR.items():
            for method, lr in found.items():
                for seed in SEEDS:
                    law = {} if method == "sgd" else {"distribution": LAW}
                    yield RunConfig(model=model, data=data, method=method, **law, lr=lr, seed=seed)
