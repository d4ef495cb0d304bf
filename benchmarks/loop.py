"""The suite's training loop, whole, against a bare torch loop of the same network whose batches are in memory.

The suite's side has all that a run has: batch preparation with augmentation, the loss's bookkeeping, a cosine every 50th
step, validation. Images are noise, as many for validation as the full sets have for so many training images. The bare
side's lie in memory as the suite's do, channels last but for the FC net: convolutions are faster on that. It comes
after a run of the suite, which leaves malloc so that neither side's steps fault in new pages: alone it would be slower.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks._measure import PAIRS, alone, seconds, settle, skip_if_slow
from benchmarks._suite import suite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
BATCHES = {"fc mnist": 256, "fc cifar10": 64, "cnn mnist": 64, "cnn cifar10": 32, "resnet8 cifar10": 16,
           "resnet32 cifar10": 16}  # fmt: skip  # network and data -> those of an epoch
SECONDS = {"fc mnist": 0.05, "fc cifar10": 0.1, "cnn mnist": 0.6, "cnn cifar10": 0.5, "resnet8 cifar10": 0.8,
           "resnet32 cifar10": 4.0}  # fmt: skip  # an epoch, roughly
EPOCHS, BATCH = 2, 32  # of a run; kernels and buffers are made in the first


class Loop:
    """A step of SGD by the suite, validation shared out over an epoch's steps, as a multiple of the bare loop's.

    F-MNIST would be MNIST again: the same sizes.
    """

    params = (tuple(BATCHES),)
    param_names = ("pair",)
    unit = "x the bare loop's step"
    version = "3"
    timeout = 600

    def setup(self, pair: str) -> None:
        skip_if_slow(SECONDS[pair])

    def track_against_torch(self, pair: str) -> float:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            step = _suite_step(pair)
            step()
            return _compare(step, _bare_epoch(pair), BATCHES[pair])
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


def _suite_step(pair: str) -> Callable[[], float]:
    """A function that does a run and returns the seconds of a step in its last epoch."""
    import torch

    datasets, train, config = suite("datasets"), suite("train"), suite("config")
    network, data = pair.split()
    shape, generator = SHAPES[data], torch.Generator().manual_seed(0)

    def split(count: int):
        pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
        return datasets.Split(pixels, torch.randint(10, (count,), generator=generator))

    count = BATCHES[pair] * BATCH
    sets = datasets.Dataset(data, split(count), split(count // (4 if data == "cifar10" else 5)))
    run = config.RunConfig(model=network, data=data, method="sgd", lr=0.001, epochs=EPOCHS)

    def step() -> float:
        with patch.object(datasets, "load", lambda *_: sets):
            taken = train.train(run, threads=1).seconds
        return (taken[-1] - taken[-2]) / BATCHES[pair]

    return step


def _bare_epoch(pair: str) -> Callable[[], None]:
    """A function that does an epoch of forward, backward and update on batches that are there, and no more."""
    import torch
    from torch.nn.functional import cross_entropy

    network, data = pair.split()
    shape, generator = SHAPES[data], torch.Generator().manual_seed(0)
    model = suite("models").build(network, shape, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    made = [_make_batch(network, shape, generator) for _ in range(BATCHES[pair])]

    def epoch() -> None:
        for x, y in made:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    alone(epoch, blocks=1, budget=0.0)  # buffers
    return epoch


def _make_batch(network: str, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x, (BATCH, *shape), as the suite gives it to the network, and y."""
    import torch

    x, y = torch.rand(BATCH, *shape, generator=generator), torch.randint(10, (BATCH,), generator=generator)
    if network == "fc":
        return x, y
    return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2), y  # for C = 1 too
