"""How large is the cosine of update and gradient, against d and against √(d/D)?"""

from __future__ import annotations

from collections.abc import Iterator

from rbd.suite.experiment import Experiment
from rbd.suite.experiments import dimension, table1
from rbd.suite.rates import Request


def runs(profile: str) -> Iterator[Request]:
    """Those of two other experiments, whose records have the cosines."""
    for request in (*dimension.runs(profile), *table1.runs(profile)):
        if request.config.method == "rbd":
            yield request


EXPERIMENT = Experiment("correlation", __doc__, runs)
