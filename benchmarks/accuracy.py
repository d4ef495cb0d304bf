"""Validation error of a small run on the embedded images, %: equal bits on machines of a kind, so a rise is a regression.

NES is left out: the few updates that seconds allow leave it at chance.
"""

from __future__ import annotations

from benchmarks._measure import SET, skip_if_slow
from benchmarks._suite import suite

METHODS = ("sgd", "rbd normal", "rbd uniform", "rbd rademacher", "fpd rademacher")
LR = {"sgd": 0.125, "rbd": 4.0, "fpd": 4.0}


class Error:
    """FC net, 5,000 images of MNIST, d = 250, 4 epochs, seed 0; quick: 1 epoch."""

    params = (METHODS,)
    param_names = ("method",)
    unit = "% of 2,000 validation images"
    version = "1"
    timeout = 600

    def setup(self, method: str) -> None:
        if "normal" in method:
            skip_if_slow(0.5)

    def track_validation(self, method: str) -> float:
        name, distribution = (*method.split(), None)[:2]
        epochs = 1 if SET == "quick" else 4
        used = {} if distribution is None else {"dim": 250, "distribution": distribution}
        config = suite("config").RunConfig("fc", "mnist-embedded", name, lr=LR[name], epochs=epochs, **used)
        made = suite("train").train(config)
        assert made.outcome == "finished", f"{method}: {made.outcome}"
        return 100 - _last(made)


def _last(record) -> float:
    """Validation accuracy after the last epoch, %."""
    return record.curve[-1].accuracy
