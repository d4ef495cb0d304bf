"""rbd.suite.experiment: what the experiments consist of, which of their runs are there, and how they are listed."""

from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

import rbd
from rbd.suite import executor, experiment, paper, rates, record
from rbd.suite.config import RunConfig, find_size
from rbd.suite.experiment import Experiment, Plan
from rbd.suite.rates import Request
from rbd.suite.record import Point, Record

ROOT = Path(rbd.__file__).parents[1]
RUN = RunConfig(method="sgd", epochs=1, batch_size=500)
MADE = Record(RUN, "finished", (Point(1, 10, 5000, 10, 2.25, 46.6, 1.0),), (0.5,), {"threads": 1})


@pytest.fixture
def paper_rates(tmp_path) -> Path:
    """A results directory with a rate, 0.375, for everything that table 1 asks for in the paper profile."""
    pairs = [(m, d, n) for m in ("fc", "cnn") for d in ("mnist", "fmnist", "cifar10") for n in ("sgd", "rbd", "fpd", "nes")]
    keys = [rates.key(RunConfig(model=m, data=d, method=n)) for m, d, n in pairs]
    content = {"profile": "paper", "rates": {key: {"lr": 0.375} for key in keys}}
    rates.path("paper", tmp_path).write_text(json.dumps(content))
    return tmp_path


def plan_table1(profile: str, results: Path) -> Plan:
    return experiment.load("table1").plan(profile, results)


# ---------------------------------------------------------------- what is run


@pytest.mark.parametrize(("profile", "names", "seeds"), [
    ("quick", ("mnist-embedded", "fmnist-embedded"), {"fc": (0, 1, 2), "cnn": (0, 1)}),
    ("paper", ("mnist", "fmnist", "cifar10"), {"fc": (0, 1, 2), "cnn": (0, 1, 2)}),
])  # fmt: skip
def test_table1_has_every_method_on_every_pair(profile, names, seeds, paper_rates):
    made = plan_table1(profile, paper_rates)
    assert made.name == f"table1-{profile}"
    assert made.directory("out") == Path("out/runs") / made.name
    ran = [(c.model, c.data, c.method, c.seed) for c in made.configs]
    methods = ("sgd", "rbd", "fpd", "nes")
    assert sorted(ran) == sorted((m, d, n, s) for m in seeds for d in names for n in methods for s in seeds[m])
    assert len({c.id for c in made.configs}) == len(made.configs) == {"quick": 40, "paper": 72}[profile]
    for c in made.configs:
        assert (c.batch_size, c.dim) == (32, None if c.method == "sgd" else 250)
        assert c.partition in (None, "whole") and c.redraw in (None, 1)
        assert RunConfig.from_dict(c.__dict__) == c


def test_paper_profile_is_the_papers_set_up_with_signs_and_rates_of_our_own(paper_rates):
    for c in plan_table1("paper", paper_rates).configs:
        assert (c.epochs, c.lr) == (100, 0.375)
        assert c.distribution == (None if c.method == "sgd" else "rademacher")
        sigma = pytest.approx(0.01 * math.sqrt(find_size(c.model, c.data)), rel=5e-3)
        assert c.sigma == (sigma if c.method == "nes" else None)


def test_table1_without_any_rate_says_how_to_find_them(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "SHIPPED", tmp_path)
    made = plan_table1("paper", tmp_path)
    assert made.configs == () and len(made.waiting) == 72 and len(made.untuned) == 24
    said = rates.explain(made.untuned, "paper")
    assert said.startswith("no learning rate yet for 'fc mnist sgd', ")
    assert said.endswith(": run `rbd sweep learning_rate --profile paper`")


def test_quick_profile_is_small_and_leaves_an_update_to_nes():
    for c in plan_table1("quick", ROOT / "results").configs:
        assert c.distribution == (None if c.method == "sgd" else "rademacher")
        assert 250 <= c.epochs * 156 <= 20 * 156  # 5,000 images are 156 batches; NES takes 250 to a step


def test_runs_of_one_pair_and_method_differ_in_the_seed_only(paper_rates):
    """They are samples of one thing."""
    for profile in experiment.PROFILES:
        by_cell: dict[tuple, set] = {}
        for c in plan_table1(profile, paper_rates).configs:
            by_cell.setdefault((c.model, c.data, c.method), set()).add(replace(c, seed=0).id)
        assert {len(ids) for ids in by_cell.values()} == {1}


