"""A whole training step of the FC net on MNIST images, against a step of plain SGD in the same loop."""

from __future__ import annotations

import torch

from benchmarks._measure import ratio
from rbd import data, models
from rbd.config import RunConfig
from rbd.train import _cores, _stream, _update, build_optimizer


class Step:
    """Batch of 32, d = 250, one compartment; data preparation included."""

    params = (["rademacher", "uniform", "normal"],)
    param_names = ("distribution",)
    unit = "x SGD step"
    version = "1"

    def setup(self, distribution: str) -> None:
        self.sgd = _loop(RunConfig(method="sgd"))
        self.rbd = _loop(RunConfig(method="rbd", distribution=distribution))

    def track_step(self, distribution: str) -> float:
        with _cores(RunConfig(), torch.get_num_threads()):
            return ratio(self.rbd, self.sgd)


def _loop(config: RunConfig):
    """A function that makes 10 steps."""
    split = data.load(config.data).train
    model = models.build(config.model, tuple(split.images.shape[1:]), config.seed)
    optimizer = build_optimizer(config, model)
    stream = _stream(split, config, 0, len(split) // config.batch_size)

    def steps() -> None:
        for _ in range(10):
            _update(config, model, optimizer, stream)

    return steps
