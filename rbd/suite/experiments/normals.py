"""Do normal entries change a row of table 1? One run each, beside the signs of the others. (Full data sets only.)"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment
from rbd.suite.paper import LEARNING_RATES


def runs(profile: str) -> Iterator[RunConfig]:
    """At the rates of the runs beside them: the paper's; for NES, RBD's, as in the released configuration."""
    pairs = LEARNING_RATES if profile == "paper" else ()
    for (model, data), method in product(pairs, ("rbd", "fpd")):
        yield RunConfig(model, data, method, distribution="normal", lr=LEARNING_RATES[model, data][method])
    for model, data in pairs:
        yield RunConfig(model, data, "nes", distribution="normal")


EXPERIMENT = Experiment("normals", __doc__, runs)