def test_unknown_profile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="profile: got 'fast', allowed quick, paper"):
        plan_table1("fast", tmp_path)


def test_records_are_those_that_ended_in_the_order_of_the_sweep(tmp_path):
    configs = tuple(replace(RUN, seed=seed) for seed in range(4))
    made = Plan("few", configs)
    assert made.records(tmp_path) == []
    for c, outcome in zip(configs, ("finished", "interrupted", "diverged")):
        record.save(replace(MADE, config=c, outcome=outcome), made.directory(tmp_path))
    record.save(replace(MADE, config=replace(RUN, seed=99)), made.directory(tmp_path))  # of another sweep
    assert [(r.config.seed, r.outcome) for r in made.records(tmp_path)] == [(0, "finished"), (2, "diverged")]
    (made.directory(tmp_path) / f"{configs[3].id}.json").write_text("{")
    with pytest.raises(ValueError, match=f"{configs[3].id}.json: not a valid record"):
        made.records(tmp_path)
    records, damaged = made.look(tmp_path)
    assert [r.config.seed for r in records] == [0, 2]
    assert len(damaged) == 1 and f"{configs[3].id}.json: not a valid record" in damaged[0]


# ---------------------------------------------------------------- scripts


def test_script_that_is_not_there_or_not_whole_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"sweeps-dir: there are no experiment scripts .* in {tmp_path}"):
        experiment.load("x", tmp_path)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="name: got 'x', allowed empty"):
        experiment.load("x", tmp_path)
    with pytest.raises(ValueError, match=r"empty.py: define EXPERIMENT = Experiment\('empty', ...\)"):
        experiment.load("empty", tmp_path)
    text = "from rbd.suite.experiment import Experiment\nEXPERIMENT = Experiment('other', 'Why?', lambda profile: ())\n"
    (tmp_path / "empty.py").write_text(text)
    with pytest.raises(ValueError, match="empty.py: define EXPERIMENT"):
        experiment.load("empty", tmp_path)


def test_a_script_of_your_own_does_not_take_the_place_of_one_of_the_package(tmp_path):
    """Its list of runs would be overwritten."""
    (tmp_path / "table1.py").write_text("1/0")
    with pytest.raises(ValueError, match="table1.py: rbd has an experiment 'table1' of its own: rename this one"):
        experiment.load("table1", tmp_path)
    (tmp_path / "packaged").symlink_to(experiment.PACKAGED)
    assert experiment.load("table1", tmp_path / "packaged").name == "table1"


@pytest.mark.parametrize("name", ["runs", "measure", "conclude", "cost"])
def test_whatever_a_function_of_a_script_raises_names_the_experiment(name, tmp_path):
    def broken(*_):
        raise KeyError("lr")

    functions = {"runs": broken} if name == "runs" else {"measure": max, "conclude": max, "cost": max, name: broken}
    wanted = Experiment("x", "Why?", **functions)
    with pytest.raises(ValueError, match="^experiment x: KeyError: 'lr'$"):
        wanted.plan("quick", tmp_path) if name == "runs" else wanted.call(broken, "quick")


@pytest.mark.parametrize("returned", ["soon", [1], None, 3])
def test_whatever_a_function_of_a_script_returns_names_the_experiment(returned, tmp_path):
    """What is no number of seconds broke the list of all experiments; of `conclude`, None is no warning."""
    said = f"experiment x: cost: got {returned!r}, allowed a number of seconds"
    with nullcontext() if returned in (None, 3) else pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        experiment.count(Experiment("x", "Why?", measure=max, cost=lambda profile: returned), "quick", tmp_path)
    concludes = Experiment("x", "Why?", runs=lambda profile: [], conclude=lambda *_: returned)
    with pytest.raises(ValueError, match="^experiment x: TypeError: ") if returned == 3 else nullcontext():
        executor.conclude(concludes, "quick", concludes.plan("quick", tmp_path), tmp_path)


@pytest.mark.parametrize("run", [{"model": "fc"}, None, (RUN,)])
def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"experiment x: runs: got .*, allowed RunConfig\(...\) and tuned\(...\)"):
        Experiment("x", "Why?", lambda profile: [run]).plan("quick", tmp_path)


