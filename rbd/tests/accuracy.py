"""Accuracy in CI: small fixed runs held to committed expectations by a rule with a stated false-alarm rate.

    python -m rbd.tests.accuracy expect     # makes expected/accuracy.json again, and prints what the rule can see
    python -m rbd.tests.accuracy power      # repeats the check on correct code and on every planted bug, with other seeds
    python -m rbd.tests.accuracy check      # what `tox -e accuracy` asserts, as a table

A curve is bit-identical on one kind of machine and drifts on another, so runs are compared as samples: the mean of
`len(SEEDS)` runs must lie in the prediction interval that runs with other seeds, the expectations, give for it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from statistics import fmean, stdev

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from tqdm import tqdm

from rbd import distributed
from rbd.compartment import BasisSpec
from rbd.distribution import distribution as distribution_of
from rbd.partition import Partition, partition
from rbd.suite import batches, datasets, models, record
from rbd.suite import train as loop
from rbd.suite.config import RunConfig

FILE = Path(__file__).parent / "expected" / "accuracy.json"
SEEDS = (0, 1)  # of the check
EXPECTED_SEEDS = tuple(range(1000, 1030))  # n = 30, none of them in SEEDS
FALSE_ALARM = 1e-3  # probability that correct code with other random numbers fails any of the checks
ROUNDING = 1e-3  # relative difference that is never an alarm: sgd's cosine and length vary by rounding alone


@dataclass(frozen=True)
class Case:
    """A run to be checked; the seed in its configuration is not used."""

    config: RunConfig
    workers: int = 1  # sharing seeds, each with its own basis on the same batch: d directions each


@dataclass(frozen=True)
class Check:
    """One measure of one case against its expectation."""

    name: str
    measured: float  # mean over seeds
    expected: float  # mean over EXPECTED_SEEDS
    bound: float  # largest difference allowed

    @property
    def passed(self) -> bool:
        return abs(self.measured - self.expected) <= self.bound  # False for NaN

    def __str__(self) -> str:
        sign = "     " if self.passed else "FAIL "
        return f"{sign}{self.name:<30} {self.measured:10.4f}, expected {self.expected:10.4f} ± {self.bound:.4f}"


def _case(method: str, data: str, lr: float, workers: int = 1, epochs: int = 2, **fields) -> Case:
    return Case(RunConfig(method=method, data=f"{data}-embedded", lr=lr, epochs=epochs, **fields), workers)


# No learning rate is 1, where one ignored would not show. nes is not here: in minutes it learns too little.
CASES = {
    "sgd mnist": _case("sgd", "mnist", 0.125),
    "sgd fmnist": _case("sgd", "fmnist", 0.125),
    "rbd signs": _case("rbd", "mnist", 8.0, distribution="rademacher"),
    "rbd normal": _case("rbd", "mnist", 16.0, distribution="normal", dim=50),
    "rbd uniform": _case("rbd", "fmnist", 8.0, distribution="uniform", dim=100),
    "rbd by_layer": _case("rbd", "mnist", 8.0, distribution="rademacher", partition="by_layer"),
    "rbd even:10": _case("rbd", "fmnist", 4.0, distribution="rademacher", partition="even:10"),
    "rbd redraw 10": _case("rbd", "mnist", 8.0, distribution="rademacher", redraw=10),
    "fpd signs": _case("fpd", "mnist", 16.0, distribution="rademacher"),
    "fpd normal": _case("fpd", "fmnist", 16.0, distribution="normal", dim=50),
    "fpd uniform by_layer": _case("fpd", "mnist", 16.0, distribution="uniform", partition="by_layer", dim=100),
    "rbd-nes signs": _case("rbd-nes", "fmnist", 0.1, epochs=1, batch_size=64, sigma=2e-3, distribution="rademacher", dim=30),
    "4 workers": _case("rbd", "mnist", 8.0, workers=4, distribution="rademacher", dim=60),
}


def bound(expected: list[float], runs: int, checks: int, false_alarm: float = FALSE_ALARM) -> float:
    """Largest difference allowed between the mean of some runs and the mean of the n expected values.

    t s √(1/n + 1/runs), with t the quantile at 1 - false_alarm / (2 checks) of Student's distribution with n - 1 degrees of
    freedom: a two-sided prediction interval for a mean, with Bonferroni's correction. It assumes normal values only.
    """
    n = len(expected)
    t = float(stats.t.isf(false_alarm / (2 * checks), n - 1))
    return max(t * stdev(expected) * math.sqrt(1 / n + 1 / runs), ROUNDING * abs(fmean(expected)))


def checks(name: str, runs: list[dict[str, float]], expected: dict[str, dict[str, list[float]]]) -> list[Check]:
    """Every measure of a case against its expectation: case -> measure -> values."""
    family = sum(map(len, expected.values()))
    means = {measure: fmean(run.get(measure, math.nan) for run in runs) for measure in expected[name]}
    return [Check(f"{name}: {measure}", means[measure], fmean(values), bound(values, len(runs), family))
            for measure, values in expected[name].items()]  # fmt: skip


def observables(update: Tensor, g: Tensor, before: Tensor | None, seen: float, length: float) -> dict[str, float]:
    """What a step Δ = η u shows of its basis, whatever the network learns by it; update, g and before are (D,).

        cosine = ⟨Δ, g⟩ / (|Δ| seen)     cos(Δ, g) in units of √(d/D): 1 for any basis, less for ranks of losses
        length = |Δ| / length            1
        overlap = |cos(Δ, Δ before)|     0.798/√D if the basis is drawn anew, far more if it is kept

    Args:
        seen: expected length of the gradient's part in the basis, √(d/D) |g| for one compartment; length: of Δ.
    """
    size = float(update.norm())
    shown = {"cosine": float(update @ g) / (size * seen), "length": size / length}
    if before is not None:
        shown["overlap"] = abs(float(update @ before)) / (size * float(before.norm()))
    return shown


def seen_length(case: Case, bases: Partition | None, g: Tensor) -> float:
    """√(W Σ_k (d_k/D_k) |g_k|²), the expected length of Φᵀ Φ g (E[Φᵀ Φ g] = (d/D) g, arXiv 2011.04720); |g| for sgd."""
    if bases is None:
        return float(g.norm())
    shares = (k.dim / (k.stop - k.start) * float(g[k.start : k.stop].square().sum()) for k in bases.compartments)
    return math.sqrt(case.workers * sum(shares))


def step_length(config: RunConfig, seen: float) -> float:
    """Expected length of Δ: η |Φᵀ Φ g|; with ranks c, evenly spread from -1/2 to 1/2, η / (σ d) |Φᵀ c|."""
    d, sigma, lr = config.dim, config.sigma, float(config.lr or math.nan)
    return lr * seen if sigma is None or d is None else lr / (sigma * d) * math.sqrt(d * (d + 1) / (12 * (d - 1)))


@lru_cache(maxsize=4)
def _dataset(name: str) -> datasets.Dataset:
    return datasets.load(name)


def _network(config: RunConfig) -> nn.Module:
    return models.build(config.model, tuple(_dataset(config.data).train.images.shape[1:]), config.seed)


def bases_of(config: RunConfig) -> Partition | None:
    """The compartments of a run, None for sgd."""
    layout = tuple((name, p.numel()) for name, p in _network(config).named_parameters())
    return None if config.method == "sgd" else partition(config.partition or "whole", layout, config.dim)


def gradients(config: RunConfig) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """θ (D,) -> loss () and gradient (D,) of the run's first batch; of the second when called again, and so on.

    Batches are a function of (seed, epoch) and the gradient is taken here, apart from the loop under test.
    """
    model, split = _network(config), _dataset(config.data).train
    stream = (batch for epoch in count() for batch in batches.batches(split, config.batch_size, config.seed, epoch))

    def of(theta: Tensor) -> tuple[Tensor, Tensor]:
        vector_to_parameters(theta, model.parameters())
        x, y = next(stream)
        loss = cross_entropy(model(x), y)
        return loss.detach(), parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))

    return of


def observer(case: Case, steps: list[dict[str, float]]) -> Callable[[Tensor, Tensor], None]:
    """The function of a step's update Δ and gradient g that adds its observables to the list."""
    bases, last = bases_of(case.config), []

    def observe(update: Tensor, g: Tensor) -> None:
        seen = seen_length(case, bases, g)
        steps.append(observables(update, g, last.pop() if last else None, seen, step_length(case.config, seen)))
        last.append(update)

    return observe


