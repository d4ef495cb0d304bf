"""The rule of accuracy.py, its expectations against theory, and (tox -e accuracy) the runs themselves and planted bugs."""

from __future__ import annotations

import json
import math
from functools import cache
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from scipy import stats

from rbd.tests import accuracy
from rbd.tests.accuracy import CASES, EXPECTED_SEEDS, FILE, SEEDS, Check, bound, checks, expectations, measures
from rbd.tests.planted import BUGS

# ---------------------------------------------------------------- the rule


def test_bound_by_hand():
    """Values 1 and 3: s = √2; Student's t with 1 degree of freedom has its upper quartile at 1; √(1/2 + 1/2) = 1."""
    assert bound([1.0, 3.0], runs=2, checks=1, false_alarm=0.5) == pytest.approx(math.sqrt(2))
    assert bound([1.0, 3.0], runs=2, checks=2, false_alarm=1.0) == pytest.approx(math.sqrt(2))  # 1/2 for each check


def test_values_that_vary_by_rounding_have_the_least_bound():
    assert bound([2.0, 2.0, 2.0000001], runs=1, checks=1) == pytest.approx(2e-3)


def test_false_alarms_are_as_rare_as_stated():
    """Of 2,000 families of 10 checks of unshifted normal values, 5 % raise an alarm, within 4 standard errors of 0.5 %."""
    rng = np.random.default_rng(0)
    alarms = 0
    for family in rng.normal(50.0, 3.0, (2000, 10, 32)):
        alarms += any(abs(v[30:].mean() - v[:30].mean()) > bound(list(v[:30]), 2, 10, 0.05) for v in family)
    assert 0.03 < alarms / 2000 < 0.07


def test_a_shift_of_seven_standard_deviations_is_caught_nearly_always():
    """Two runs against thirty, 76 checks: the bound is near 3.8 s, the mean of two runs varies by 0.7 s."""
    rng = np.random.default_rng(1)
    caught = sum(abs(v[30:].mean() + 7 - v[:30].mean()) > bound(list(v[:30]), 2, 76) for v in rng.normal(0, 1, (500, 32)))
    assert caught >= 490


EXPECTED = {"a": {"x": [1.0, 2.0, 3.0], "y": [5.0, 5.0, 5.0]}}


@pytest.mark.parametrize(("run", "passed"), [
    ({"x": 2.0, "y": 5.004}, [True, True]),  # a difference within 1e-3 of 5 is rounding
    ({"x": 2.0, "y": 5.006}, [True, False]),
    ({"x": math.nan, "y": 5.0}, [False, True]),
    ({"x": 2.0}, [True, False]),  # a measure that a run does not have
    ({}, [False, False]),  # a run that diverged
    ({"x": 1e9, "y": 5.0}, [False, True]),
])  # fmt: skip
def test_what_passes(run, passed):
    assert [c.passed for c in checks("a", [run], EXPECTED)] == passed


def test_one_bad_run_among_good_ones_shows():
    made = checks("a", [{"x": 2.0, "y": 5.0}, {}], EXPECTED)
    assert not any(c.passed for c in made)


def test_a_check_says_what_failed():
    line = str(Check("a: x", measured=9.0, expected=2.0, bound=1.5))
    assert line.startswith("FAIL") and "a: x" in line and "9.0000" in line and "2.0000 ± 1.5000" in line


# ---------------------------------------------------------------- what is measured


def test_observables_by_hand():
    """Δ = (3, 4), g = (1, 0): ⟨Δ, g⟩ = 3, |Δ| = 5."""
    update, g = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    shown = accuracy.observables(update, g, torch.tensor([0.0, -2.0]), seen=0.5, length=10.0)
    assert shown == pytest.approx({"cosine": 3 / (5 * 0.5), "length": 5 / 10, "overlap": 8 / (5 * 2)})
    assert "overlap" not in accuracy.observables(update, g, None, 0.5, 10.0)


def test_lengths_by_hand():
    """Layers of 100,480 and 1,290 parameters share d = 250 as 247 and 3; ranks of d = 2 losses are ±1/2."""
    case = CASES["rbd by_layer"]
    g = torch.zeros(101_770)
    g[0], g[-1] = 3.0, 4.0
    seen = accuracy.seen_length(case, accuracy.bases_of(case.config), g)
    assert seen == pytest.approx(math.sqrt(247 / 100_480 * 9 + 3 / 1_290 * 16))
    assert accuracy.step_length(case.config, seen) == 8.0 * seen
    assert accuracy.seen_length(CASES["sgd mnist"], None, g) == 5.0
    nes = accuracy.replace(CASES["rbd-nes signs"].config, dim=2, sigma=0.5, lr=3.0)
    assert accuracy.step_length(nes, seen) == pytest.approx(3.0 / (0.5 * 2) * math.sqrt(1 / 2))


def test_workers_have_as_many_directions_as_all_of_them_together():
    case = CASES["4 workers"]
    g = torch.ones(101_770)
    assert accuracy.seen_length(case, accuracy.bases_of(case.config), g) == pytest.approx(math.sqrt(4 * 60))