@pytest.mark.parametrize("folder", ["mine", "elsewhere"])
def test_a_record_of_other_bases_is_refused_and_named(folder, tmp_path):
    path = record.save(replace(MADE, environment={"stream_version": 0}), tmp_path / "runs" / folder)
    with pytest.raises(ValueError, match=f"{path.name}: made with bases of stream version 0, now 1: .* another --resul"):
        experiment.find(RUN, tmp_path / "runs" / "mine", tmp_path)


def test_an_experiment_asks_and_either_runs_or_measures():
    for fields in ({}, {"runs": list, "measure": max}):
        with pytest.raises(ValueError, match="experiment x: it needs either runs or measure"):
            Experiment("x", "Why?", **fields)
    with pytest.raises(ValueError, match="experiment x: it needs a question"):
        Experiment("x", "", list)


def test_plan_has_every_run_once_and_tells_what_waits_for_a_rate(tmp_path):
    (tmp_path / "demo.py").write_text(
        "from rbd.suite.config import RunConfig\nfrom rbd.suite.experiment import Experiment\n"
        "from rbd.suite.rates import tuned\ndef runs(profile):\n"
        "    yield from [RunConfig(seed=1), RunConfig(seed=1), tuned(method='rbd', dim=3), RunConfig(seed=2)]\n"
        "    yield tuned(method='rbd', dim=3)\nEXPERIMENT = Experiment('demo', 'Why?', runs)\n"
    )
    made = experiment.load("demo", tmp_path).plan("quick", tmp_path)
    key = "fc mnist-embedded rbd dim=3 partition=whole redraw=1"
    assert made == Plan("demo-quick", (RunConfig(seed=1), RunConfig(seed=2)), "Why?", (RunConfig(dim=3),), (key,))
    kept = json.loads(made.manifest())
    assert [RunConfig.from_dict(RunConfig.complete(config)) for config in kept["waiting"]] == [RunConfig(dim=3)]
    assert kept["untuned"] == [key] and [run["id"] for run in kept["runs"]] == [c.id for c in made.configs]
    assert [RunConfig.from_dict(RunConfig.complete(run["config"])) for run in kept["runs"]] == list(made.configs)
    assert [c.seed for c in made.with_seeds([7, 8]).configs] == [7, 8]


NAMES = experiment.list_names()
WITH_RUNS = {e.name for e in experiment.experiments() if e.runs}
in_repository = pytest.mark.skipif(not (ROOT / "results").is_dir(), reason="results/ is in the repository only")


def test_every_experiment_of_the_design_has_a_script():
    assert {"table1", "curves", "dimension", "compartments", "networks", "distributions", "redraw", "correlation", "hybrid",
            "augmentation", "workers", "learning_rate", "nes", "paper_rates", "normals",
            "intrinsic_dimension"} <= WITH_RUNS  # fmt: skip
    assert {"orthogonality", "landscape"} <= set(NAMES) - WITH_RUNS


class Guess(dict):
    """A rate for every key, so that plans are whole."""

    def __contains__(self, key) -> bool:
        return True

    def __getitem__(self, key) -> float:
        return 0.375


def whole(name: str, profile: str) -> tuple[RunConfig, ...]:
    return rates.resolve(experiment.load(name).runs(profile), Guess()).configs


SPARSE = {"countsketch", "price", "learning_rate", "effective_rate", "dimension", "redraw", "compartments", "workers"}


@pytest.mark.parametrize("name", sorted(WITH_RUNS))
def test_scripts_keep_to_their_profile(name):
    small = whole(name, "quick")
    assert {c.data for c in small} <= {"mnist-embedded", "fmnist-embedded"}
    assert not {c.data for c in whole(name, "paper")} & {"mnist-embedded", "fmnist-embedded"}
    assert all(c.epochs <= 20 for c in small) and not {c.model for c in small} & {"resnet32"}
    if name not in ("distributions", "intrinsic_dimension", "price"):
        assert {c.distribution for c in small} <= {None, "rademacher", *({"countsketch"} if name in SPARSE else ())}
        small = [c for c in small if 0 < (c.dim or 0) <= (500 if c.model == "fc" else 2500)]
        assert name != "learning_rate" or {c.distribution for c in small} == {"rademacher"}
    seeds = {c.seed for profile in experiment.PROFILES for c in whole(name, profile)}
    assert seeds <= ({100, 101} if name in ("learning_rate", "full_length") else set(range(10)))


