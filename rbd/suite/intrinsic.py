"""d90: the dimension that reaches 90 % of a baseline (Li et al. 2018, arXiv 1804.08838). No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rbd.suite.bootstrap import Values, bootstrap, check

SHARE = 0.9  # of the baseline
NEVER = 1e9  # stands for ln d where no d reaches the target: finite, as quantiles of infinities are NaN


@dataclass(frozen=True)
class Dimension:
    """The d at which the mean over runs first reaches a target, and its bootstrap interval over runs.

    Attributes:
        value: interpolated linearly in ln d between the d that were tried; infinity where none reaches the target.
        low, high: 95 % percentile interval; NaN where a d, or the baseline, has a single run.
        target: the metric to reach.
        first: the smallest d tried whose mean reaches it; None where none does.
        dims: those tried, in order.
    """

    value: float
    low: float
    high: float
    target: float
    first: int | None
    dims: tuple[int, ...]

    def __str__(self) -> str:
        """ "312 [287, 340]"; "> 5,000" where none reaches the target, "≤ 10" where all do."""
        value, low, high = map(self._tell, (self.value, self.low, self.high))
        return value if math.isnan(self.low) or value == low == high else f"{value} [{low}, {high}]"

    def _tell(self, d: float) -> str:
        if d > self.dims[-1]:
            return f"> {self.dims[-1]:,}"
        return f"≤ {self.dims[0]:,}" if d <= self.dims[0] else f"{d:,.0f}"


def find_dimension(runs: Mapping[int, Values], baseline: Values | float | None = None, share: float = SHARE,
                   seed: int = 0) -> Dimension:  # fmt: skip
    """Where the mean metric first reaches a share of the baseline's mean.

    Args:
        runs: d -> metric of every run, (n_d,); the larger the better.
        baseline: metric of its runs, (n,), or one number that is known; None: that of the runs at the largest d.
        share: of the baseline, above 0.
        seed: of the resampling, which takes runs of each d, and of the baseline, on their own. A number stays as it is.

    Raises:
        ValueError: there are no runs, a value is not finite, or the baseline's mean is not above 0.
    """
    dims = tuple(sorted(runs))
    if not dims:
        raise ValueError("runs: got none, allowed one or more for each d")
    known = float(baseline) if isinstance(baseline, (int, float)) else None
    strata = [check(runs[d]) for d in dims] + ([] if baseline is None or known is not None else [check(baseline)])
    if not (reference := float(strata[-1].mean()) if known is None else known) > 0:
        raise ValueError(f"baseline: got {reference:g}, allowed a number > 0, of which a share is to be reached")
    x = np.log(dims)

    def find(*arrays: np.ndarray) -> np.ndarray:
        means = np.stack([a.mean(-1) for a in arrays])  # (strata, ...)
        return _cross(x, means[: len(x)], share * (means[-1] if known is None else np.full(means.shape[1:], known)))

    value, low, high = (float(v) for v in (find(*strata), *bootstrap(find, *strata, seed=seed)))
    reached = [d for d, stratum in zip(dims, strata) if stratum.mean() >= share * reference]
    value, low, high = (_exponentiate(v, dims) for v in (value, low, high))
    return Dimension(value, low, high, share * reference, reached[0] if reached else None, dims)


def _exponentiate(x: float, dims: tuple[int, ...]) -> float:
    """d of ln d, infinity beyond the largest one tried; those tried exactly. NaN stays NaN."""
    d = math.inf if x > math.log(dims[-1]) + 1e-9 else math.exp(x)
    return next((float(known) for known in dims if math.isclose(d, known, rel_tol=1e-12)), d)


def _cross(x: np.ndarray, means: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Where the line through (x, means) first reaches the target, else NEVER: (k,), (k, ...), (...) -> (...)."""
    reached = means >= target
    after = reached.argmax(0)  # the first that reaches it
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(means, i[None], 0)[0] for i in (before, after))
    rise = np.where(after > 0, high - low, 1.0)
    share = np.where(after > 0, (target - low) / rise, 0.0)
    return np.where(reached.any(0), x[before] + share * (x[after] - x[before]), NEVER)
