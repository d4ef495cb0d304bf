"""rbd.suite.rates: which runs share a rate, how it is chosen, and that no run trains without one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import rbd
from rbd.suite import experiment, rates
from rbd.suite.config import RunConfig
from rbd.suite.record import Point, Record

ROOT = Path(rbd.__file__).parents[1]
SGD = RunConfig(method="sgd", epochs=1)


def made(lr: float, accuracy: float, seed: int = 100, outcome: str = "finished", config: RunConfig = SGD) -> Record:
    curve = (Point(config.epochs, 1, 1, 1, 2.0, accuracy, None),)
    return Record(replace(config, lr=lr, seed=seed), outcome, curve, (1.0,), {})


@pytest.mark.parametrize(("config", "key"), [
    (RunConfig(method="sgd"), "fc mnist-embedded sgd"),
    (RunConfig(), "fc mnist-embedded rbd dim=250 partition=whole redraw=1"),
    (RunConfig(method="fpd", dim=7, partition="even:2"), "fc mnist-embedded fpd dim=7 partition=even:2"),
    (RunConfig(model="resnet8", data="fmnist", partition="by_ratio:9"), "resnet8 fmnist rbd partition=by_ratio:9 redraw=1"),
    (RunConfig(model="cnn", data="fmnist", method="nes"), "cnn fmnist nes dim=250 sigma=3.05"),
])  # fmt: skip
def test_key_names_what_the_scale_depends_on(config, key):
    assert rates.key(config) == key
    assert rates.key(replace(config, lr=9.0, seed=5, epochs=7)) == key
    if config.distribution:
        assert rates.key(replace(config, distribution="uniform")) == key


def test_choice_is_the_best_mean_over_the_seeds():
    """By hand: 0.1 has 50; 0.2 has (80 + 60) / 2 = 70; 0.4 has one run of 90 and one that diverged, 10: 50."""
    records = [made(0.1, 50.0), made(0.2, 80.0), made(0.2, 60.0, 101), made(0.4, 90.0), made(0.4, 95.0, 101, "diverged")]
    assert rates.choose(records) == {"fc mnist-embedded sgd": {"lr": 0.2, "accuracy": 70.0, "n": 2, "at_edge": False}}


@pytest.mark.parametrize(("accuracies", "lr", "edge"), [
    ((10, 20, 30), 0.4, True), ((30, 20, 10), 0.1, True), ((10, 30, 20), 0.2, False),
    ((30, 30, 10), 0.1, True),  # the smaller of equals
])  # fmt: skip
def test_edge_of_the_grid_is_noticed(accuracies, lr, edge):
    (chosen,) = rates.choose(made(rate, float(a)) for rate, a in zip((0.1, 0.2, 0.4), accuracies)).values()
    assert (chosen["lr"], chosen["at_edge"]) == (lr, edge)


def test_conclude_writes_what_is_complete_and_warns_of_the_rest(tmp_path):
    fpd = RunConfig(method="fpd", epochs=1)
    records = [made(rate, a) for rate, a in ((0.1, 20.0), (0.2, 30.0), (0.4, 25.0))]
    records += [made(rate, a, config=fpd) for rate, a in ((1.0, 20.0), (2.0, 30.0))]
    configs = [r.config for r in records]
    unfinished = RunConfig(epochs=1, seed=100)
    records.append(made(8.0, 60.0, config=unfinished))  # of the same key
    warnings = rates.conclude("quick", [*configs, unfinished], records, tmp_path)
    assert warnings == [
        "fc mnist-embedded rbd dim=250 partition=whole redraw=1: not chosen yet, runs are missing",
        "fc mnist-embedded fpd dim=250 partition=whole: the best rate, 2, is at the edge of the grid",
    ]
    found = json.loads((tmp_path / "learning_rate-quick.json").read_text())
    assert {key: c["lr"] for key, c in found["rates"].items()} == {
        "fc mnist-embedded sgd": 0.2, "fc mnist-embedded fpd dim=250 partition=whole": 2.0,
    }  # fmt: skip
    before = (tmp_path / "learning_rate-quick.json").read_bytes()
    rates.conclude("quick", [*configs, unfinished], reversed(records), tmp_path)
    assert (tmp_path / "learning_rate-quick.json").read_bytes() == before


def test_conclude_keeps_a_rate_whose_runs_are_missing_now(tmp_path):
    """The grid has been widened, say: until the new runs are there, the older choice stands, as do others."""
    fpd, records = RunConfig(method="fpd", epochs=1, seed=100), [made(rate, a) for rate, a in ((0.1, 20.0), (0.2, 30.0))]
    known = {rates.key(fpd): {"lr": 2.0, "accuracy": 60.0, "n": 1, "at_edge": False},
             "of another script": {"lr": 9.0, "accuracy": 1.0, "n": 1, "at_edge": False}}  # fmt: skip
    rates.path("quick", tmp_path).write_text(json.dumps({"profile": "quick", "rates": known}))
    warnings = rates.conclude("quick", [*(r.config for r in records), fpd], records, tmp_path)
    assert warnings[0] == "fc mnist-embedded fpd dim=250 partition=whole: runs are missing, the rate chosen before stays"
    found = json.loads(rates.path("quick", tmp_path).read_text())["rates"]
    assert set(found) == {*known, rates.key(SGD)} and found | known == found


def test_conclude_writes_nothing_when_all_is_there(tmp_path, monkeypatch):
    """The results of a search that is done may be read-only."""
    records = [made(rate, a) for rate, a in ((0.1, 20.0), (0.2, 30.0), (0.4, 25.0))]
    configs = [r.config for r in records]
    rates.conclude("quick", configs, records, tmp_path)

    def refuse(path, *_):
        raise PermissionError(str(path))

    monkeypatch.setattr(rates.store, "lock", refuse)
    assert rates.conclude("quick", configs, records, tmp_path) == []
    with pytest.raises(PermissionError):
        rates.conclude("quick", configs, [*records[:2], made(0.4, 90.0)], tmp_path)


def test_conclude_writes_nothing_when_nothing_is_chosen(tmp_path):
    assert rates.conclude("quick", [SGD], [], tmp_path) == ["fc mnist-embedded sgd: not chosen yet, runs are missing"]
    assert list(tmp_path.iterdir()) == []
    rates.path("quick", tmp_path).write_text('{"profile": "quick", "rates": {"fc mnist-embedded sgd": {"lr": 7}}}')
    before = rates.path("quick", tmp_path).read_bytes()
    rates.conclude("quick", [SGD], [], tmp_path)
    assert rates.path("quick", tmp_path).read_bytes() == before


def test_a_switch_needs_the_rates_of_both_methods():
    """Those of the pure ones."""
    sgd, rbd = rates.key(SGD), rates.key(RunConfig())
    fields = {"method": "sgd", "switch": 5, "epochs": 20, "distribution": "rademacher"}
    request = rates.tuned(**fields)
    (switched,) = rates.resolve([request], {sgd: 0.5, rbd: 4.0}).configs
    assert switched == RunConfig(**fields, lr=0.5, then_lr=4.0) and rates.key(switched) == sgd
    for known, lacking in (({sgd: 0.5}, (rbd,)), ({rbd: 4.0}, (sgd,)), ({}, (sgd, rbd))):
        assert rates.resolve([request], known) == rates.Resolved((), (RunConfig(**fields),), lacking)


def test_requests_get_the_chosen_rates_or_wait(tmp_path):
    """Each run once, in the order of the requests; who has a rate of its own keeps it."""
    rates.conclude("paper", [SGD], [made(SGD.lr, 50.0, SGD.seed)], tmp_path)
    known = rates.load("paper", tmp_path)
    sgd = {"model": "fc", "data": "mnist-embedded", "method": "sgd"}
    own, waits = RunConfig(lr=7.0), rates.tuned(method="rbd", dim=9)
    found = rates.resolve([rates.tuned(**sgd, seed=3), waits, own, rates.tuned(**sgd, seed=3), waits], known)
    assert found.configs == (RunConfig(method="sgd", lr=SGD.lr, seed=3), own)
    assert found.waiting == (RunConfig(dim=9),) and found.untuned == (rates.key(RunConfig(dim=9)),)


def test_a_request_may_ask_for_a_multiple_of_the_rate():
    requests = [rates.tuned(factor, method="sgd", workers=4) for factor in (1.0, 4.0, 0.5)]
    assert [c.lr for c in rates.resolve(requests, {rates.key(SGD): 0.25}).configs] == [0.25, 1.0, 0.125]


def test_rates_of_the_results_directory_go_before_those_of_the_package(tmp_path):
    """Key by key: a choice that is not whole yet hides nothing."""
    shipped = rates.load("quick", tmp_path)
    assert len(shipped) > 1 and shipped["fc mnist-embedded sgd"] != 7
    rates.path("quick", tmp_path).write_text('{"rates": {"fc mnist-embedded sgd": {"lr": 7}}}')
    assert rates.load("quick", tmp_path) == shipped | {"fc mnist-embedded sgd": 7.0}


@pytest.mark.parametrize("content", [
    "", "[]", "{}", '{"rates": {"a": {}}}', '{"profile": "paper", "rates": {}}',
    *(f'{{"rates": {{"a": {{"lr": {lr}}}}}}}' for lr in ('"x"', '"0.1"', "true", "-1", "0", "NaN", "Infinity", "null")),
    pytest.param(f'{{"rates": {{"a": {{"lr": {10**400}}}}}}}', id="beyond float"), pytest.param("[" * 100_000, id="deep"),
])  # fmt: skip
def test_damaged_choice_is_named(content, tmp_path):
    """With what can be done: the search alone reads the file too, and would stop."""
    rates.path("quick", tmp_path).write_text(content)
    with pytest.raises(ValueError, match="learning_rate-quick.json: not a choice .* remove it, then run `rbd sweep lea"):
        rates.load("quick", tmp_path)


def test_rates_of_full_length_begin_at_the_searchs_choice_and_go_before_it(tmp_path, monkeypatch):
    """The search says 0.4; of 0.4, 0.2, 0.1 for 100 epochs 0.2 is best: reported runs take it, the check does not move."""
    check = experiment.load("full_length")
    config = RunConfig("fc", "mnist", "sgd", seed=100)
    searched = {rates.key(config): {"lr": 0.4, "accuracy": 90.0, "n": 1, "at_edge": False}}
    rates.path("paper", tmp_path).write_text(json.dumps({"profile": "paper", "rates": searched}))
    monkeypatch.setattr(rates, "SHIPPED", tmp_path / "none")
    plan = check.plan("paper", tmp_path)
    assert [(c.lr, c.epochs, c.seed) for c in plan.configs] == [(0.4, 100, 100), (0.2, 100, 100), (0.1, 100, 100)]
    assert len(plan.waiting) == 27  # of 24 cells and 4 methods of figure 1, all but one; their three rates are not known
    (waits,) = check.conclude("paper", plan.configs, [made(0.4, 91.0, config=config)], tmp_path)
    assert waits == "fc mnist sgd full length: not chosen yet, runs are missing"
    ended = [made(c.lr, a, config=c) for c, a in zip(plan.configs, (91.0, 93.0, 92.0))]
    assert check.conclude("paper", plan.configs, ended, tmp_path) == []
    found = json.loads(rates.path("paper", tmp_path).read_text())["rates"]
    assert found == searched | {"fc mnist sgd full length": {"lr": 0.2, "accuracy": 93.0, "n": 1, "at_edge": False}}
    known = rates.load("paper", tmp_path)
    assert check.plan("paper", tmp_path).configs == plan.configs
    assert rates.resolve([rates.tuned(model="fc", data="mnist", method="sgd")], known).configs[0].lr == 0.2
    search = RunConfig("fc", "mnist", "sgd", epochs=10, seed=100)  # a new search keeps what was checked
    rates.conclude("paper", [replace(search, lr=0.4)], [made(0.4, 89.0, config=search)], tmp_path)
    assert rates.load("paper", tmp_path)["fc mnist sgd full length"] == 0.2


def test_rates_of_figure_1_have_both_neighbours_at_full_length():
    """Their search steps over the octave above; that of table 1 has tried it."""
    factors: dict[str, list[float]] = {}
    for request in experiment.load("full_length").runs("paper"):
        assert request.searched and (request.config.seed, request.config.epochs) == (100, 100)
        factors.setdefault(rates.key(request.config), []).append(request.factor)
    figure = {rates.key(r.config) for r in experiment.load("curves").runs("paper")}
    assert len(figure) == 4 and len(factors) == 28
    for key, found in factors.items():
        assert found == ([1, 0.5, 0.25, 2] if key in figure else [1, 0.5, 0.25]), key


def test_the_least_rate_of_full_length_is_at_the_edge_and_the_largest_is_not(tmp_path):
    configs = [replace(SGD, lr=lr, seed=100) for lr in (0.4, 0.2, 0.1)]
    for accuracies, lr, edge in (((93.0, 92.0, 91.0), 0.4, False), ((91.0, 92.0, 93.0), 0.1, True)):
        ended = [made(c.lr, a) for c, a in zip(configs, accuracies)]
        warnings = rates.conclude("quick", configs, ended, tmp_path, rates.FULL)
        (chosen,) = json.loads(rates.path("quick", tmp_path).read_text())["rates"].values()
        assert (chosen["lr"], chosen["at_edge"], bool(warnings)) == (lr, edge, edge)


@pytest.mark.skipif(not (ROOT / "results").is_dir(), reason="results/ is in the repository only")
@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_package_ships_the_committed_choice(profile):
    """Equal bytes; after a new choice: cp results/learning_rate-*.json rbd/suite/embedded/."""
    ours = rates.path(profile, ROOT / "results")
    if ours.exists():
        assert rates.path(profile, rates.SHIPPED).read_bytes() == ours.read_bytes()


@pytest.mark.skipif(not (ROOT / "results" / "runs" / "learning_rate-quick").is_dir(), reason="not run yet")
def test_committed_choice_follows_from_the_committed_records(tmp_path):
    made = experiment.load("learning_rate").plan("quick", ROOT / "results")
    shutil.copytree(ROOT / "results" / "runs" / made.name, made.directory(tmp_path))
    rates.conclude("quick", made.configs, made.records(tmp_path), tmp_path)
    assert rates.path("quick", tmp_path).read_bytes() == rates.path("quick", ROOT / "results").read_bytes()
