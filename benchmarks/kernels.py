"""What a product with Φ (d, D) costs: regenerated, or stored by the ways a user has, from the paper's sizes to today's.

All ways of one size are measured in one process, one after the other, so that a row of the table is of the same minute.
A stored basis is measured without the time of making it, which a training that draws a new basis every step would pay too.
"""

from __future__ import annotations

import gc
import sys

from benchmarks._cost import WAYS
from benchmarks._measure import DEVICES, alone, attempt, on_device, unwrap

DIMS, SIZES = (10, 100, 1000, 10_000), (10**5, 10**6, 10**7, 10**8)
CELLS = (DEVICES, WAYS, DIMS, SIZES)
NAMES = ("device", "basis", "d", "D")


def setup_cache() -> dict:
    """Milliseconds of both products, or why there are none: {(device, way, d, D): (project, expand) or an exception}."""
    checked = {(device, way): attempt(_check, device, way) for device in DEVICES for way in WAYS}
    cells = [(device, way, dim, size) for size in SIZES for dim in DIMS for device in DEVICES for way in WAYS]
    return {cell: _cell(checked[cell[:2]], *cell) for cell in cells}


setup_cache.timeout = 3600


def _check(device: str, way: str) -> None:
    from benchmarks import _ways

    _ways.check_small(way, on_device(device))


def _cell(checked: object, device: str, way: str, dim: int, size: int) -> object:
    if isinstance(checked, Exception):
        return checked
    times = attempt(_milliseconds, on_device(device), way, dim, size)
    print(device, way, dim, size, times, file=sys.stderr, flush=True)
    gc.collect()  # a stored basis may take most of the memory
    return times


def _milliseconds(device: str, way: str, dim: int, size: int) -> tuple[float, float]:
    from benchmarks import _ways

    built = _ways.build(way, dim, size, device)
    g, c = _ways.vectors(dim, size, device)
    _ways.check(way, built, g, c)
    project, expand = alone(_ways.as_call(built, "project", g), device), alone(_ways.as_call(built, "expand", c), device)
    return 1000 * project, 1000 * expand


class Product:
    """Φ g and Φᵀ c."""

    params, param_names = CELLS, NAMES
    unit = "ms"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[cell])

    def track_project(self, cache: dict, *cell) -> float:
        return unwrap(cache[cell])[0]

    def track_expand(self, cache: dict, *cell) -> float:
        return unwrap(cache[cell])[1]
