"""On-demand products against stored ones of the same size: time as a multiple of torch's matmul on a stored fp32 basis."""

from __future__ import annotations

import torch

from benchmarks._measure import ratio
from rbd import Basis

DIM, SIZE = 256, 101_770  # about the paper's d, and the D of its FC net


class OnDemand:
    """Below 1: regenerating the basis is faster than reading it."""

    params = (["normal", "uniform", "rademacher"],)
    param_names = ("distribution",)
    unit = "x stored fp32"
    version = "1"

    def setup(self, distribution: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.basis = Basis(DIM, SIZE, distribution)
        self.stored = self.basis.dense()  # (d, D) float32
        self.g, self.c = torch.randn(SIZE, generator=generator), torch.randn(DIM, generator=generator)
        torch.testing.assert_close(self.basis.project(self.g), self.stored @ self.g, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(self.basis.expand(self.c), self.stored.T @ self.c, rtol=1e-3, atol=1e-4)

    def track_project(self, distribution: str) -> float:
        return ratio(lambda: self.basis.project(self.g), lambda: self.stored @ self.g)

    def track_expand(self, distribution: str) -> float:
        return ratio(lambda: self.basis.expand(self.c), lambda: self.stored.T @ self.c)

    def track_project_against_randn(self, distribution: str) -> float:
        """Against what a user would write with torch alone: rows drawn by torch.randn, 32 at a time, and multiplied."""
        return ratio(lambda: self.basis.project(self.g), lambda: _randn_project(self.g))


OnDemand.track_project_against_randn.unit = "x randn + matmul"


def _randn_project(g: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.randn(32, SIZE) @ g for _ in range(DIM // 32)])
