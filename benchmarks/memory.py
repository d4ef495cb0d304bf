"""Peak memory of training steps in a fresh process, against d: it must not grow on demand; stored, it takes 4 d D bytes."""

from __future__ import annotations

from benchmarks._cost import seconds
from benchmarks._measure import DEVICES, fits, lacks, on_device, peak_mib, skip_if_slow

SIZE = 1_000_000  # D
LARGE = 25_000_000  # where a vector takes 95 MiB, beside which a process's own few MiB of noise are small
DENSE_DIMS, BOTH_DIMS, SKETCH_DIMS = (10, 100, 1000), (10_000,), (250, 100_000)
ON_DEMAND = """
import torch
from rbd import RBD
model = torch.nn.Linear({size} // 10, 10, bias=False, device="{device}")
optimizer = RBD(model.parameters(), lr=0.1, dim={dim}, distribution="{distribution}")
for _ in range(2):
    model(torch.ones(1, {size} // 10, device="{device}")).sum().backward()
    optimizer.step()
"""
STORED = """
import torch
model = torch.nn.Linear({size} // 10, 10, bias=False, device="{device}")
phi = torch.randn({dim}, {size}, device="{device}")
for _ in range(2):
    model(torch.ones(1, {size} // 10, device="{device}")).sum().backward()
    with torch.no_grad():
        u = phi.T @ (phi @ model.weight.grad.reshape(-1)) / {size}
        model.weight.sub_(u.view_as(model.weight), alpha=0.1)
"""

WARM = """
import torch
from rbd import RBD
def train(size, make):
    model = torch.nn.Linear(size // 10, 10, bias=False, device="{device}")
    optimizer = make(model.parameters(), size)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, size // 10, device="{device}")).sum().backward()
        optimizer.step()
def random_bases(params, size):
    return RBD(params, lr=0.1, dim=min({dim}, size), distribution="{distribution}")
def sgd(params, size):
    return torch.optim.SGD(params, lr=0.1)
train(1000, random_bases)  # so that both sides have loaded the same
train({size}, {make})
"""


class Peak:
    """Two steps with D = 1,000,000; resident memory, on a GPU torch.cuda.max_memory_allocated."""

    params = (DEVICES, ("rademacher", "uniform", "normal", "stored fp32", "countsketch"),
              tuple(sorted(DENSE_DIMS + BOTH_DIMS + SKETCH_DIMS)))  # fmt: skip
    param_names = ("device", "basis", "d")
    unit = "MiB"
    version = "2"
    timeout = 600

    def setup(self, device: str, basis: str, dim: int) -> None:
        torchs = on_device(device)
        if dim in SKETCH_DIMS and basis != "countsketch" or dim in DENSE_DIMS and basis == "countsketch":
            raise NotImplementedError("dense bases and sketches are measured at some d each: a process a cell")
        few = dim in (DENSE_DIMS[0], SKETCH_DIMS[0])
        skip_if_slow(max(0.0 if few else 0.1, seconds(basis, dim, SIZE, torchs)))  # the quick set: one d of each basis
        if basis == "stored fp32":
            fits(f"stored fp32 of {dim:,} x {SIZE:,}", 4.2 * dim * SIZE / 2**20 + 1000, torchs)

    def track_step(self, device: str, basis: str, dim: int) -> float:
        torchs, script = on_device(device), STORED if basis == "stored fp32" else ON_DEMAND
        code = script.format(size=SIZE, dim=dim, distribution=basis, device=torchs)
        try:
            return peak_mib(code, torchs)
        except RuntimeError as error:
            if lacks(error):
                return float("nan")
            raise


class BesideSGD:
    """What a step keeps at its peak beyond SGD's step, as a multiple of the parameters; D = 25,000,000."""

    params = (DEVICES, ("rademacher", "countsketch"), (250, 10_000, 100_000))
    param_names = ("device", "basis", "d")
    unit = "x the parameters"
    version = "1"
    timeout = 600

    def setup(self, device: str, basis: str, dim: int) -> None:
        torchs = on_device(device)
        skip_if_slow(max(0.1, seconds(basis, dim, LARGE, torchs)))  # two processes a cell: not in the quick set
        fits(f"a step with {LARGE:,} parameters", 8 * 4 * LARGE / 2**20 + 1000, torchs)

    def track_step(self, device: str, basis: str, dim: int) -> float:
        torchs = on_device(device)
        try:
            ours, theirs = (
                peak_mib(WARM.format(size=LARGE, dim=dim, distribution=basis, device=torchs, make=make), torchs)
                for make in ("random_bases", "sgd")
            )
        except RuntimeError as error:
            if lacks(error):
                return float("nan")
            raise
        return (ours - theirs) / (4 * LARGE / 2**20)


def track_import() -> float:
    """What the libraries alone take: the peak of a process that only imports them."""
    return peak_mib("import torch, numba, rbd.optim")


track_import.unit = "MiB"
track_import.version = "1"
