"""A whole training step (forward, backward, update) of the paper's networks, by every method, against one of plain SGD."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks._measure import DEVICES, alone, alternate, attempt, captured, expected, found, on_device
from benchmarks._suite import suite

NETWORKS = {"fc": (1, 28, 28), "cnn": (1, 28, 28), "resnet8": (3, 32, 32), "resnet32": (3, 32, 32)}
METHODS = ("sgd", "rbd normal", "rbd uniform", "rbd rademacher", "rbd rademacher by_layer", "fpd rademacher",
           "nes rademacher", "sgd graph", "rbd rademacher graph")  # fmt: skip
DIM, BATCH = 250, 32
NES = {"cpu": {"fc": 0.3, "cnn": 2.5, "resnet8": 4.0, "resnet32": 15.0},  # seconds a step, roughly: d evaluations
       "cuda": {"fc": 0.1, "cnn": 0.1, "resnet8": 0.4, "resnet32": 1.0}}  # fmt: skip


def setup_cache() -> dict:
    """{(device, network, method): Pair of its step and SGD's, or an exception}."""
    cache = {}
    for device in DEVICES:
        for network in NETWORKS:
            for method in METHODS:
                cache[device, network, method] = attempt(_pair, device, network, method)
                print(device, network, method, cache[device, network, method], file=sys.stderr, flush=True)
    return cache


setup_cache.timeout = 3600


def _pair(device: str, network: str, method: str):
    import torch

    device = on_device(device)
    if "graph" in method and device == "cpu":
        raise NotImplementedError("CUDA graphs are for GPUs")
    if "nes" in method:
        expected(NES[device][network])
    elif network == "resnet32":
        expected(0.3)
    before = torch.get_num_threads()
    _threads(1 if network == "fc" else before, before)  # as the suite does: the FC net's operations are too small to share
    try:
        ours, sgd = _step(network, method, device), _step(network, "sgd", device)
        if "nes" in method:  # hundreds of SGD's steps: no need to take turns
            return _Apart(alone(ours, device, blocks=1), alone(sgd, device))
        return alternate(ours, sgd, device)
    finally:
        _threads(before, None)


class _Apart:
    """Times of steps measured one after the other, seconds."""

    def __init__(self, ours: float, theirs: float) -> None:
        self.ours, self.theirs, self.ratio = ours, theirs, ours / theirs


def _threads(torchs: int, kernels: int | None) -> None:
    import torch

    from rbd.kernels import cpu

    torch.set_num_threads(torchs)
    cpu.set_threads(kernels)


def _step(network: str, method: str, device: str) -> Callable[[], object]:
    """A function that makes one step on a batch of seeded noise; checked to move the parameters and keep them finite.

    Steps of a "graph" are captured once, forward, backward and update, and replayed: a launch each.
    """
    import torch

    models = suite("models")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, *NETWORKS[network], generator=generator).to(device)
    y = torch.randint(10, (BATCH,), generator=generator).to(device)
    model = models.build(network, NETWORKS[network], 0).to(device)
    optimizer = _optimizer(method, model)

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(x), y)

    def step() -> None:
        optimizer.zero_grad(set_to_none="graph" not in method)
        loss().backward()
        optimizer.step()

    call = (lambda: optimizer.step(loss)) if "nes" in method else step
    if "graph" in method:
        call = captured(step)
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    call()
    moved = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before
    assert torch.isfinite(moved).all() and moved.any(), f"{network}, {method}: the step did not move the parameters"
    return call


def _optimizer(method: str, model):
    import torch

    from rbd import FPD, NES, RBD

    graph, method = "graph" in method, method.removesuffix(" graph")
    name, distribution, partition = (*method.split(), "normal", "whole")[:3] if " " in method else (method, None, None)
    named = list(model.named_parameters())
    if name == "sgd":
        return torch.optim.SGD(named, lr=0.001)
    if name == "nes":
        return NES(named, lr=0.001, dim=DIM, distribution=distribution)
    partition = partition if partition == "by_layer" else "whole"
    more = {"capturable": True} if graph else {}  # older versions lack it
    return {"rbd": RBD, "fpd": FPD}[name](named, lr=0.001, dim=DIM, distribution=distribution, partition=partition, **more)


class Step:
    """Batches of 32, d = 250; SGD against itself shows the noise."""

    params = (DEVICES, tuple(NETWORKS), METHODS)
    param_names = ("device", "network", "method")
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        found(cache[cell])

    def track_time(self, cache: dict, *cell) -> float:
        return 1000 * found(cache[cell]).ours

    def track_against_sgd(self, cache: dict, *cell) -> float:
        return found(cache[cell]).ratio


Step.track_time.unit = "ms"
Step.track_against_sgd.unit = "x SGD's step"
