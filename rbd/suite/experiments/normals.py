"""Do normal entries change a row of table 1? One run each, beside the signs of the others. (Full data sets only.)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rbd.suite.experiment import Experiment
from rbd.suite.experiments import table1
from rbd.suite.rates import Request


def runs(profile: str) -> Iterator[Request]:
    for request in table1.runs(profile) if profile == "paper" else ():
        if request.config.seed == 0 and request.config.method != "sgd":
            yield Request(replace(request.config, distribution="normal"))


EXPERIMENT = Experiment("normals", __doc__, runs)
