"""Bootstrap intervals of few runs, after rliable's practice (Agarwal et al. 2021, arXiv 2108.13264). NumPy only."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Values = Any  # numbers, (n,)
LEVEL = 0.95
REPLICATES = 2_000


@dataclass(frozen=True)
class Summary:
    """A point estimate over n runs with its 95 % interval, NaN where it rests on a single run."""

    value: float
    low: float
    high: float
    n: int
    std: float = np.nan  # of the runs; NaN where n = 1


def mean(x: np.ndarray) -> np.ndarray:
    """(..., n) -> (...)."""
    return np.mean(x, axis=-1)


def std(x: Values) -> float:
    """Sample standard deviation √(Σ(x - x̄)² / (n - 1)); NaN where n = 1."""
    return float(np.std(x, ddof=1)) if len(x) > 1 else float("nan")


def bootstrap(statistic: Callable[..., np.ndarray], *strata: Values, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of statistic(*strata) when every stratum is resampled with replacement.

    Args:
        statistic: takes as many arrays (REPLICATES, n_k) as there are strata, gives (REPLICATES,).
        strata: runs (n_k,), %; seed: of the resampling.

    Returns:
        Bounds at LEVEL; NaN, NaN where a stratum is a single run: its spread is unknown, so an interval would be too narrow.

    Raises:
        ValueError: a stratum is empty or holds a value that is not finite.
    """
    runs = [check(s) for s in strata]
    if any(len(x) == 1 for x in runs):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    resampled = [x[rng.integers(len(x), size=(REPLICATES, len(x)))] for x in runs]
    low, high = np.quantile(statistic(*resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def check(values: Values) -> np.ndarray:
    """The runs of a stratum as an array (n,). Raises ValueError as `bootstrap` does."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"strata: got {list(values)}, allowed one or more finite numbers each")
    return x


def summary(values: Values, seed: int = 0) -> Summary:
    """Mean of the runs of one stratum, rounded correctly, so that tables agree to the last digit."""
    x = check(values)
    return Summary(statistics.mean(x.tolist()), *bootstrap(mean, x, seed=seed), len(x), std(x))
