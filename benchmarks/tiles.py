"""The fastest tiles of the GPU kernels, by distribution: rows, warps, programs of project, parts of a word of expand.

    python -m benchmarks.tiles        # on a GPU; prints milliseconds, and marks the constants of rbd/kernels/gpu.py

All that are tried give the same bits, which is checked, so a choice is for speed alone. It is made by hand, from this
table, and not at run time: constants make every machine do the same work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch

from benchmarks._measure import alone, capture
from rbd.distribution import DISTRIBUTIONS, Distribution

DIM, SIZE = 256, 101_770  # as in ratios.py
ROWS = (4, 8, 16, 32)
WARPS = (1, 2, 4)
PARTS = (1, 2, 4, 8, 16, 32)
PROGRAMS = (264, 396, 528, 1024)  # of project, at most: two, three and four for each of an H100's 132 multiprocessors

Clock = Callable[[Callable[[], torch.Tensor]], float]  # seconds a call


def seconds(call: Callable[[], torch.Tensor]) -> float:
    """Of the GPU's work, as a graph."""
    return alone(capture(call), "cuda")


def tiles(distribution: Distribution, dim: int, size: int, clock: Clock = seconds) -> Iterator[tuple[str, int, bool, float]]:
    """(what, its number, whether that is the constant now, seconds) for rows, warps, programs and parts.

    Fewer than B / 32 warps are left out: a thread would first add the two blocks that it has, which rounds otherwise.
    Other rows or warps than now have no limit of registers: the limits are for those, and others would spill with them.

    Raises:
        AssertionError: two tiles give different bits.
    """
    from rbd import kernels
    from rbd.compartment import BasisSpec, Compartment
    from rbd.kernels import gpu

    spec = BasisSpec((Compartment(0, 0, size, dim),), distribution, 0, 0, 0)
    device = torch.device(gpu.DEVICE)
    g, c = torch.randn(size, device=device), torch.randn(dim, device=device)
    limits = getattr(gpu, "_REGISTERS", {})  # none in Triton's interpreter
    for what, product, x, counts in (("rows", "project", g, ROWS), ("warps", "project", g, WARPS),
                                     ("programs", "project", g, PROGRAMS), ("parts", "expand", c, PARTS)):  # fmt: skip
        expected = getattr(kernels, product)(x, spec, backend="gpu")
        constants = {"rows": gpu._ROWS, "warps": gpu._WARPS, "parts": gpu._PARTS}.get(what, {})
        now = constants.get(distribution.name, gpu.PROGRAMS)
        for count in counts:
            if what == "parts" and distribution.per_word % count:
                continue
            if what == "warps" and 32 * count < gpu._BLOCKS[distribution.name]:
                continue
            free = {distribution.name: (None, None)} if limits and what in ("rows", "warps") and count != now else {}
            with (patch.dict(constants, {distribution.name: count}), patch.dict(limits, free),
                  patch.object(gpu, "PROGRAMS", count if what == "programs" else gpu.PROGRAMS)):  # fmt: skip
                gpu._project_plan.cache_clear()
                gpu._expand_plan.cache_clear()

                def call(product: str = product, x: torch.Tensor = x) -> torch.Tensor:
                    return getattr(kernels, product)(x, spec, backend="gpu")

                assert torch.equal(call(), expected), f"{distribution.name}, {count} {what}: other bits than {now}"
                yield what, count, count == now, clock(call)
    gpu._project_plan.cache_clear()  # plans of other tiles
    gpu._expand_plan.cache_clear()


def main() -> int:
    """Print the table; 3 where there is no GPU."""
    if not torch.cuda.is_available():
        print("tiles: there is no GPU", file=sys.stderr)
        return 3
    print(f"{torch.cuda.get_device_name(0)}, d = {DIM}, D = {SIZE:,}, milliseconds; * the constant now")
    for distribution in [x for x in DISTRIBUTIONS.values() if not x.sparse]:
        for what, count, now, took in tiles(distribution, DIM, SIZE):
            print(f"{distribution.name:10} {what:8} {count:4}{'*' if now else ' '} {1000 * took:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
