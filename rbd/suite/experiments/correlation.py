"""How large is the cosine of update and gradient, against d and against √(d/D)?"""

from __future__ import annotations

from collections.abc import Iterator

from rbd.suite.experiment import Experiment
from rbd.suite.experiments import dimension, table1
from rbd.suite.rates import Request


def runs(profile: str) -> Iterator[Request]:
    """Those of two other experiments with dense signs, whose records have the cosines."""
    found = (*dimension.runs(profile), *table1.runs(profile))
    for request in sorted(found, key=lambda request: request.config.seed):
        if request.config.method == "rbd" and request.config.distribution == "rademacher":
            yield request


EXPERIMENT = Experiment("correlation", __doc__, runs)
