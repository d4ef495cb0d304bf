"""Which learning rate is best for every method, network and data set, and wherever d or compartments change the scale?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rbd.suite import cost, rates
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment, experiments
from rbd.suite.rates import Request

NAME = "learning_rate"
SEEDS = (100, 101)  # no run in the results uses these
OCTAVES = 9
DENSE = 2500  # largest d for which rates are searched with dense signs, whose cost grows with d
DENSE_FC = 500  # the same for the FC net, whose step is otherwise cheap


def runs(profile: str) -> Iterator[RunConfig]:
    """A grid of rates for every key that another experiment asks for; the cheap ones first."""
    grids = [list(grid(profile, config)) for config in collect(profile)]
    for found in sorted(grids, key=lambda found: sum(map(cost.estimate, found))):
        yield from found


def collect(profile: str) -> list[RunConfig]:
    """One configuration for each key that another experiment asks for, of those with the most epochs."""
    found: dict[str, RunConfig] = {}
    for config in list_requests(profile):
        known = found.setdefault(rates.key(config), config)
        if config.epochs > known.epochs:
            found[rates.key(config)] = config
    return list(found.values())


def list_requests(profile: str) -> Iterator[RunConfig]:
    """All requests of the other experiments in this folder; full_length requests what table1 and curves do."""
    for other in sorted(experiments(Path(__file__).parent), key=lambda other: other.name):
        if other.runs and other.name not in (NAME, "full_length"):
            yield from (request.config for request in other.runs(profile) if isinstance(request, Request))


def grid(profile: str, config: RunConfig) -> Iterator[RunConfig]:
    """A short run at every rate."""
    scale = {name: getattr(config, name) for name in rates.SCALE}
    plain = RunConfig(config.model, config.data, config.method, dim=None if config.method == "sgd" else 250)
    cut = config.partition not in (None, "whole")  # a factor of 2 costs five points there
    main = config.model == "fc" and (cut or rates.key(config) == rates.key(plain))  # the keys of table 1 and compartments
    distribution = "countsketch" if is_sparse(config) else None
    twice = main or config.model == "fc" and distribution is not None  # cheap, and rates nearby differ by less than seeds do
    for seed in SEEDS if twice and profile == "quick" else SEEDS[:1]:
        for octave in choose_octaves(profile, config):
            yield RunConfig(**scale, distribution=distribution, lr=2.0**octave, epochs=choose_epochs(profile, config, main),
                            seed=seed)  # fmt: skip


def is_sparse(config: RunConfig) -> bool:
    """Whether a rate is searched with the sparse distribution."""
    return (config.dim or 0) > (DENSE_FC if config.model == "fc" else DENSE)


def choose_octaves(profile: str, config: RunConfig) -> range:
    """Exponents of the rates: nine octaves, ends included; for ResNet-8 ten, every second one."""
    low, is_resnet = find_lowest(profile, config), config.model.startswith("resnet")
    step = 2 if is_resnet else 1
    if profile == "paper" and config.model != "fc" and "nes" not in config.method:
        # An epoch takes minutes, so only rates about the one to expect, low + 4 ... low + 7: the quick profile's best one,
        # less what ten times the images took off it on the FC net (an octave for rbd; for sgd and fpd one to three). The
        # paper's rates are inside. A search then costs less than one run of 100 epochs; `rbd sweep full_length` refines it.
        # On ResNet-8 they took nothing off (SGD trains best at 0.5, RBD at 2 and 8 alike), so it begins higher.
        first = low + (4 if is_resnet else 1)
        return range(first, first + 8, step)
    return range(low, low + OCTAVES + step, step)


def find_lowest(profile: str, config: RunConfig) -> int:
    """Exponent of the smallest rate: 2 ** -2 ... 2 ** 7 for rbd with the FC net and few images, for instance."""
    long = 2 if profile == "paper" else 0  # so that the paper's rates, for 100 epochs, lie inside
    if "nes" in config.method:
        return 2  # η grows with the length of a perturbation
    if config.method == "sgd":
        return -7 - long
    low = {"fc": -2, "fc200": -2, "cnn": -4, "lenet": -4, "resnet8": -3}[config.model]
    return low + shift_octaves(config) - long


def shift_octaves(config: RunConfig) -> int:
    """Octaves from the rates for d = 250: η grows with √(D/d); by at most three, which the grid has on both sides."""
    if is_sparse(config):
        return -min(3, math.ceil(math.log2((config.dim or 0) / 250) / 2))
    return 3 if config.dim is not None and config.dim < 50 else 0


def choose_epochs(profile: str, config: RunConfig, main: bool) -> int:
    """Epochs of a search run; more for nes, which takes d batches a step.

    With few images, as many as the reported runs have: rates that CNNs and ResNet-8 found in fewer diverged later or lay at
    the edge, and the FC net's at d = 50 cost nine points. Fewer for the keys of table 1 and of compartments
    (`main`).
    """
    if config.method == "nes":
        return min(config.epochs, {"fc": 20, "cnn": 10}.get(config.model, 10 if profile == "paper" else 4))
    if config.method == "rbd-nes":
        return 1
    return config.epochs if profile == "quick" and not main else 10


EXPERIMENT = Experiment(NAME, __doc__, runs, conclude=rates.conclude)
