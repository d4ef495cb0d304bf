"""The suite's training loop, whole, against a bare torch loop of the same network whose batches are in memory.

The suite's side has all that a run has: batch preparation with augmentation, the loss's bookkeeping, a cosine every 50th
step, validation. Images are noise, as many for validation as the full sets have for so many training images.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from unittest.mock import patch

from benchmarks._measure import PAIRS, alone, expected, seconds, settle
from benchmarks._suite import suite

NETWORKS = {"fc": ("mnist", (1, 28, 28)), "cnn": ("mnist", (1, 28, 28)), "resnet8": ("cifar10", (3, 32, 32)),
            "resnet32": ("cifar10", (3, 32, 32))}  # fmt: skip
BATCHES = {"fc": 256, "cnn": 64, "resnet8": 16, "resnet32": 16}  # of an epoch
SECONDS = {"fc": 0.05, "cnn": 0.6, "resnet8": 0.8, "resnet32": 4.0}  # an epoch, roughly
EPOCHS, BATCH = 2, 32  # of a run; kernels and buffers are made in the first


class Loop:
    """A step of SGD by the suite, validation shared out over an epoch's steps, as a multiple of the bare loop's."""

    params = (tuple(NETWORKS),)
    param_names = ("network",)
    unit = "x the bare loop's step"
    version = "1"
    timeout = 600

    def setup(self, network: str) -> None:
        expected(SECONDS[network])

    def track_against_torch(self, network: str) -> float:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _compare(_suite_step(network), _bare_epoch(network), BATCHES[network])
        finally:
            torch.set_num_threads(before)


def _compare(suite_step: Callable[[], float], bare: Callable[[], object], batches: int) -> float:
    """Median over neighbouring runs of both sides, each pair in the other order than the one before."""
    ratios = []
    for pair in range(PAIRS):
        sides = [suite_step, lambda: seconds(bare) / batches]
        taken = {}
        for side in (0, 1) if pair % 2 else (1, 0):
            settle()
            taken[side] = sides[side]()
        ratios.append(taken[0] / taken[1])
    return median(ratios)


def _suite_step(network: str) -> Callable[[], float]:
    """A function that does a run and returns the seconds of a step in its last epoch."""
    import torch

    datasets, train, config = suite("datasets"), suite("train"), suite("config")
    data, shape = NETWORKS[network]
    generator = torch.Generator().manual_seed(0)

    def split(count: int):
        pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
        return datasets.Split(pixels, torch.randint(10, (count,), generator=generator))

    count = BATCHES[network] * BATCH
    sets = datasets.Dataset(data, split(count), split(count // (4 if data == "cifar10" else 5)))
    run = config.RunConfig(model=network, data=data, method="sgd", lr=0.001, epochs=EPOCHS)

    def step() -> float:
        with patch.object(datasets, "load", lambda *_: sets):
            taken = train.train(run, threads=1).seconds
        return (taken[-1] - taken[-2]) / BATCHES[network]

    return step


def _bare_epoch(network: str) -> Callable[[], None]:
    """A function that does an epoch of forward, backward and update on batches that are there, and no more."""
    import torch
    from torch.nn.functional import cross_entropy

    shape, generator = NETWORKS[network][1], torch.Generator().manual_seed(0)
    model = suite("models").build(network, shape, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    made = [
        (torch.rand(BATCH, *shape, generator=generator), torch.randint(10, (BATCH,), generator=generator))
        for _ in range(BATCHES[network])
    ]

    def epoch() -> None:
        for x, y in made:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    alone(epoch, blocks=1, budget=0.0)  # buffers
    return epoch