def test_a_run_is_not_disturbed_by_being_observed():
    config = accuracy.replace(CASES["rbd signs"].config, epochs=1, dim=10, seed=5)
    with accuracy.observed(accuracy.Case(config)) as steps:
        watched = accuracy.loop.train(config)
    assert repr(watched.curve) == repr(accuracy.loop.train(config).curve)
    assert len(steps) == 156 and steps[0].keys() == {"cosine", "length"}


# ---------------------------------------------------------------- the expectations


def test_expectations_are_whole_and_of_other_seeds():
    made = json.loads(FILE.read_text(encoding="utf-8"))
    assert tuple(made["seeds"]) == EXPECTED_SEEDS and not set(EXPECTED_SEEDS) & set(SEEDS)
    assert not made["environment"]["dirty"]
    for name, measured in expectations().items():
        wanted = {"accuracy", "loss", "cosine", "length", "overlap"}
        wanted |= {"recorded cosine"} if name != "4 workers" and "nes" not in name else set()
        assert measured.keys() == wanted, name
        assert all(len(v) == len(EXPECTED_SEEDS) and all(map(math.isfinite, v)) for v in measured.values()), name


def test_expectations_of_another_case_are_refused(monkeypatch):
    changed = accuracy.replace(CASES["rbd signs"].config, lr=9.0)
    monkeypatch.setitem(CASES, "rbd signs", accuracy.Case(changed))
    with pytest.raises(ValueError, match="case 'rbd signs' is not the one of accuracy.py; make the expectations again"):
        expectations()


@pytest.mark.parametrize("name", CASES)
def test_expectations_agree_with_theory(name):
    """So that expectations made by wrong code cannot be committed. n = 30 seeds; 5 standard errors and a bias of 3 %.

    The bias: |Φᵀ c| falls short of √(d/D) |g| by a share of about 1/(4 d_k), and d_k is 3 and 1 in the smaller layers.
    """
    config, values = CASES[name].config, expectations()[name]
    error = {measure: 5 * stdev(v) / math.sqrt(len(v)) for measure, v in values.items()}
    mean = {measure: fmean(v) for measure, v in values.items()}
    cosine = 1 if config.sigma is None else math.sqrt(3 / math.pi)  # of ranks and normal values: 0.977
    assert mean["cosine"] == pytest.approx(cosine, abs=0.03 + error["cosine"])
    assert mean["length"] == pytest.approx(1, abs=0.03 + error["length"])
    if "recorded cosine" in mean:
        share = 1 if config.dim is None else math.sqrt(config.dim / 101_770)
        assert mean["recorded cosine"] == pytest.approx(share, rel=0.1, abs=error["recorded cosine"])
    if config.method in ("rbd", "rbd-nes") and config.redraw in (None, 1):
        lengthened = 1.3 if config.partition in ("by_layer", "even:10") else 1.03  # few dimensions have more of the update
        fresh = math.sqrt(2 / math.pi / 101_770)  # E|cos| of two independent directions, 0.798/√D
        assert 0.97 * fresh - error["overlap"] < mean["overlap"] < lengthened * fresh + error["overlap"]
    else:
        assert mean["overlap"] > 0.1  # the same directions as before, or sgd's own
    chance = 10.0
    assert mean["accuracy"] > 2 * chance and mean["loss"] < math.log(10)


def test_values_are_as_normal_as_the_rule_supposes():
    """Each value against the others of its measure: Student's t with 28 degrees of freedom has 1 % beyond 2.76."""
    outside = []
    for values in (v for measured in expectations().values() for v in measured.values()):
        for i, value in enumerate(values):
            others = values[:i] + values[i + 1 :]
            if stdev(others) > 1e-5 * abs(fmean(others)):  # not what varies by rounding
                t = (value - fmean(others)) / (stdev(others) * math.sqrt(1 + 1 / len(others)))
                outside.append(abs(t) > stats.t.isf(0.005, len(others) - 1))
    assert len(outside) > 1900 and fmean(outside) < 0.02


# ---------------------------------------------------------------- the runs: tox -e accuracy


@cache
def measure(name: str, seed: int) -> dict[str, float]:
    """The measures of the code as it is."""
    return measures(CASES[name], seed)


@pytest.mark.accuracy
@pytest.mark.parametrize("name", CASES)
def test_accuracy(name):
    """With other random numbers, correct code fails in at least one case with a probability of 0.1 %."""
    made = checks(name, [measure(name, seed) for seed in SEEDS], expectations())
    assert all(c.passed for c in made), "\n" + "\n".join(map(str, made))


@pytest.mark.accuracy
@pytest.mark.parametrize("title", BUGS)
def test_a_planted_bug_is_caught(title):
    """By the same checks, with one seed, whose bounds are wider; and the same seed passes where the bug is not."""
    bug = BUGS[title]
    assert all(c.passed for c in checks(bug.case, [measure(bug.case, SEEDS[0])], expectations()))
    with bug.planted():
        made = {c.name.split(": ")[1]: c for c in checks(bug.case, [measures(CASES[bug.case], SEEDS[0])], expectations())}
    assert not made[bug.shown_by].passed, made[bug.shown_by]
