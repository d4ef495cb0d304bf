"""Training the coordinates of a random subspace: forward and backward, and memory, as multiples of the plain model's.

The rival does it as one does with operations of torch alone: every parameter's coordinate by a hash, computed once and kept
as int64, read by ``index_select``, whose backward adds up with ``index_add``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks._measure import DEVICES, attempt, fits, lacks, on_device, peak_mib, rounds, skip_if_slow, unwrap
from benchmarks._suite import suite

NETWORKS = {"fc": 101_770, "cnn": 93_322, "resnet8": 78_042}  # D on images of 1 x 28 x 28
WAYS, DIMS = ("countsketch", "hashes"), (250, 10_000, 75_000)
BATCH, LARGE = 32, 25_000_000
HASHES = """
import torch

class Hashes(torch.nn.Module):
    def __init__(self, model, dim):
        super().__init__()
        self.model, first = model.requires_grad_(False), next(model.parameters())
        self.size = [p.numel() for p in model.parameters()]
        number = torch.arange(sum(self.size), device=first.device)  # (D,) int64
        mixed = (number * 0x9E3779B97F4A7C15 ^ number >> 31) * 0x3F58476D1CE4E5B9
        self.index, self.scale = (mixed >> 33) % dim, (dim / sum(self.size)) ** 0.5
        self.coordinates = torch.nn.Parameter(torch.zeros(dim, device=first.device))

    def forward(self, x):
        parts = (self.coordinates * self.scale).index_select(0, self.index).split(self.size)
        theta = {n: p + v.view(p.shape) for (n, p), v in zip(self.model.named_parameters(), parts)}
        return torch.func.functional_call(self.model, theta, (x,))
"""
PASSES = """
import torch
from rbd import Subspace
{hashes}
def train(size, make):
    model = make(torch.nn.Linear(size // 10, 10, bias=False, device="{device}"))
    for _ in range(3):
        for p in model.parameters():
            p.grad = None
        model(torch.ones(1, size // 10, device="{device}")).sum().backward()
def plain(model):
    return model
def countsketch(model):
    return Subspace(model, min({dim}, model.weight.numel()))
def hashes(model):
    return Hashes(model, min({dim}, model.weight.numel()))
for make in (plain, countsketch, hashes):
    train(1000, make)  # so that all sides have loaded the same
train({size}, {make})
"""


def setup_cache() -> dict:
    """{(device, network, way, d): its time / the plain model's, or an exception}."""
    cache = {}
    for device in DEVICES:
        for network in NETWORKS:
            times = attempt(_times, device, network)
            for way in WAYS:
                for dim in DIMS:
                    cell = times if isinstance(times, Exception) else times[way, dim] / times["plain", 0]
                    cache[device, network, way, dim] = cell
                    print(device, network, way, dim, cell, file=sys.stderr, flush=True)
    return cache


setup_cache.timeout = 3600


def _times(device: str, network: str) -> dict:
    """Seconds of a forward and a backward pass of the plain model and of every way, by blocks of the same rounds."""
    import torch

    device, before = on_device(device), torch.get_num_threads()
    torch.set_num_threads(1 if network == "fc" else before)  # as the suite does
    try:
        calls = {("plain", 0): _passes(network, "plain", 0, device)}
        calls |= {(way, dim): _passes(network, way, dim, device) for way in WAYS for dim in DIMS}
        return rounds(calls, device)
    finally:
        torch.set_num_threads(before)


def _passes(network: str, way: str, dim: int, device: str) -> Callable[[], object]:
    import torch

    shape = (1, 28, 28)
    model = suite("models").build(network, shape, 0).to(device)
    assert sum(p.numel() for p in model.parameters()) == NETWORKS[network]
    x = torch.rand(BATCH, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    y = (torch.arange(BATCH) % 10).to(device)
    model = _wrap(model, way, dim)

    def call() -> None:
        for p in model.parameters():
            p.grad = None
        torch.nn.functional.cross_entropy(model(x), y).backward()

    call()
    assert way == "plain" or model.coordinates.grad.any(), f"{network}, {way}: no gradient"
    return call


def _wrap(model, way: str, dim: int):
    if way == "hashes":
        names: dict = {}
        exec(HASHES, names)
        return names["Hashes"](model, dim)
    if way == "countsketch":
        try:
            from rbd import Subspace
        except ImportError as error:
            raise NotImplementedError("an older rbd, without Subspace") from error
        return Subspace(model, dim)
    return model


class Passes:
    """Forward and backward, batch 32."""

    params = (DEVICES, tuple(NETWORKS), WAYS, DIMS)
    param_names = ("device", "network", "way", "d")
    unit = "x the plain model's time"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[cell])

    def track_ratio(self, cache: dict, *cell) -> float:
        return unwrap(cache[cell])


class Peak:
    """What the two passes hold at their peak beyond the plain model, as a multiple of the parameters; D = 25,000,000."""

    params = (DEVICES, WAYS, (250, 100_000))
    param_names = ("device", "way", "d")
    unit = "x the parameters"
    version = "1"
    timeout = 600

    def setup(self, cache: dict, device: str, way: str, dim: int) -> None:  # of the module: asv gives it to all
        torchs = on_device(device)
        skip_if_slow(0.1)  # two processes a cell: not in the quick set
        fits(f"passes with {LARGE:,} parameters", 10 * 4 * LARGE / 2**20 + 1000, torchs)

    def track_beyond_plain(self, cache: dict, device: str, way: str, dim: int) -> float:
        torchs = on_device(device)
        try:
            ours, plain = (
                peak_mib(PASSES.format(hashes=HASHES, device=torchs, dim=dim, size=LARGE, make=make), torchs)
                for make in (way, "plain")
            )
        except RuntimeError as error:
            if lacks(error):
                return float("nan")
            raise
        return (ours - plain) / (4 * LARGE / 2**20)