@contextmanager
def observed(case: Case) -> Iterator[list[dict[str, float]]]:
    """The observables of every optimizer step inside, through torch's own hooks: the run does not know."""
    gradient, start, steps = gradients(case.config), [], []
    observe = observer(case, steps)

    def theta(optimizer: torch.optim.Optimizer) -> Tensor:
        return parameters_to_vector([p.detach() for p in optimizer.param_groups[0]["params"]])

    def before(optimizer, *_) -> None:
        start.append(theta(optimizer))

    def after(optimizer, *_) -> None:
        at = start.pop()
        observe(at - theta(optimizer), gradient(at)[1])

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()


def measures(case: Case, seed: int) -> dict[str, float]:
    """One run as numbers: accuracy (%) and mean loss of its last epoch, the recorded cosine, means of the observables."""
    case, threads = replace(case, config=replace(case.config, seed=seed)), torch.get_num_threads()
    torch.set_num_threads(1)  # as train does for the FC net: sums in another order are another run
    try:
        learnt, steps = _workers(case) if case.workers > 1 else _trained(case)
    finally:
        torch.set_num_threads(threads)
    shown = {name: fmean(step[name] for step in steps if name in step) for name in steps[-1]} if steps else {}
    return learnt | shown


def _trained(case: Case) -> tuple[dict[str, float], list[dict[str, float]]]:
    with observed(case) as steps:
        made = loop.train(case.config)
    if made.outcome != "finished":
        return {}, []
    learnt = {"accuracy": made.curve[-1].accuracy, "loss": made.curve[-1].loss}
    cosines = [point.cosine for point in made.curve if point.cosine is not None]
    return learnt | ({"recorded cosine": fmean(cosines)} if cosines else {}), steps