@pytest.mark.parametrize("name", sorted(WITH_RUNS - {"learning_rate", "full_length"}))
@pytest.mark.parametrize("profile", experiment.PROFILES)
def test_one_seed_of_everything_goes_before_the_next_one(name, profile):
    """So that a sweep that is stopped has n = 1 of all of it, not n = 3 of a part."""
    seeds = [getattr(r, "config", r).seed for r in experiment.load(name).runs(profile)]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize("profile", experiment.PROFILES)
def test_learning_rate_searches_octaves_for_whatever_is_asked_for(profile):
    """Nine; ResNet-8: ten, every second one. CNN and ResNet-8 by gradients at full scale: seven; six, every second one."""
    requests = (r for name in WITH_RUNS - {"learning_rate"} for r in experiment.load(name).runs(profile))
    asked = {key for r in requests if isinstance(r, Request) for key in rates.keys(r.config).values()}
    tried: dict[str, set[float]] = {}
    for c in whole("learning_rate", profile):
        tried.setdefault(rates.key(c), set()).add(c.lr)
    assert set(tried) == asked
    for key, values in tried.items():
        coarse, few = key.startswith("resnet"), profile == "paper" and key[:2] != "fc" and " nes" not in key
        spans = {(False, False): (2**9, 10), (True, False): (2**10, 6), (False, True): (2**7, 8), (True, True): (2**6, 4)}
        assert (max(values) / min(values), len(values)) == spans[coarse, few], key


def test_searches_at_full_scale_are_long_enough_and_cost_less_than_a_run():
    """In one to three epochs CNNs and ResNet-8 found rates that diverged later, so searches have ten."""
    epochs: dict[str, list[int]] = {}
    for c in whole("learning_rate", "paper"):
        if "nes" not in c.method:
            epochs.setdefault(rates.key(c), []).append(c.epochs)
    for key, of in epochs.items():
        assert set(of) == {10}, key
        assert sum(of) <= 100, key
    assert {c.epochs for c in whole("learning_rate", "paper") if c.method == "nes" and c.model == "resnet8"} == {10}


def test_the_search_at_full_scale_has_room_about_what_the_quick_one_found():
    """From the quick profile's best rate to three octaves below it, where ten times the images moved those of the FC net.

    For ResNet-8, two.
    """
    found = {key: lr for key, lr in rates.load("quick", ROOT / "results").items() if key.startswith(("cnn", "resnet8"))}
    tried: dict[str, list[float]] = {}
    for c in whole("learning_rate", "paper"):
        tried.setdefault(" ".join([c.model, *rates.key(c).split()[2:]]), []).append(c.lr)
    compared = 0
    for key, best in found.items():
        model, _, *rest = key.split()
        if rest[0] != "nes" and (full := tried.get(" ".join([model, *rest]))):
            assert min(full) <= best / (4 if model == "resnet8" else 8) and best <= max(full), key
            compared += 1
    assert compared >= 9


@in_repository
@pytest.mark.parametrize("profile", experiment.PROFILES)
def test_no_search_that_has_records_has_changed(profile):
    """Nor any of its runs: else hours of training would count for nothing."""
    made = {path.stem for path in (ROOT / "results" / "runs" / f"learning_rate-{profile}").glob("[!.]*.json")}
    assert len(made) >= 80 and made <= {c.id for c in whole("learning_rate", profile)}


