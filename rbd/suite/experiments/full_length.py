"""Is the rate that a short search chose still the best one for 100 epochs, or is half or a quarter of it better?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from rbd.suite import rates
from rbd.suite.experiment import Experiment
from rbd.suite.experiments import curves, table1
from rbd.suite.rates import Request

FACTORS = (1.0, 0.5, 0.25)  # a short search picks rates too large for a long run, never too small
SEED = 100  # of the search


def runs(profile: str) -> Iterator[Request]:
    """For every rate behind table 1 and figure 1; in the quick profile searches are as long as the runs, or nearly."""
    wanted = (*table1.runs(profile), *curves.runs(profile)) if profile == "paper" else ()
    found = {rates.key(request.config): replace(request.config, seed=SEED) for request in wanted}
    for config in found.values():
        for factor in FACTORS:
            yield Request(config, factor, searched=True)


EXPERIMENT = Experiment("full_length", __doc__, runs, conclude=partial(rates.conclude, ending=rates.FULL))