def _workers(case: Case) -> tuple[dict[str, float], list[dict[str, float]]]:
    """W workers with own bases on one batch, by one process in turn: θ ← θ - η Σ_r Φ_rᵀ Φ_r g."""
    config, sets, steps, losses = case.config, _dataset(case.config.data), [], []
    model, gradient, observe, bases = _network(config), gradients(config), observer(case, steps), bases_of(config)
    theta, distribution = parameters_to_vector(model.parameters()).detach(), distribution_of(config.distribution)
    per_epoch = len(sets.train) // config.batch_size
    for step in range(config.epochs * per_epoch):
        loss, g = gradient(theta)
        part = distributed.Part(g, BasisSpec(bases.compartments, distribution, config.seed, 0, step))
        moved = theta - config.lr * distributed.in_turn([part] * case.workers, "directions")
        observe(theta - moved, g)
        losses.append(float(loss))
        theta = moved
    vector_to_parameters(theta, model.parameters())
    return {"accuracy": loop.accuracy(model, sets.validation), "loss": fmean(losses[-per_epoch:])}, steps


def expectations(file: Path = FILE) -> dict[str, dict[str, list[float]]]:
    """Case -> measure -> a value for each of the expected seeds, as committed.

    Raises:
        ValueError: a case has been changed, added or removed since they were made; says how to make them again.
    """
    made = json.loads(file.read_text(encoding="utf-8"))
    for name in sorted(made["cases"].keys() | CASES.keys()):
        if name not in CASES or made["cases"].get(name) != _described(CASES[name]):
            again = "make the expectations again: python -m rbd.tests.accuracy expect"
            raise ValueError(f"{file.name}: case {name!r} is not the one of accuracy.py; {again}")
    return made["values"]


def _described(case: Case) -> dict:
    return {"config": json.loads(case.config.canonical()), "workers": case.workers}


def check(name: str, seeds: Iterable[int] = SEEDS) -> list[Check]:
    """The checks of one case, on the code as it is."""
    return checks(name, [measures(CASES[name], seed) for seed in seeds], expectations())


def expect(file: Path = FILE, seeds: tuple[int, ...] = EXPECTED_SEEDS) -> None:
    """Run every case with every seed and write the values down."""
    todo, where = [(name, seed) for name in CASES for seed in seeds], record.environment()
    values: dict[str, dict[str, list[float]]] = {name: {} for name in CASES}
    for name, seed in tqdm(todo, unit="run"):
        run = measures(CASES[name], seed)
        if not all(map(math.isfinite, run.values())) or not run:
            raise ValueError(f"{name}, seed {seed}: got {run or 'a run that diverged'}, allowed finite measures")
        for measure, value in run.items():
            values[name].setdefault(measure, []).append(float(f"{value:.6g}"))
    cases = {name: _described(case) for name, case in CASES.items()}
    made = {"cases": cases, "environment": where, "seeds": seeds, "values": values}
    text = json.dumps(made, indent=1, allow_nan=False)
    file.write_text(_one_line_lists(text) + "\n", encoding="utf-8")


def _one_line_lists(text: str) -> str:
    return re.sub(r"\[[^\]{]*\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), text)


def power(repetitions: int) -> None:
    """How many of the repetitions, with seeds of their own, raise an alarm: on correct code (all cases, as many seeds as
    the check has), and on each planted bug (its case alone, one seed, as in the tests)."""
    from rbd.tests.planted import BUGS

    seeds = [tuple(range(2000 + len(SEEDS) * r, 2000 + len(SEEDS) * (r + 1))) for r in range(repetitions)]
    for title, bug in BUGS.items():
        caught: list[str] = []  # measures
        alarms = 0
        for first, *_ in tqdm(seeds, title, leave=False):
            with bug.planted():
                failed = [c.name.split(": ")[1] for c in check(bug.case, [first]) if not c.passed]
            caught, alarms = caught + failed, alarms + bool(failed)
        by = ", ".join(f"{measure} {n}" for measure, n in Counter(caught).most_common())
        print(f"{title} ({bug.case}): {alarms} of {repetitions}; {by}", flush=True)
    families = [[c for name in CASES for c in check(name, s)] for s in tqdm(seeds, "correct code")]
    alarms = [c for family in families for c in family if not c.passed]
    nearest = max(abs(c.measured - c.expected) / c.bound for family in families for c in family)
    print(f"correct code: {len(alarms)} alarms in {repetitions} repetitions of {len(families[0])} checks")
    print(f"largest difference: {nearest:.2f} of its bound", *alarms, sep="\n")


def main(command: str = "", number: str = "20") -> int:
    """One of the three commands; returns 1 if a check fails."""
    if command == "expect":
        expect()
    elif command == "power":
        power(int(number))
        return 0
    elif command != "check":
        print(__doc__)
        return 2
    made = [c for name in tqdm(CASES, unit="case") for c in check(name)]
    print(*made, sep="\n")
    return int(not all(c.passed for c in made))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
