"""Peak memory of training steps in a fresh process: it must not depend on d. A stored basis would take 4 d D bytes."""

from __future__ import annotations

from benchmarks._measure import peak_mib

STEPS = """
import torch
from rbd import RBD
model = torch.nn.Linear({size} // 10, 10, bias=False)
optimizer = RBD(model.parameters(), lr=0.1, dim={dim}, distribution="rademacher")
for _ in range(2):
    model(torch.ones(1, {size} // 10)).sum().backward()
    optimizer.step()
"""


class Peak:
    """D = 1,000,000: stored, d = 10,000 would take 37 GiB."""

    params = ([10, 1000, 10_000],)
    param_names = ("dim",)
    unit = "MiB"
    version = "1"
    timeout = 600

    def track_step(self, dim: int) -> float:
        return peak_mib(STEPS.format(size=1_000_000, dim=dim))


def track_import() -> float:
    """What the libraries alone take: the peak of a process that only imports them."""
    return peak_mib("import torch, numba, rbd.optim")


track_import.unit = "MiB"
track_import.version = "1"
