"""On demand against its rivals, in turn in one run: a product's time as a multiple of theirs.

Dense bases at about the paper's size; the sparse one at any d, and up to D = 1e8, where only what costs the same for all d
can follow.
"""

from __future__ import annotations

import gc
import sys

from benchmarks._cost import ON_DEMAND
from benchmarks._measure import DEVICES, alternate, attempt, capture, interleave, on_device, skip_if_slow, unwrap

DIM, SIZE = 256, 101_770  # about the paper's d, and the D of its FC net
LARGE = 1000, 10**6  # d and D on a GPU: 4 GB stored, so that a product is none of launches and tails
DENSE = tuple(way for way in ON_DEMAND if way != "countsketch")
RIVALS = ("stored fp32", "stored bf16", "stored bits", "randn", "sklearn gaussian")
# What a sketch is compared with at the same d and D. "copy": u.copy_(g) of length D; "d = 250": a sketch with 250 rows.
SKETCH_RIVALS = ("rademacher", "stored sketch", "hadamard", "sklearn sparse", "copy", "d = 250")
SKETCH_DIMS, SKETCH_SIZES = (250, 10_000), (101_770, 10**7, 10**8)


def setup_cache() -> dict:
    """{(device, ours, rival), with d and D if large, or (device, rival, d, D): {"project": Pair, ...} or an exception}."""
    cache = {}
    for device in DEVICES:
        rivals = {way: attempt(_build, device, way) for way in RIVALS}
        for way in ON_DEMAND:
            ours = attempt(_build, device, way)
            for rival, theirs in rivals.items():
                cache[device, way, rival] = attempt(_pairs, device, ours, theirs)
                print(device, way, rival, cache[device, way, rival], file=sys.stderr, flush=True)
        for size in SKETCH_SIZES:
            for dim in SKETCH_DIMS:
                ours = attempt(_build_sketch, device, "countsketch", dim, size)
                for rival in SKETCH_RIVALS:
                    cell = (device, rival, dim, size)
                    cache[cell] = attempt(_sketch_pairs, ours, *cell)
                    print(*cell, cache[cell], file=sys.stderr, flush=True)
                    gc.collect()
    stored = attempt(_build, "gpu", "stored fp32", *LARGE)
    for way in DENSE:
        ours, cell = attempt(_build, "gpu", way, *LARGE), ("gpu", way, "stored fp32", *LARGE)
        cache[cell] = attempt(_pairs, "gpu", ours, stored, *LARGE)
        print(*cell, cache[cell], file=sys.stderr, flush=True)
    return cache


setup_cache.timeout = 3600


def _build(device: str, way: str, dim: int = DIM, size: int = SIZE):
    from benchmarks import _ways

    if way == "randn":
        skip_if_slow(0.1)  # half a second a pair
    device = on_device(device)
    _ways.check_small(way, device)
    built = _ways.build(way, dim, size, device)
    _ways.check(way, built, *_ways.vectors(dim, size, device))
    return built


def _build_sketch(device: str, way: str, dim: int, size: int):
    if size > SIZE:
        skip_if_slow(0.1)  # making the vectors takes as long: not in the quick set
    return _build(device, way, dim, size)


def _sketch_pairs(ours, device: str, rival: str, dim: int, size: int) -> dict:
    """A sketch against a rival: {"project": Pair, "expand": Pair}."""
    import torch

    from benchmarks import _ways

    ours, device = unwrap(ours), on_device(device)
    g, c = _ways.vectors(dim, size, device)
    if rival == "copy":
        u = torch.empty_like(g)
        theirs = dict.fromkeys(("project", "expand"), capture(lambda: u.copy_(g)) if g.is_cuda else lambda: u.copy_(g))
    else:
        if rival == "d = 250" and dim == 250:
            raise NotImplementedError("the same as itself")
        built = _build_sketch(device, *(("countsketch", 250) if rival == "d = 250" else (rival, dim)), size)
        few = c[: 250 if rival == "d = 250" else dim]
        built = _ways.Into.kept(built, g, few)
        theirs = {"project": _ways.as_call(built, "project", g), "expand": _ways.as_call(built, "expand", few)}
    given, ours = {"project": g, "expand": c}, _ways.Into.kept(ours, g, c)
    return {what: alternate(_ways.as_call(ours, what, x), theirs[what], device) for what, x in given.items()}


def _pairs(device: str, ours, theirs, dim: int = DIM, size: int = SIZE) -> dict:
    from benchmarks import _ways

    ours, theirs, device = unwrap(ours), unwrap(theirs), on_device(device)
    g, c = _ways.vectors(dim, size, device)
    return {
        "project": alternate(_ways.as_call(ours, "project", g), _ways.as_call(theirs, "project", g), device),
        "expand": alternate(_ways.as_call(ours, "expand", c), _ways.as_call(theirs, "expand", c), device),
        "interleaved": interleave(lambda: ours.project(g), lambda: theirs.project(g)) if device == "cpu" else None,
    }


class Ratio:
    """Below 1: regenerating the basis is faster."""

    params = (DEVICES, ON_DEMAND, RIVALS)
    param_names = ("device", "basis", "rival")
    unit = "x the rival's time"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[cell])

    def track_project(self, cache: dict, *cell) -> float:
        return unwrap(cache[cell])["project"].ratio

    def track_expand(self, cache: dict, *cell) -> float:
        return unwrap(cache[cell])["expand"].ratio


class BetweenOperations:
    """Φ g in strict turn with the rival, whose idle threads still spin: what a product costs between operations of torch."""

    params = (ON_DEMAND, ("stored fp32",))
    param_names = ("basis", "rival")
    unit = "x the rival's time"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[("cpu", *cell)])

    def track_project(self, cache: dict, *cell) -> float:
        return unwrap(cache[("cpu", *cell)])["interleaved"].ratio


class Large:
    """Dense bases on a GPU at d D = 1e9; below 1, regenerating the basis is faster."""

    params = (DENSE, ("stored fp32",))
    param_names = ("basis", "rival")
    unit = "x the rival's time"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[("gpu", *cell, *LARGE)])

    def track_project(self, cache: dict, *cell) -> float:
        return unwrap(cache[("gpu", *cell, *LARGE)])["project"].ratio

    def track_expand(self, cache: dict, *cell) -> float:
        return unwrap(cache[("gpu", *cell, *LARGE)])["expand"].ratio


class Sketch:
    """countsketch: below 1, it is faster than the rival at the same d and D."""

    params = (DEVICES, SKETCH_RIVALS, SKETCH_DIMS, SKETCH_SIZES)
    param_names = ("device", "rival", "d", "D")
    unit = "x the rival's time"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[cell])

    def track_project(self, cache: dict, *cell) -> float:
        return unwrap(cache[cell])["project"].ratio

    def track_expand(self, cache: dict, *cell) -> float:
        return unwrap(cache[cell])["expand"].ratio
