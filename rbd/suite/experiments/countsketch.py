"""Does a sparse basis (countsketch) train as well as dense random signs of the same d, at the same learning rate?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.paper import LEARNING_RATES
from rbd.suite.rates import Request, tuned

DISTRIBUTIONS = ("rademacher", "countsketch")
QUICK_SETS = ("mnist-embedded", "fmnist-embedded")


def runs(profile: str) -> Iterator[RunConfig | Request]:
    """One seed of everything before the next one, so that a sweep that is stopped has pairs.

    The full-scale CNN is run at the paper's rates: the dense runs are then those of `settings`, and four searches are
    spared.
    """
    quick = profile == "quick"
    for seed in range(10) if quick else SEEDS:
        for cell, method, distribution in product(list_cells(profile, seed), ("rbd", "fpd"), DISTRIBUTIONS):
            run = {**cell, "method": method, "distribution": distribution, "seed": seed}
            if quick or cell["model"] == "fc":
                yield tuned(**run)
            else:
                yield RunConfig(**run, lr=LEARNING_RATES["cnn", cell["data"]][method])


def list_cells(profile: str, seed: int) -> Iterator[dict]:
    """Networks, data sets and d: the FC net with 10 seeds, the CNN with 3, ResNet-8 with 4; at full scale FC and CNN with 3.

    The rule for the default (no worse than a point on the FC net, the CNN and ResNet-8) is judged on the quick profile. At
    full scale runs of ResNet-8 take hours: `sparse` has those of RBD at d = 500, beside the dense ones of `curves`.
    """
    if profile == "paper":
        for model, data in product(("fc", "cnn"), ("mnist", "fmnist")):
            yield {"model": model, "data": data, "dim": 250}
        return
    for data, dim in product(QUICK_SETS, (250, 2500)):
        yield {"model": "fc", "data": data, "dim": dim, "epochs": 10}
    if seed < 3:
        for data in QUICK_SETS:
            yield {"model": "cnn", "data": data, "dim": 250, "epochs": 10}
    if seed < 4:
        yield {"model": "resnet8", "data": "fmnist-embedded", "dim": 500, "epochs": 5}


EXPERIMENT = Experiment("countsketch", __doc__, runs)
