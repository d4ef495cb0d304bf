"""Does a basis for each layer need another number of directions?"""

from collections.abc import Iterator

from rbd.suite.config import RunConfig
from rbd.suite.experiment import SEEDS, Experiment


def runs(profile: str) -> Iterator[RunConfig]:
    for seed in SEEDS:
        for partition in ("whole", "by_layer"):
            yield RunConfig(model="fc", data="mnist-embedded", method="rbd", dim=250, partition=partition,
                            lr=4.0, epochs=2, seed=seed)  # fmt: skip


EXPERIMENT = Experiment("my_experiment", __doc__, runs)
