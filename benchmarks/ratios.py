"""On demand against its rivals at about the paper's size, in turn in one run: a product's time as a multiple of theirs."""

from __future__ import annotations

import sys

from benchmarks._cost import ON_DEMAND
from benchmarks._measure import DEVICES, alternate, attempt, expected, found, interleaved, on_device

DIM, SIZE = 256, 101_770  # about the paper's d, and the D of its FC net
RIVALS = ("stored fp32", "stored bf16", "stored bits", "randn", "sklearn gaussian")


def setup_cache() -> dict:
    """{(device, ours, rival): {"project": Pair, "expand": Pair, "interleaved": Pair} or an exception}."""
    cache = {}
    for device in DEVICES:
        rivals = {way: attempt(_build, device, way) for way in RIVALS}
        for way in ON_DEMAND:
            ours = attempt(_build, device, way)
            for rival, theirs in rivals.items():
                cache[device, way, rival] = attempt(_pairs, device, ours, theirs)
                print(device, way, rival, cache[device, way, rival], file=sys.stderr, flush=True)
    return cache


setup_cache.timeout = 1200


def _build(device: str, way: str):
    from benchmarks import _ways

    if way == "randn":
        expected(0.1)  # half a second a pair
    device = on_device(device)
    _ways.check_small(way, device)
    built = _ways.build(way, DIM, SIZE, device)
    _ways.check(way, built, *_ways.vectors(DIM, SIZE, device))
    return built


def _pairs(device: str, ours, theirs) -> dict:
    from benchmarks import _ways

    ours, theirs, device = found(ours), found(theirs), on_device(device)
    g, c = _ways.vectors(DIM, SIZE, device)
    return {
        "project": alternate(_ways.timed(ours, "project", g), _ways.timed(theirs, "project", g), device),
        "expand": alternate(_ways.timed(ours, "expand", c), _ways.timed(theirs, "expand", c), device),
        "interleaved": interleaved(lambda: ours.project(g), lambda: theirs.project(g)) if device == "cpu" else None,
    }


class Ratio:
    """Below 1: regenerating the basis is faster."""

    params = (DEVICES, ON_DEMAND, RIVALS)
    param_names = ("device", "basis", "rival")
    unit = "x the rival's time"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        found(cache[cell])

    def track_project(self, cache: dict, *cell) -> float:
        return found(cache[cell])["project"].ratio

    def track_expand(self, cache: dict, *cell) -> float:
        return found(cache[cell])["expand"].ratio


class BetweenOperations:
    """Φ g in strict turn with the rival, whose idle threads still spin: what a product costs between operations of torch."""

    params = (ON_DEMAND, ("stored fp32",))
    param_names = ("basis", "rival")
    unit = "x the rival's time"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        found(cache[("cpu", *cell)])

    def track_project(self, cache: dict, *cell) -> float:
        return found(cache[("cpu", *cell)])["interleaved"].ratio
