"""Which learning rate is best for every method, network and data set, and wherever d or compartments change the scale?"""

from __future__ import annotations

from pathlib import Path

from rbd.suite import rates, runner, sweep
from rbd.suite.config import RunConfig

SEEDS = (100, 101)  # of no reported run
OCTAVES = 9

conclude = rates.conclude


def configs(profile, tuned):
    """A grid of rates for every key that another sweep asks for; the cheap ones first."""
    grids = {rates.key(c): list(grid(profile, c)) for c in asked(profile)}
    for runs in sorted(grids.values(), key=lambda runs: sum(map(runner.cost, runs))):
        yield from runs


def asked(profile):
    """One configuration for each key, with signs for entries and the most epochs that are asked for."""
    found = {}
    for name in sweep.experiments(Path(__file__).parent):
        if name == Path(__file__).stem:
            continue
        module = sweep.script(name, Path(__file__).parent)
        spy = Spy(profile, {})
        for config in module.configs(profile, spy) if hasattr(module, "configs") else ():
            del config  # it is the asking that counts
        for config in spy.seen:
            known = found.setdefault(rates.key(config), config)
            if config.epochs > known.epochs:
                found[rates.key(config)] = config
    return found.values()


class Spy(rates.Tuned):
    """Notes what it is asked for, and answers with default rates."""

    def __call__(self, **fields):
        config = RunConfig(**fields)
        self.seen.append(config)
        return config

    @property
    def seen(self):
        return self.waiting


def grid(profile, config):
    """Short runs over nine octaves, ends included; for the ResNets over ten, every second one."""
    law = None if config.method == "sgd" else sweep.LAW
    step = 2 if config.model.startswith("resnet") else 1
    low, scale = lowest(profile, config), {name: getattr(config, name) for name in rates.SCALE}
    plain = RunConfig(config.model, config.data, config.method, dim=None if config.method == "sgd" else 250)
    cut = config.partition not in (None, "whole")  # one octave off costs five points there
    main = config.model == "fc" and (cut or rates.key(config) == rates.key(plain))  # the keys of table 1 and compartments
    for seed in SEEDS if main and profile == "quick" else SEEDS[:1]:
        for octave in range(low, low + OCTAVES + step, step):
            yield RunConfig(**scale, lr=2.0**octave, epochs=epochs(profile, config, main), seed=seed, distribution=law)


def lowest(profile, config):
    """Exponent of the smallest rate: 2 ** -2 ... 2 ** 7 for rbd with the FC net and few images, for instance."""
    long = 2 if profile == "paper" else 0  # the paper's own rates, for a hundred epochs of all images, are well inside
    if "nes" in config.method:
        return -9
    if config.method == "sgd":
        return -7 - long
    small = 3 if config.dim is not None and config.dim < 50 else 0  # few directions bear larger steps
    return {"fc": -2, "cnn": -4, "resnet8": -3, "resnet32": -3}[config.model] + small - long


def epochs(profile, config, main):
    """Epochs of a search run: fewer than those of the reported ones; more for nes, which takes d batches a step."""
    if config.method == "nes":
        return min(config.epochs, {"fc": 20, "cnn": 10}.get(config.model, 4))
    if config.method == "rbd-nes":
        return 1
    large = config.model == "fc" and (config.dim or 0) > 250
    if profile == "quick":  # cnn and resnet8: as long as the reported runs; rates found in fewer epochs diverged
        return {"fc": 3 if large else 10 if main else 5}.get(config.model, config.epochs)
    return {"fc": 2 if large else 10, "cnn": 3, "resnet8": 2, "resnet32": 1}[config.model]
