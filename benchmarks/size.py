"""Memory that a basis itself takes, by arithmetic, beside the times in kernels.py: where they end, this is why.

And the caches of the machine that ran the benchmarks: which of these bases they hold decides the ratios in ratios.py.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks._cost import STORED, stored_mib
from benchmarks.kernels import DIMS, SIZES


class Stored:
    """4, 2 or 1/8 bytes an entry; scikit-learn's sparse matrix has 12 d √D, a sketch 16 D. On demand it is nothing."""

    params = (STORED, DIMS, SIZES)
    param_names = ("basis", "d", "D")
    unit = "MiB"
    version = "1"

    def track_size(self, way: str, dim: int, size: int) -> float:
        return stored_mib(way, dim, size)


CACHES = ("L1d", "L2", "L3")  # of one core; L3 of those that share it


class Cache:
    """A size as Linux reports it; n/a elsewhere. A property of the machine, kept with the results that depend on it."""

    params = (CACHES,)
    param_names = ("cache",)
    unit = "KiB"
    version = "1"

    def setup(self, cache: str) -> None:
        self.sizes = caches()
        if cache not in self.sizes:
            raise NotImplementedError(f"{cache}: the system does not report its size")

    def track_size(self, cache: str) -> int:
        return self.sizes[cache]


def caches(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> dict[str, int]:
    """Sizes in KiB of the data caches of the first core, by level."""
    found = {}
    for place in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((place / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}" + ("d" if kind == "Data" else "")] = int(size[:-1])
    return found
