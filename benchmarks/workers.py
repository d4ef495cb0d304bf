"""What a step of W workers costs: time as a multiple of one process's RBD step in the same run, and bytes as they went out.

All workers are processes of this machine: on fewer cores than workers they take turns, which a step's time includes. Each
has its share of the cores, by the largest W: so has the one process alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks._measure import SET

VARIANTS = ("common", "bases", "directions", "shares")  # as in rbd.distributed, without importing it
RIVALS = ("ddp", "all_reduce")  # D floats: summed in the order of the workers, and by the backend's own all-reduce
COUNTS = (1, 2, 3, 4)  # workers
TIMES = 1 if SET == "quick" else 20  # calls, of which the median counts

Found = dict[tuple[str, str, int], float]  # (what, variant, W) -> seconds or bytes


def setup_cache() -> Found:
    """One launch of the workers measures all; the cells are looked up without torch."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # asv imports this by a hook of its own, which they would lack
    from benchmarks._workers import measured
    from rbd.distributed import launch

    return launch(measured, max(COUNTS), COUNTS, TIMES)


setup_cache.timeout = 600  # type: ignore[attr-defined]


class Steps:
    """A time below 1 is less than one process alone takes for its step."""

    params = ([*VARIANTS], list(COUNTS))
    param_names = ("variant", "workers")
    unit = "x RBD step of one process"
    version = "1"
    timeout = 300

    def track_step(self, found: Found, variant: str, workers: int) -> float:
        return found["step", variant, workers] / found["step", "alone", 1]


class Regeneration(Steps):
    """What a worker generates in a step, alone on the machine: constant in W where the variant allows it."""

    def track_step(self, found: Found, variant: str, workers: int) -> float:
        return found["regeneration", variant, workers] / found["step", "alone", 1]


class Exchange(Steps):
    """What is exchanged, alone: coordinates, and D floats as DDP does."""

    params = ([*VARIANTS, *RIVALS], list(COUNTS[1:]))

    def track_step(self, found: Found, variant: str, workers: int) -> float:
        return found["exchange", variant, workers] / found["step", "alone", 1]

    def track_bytes(self, found: Found, variant: str, workers: int) -> float:
        return found["bytes", variant, workers]


Exchange.track_bytes.unit = "bytes/step"  # type: ignore[attr-defined]
