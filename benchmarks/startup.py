"""What a user waits for before the first step: imports, and the first products with an empty and a full compile cache."""

from __future__ import annotations

import tempfile
from statistics import median

from benchmarks._measure import DEVICES, SET, fresh, lacks, on_device, skip_if_slow

IMPORT = """
import time
start = time.perf_counter()
{statement}
print(1000 * (time.perf_counter() - start))
"""
FIRST = """
import time
import torch
import rbd.kernels
from rbd import Basis
g, c = torch.ones(101_770, device="{device}"), torch.ones(250, device="{device}")
start = time.perf_counter()
basis = Basis(250, 101_770, "{distribution}")
float(basis.project(g).sum() + basis.expand(c).sum())
print(time.perf_counter() - start)
"""


class Import:
    """Median of five fresh processes; torch alone is the base line."""

    params = (("import rbd", "from rbd import RBD", "import torch"),)
    param_names = ("statement",)
    unit = "ms"
    version = "1"

    def track_time(self, statement: str) -> float:
        return median(float(fresh(IMPORT.format(statement=statement))) for _ in range(1 if SET == "quick" else 5))


class FirstProducts:
    """project and expand, d = 250, D = 101,770, as the first of a process; the compilers' caches are in a new folder."""

    params = (DEVICES, ("rademacher", "uniform", "normal"), ("empty", "full"))
    param_names = ("device", "distribution", "cache")
    unit = "s"
    version = "1"
    timeout = 600

    def setup(self, device: str, distribution: str, cache: str) -> None:
        on_device(device)
        if distribution != "rademacher":
            skip_if_slow(0.5)  # compiling takes seconds

    def track_time(self, device: str, distribution: str, cache: str) -> float:
        script = FIRST.format(device=on_device(device), distribution=distribution)
        with tempfile.TemporaryDirectory() as folder:
            places = {"NUMBA_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
            try:
                times = [float(fresh(script, **places)) for _ in range(1 if cache == "empty" else 2)]
            except RuntimeError as error:
                if lacks(error):
                    return float("nan")
                raise
        return times[-1]
