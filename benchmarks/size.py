"""Memory that a basis itself takes, by arithmetic, beside the times in kernels.py: where they end, this is why."""

from __future__ import annotations

from benchmarks.kernels import DIMS, SIZES


class Stored:
    """4, 2 or 1/8 bytes an entry; scikit-learn's sparse matrix has 12 d √D. On demand it is nothing."""

    params = (("stored fp32", "stored bf16", "stored bits", "sklearn gaussian", "sklearn sparse"), DIMS, SIZES)
    param_names = ("basis", "d", "D")
    unit = "MiB"
    version = "1"

    def track_size(self, way: str, dim: int, size: int) -> float:
        from benchmarks._ways import stored_mib

        return stored_mib(way, dim, size)
