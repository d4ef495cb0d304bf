"""A whole training step (forward, backward, update) of the paper's networks, by every method, against one of plain SGD."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

from benchmarks import _cost
from benchmarks._measure import DEVICES, alone, attempt, capture, on_device, rounds, skip_if_slow, unwrap
from benchmarks._suite import suite

NETWORKS = {"fc": (1, 28, 28), "cnn": (1, 28, 28), "resnet8": (3, 32, 32), "resnet32": (3, 32, 32)}
METHODS = ("sgd", "rbd normal", "rbd uniform", "rbd rademacher", "rbd rademacher by_layer", "fpd rademacher",
           "nes rademacher", "sgd graph", "rbd rademacher graph", "rbd countsketch", "rbd countsketch 10000",
           "rbd countsketch graph")  # fmt: skip
DIM, BATCH = 250, 32
PRICED, SIZE = ("rbd rademacher", "rbd countsketch"), 101_770  # D of the FC net
DIMS = (1, 10, 50, 250, 1000, 2500, 10_000, 30_000, SIZE)  # d of `Price`: those of the sweep `price`, and 1
NES = {"cpu": {"fc": 0.3, "cnn": 2.5, "resnet8": 4.0, "resnet32": 15.0},  # seconds a step, roughly: d evaluations
       "cuda": {"fc": 0.1, "cnn": 0.1, "resnet8": 0.4, "resnet32": 1.0}}  # fmt: skip


def setup_cache() -> dict:
    """{(device, network, method): (its step, SGD's), seconds; (device, "fc", d, method): their ratio}, or an exception."""
    cache = {}
    for device in DEVICES:
        for network in NETWORKS:
            steps = attempt(_steps, device, network)
            for method in METHODS:
                cache[device, network, method] = cell = steps if isinstance(steps, Exception) else steps[method]
                print(device, network, method, cell, file=sys.stderr, flush=True)
        prices = attempt(_prices, device)
        for cell in product(DIMS, PRICED):
            cache[(device, "fc", *cell)] = price = prices if isinstance(prices, Exception) else prices[cell]
            print(device, "fc", *cell, price, file=sys.stderr, flush=True)
    return cache


setup_cache.timeout = 3600


def _steps(device: str, network: str) -> dict[str, object]:
    """{method: (its step, SGD's), seconds, or an exception}, both by blocks of the same rounds."""
    device = on_device(device)
    if network == "resnet32":
        skip_if_slow(0.3)
    with _suites_threads(network):
        made = {method: attempt(_step, network, method, device) for method in METHODS}
        calls = {method: step for method, step in made.items() if not isinstance(step, Exception)}
        nes = {method: calls.pop(method) for method in list(calls) if "nes" in method}
        times = rounds(calls, device)
        times |= {method: alone(step, device, blocks=1) for method, step in nes.items()}  # hundreds of SGD's steps
        return {method: (times[method], times["sgd"]) if method in times else made[method] for method in METHODS}


def _prices(device: str) -> dict[tuple[int, str], object]:
    """{(d, method): the FC net's step as a multiple of SGD's, by blocks of the same rounds, or an exception}."""
    device = on_device(device)
    with _suites_threads("fc"):
        made = {cell: attempt(_priced_step, *cell, device) for cell in product(DIMS, PRICED)}
        calls = {cell: step for cell, step in made.items() if not isinstance(step, Exception)}
        times = rounds({"sgd": _step("fc", "sgd", device), **calls}, device)
        return {cell: times[cell] / times["sgd"] if cell in times else made[cell] for cell in made}


def _priced_step(dim: int, method: str, device: str) -> Callable[[], object]:
    skip_if_slow(2 * _cost.seconds(method.split()[1], dim, SIZE, device))
    return _step("fc", f"{method} {dim}", device)


@contextmanager
def _suites_threads(network: str) -> Iterator[None]:
    """As the suite does: one for torch with the FC net, whose operations are too small to share."""
    import torch

    before = torch.get_num_threads()
    _threads(1 if network == "fc" else before, before)
    try:
        yield
    finally:
        _threads(before, None)


def _threads(torchs: int, kernels: int | None) -> None:
    import torch

    from rbd.kernels import team

    torch.set_num_threads(torchs)
    team.set_threads(kernels)


def _step(network: str, method: str, device: str) -> Callable[[], object]:
    """A function that makes one step on a batch of seeded noise; checked to move the parameters and keep them finite.

    Steps of a "graph" are captured once, forward, backward and update, and replayed: a launch each.
    """
    import torch

    if "graph" in method and device == "cpu":
        raise NotImplementedError("CUDA graphs are for GPUs")
    if "nes" in method:
        skip_if_slow(NES[device][network])
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
        call = capture(step)
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    call()
    moved = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) - before
    assert torch.isfinite(moved).all() and moved.any(), f"{network}, {method}: the step did not move the parameters"
    return call


def _optimizer(method: str, model):
    import torch

    from rbd import FPD, NES, RBD

    graph, method = "graph" in method, method.removesuffix(" graph")
    name, distribution, more = (*method.split(), "", "")[:3]  # more: a partition, or d
    partition, dim = ("whole", int(more)) if more.isdigit() else (more or "whole", DIM)
    named = list(model.named_parameters())
    if name == "sgd":
        return torch.optim.SGD(named, lr=0.001)
    if name == "nes":
        return NES(named, lr=0.001, dim=dim, distribution=distribution)
    given = dict(lr=0.001, dim=dim, distribution=distribution, partition=partition)
    if graph:
        given["capturable"] = True  # older versions lack it
    return {"rbd": RBD, "fpd": FPD}[name](named, **given)


class Step:
    """Batches of 32, d = 250 if no other is named. A ratio is the quotient of two medians over the same rounds of blocks."""

    params = (DEVICES, tuple(NETWORKS), METHODS)
    param_names = ("device", "network", "method")
    version = "2"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[cell])

    def track_time(self, cache: dict, *cell) -> float:
        return 1000 * unwrap(cache[cell])[0]

    def track_against_sgd(self, cache: dict, *cell) -> float:
        step, sgd = unwrap(cache[cell])
        return step / sgd


Step.track_time.unit = "ms"
Step.track_against_sgd.unit = "x SGD's step"


class Price:
    """The FC net's step by RBD against d, dense and sparse, batches of 32, as a multiple of SGD's in the same rounds."""

    params = (DEVICES, ("fc",), DIMS, PRICED)
    param_names = ("device", "network", "d", "method")
    unit = "x SGD's step"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[cell])

    def track_against_sgd(self, cache: dict, *cell) -> float:
        return unwrap(cache[cell])
