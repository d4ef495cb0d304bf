"""Is the rate that a short search chose still the best one for 100 epochs, or is a neighbour of it better?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from rbd.suite import rates
from rbd.suite.experiment import Experiment
from rbd.suite.experiments import curves, table1
from rbd.suite.rates import Request

FACTORS = (1.0, 0.5, 0.25)  # so far rates of short searches were right for a long run or too large, none too small
ABOVE = (2.0,)  # figure 1 too: its search goes by every second octave
SEED = 100  # of the search


def runs(profile: str) -> Iterator[Request]:
    """For every rate behind table 1 and figure 1; in the quick profile searches are as long as the runs, or nearly.

    Of table 1's rates the search's choice, half and a quarter of it; of figure 1's also twice it.
    """
    wanted = (*table1.runs(profile), *curves.runs(profile)) if profile == "paper" else ()
    found = {rates.key(request.config): replace(request.config, seed=SEED) for request in wanted}
    for config in found.values():
        for factor in FACTORS + ABOVE * config.model.startswith("resnet"):
            yield Request(config, factor, searched=True)


EXPERIMENT = Experiment("full_length", __doc__, runs, conclude=partial(rates.conclude, ending=rates.FULL))
