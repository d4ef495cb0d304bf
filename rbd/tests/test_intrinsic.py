"""rbd.suite.intrinsic: d90 and its interval on made-up runs whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rbd.suite.intrinsic import find_dimension


def test_by_hand():
    """90 % of 100 is halfway, in ln d, between 80 at d = 100 and 100 at d = 10,000."""
    found = find_dimension({10: [50.0], 100: [80.0], 10_000: [100.0]})
    assert found.value == pytest.approx(1000) and found.target == 90 and found.first == 10_000
    assert math.isnan(found.low) and str(found) == "1,000"


def test_a_baseline_of_its_own():
    runs = {100: [40.0, 44.0], 1000: [60.0, 64.0]}
    found = find_dimension(runs, [50.0, 54.0])
    assert found.target == pytest.approx(0.9 * 52) and found.first == 1000
    assert found.value == pytest.approx(100 * 10 ** ((46.8 - 42) / 20))
    assert 100 < found.low < found.value < found.high < 1000
    assert find_dimension(runs, [50.0, 54.0], share=0.5).value == 100


def test_a_baseline_that_is_known_leaves_the_interval_of_the_runs():
    runs = {100: [40.0, 44.0], 1000: [60.0, 64.0]}
    assert find_dimension(runs, 52.0) == find_dimension(runs, [52.0, 52.0]) and find_dimension(runs, 52).low > 100
    for baseline in (0.0, -1, math.nan):
        with pytest.raises(ValueError, match="baseline: got .*, allowed a number > 0"):
            find_dimension(runs, baseline)


@pytest.mark.parametrize(("baseline", "value", "first", "said"), [
    (1000.0, math.inf, None, "> 1,000"), (10.0, 10.0, 10, "≤ 10"), (70 / 0.9, 1000.0, 1000, "1,000"),
])  # fmt: skip
def test_ends_of_the_range(baseline, value, first, said):
    found = find_dimension({10: [50.0, 50.0], 1000: [70.0, 70.0]}, baseline)
    assert (found.value, found.low, found.high, found.first, str(found)) == (value, value, value, first, said)


def test_an_interval_may_leave_the_range():
    """Of two runs at the largest d one reaches the target alone: a quarter of the resamples do not."""
    found = find_dimension({10: [0.0, 0.0], 100: [80.0, 100.0]}, [100.0, 100.0])
    assert found.value == pytest.approx(100) and found.high == math.inf
    assert found.low == pytest.approx(10 * 10**0.9) and str(found) == "100 [79, > 100]"


def test_the_first_crossing_counts():
    found = find_dimension({10: [50.0], 100: [95.0], 1000: [80.0], 10_000: [100.0]})
    assert found.first == 100 and found.value == pytest.approx(10 * 10 ** (40 / 45))


def test_order_of_the_runs_does_not_matter():
    runs = {1000: [90.0, 91.0, 92.0], 10: [20.0, 25.0, 30.0], 100: [60.0, 61.0, 62.0]}
    assert find_dimension(runs) == find_dimension(dict(sorted(runs.items())))
    assert find_dimension(runs).dims == (10, 100, 1000)


def test_interval_covers_the_truth():
    """Accuracy 20 log10 d with noise, baseline 100: 90 at d = 10 ** 4.5; 300 intervals of 10 runs, nominal 95 %."""
    rng, dims, inside = np.random.default_rng(0), (1000, 10_000, 100_000), 0
    for i in range(300):
        runs = {d: 20 * math.log10(d) + rng.normal(0, 2, 10) for d in dims}
        found = find_dimension(runs, 100 + rng.normal(0, 2, 10), seed=i)
        inside += found.low <= 10**4.5 <= found.high
    assert 0.85 < inside / 300 < 0.98


def test_equal_runs_equal_intervals():
    runs = {10: [20.0, 25.0, 30.0], 100: [90.0, 91.0, 92.0]}
    assert find_dimension(runs) == find_dimension(runs) != find_dimension(runs, seed=1)


@pytest.mark.parametrize(("runs", "baseline", "message"), [
    ({}, None, "runs: got none"), ({10: []}, None, "strata: got"), ({10: [math.nan]}, None, "strata: got"),
    ({10: [-1.0]}, None, "baseline: got -1, allowed a number > 0"), ({10: [1.0]}, [0.0], "baseline: got 0"),
])  # fmt: skip
def test_what_has_no_dimension_is_refused(runs, baseline, message):
    with pytest.raises(ValueError, match=message):
        find_dimension(runs, baseline)
