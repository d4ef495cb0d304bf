"""The verdict on a number or a claim of the paper (arXiv 2011.04720), by one written rule. Standard library only.

A number agrees where ours is at most POINTS from it, or at most two standard deviations of the difference of both means,
√(s²/n + s'²/n'), where s is the paper's s' for a single run of ours. A lead (one method above another) holds where the
lower end of its 95 % interval is above 0; without an interval (of single or equal runs) where it is above POINTS.

    reproduced                       so with the augmentation that the paper describes
    reproduced without augmentation  not so with it, or not run with it, but so without
    not reproduced                   not so with it, and not shown without
    not run                          not run with it, and not shown without
    partly run                       (a claim about many rows) so in every row that was run, and some were not

Two limits. A single run of ours is taken to spread as the paper's runs do, though ours can spread more: FPD on the FC net,
MNIST, has a standard deviation of 3.0 points (n = 3), the paper's 0.4. Of figure 1 no spread is known, so POINTS alone
decide where a method has a single run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rbd.suite.looks import format_number
from rbd.suite.paper import RUNS

POINTS = 1.5  # of accuracy
FASTER = 10.0  # times: "up to 10 × faster"
RATIO = 400  # D/d of table 1, by a second-hand source; the released configuration has d = 250
REPRODUCED, WITHOUT, NOT_REPRODUCED, NOT_RUN = VERDICTS = (
    "reproduced", "reproduced without augmentation", "not reproduced", "not run",
)  # fmt: skip
PARTLY_RUN = "partly run"


@dataclass(frozen=True)
class Runs:
    """A number of ours: its mean over n runs and their standard deviation, NaN where n = 1."""

    value: float
    std: float
    n: int


def summarize(values: Sequence[float]) -> Runs | None:
    """Of equal runs with other seeds; None of none."""
    return Runs(mean(values), stdev(values) if len(values) > 1 else math.nan, len(values)) if values else None


def subtract(x: Runs | None, y: Runs | None) -> Runs | None:
    """The difference of two numbers of ours, std / √n being that of the difference; None where one is not there."""
    if not (x and y):
        return None
    n = x.n + y.n
    return Runs(x.value - y.value, math.hypot(x.std / math.sqrt(x.n), y.std / math.sqrt(y.n)) * math.sqrt(n), n)


def agrees(ours: Runs, theirs: float, std: float = 0.0, n: int = RUNS) -> bool:
    """Whether ours is within POINTS or two standard deviations of the difference from a mean over n runs, the paper's.

    Args:
        std: of those runs, 0 if unknown. A single run of ours is taken to spread as they do.
    """
    own = std if math.isnan(ours.std) else ours.std
    spread = math.hypot(own / math.sqrt(ours.n), std / math.sqrt(n))
    return abs(ours.value - theirs) <= max(POINTS, 2 * spread) + 1e-9  # 95.5 - 94 is not 1.5 in binary


def leads(gap: float, low: float) -> bool:
    """Whether a difference is above 0; low: of its interval, NaN where there is none."""
    return gap > POINTS if math.isnan(low) else low > 0


def judge(described: bool | None, bare: bool | None) -> str:
    """One of VERDICTS, from what holds with augmentation (as described) and without it (bare); None: not run."""
    if described:
        return REPRODUCED
    if bare:
        return WITHOUT
    return NOT_RUN if described is None else NOT_REPRODUCED


@dataclass(frozen=True)
class Beside:
    """What else is known about the runs of a number, for its likely cause.

    Attributes:
        rate: another learning rate at which ours agrees with augmentation; None if there is none.
        dim: D/400, where it is more than a tenth away from the d of our runs and was not run; else None.
        other_dim: another d at which ours agrees; None if there is none.
        other_bare: whether it agrees there without augmentation only.
        rise: accuracy gained over the last 40 % of epochs, with augmentation (points); NaN if not run.
        bases: our runs of FPD, FC, MNIST, with other seeds, whose spread a single run cannot show; None if there are none.
    """

    rate: float | None = None
    dim: int | None = None
    other_dim: int | None = None
    other_bare: bool = False
    rise: float = math.nan
    bases: Runs | None = None


def explain(method: str, theirs: float, ours: Runs | None, bare: Runs | None, verdict: str, beside: Beside) -> str:
    """The likely cause of a verdict on a number, in a sentence; ours: with augmentation, bare: without."""
    if verdict == REPRODUCED:
        return "Agrees in the setting that the paper describes."
    elsewhere = [f"with augmentation, agrees at η = {beside.rate:g}"] if beside.rate is not None else []
    if beside.other_dim is not None:
        elsewhere.append(f"agrees at d = {beside.other_dim} {'without' if beside.other_bare else 'with'} augmentation")
    unrun = [f"D/{RATIO} = {beside.dim} not run"] if beside.dim is not None else []
    shown = ours or bare
    alone = [_tell_alone(beside.bases)] if beside.bases and shown and shown.n == 1 else []
    if verdict == WITHOUT:
        return _join([f"agrees without augmentation{_tell_cost(ours, bare)}", *elsewhere, *unrun, *alone])
    if ours is None:
        return "No run with augmentation yet."
    unknown = ["the paper's η is unknown"] if method == "nes" else []
    rise = format_number(beside.rise, signed=True)
    rising = [f"with augmentation still rising, {rise} points in the last 40 % of epochs"] if beside.rise > POINTS else []
    return _join([*elsewhere, _compare(theirs, ours, bare), *unknown, *unrun, *rising, *alone])


def explain_gap(
    method: str, theirs: float, ours: Runs | None, bare: Runs | None, verdict: str, counts: Sequence[int], search: str
) -> str:
    """The likely cause of a verdict on RBD's lead over a method, in a sentence.

    Args:
        counts: runs of RBD and of the method.
        search: how long the search of their rates was ("10 epochs"), where no other rate was run as long as ours, else "".
    """
    if ours is None or verdict != NOT_REPRODUCED:
        return explain(method, theirs, ours, bare, verdict, Beside())
    leads = [f"RBD leads here too, by {'fewer' if ours.value < theirs else 'more'} points"] if ours.value > 0 else []
    number = f"n = {counts[0]} each" if len(set(counts)) == 1 else f"n = {' + '.join(map(str, counts))}"
    rates = f"of a search over {search}, no neighbour run as long" if search else "our own"
    return _join([*leads, number, f"rates {rates} (the paper's are unknown)", _compare(theirs, ours, bare)])


def _tell_cost(ours: Runs | None, bare: Runs | None) -> str:
    """What augmentation does to accuracy here, to follow that word; "" where it is not known."""
    if not (ours and bare):
        return ""
    cost = bare.value - ours.value
    return f", which {'costs' if cost > 0 else 'adds'} {format_number(abs(cost))} points here"


def _tell_alone(bases: Runs) -> str:
    return f"one basis only (FC, MNIST: ± {format_number(bases.std)} points over {bases.n} seeds)"


def _compare(theirs: float, ours: Runs, bare: Runs | None) -> str:
    if bare is None:
        return "without augmentation not run yet"
    if min(ours.value, bare.value) < theirs < max(ours.value, bare.value):
        return "the paper's number lies between ours with and without augmentation"
    return f"both settings are {'above' if ours.value > theirs else 'below'} the paper"


def _join(causes: Sequence[str]) -> str:
    sentence = "; ".join(causes)
    return f"{sentence[0].upper()}{sentence[1:]}."


def keeps_memory(on_demand: Sequence[float], stored: Sequence[float]) -> bool:
    """Whether memory stays within a twentieth on demand while that of a stored basis grows; each by rising d."""
    return max(on_demand) <= 1.05 * min(on_demand) and stored[-1] > 1.05 * stored[0]