@pytest.mark.parametrize(("profile", "sparse", "dense"), [("quick", 7, 4), ("paper", 12, 7)])
def test_intrinsic_dimension_has_a_baseline_and_one_rule_for_the_rate(profile, sparse, dense):
    configs = whole("intrinsic_dimension", profile)
    assert len(configs) == len({c.id for c in configs}) == 2 * 3 * (sparse + dense)  # networks, seeds
    assert all((c.method, c.augment, c.partition) == ("subspace-adam", "none", "whole") for c in configs)
    for model, size in paper.LI_SIZES.items():
        mine = [c for c in configs if c.model == model]
        assert [(c.dim, c.lr, c.distribution) for c in mine if c.dim == size] == [(size, 0.001, "countsketch")] * 3
        for c in mine:
            assert c.lr == pytest.approx(0.001 * math.sqrt(size / c.dim), rel=0.01)
        if profile == "paper":  # theirs: d and budget, by their released code
            assert set(paper.LI[model]) <= {c.dim for c in mine if c.distribution == "countsketch"}
            assert {(c.data, c.epochs, c.batch_size) for c in mine} == {("mnist", 100, 128)}
    first = [c for c in configs[: 2 * (sparse + 1)] if c.seed == 0]  # what a sweep that is stopped has
    assert {(c.model, c.dim) for c in first} >= {(m, d) for m, size in paper.LI_SIZES.items() for d in (100, 500, size)}


def test_the_papers_own_rates_are_inside_the_search():
    tried: dict[str, list[float]] = {}
    for c in whole("learning_rate", "paper"):
        tried.setdefault(rates.key(c), []).append(c.lr)
    for c in whole("paper_rates", "paper"):
        assert 2 * min(tried[rates.key(c)]) <= c.lr <= max(tried[rates.key(c)]) / 2, rates.key(c)


def test_a_rate_of_nes_is_for_one_length_of_perturbations():
    """Rates of the time when the default was 0.01 in all are not taken for it now: η grows with σ."""
    long, short = RunConfig(method="nes"), RunConfig(method="nes", sigma=0.01)
    assert rates.key(long) == "fc mnist-embedded nes dim=250 sigma=3.19" != rates.key(short)


def test_sparse_bases_have_the_papers_rate_at_250_and_steps_as_long_as_those_of_sgd_at_a_tenth():
    """η √(d/D) = η of SGD; the FC net goes first within a seed, ResNet-8 last."""
    every = [c for c in whole("sparse", "paper") if c.method == "rbd"]
    found = [c for c in every if c.model != "resnet8"]
    rates_of = {(c.model, c.data, c.dim): c.lr for c in found}
    assert len(found) == 72 and {c.augment for c in found} == {None, "none"} and len(rates_of) == 12
    for (model, data, dim), lr in rates_of.items():
        known, size = paper.LEARNING_RATES[model, data], find_size(model, data)
        assert lr == known["rbd"] if dim == 250 else lr * (dim / size) ** 0.5 == pytest.approx(known["sgd"], rel=0.01)
    assert [c.model for c in every if c.seed == 0] == ["fc"] * 12 + ["cnn"] * 12 + ["resnet8"] * 3 and every[27].seed == 1


def test_sparse_has_figure_1_at_searched_rates_and_fpd_where_signs_are_below_the_paper():
    """Issue 14, items 1 and 3. At d = 500 the key is that of the dense signs of `curves`, so both have one rate."""
    requests = [r for r in experiment.load("sparse").runs("paper") if isinstance(r, Request)]
    assert [(r.config.dim, r.config.seed) for r in requests] == [(dim, seed) for seed in range(3) for dim in (500, 7833)]
    kinds = {(r.config.model, r.config.data, r.config.distribution) for r in requests}
    assert kinds == {("resnet8", "cifar10", "countsketch")}
    dense = {rates.key(c) for c in whole("curves", "paper")}
    assert {r.config.dim for r in requests if rates.key(r.config) in dense} == {500}
    fixed = [c for c in whole("sparse", "paper") if c.method == "fpd"]
    assert [(c.model, c.data, c.dim, c.lr, c.seed) for c in fixed] == [("fc", "cifar10", d, 0.25, 0) for d in (250, 987)]
    dense = {c.id for c in whole("settings", "paper")}
    assert {replace(c, distribution="rademacher").id for c in fixed} <= dense


