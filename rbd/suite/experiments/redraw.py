"""How often must the basis be drawn anew, dense or sparse: at every step (RBD), every n steps, never (FPD)?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from rbd.suite.experiment import SEEDS, Experiment
from rbd.suite.rates import Request, tuned

INTERVALS = {"quick": (1, 4, 16, 64, 256, 1024), "paper": (1, 10, 100, 1000, 10_000)}  # steps


def runs(profile: str) -> Iterator[Request]:
    quick = profile == "quick"
    base: dict[str, Any] = {"data": "mnist-embedded", "epochs": 20} if quick else {"data": "mnist"}
    for seed, distribution in product(SEEDS, ("rademacher", "countsketch")):
        common = base | {"model": "fc", "distribution": distribution, "seed": seed}
        for redraw in INTERVALS[profile]:
            yield tuned(**common, method="rbd", redraw=redraw)
        yield tuned(**common, method="fpd")


EXPERIMENT = Experiment("redraw", __doc__, runs)
