"""The verdict on each question of the index in results/README.md, by one written rule for each kind of question.

Numbers and claims of the paper are judged by rbd.suite.verdicts; here are the words for a whole experiment. A Summary (see
rbd.suite.tables) has value, low and high, the ends of its 95 % interval: NaN where there is none, as for single runs and
equal ones. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rbd.suite import verdicts
from rbd.suite.tables import Summary
from rbd.suite.verdicts import FASTER, NOT_REPRODUCED, NOT_RUN, POINTS, REPRODUCED, WITHOUT

NEAR = 0.05  # of a theory's value
PARTLY = "partly reproduced"
SMALL = ("seen at small scale", "partly seen at small scale", "not seen at small scale")  # in the quick profile
HIGHER, LOWER, NONE, FEW = "higher", "lower", "no difference seen", "too few runs"
AGREES, PARTLY_AGREES, DIFFERS = "agrees with theory", "agrees in part with theory", "differs from theory"
MET, NOT_MET, SETTINGS = "rule met", "rule not met", "settings"
VERDICTS = (*verdicts.VERDICTS, PARTLY, *SMALL, HIGHER, LOWER, NONE, FEW, AGREES, PARTLY_AGREES, DIFFERS, MET, NOT_MET,
            SETTINGS)  # fmt: skip
RULES = f"""\
`rbd figures` computes each verdict from the records, by these rules:

- **Claims of the paper that one method beats another.** A difference holds if its 95 % interval lies above 0 (without
  an interval: if it is above {POINTS} points). *{REPRODUCED}*: every difference that was run holds. *{PARTLY}*: some hold.
  *{NOT_REPRODUCED}*: none holds. The quick profile trains on 5,000 images, so there the words are *{SMALL[0]}*,
  *{SMALL[1]}* and *{SMALL[2]}*. The size of the difference does not decide; the paper's is given for
  comparison.
- **Numbers of the paper.** Ours agrees if it is at most {POINTS} points away, or at most two standard deviations of the
  difference of the two means, √(s²/n + s'²/n'). Two limits: a single run of ours is taken to spread as the paper's do,
  though ours can spread more; of figure 1 no spread is known, so for single runs {POINTS} points decide.
  *{REPRODUCED}*: all numbers agree in the set-up that the paper describes. *{WITHOUT}*: all agree without
  augmentation. *{PARTLY}*: some agree in either. *{NOT_REPRODUCED}*: none does.
- **Speed.** *{REPRODUCED}*: in the newest commit measured on some machine, the fastest dense distribution is {FASTER:g}
  times as fast as the stored fp32 basis.
- **Memory.** *{REPRODUCED}*: as d grows, peak memory grows by at most {100 * NEAR:g} % on demand, and by more with a stored
  basis.
- **Our own comparisons.** *X {HIGHER}*, *X {LOWER}*: the 95 % interval of the difference excludes 0.
  *{NONE}*: it contains 0. *{FEW}*: there is no interval, since a mean is of a single run, or all runs of
  each mean are equal.
- **A theory.** *{AGREES}*: every mean is at most {100 * NEAR:g} % away from the theory's value, or its interval contains
  that value. *{PARTLY_AGREES}*: this holds for some. *{DIFFERS}*: for none.
- **A default.** *{MET}* or *{NOT_MET}*: the details give the rule.
- *{NOT_RUN}*: no run answers the question yet. *{SETTINGS}*: a table of settings, without a verdict.

A verdict is based on the runs done so far; where some are missing, it says how many are done. Differences of means have
Welch's t interval. With normal errors it contains the true difference in 93 to 98 % of cases with two or three runs of each,
but in 88 % with two runs against ten that spread half as much. Where a mean holds a single run, or all runs of each mean are
equal, there is none, since their spread is unknown. Means, interquartile means (8 runs or more) and ratios to a theory have
bootstrap intervals, which are too narrow for few runs: with n = 3, a nominal 95 % interval contains the true mean in about
75 % of cases, with n = 2 in about half."""


def judge_leads(gaps: Sequence[Summary], profile: str) -> str:
    """The verdict on a claim that one method beats another, from its lead in every comparison."""
    if not gaps:
        return NOT_RUN
    all_hold, some, none = (REPRODUCED, PARTLY, NOT_REPRODUCED) if profile == "paper" else SMALL
    holding = [verdicts.leads(gap.value, gap.low) for gap in gaps]
    return all_hold if all(holding) else some if any(holding) else none


def judge_numbers(described: Sequence[bool], bare: Sequence[bool]) -> str:
    """The verdict on numbers of the paper: whether each agrees in the set-up it describes, and without augmentation."""
    if not described:
        return NOT_RUN
    if all(described):
        return REPRODUCED
    return WITHOUT if bare and all(bare) else PARTLY if any((*described, *bare)) else NOT_REPRODUCED


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
    if not near:
        return NOT_RUN
    return AGREES if all(near) else PARTLY_AGREES if any(near) else DIFFERS