def test_countsketch_has_the_three_networks_of_the_rule_and_full_scale_the_two_that_take_minutes():
    """The pairs of ResNet-8 at full scale, which its docstring names, are runs of `sparse` and `curves` at one rate."""
    cells = {p: {(c.model, c.dim) for c in whole("countsketch", p)} for p in experiment.PROFILES}
    both = {("fc", 250), ("cnn", 250)}
    assert cells == {"quick": both | {("fc", 2500), ("resnet8", 500)}, "paper": both}
    sparse = {c.id for c in whole("sparse", "paper")}
    dense = [c for c in whole("curves", "paper") if c.method == "rbd"]
    assert len(dense) == 3 and {replace(c, distribution="countsketch").id for c in dense} <= sparse
    pairs = [c for c in whole("countsketch", "paper") if c.model == "cnn"]
    assert {c.id for c in pairs if c.distribution == "rademacher"} <= {c.id for c in whole("settings", "paper")}
    assert {c.id for c in pairs if c.distribution == "countsketch" and c.method == "rbd"} <= sparse


def test_settings_has_every_method_at_every_d():
    """NES too: its verdict is given at d = D/400 where that was run."""
    dims: dict[tuple, set] = {}
    for c in whole("settings", "paper"):
        dims.setdefault((c.model, c.data), set()).add((c.method, c.dim, c.augment, c.seed))
    assert len(dims) == 6
    for pair, found in dims.items():
        own = {("fc", "cifar10"): {250, 987}, ("cnn", "cifar10"): {250, 306}}.get(pair, {250})
        wanted = {("sgd", None), *((m, d) for m in ("rbd", "fpd", "nes") for d in own)}
        assert found == {(*cell, augment, seed) for cell in wanted for augment in (None, "none") for seed in range(3)}


def test_normals_stand_beside_runs_with_signs_at_the_same_rates():
    """Those of `settings`, on which the verdicts are given. They wait for no search."""
    assert not any(isinstance(r, Request) for r in experiment.load("normals").runs("paper"))
    beside = {c.id for c in whole("settings", "paper")}
    found = whole("normals", "paper")
    assert {c.distribution for c in found} == {"normal"} and len(found) == 18
    assert {replace(c, distribution="rademacher").id for c in found} <= beside


@pytest.mark.parametrize("profile", experiment.PROFILES)
def test_every_run_of_effective_rate_has_one_of_sgd_at_its_product(profile):
    """lr d/D is that of a run of SGD with the same data, augmentation and seed."""
    found = whole("effective_rate", profile)
    sgd = {(c.model, c.data, c.augment, c.seed, f"{c.lr:.6g}") for c in found if c.method == "sgd"}
    for c in (c for c in found if c.method == "rbd"):
        rate = c.lr * c.dim / find_size(c.model, c.data)
        assert (c.model, c.data, c.augment, c.seed, f"{rate:.6g}") in sgd
    assert len(found) == {"quick": 3 * 5 * 7, "paper": 3 * 6 * 4 + 6 * 2}[profile]


def test_effective_rate_shares_the_runs_at_the_papers_rate():
    shared = {c.id for name in ("settings", "sparse") for c in whole(name, "paper")}
    assert sum(c.id in shared for c in whole("effective_rate", "paper")) == 18  # 12 of signs, 6 of countsketch


@pytest.mark.parametrize("profile", experiment.PROFILES)
def test_sparse_series_share_runs_and_leave_the_dense_ones_as_they_were(profile):
    """RBD's curve is the one of price and ends at d = D; whole, drawn at every step or once, is on that curve too."""
    ids = {name: {c.id for c in whole(name, profile) if c.distribution == "countsketch"} for name in SPARSE}
    curve = [c for c in whole("dimension", profile) if c.distribution == "countsketch"]
    size = find_size("fc", curve[0].data)
    dims = {(c.method, c.dim): c.epochs for c in curve}
    assert set(dims) == {(m, d) for m in ("rbd", "fpd") for d in (10, 50, 250, 1000, 2500, 10_000, 30_000, size)}
    assert {c.id for c in curve if c.method == "rbd"} <= ids["price"] and len(ids["dimension"]) == 2 * 8 * 3
    assert len(ids["dimension"] & ids["redraw"]) == 2 * 3  # RBD and FPD at d = 250, three seeds
    assert len(ids["dimension"] & ids["compartments"]) == 3
    for name in ("redraw", "compartments"):
        settings = [replace(c, distribution="rademacher") for c in whole(name, profile)]
        assert {c.id for c in settings} == {c.id for c in whole(name, profile)} - ids[name]


