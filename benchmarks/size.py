"""Memory that a basis itself takes, by arithmetic, beside the times in kernels.py: where they end, this is why."""

from __future__ import annotations

from benchmarks._cost import STORED, stored_mib
from benchmarks.kernels import DIMS, SIZES


class Stored:
    """4, 2 or 1/8 bytes an entry; scikit-learn's sparse matrix has 12 d √D. On demand it is nothing."""

    params = (STORED, DIMS, SIZES)
    param_names = ("basis", "d", "D")
    unit = "MiB"
    version = "1"

    def track_size(self, way: str, dim: int, size: int) -> float:
        return stored_mib(way, dim, size)
