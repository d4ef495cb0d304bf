"""The verdict on each question of the index in results/README.md, by one written rule for each kind of question.

A Summary (see rbd.suite.tables) has value, low and high, the ends of its 95 % interval: NaN where there is none, as for
single runs. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rbd.suite.paper import Accuracy
from rbd.suite.tables import Summary

POINTS = 1.5  # of accuracy
NEAR = 0.05  # of a theory's value
TIMES = 10.0  # how many times faster on demand is, by the paper
REPRODUCED, WITHOUT, PARTLY, NOT, NOT_RUN = (
    "reproduced", "reproduced without augmentation", "partly reproduced", "not reproduced", "not run",
)  # fmt: skip
SMALL = ("seen at small scale", "partly seen at small scale", "not seen at small scale")  # in the quick profile
HIGHER, LOWER, NONE, FEW = "higher", "lower", "no difference seen", "too few runs"
AGREES, PARTLY_AGREES, DIFFERS = "agrees with theory", "agrees in part with theory", "differs from theory"
MET, NOT_MET, SETTINGS = "rule met", "rule not met", "settings"
VERDICTS = (REPRODUCED, NOT_RUN, *SMALL, HIGHER, LOWER, NONE, FEW, AGREES, PARTLY_AGREES, DIFFERS, MET, NOT_MET, SETTINGS)
RULES = f"""\
`rbd figures` computes each verdict from the records. The rules:

- **A claim of the paper that one method beats another.** A lead counts where its 95 % interval lies above 0 (single runs:
  where it exceeds {POINTS} points). *{REPRODUCED}*: every lead counts and is as large as the paper's, if that is known: at
  most {POINTS} points away, or inside our interval. *{PARTLY}*: some leads count, or their size differs. *{NOT}*: none
  counts. The quick profile trains on 5,000 images, so its verdicts are *{SMALL[0]}*, *{SMALL[1]}* and
  *{SMALL[2]}*; sizes are not compared.
- **Numbers of the paper.** Ours agrees if it is at most {POINTS} points or two standard deviations of the difference away.
  *{REPRODUCED}*: all numbers agree in the set-up that the paper describes. *{WITHOUT}*: all agree
  without augmentation. *{PARTLY}*: some agree in either. *{NOT}*: none does.
- **Speed.** A distribution passes if some commit measured it at least {TIMES:g} times faster than the stored fp32 basis, in
  one of the two products. *{REPRODUCED}*: every distribution passes. *{PARTLY}*: some do.
- **Memory.** *{REPRODUCED}*: on demand it stays within {100 * NEAR:g} % over all d, and that of a stored basis
  grows by more.
- **Our own comparisons.** *X {HIGHER}*, *X {LOWER}*: the 95 % interval of the difference excludes 0.
  *{NONE}*: it holds 0. *{FEW}*: there is no interval.
- **A theory.** *{AGREES}*: every mean is at most {100 * NEAR:g} % away, or its interval holds the theory's value.
  *{PARTLY_AGREES}*: some are. *{DIFFERS}*: none is.
- **A default.** *{MET}* or *{NOT_MET}*: the rule stands in the details.
- *{NOT_RUN}*: there are no runs that tell. *{SETTINGS}*: nothing to judge.

A verdict rests on the runs that are there, and says where some are missing. With n = 3 a 95 % bootstrap interval covers
the true mean in about 75 % of cases."""


def leads(gap: Summary) -> bool:
    """Whether a difference counts as one."""
    return gap.value > POINTS if math.isnan(gap.low) else gap.low > 0


def matches(gap: Summary, theirs: Accuracy) -> bool:
    """Whether a difference of ours (points) is as large as the paper's."""
    return abs(gap.value - theirs.mean) <= POINTS or gap.low <= theirs.mean <= gap.high


def agrees(ours: Summary, theirs: Accuracy) -> bool:
    """Whether a mean of ours (%) is the paper's number, within POINTS or two standard deviations of the difference."""
    spread = 2 * math.hypot(theirs.std, 0 if math.isnan(ours.std) else ours.std)
    return abs(ours.value - theirs.mean) <= max(POINTS, spread) + 1e-9  # 95.5 - 94 is not 1.5 in binary


def judge_leads(gaps: Sequence[tuple[Summary, Accuracy | None]], profile: str) -> str:
    """The verdict on a claim that one method beats another, from our differences and, where it is known, the paper's."""
    if not gaps:
        return NOT_RUN
    all_words = (REPRODUCED, PARTLY, NOT) if profile == "paper" else SMALL
    counting = [leads(gap) for gap, _ in gaps]
    equal = profile != "paper" or all(matches(gap, theirs) for gap, theirs in gaps if theirs)
    return all_words[0 if all(counting) and equal else 1 if any(counting) else 2]


def judge_numbers(described: Sequence[bool], bare: Sequence[bool]) -> str:
    """The verdict on numbers of the paper: whether each agrees in the set-up it describes, and without augmentation."""
    if not described:
        return NOT_RUN
    if all(described):
        return REPRODUCED
    return WITHOUT if all(bare) else PARTLY if any((*described, *bare)) else NOT


def judge_difference(s: Summary | None, name: str) -> str:
    """The verdict on a comparison of our own: the difference of what has this name to something else, None where not run."""
    if s is None:
        return NOT_RUN
    if math.isnan(s.low):
        return FEW
    return f"{name} {HIGHER}" if s.low > 0 else f"{name} {LOWER}" if s.high < 0 else NONE


def judge_theory(ratios: Sequence[Summary]) -> str:
    """The verdict on a theory, from means over its values."""
    near = [abs(s.value - 1) <= NEAR or s.low <= 1 <= s.high for s in ratios]
    return AGREES if all(near) else PARTLY_AGREES if any(near) else DIFFERS


def judge_speed(largest: Sequence[float]) -> str:
    """The verdict on speed, from how many times faster than the stored fp32 basis each distribution was, at the most."""
    if not largest:
        return NOT_RUN
    fast = [factor >= TIMES for factor in largest]
    return REPRODUCED if all(fast) else PARTLY if any(fast) else NOT


def judge_memory(on_demand: Sequence[Sequence[float]], stored: Sequence[float]) -> str:
    """The verdict on memory: that of every distribution on demand, and of the stored basis, each by rising d."""
    if not on_demand or len(stored) < 2:
        return NOT_RUN
    flat = all(max(line) <= (1 + NEAR) * min(line) for line in on_demand)
    return REPRODUCED if flat and stored[-1] > (1 + NEAR) * stored[0] else NOT