def test_compartments_are_compared_at_rates_of_one_search():
    """`full_length` refines the whole basis's rate alone."""
    request = next(iter(experiment.load("compartments").runs("paper")))
    name = rates.key(request.config)
    (config,) = rates.resolve([request], {name: 2.0, name + rates.FULL: 1.0}).configs
    assert config.partition == "whole" and config.lr == 2.0


def test_compartments_has_the_cnn_at_full_scale():
    """Issue 14, item 4: K and by_layer, n = 3, each at its own rate; one basis for all is the run of table 1."""
    found = [c for c in whole("compartments", "paper") if c.model == "cnn"]
    partitions = ["whole", "by_layer", "even:4", "even:16"]
    assert [(c.partition, c.seed) for c in found] == [(p, seed) for seed in range(3) for p in partitions]
    assert {(c.data, c.method, c.dim, c.distribution, c.epochs) for c in found} == {("mnist", "rbd", 250, "rademacher", 100)}
    assert len({rates.key(c) for c in found}) == 4
    shared = {c.id for c in whole("table1", "paper")}
    assert [c.partition for c in found if c.id in shared] == ["whole"] * 3
    assert {c.model for c in whole("compartments", "quick")} == {"fc"}


def test_budgets_of_nes_meet_those_of_rbd():
    """Equal images, or equal forward passes, over an epoch of 156 (quick) or 1,562 (paper) batches."""
    from rbd.suite.train import budget

    for profile, images in (("quick", 5000), ("paper", 50_000)):
        made = {(c.method, c.epochs): budget(c, images) for c in whole("nes", profile)}
        seen = {key: b.steps * b.batches for key, b in made.items()}
        passes = {key: b.steps * b.passes for key, b in made.items()}
        epochs = {"quick": 20, "paper": 100}[profile]
        assert seen["rbd", epochs] == seen["nes", epochs] == seen["rbd-nes", epochs]
        assert passes["rbd", epochs] == passes["nes", epochs] == passes["rbd-nes", 1]


def test_hybrids_switch_both_ways_at_the_rates_of_the_pure_methods():
    switched = [c for c in whole("hybrid", "quick") if c.switch]
    assert {(c.method, c.switch) for c in switched} == {(m, e) for m in ("rbd", "sgd") for e in (5, 10, 15)}
    assert all(c.at(0).method == c.method and c.at(c.switch).method != c.method for c in switched)


@pytest.mark.parametrize(("profile", "sets"), [("quick", "mnist-embedded fmnist-embedded"), ("paper", "mnist fmnist")])
def test_hybrids_without_rates_wait_all_of_them(profile, sets):
    """2 sets × 3 seeds × (2 pure + 3 epochs × 2 ways), whatever is known."""
    keys = [rates.key(RunConfig(data=data, method=method)) for data in sets.split() for method in ("sgd", "rbd")]
    for known in range(len(keys) + 1):
        requests = list(experiment.load("hybrid").runs(profile))
        found = rates.resolve(requests, dict.fromkeys(keys[:known], 0.5))
        assert len(requests) == len(found.configs) + len(found.waiting) == 48 and found.untuned == tuple(keys[known:])
        assert len({c.id for c in found.configs}) == len(found.configs)


def test_all_begins_with_the_rates_and_follows_the_design():
    assert NAMES[:5] == ["learning_rate", "full_length", "table1", "curves", "dimension"]
    last = ["as_released", "compression", "effective_rate", "nes", "normals", "paper_rates", "settings", "sparse"]
    assert NAMES[-len(last) :] == last and set(experiment.ORDER) <= set(NAMES)


def test_experiments_of_a_wheel_are_there_in_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [e.name for e in experiment.experiments()] == NAMES and experiment.PACKAGED.is_absolute()


@in_repository
@pytest.mark.parametrize("path", sorted((ROOT / "results" / "sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_committed_manifests_are_those_of_the_scripts(path):
    """Else a script or a learning rate has changed, and `rbd sweep NAME --profile PROFILE --dry-run` writes them anew."""
    name, _, profile = path.stem.rpartition("-")
    assert experiment.load(name).plan(profile, ROOT / "results").manifest() == path.read_text("utf-8")


@in_repository
def test_every_sweep_has_its_manifests():
    there = {path.stem for path in (ROOT / "results" / "sweeps").glob("*.json")}
    assert there == {f"{name}-{profile}" for name in WITH_RUNS for profile in experiment.PROFILES}
