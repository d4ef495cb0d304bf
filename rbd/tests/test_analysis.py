"""analysis/: statistics by hand and by simulation, records that must not be compared, every notebook on made-up runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev

import load
import made_up
import numpy as np
import pandas as pd
import pytest
import stats
import style
import worker_time
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.stats import trim_mean

from rbd.suite import config, experiment, findings, looks, models, paper, record, report, tables
from rbd.suite.config import RunConfig
from rbd.suite.experiments import orthogonality
from rbd.suite.record import Point, Record

ROOT = Path(report.__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))
SWEEPS = [name for name in made_up.RUNS if name not in ("paper_rates", "normals")]
NEUTRAL = {"#000000", "#777777"}  # beside seaborn's colour-blind palette


def cells_of(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text("utf-8"))["cells"]


def execute(name: str, results: Path, profile: str = "quick", allow_missing: bool = False) -> dict:
    """Run a notebook here, cell by cell; returns its names."""
    names: dict = {}
    for cell in cells_of(ROOT / "analysis" / f"{name}.ipynb"):
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(profile=profile, results=str(results), allow_missing=allow_missing)
        elif cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Made-up results of every experiment, profile quick; tests write figures there, and change no record."""
    return made_up.everything(tmp_path_factory.mktemp("results"))


@pytest.fixture
def dimension(tmp_path) -> Path:
    """Made-up results of one experiment, to be damaged."""
    made_up.experiment(tmp_path, "dimension")
    return tmp_path


@pytest.fixture
def notes(monkeypatch) -> list[tuple[str, str]]:
    """(figure, note) of every figure that is saved; none is drawn, which takes most of the time."""
    seen: list[tuple[str, str]] = []

    def save(figure, results, name: str, note: str) -> None:
        seen.append((name, note))
        style.plt.close(figure)

    monkeypatch.setattr(style, "save", save)
    return seen


def records(results: Path, name: str) -> list[Path]:
    return sorted((results / "runs" / f"{name}-quick").glob("*.json"))


def change(path: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(json.dumps(content), "utf-8")


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize(("values", "expected"), [
    ([0, 1, 2, 3, 4, 5, 6, 100], 3.5),  # without 0, 1 and 6, 100: (2 + 3 + 4 + 5) / 4
    ([100, 1, 2, 0], 1.5),
    ([1, 2, 9], 4.0),  # ⌊3/4⌋ = 0 are left out: the mean
    ([7], 7.0),
])  # fmt: skip
def test_iqm_by_hand(values, expected):
    assert stats.iqm(np.array(values, float)) == expected


def test_iqm_is_the_trimmed_mean_of_rliable_on_any_axis():
    rng = np.random.default_rng(1)
    for n in range(1, 24):
        x = rng.normal(size=(5, n))
        np.testing.assert_allclose(stats.iqm(x), trim_mean(x, 0.25, axis=1), rtol=1e-12)


def test_mean_and_deviation_by_hand():
    s = stats.summary([90.0, 92.0, 94.0])
    assert (s.value, s.std, s.n) == (92.0, 2.0, 3)  # √((4 + 0 + 4) / 2)
    alone = stats.summary([5.0])
    assert alone.value == 5.0 and np.isnan([alone.low, alone.high, alone.std]).all()


@pytest.mark.parametrize(("x", "y", "expected"), [
    ([1, 2, 3], [2], 0.5),  # 0, ½, 1
    ([3, 4], [1, 2], 1.0), ([1, 2], [3, 4], 0.0), ([1, 1], [1, 1], 0.5), ([1, 5], [0, 2, 9], 0.5),  # 1, 1 of 6 and 1, 1, 0
])  # fmt: skip
def test_probability_of_improvement_by_hand(x, y, expected):
    assert stats.improvement(np.array(x, float), np.array(y, float)) == pytest.approx(expected)
    assert stats.probability([(x, y)]).value == pytest.approx(expected)


def test_probability_of_improvement_is_the_mean_over_tasks():
    assert stats.probability([([2.0], [1.0]), ([1.0], [2.0]), ([5.0], [1.0])]).value == pytest.approx(2 / 3)


def test_bootstrap_of_two_runs_by_hand():
    """Means 0, ½, 1 with probabilities ¼, ½, ¼: the 2.5 % and 97.5 % quantiles are 0 and 1, the 30 % and 70 % ones ½."""
    assert stats.bootstrap(stats.mean, [0.0, 1.0]) == (0.0, 1.0)
    means: list[np.ndarray] = []
    stats.bootstrap(lambda x: means.append(stats.mean(x)) or stats.mean(x), [0.0, 1.0])
    shares = [np.mean(means[0] == value) for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.05)  # 5 standard deviations of 2,000 draws


def test_bootstrap_stays_within_strata():
    """Were 0, 0 and 10, 10 resampled across, the pooled mean would vary."""
    assert stats.bootstrap(lambda x, y: (stats.mean(x) + stats.mean(y)) / 2, [0.0, 0.0], [10.0, 10.0]) == (5.0, 5.0)
    s = stats.aggregate([[0.0] * 8, [10.0] * 8])
    assert (s.value, s.low, s.high, s.n) == (5.0, 5.0, 5.0, 16)


def test_bootstrap_is_seeded():
    x = np.random.default_rng(0).normal(size=9)
    assert stats.bootstrap(stats.mean, x) == stats.bootstrap(stats.mean, x) != stats.bootstrap(stats.mean, x, seed=1)


def test_bootstrap_of_many_runs_is_the_normal_interval():
    x = np.random.default_rng(0).normal(3, 2, size=400)
    low, high = stats.bootstrap(stats.mean, x)
    half = 1.96 * x.std(ddof=1) / 20
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.12 * half)  # 4 errors of a quantile


@pytest.mark.parametrize(("n", "low", "high"), [(3, 0.66, 0.84), (10, 0.84, 0.95), (40, 0.90, 0.98)])
def test_coverage_is_as_the_docstring_says(n, low, high):
    """Of 500 intervals of normal runs; the bounds lie 3 standard deviations around what long simulations gave."""
    rng = np.random.default_rng(n)
    intervals = [stats.bootstrap(stats.mean, rng.normal(size=n), seed=i) for i in range(500)]
    assert low < np.mean([a <= 0 <= b for a, b in intervals]) < high


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")]])
def test_statistics_refuse_what_is_no_number(bad):
    for function in (stats.summary, lambda x: stats.aggregate([[1.0], x]), lambda x: stats.gap(x, [1.0])):
        with pytest.raises(ValueError, match="strata: got .*, allowed one or more finite numbers each"):
            function(bad)


def test_few_runs_have_a_mean_and_enough_an_interquartile_mean():
    assert stats.aggregate([[0.0, 0.0], [0.0, 100.0]]).value == 25.0
    assert stats.aggregate([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 100.0]]).value == 0.0


def test_gap_by_hand():
    """s²/n = 1 of two runs, so one degree of freedom, whose 97.5 % quantile is tan(0.475 π)."""
    s, half = stats.gap([4.0, 6.0], [1.0, 1.0]), math.tan(0.475 * math.pi)
    assert (s.value, s.low, s.high, s.n) == pytest.approx((4.0, 4.0 - half, 4.0 + half, 4))


@pytest.mark.parametrize("x", [5.0, 0.1, 93.0 / 7])  # the variance of [0.1] * 3 is not 0 in binary
@pytest.mark.parametrize("n", [2, 3, 9])
def test_equal_runs_do_not_make_a_difference_certain(x, n):
    """How far the next run would be is not known, as with a single one."""
    for of in (stats.mean, stats.iqm):
        s = stats.gaps([([x] * n, [1.0] * n), ([x] * n, [1.0] * n)], of)
        assert s.value == pytest.approx(x - 1) and np.isnan([s.low, s.high]).all()
        s = stats.gaps([([x] * n, [1.0] * n), ([x] * n, [1.0] * (n - 1) + [1.5])], of)
        assert np.isfinite([s.low, s.high]).all()  # one that differs is enough
    near, far = stats.gap([x] * n, [x - 1] * n), stats.gap([x] * n, [x - 2] * n)
    assert findings.judge_difference(far, "RBD") == findings.FEW
    assert findings.judge_leads([far, near], "paper") == findings.PARTLY  # above and below POINTS


def test_a_gap_has_the_interval_of_scipys_welch_test():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    for n, m, scale in ((2, 2, 1.0), (3, 3, 10.0), (3, 12, 0.1)):
        x, y = rng.normal(size=n), rng.normal(scale=scale, size=m)
        theirs = ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
        assert (stats.gap(x, y).low, stats.gap(x, y).high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(("n", "m", "std", "coverage"), [
    (2, 2, 1, 0.977), (2, 2, 10, 0.938), (3, 3, 1, 0.966), (3, 3, 5, 0.942), (3, 10, 0.5, 0.952),  # nominally 0.95
    (2, 3, 5, 0.914), (2, 10, 5, 0.902), (2, 10, 2, 0.883), (3, 10, 2, 0.929),  # the small sample is the noisier one
])  # fmt: skip
def test_coverage_of_gaps_is_as_the_docs_say(n, m, std, coverage):
    """Of n normal runs with this deviation against m with 1: what 200,000 intervals gave, within 3 standard errors."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        s = stats.gap(rng.normal(scale=std, size=n), rng.normal(size=m))
        inside += s.low < 0 < s.high
    assert inside / 2000 == pytest.approx(coverage, abs=3 * math.sqrt(coverage * (1 - coverage) / 2000))


def test_a_lead_over_one_stratum_counts_its_spread_once():
    """Three cuts of two runs each against one basis: its variance, 2 / 2, does not shrink with the number of cuts."""
    s = stats.lead([([[4.0, 4.0], [5.0, 5.0], [6.0, 6.0]], [1.0, 3.0])])
    half = math.tan(0.475 * math.pi)
    assert (s.value, s.low, s.high, s.n) == pytest.approx((3.0, 3.0 - half, 3.0 + half, 8))


def test_gaps_are_averaged_over_tasks():
    """(5 - 1 + 20 - 10) / 2; only the first varies, s²/n = 1, a quarter of it in the mean."""
    s = stats.gaps([([4.0, 6.0], [1.0, 1.0]), ([20.0, 20.0], [10.0, 10.0])], stats.mean)
    half = math.tan(0.475 * math.pi) / 2
    assert (s.value, s.low, s.high, s.n) == pytest.approx((7.0, 7.0 - half, 7.0 + half, 8))
    alone = stats.gaps([([4.0, 6.0], [1.0, 1.0]), ([20.0, 20.0], [10.0])], stats.mean)  # whose spread is unknown
    assert alone.value == 7.0 and np.isnan([alone.low, alone.high]).all()
    tail = [0.0] * 7 + [100.0]
    assert stats.gaps([(tail, [1.0])], stats.iqm).value == -1.0 and stats.gaps([(tail, [1.0])], stats.mean).value == 11.5


# ---------------------------------------------------------------- what the paper says


def test_an_embedded_subset_stands_for_its_full_set():
    assert paper.find_accuracy("fc", "mnist-embedded", "rbd") == paper.Accuracy(93.893, 0.024)
    assert paper.find_learning_rate("cnn", "fmnist-embedded", "sgd") == 0.0625
    unknown = ("resnet8", "cifar10", "rbd")
    assert paper.find_accuracy(*unknown) is paper.find_learning_rate(*unknown) is paper.find_layers(*unknown[:2]) is None


GREY, COLOUR = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("model", "shape"),
    [("fc", GREY), ("fc", COLOUR), ("cnn", GREY), ("cnn", COLOUR), ("resnet8", COLOUR), ("resnet32", COLOUR)],
)
def test_sizes_are_those_of_the_networks(model, shape):
    built = models.build(model, shape, 0)
    data = "cifar10" if shape[0] == 3 else "mnist-embedded"
    assert config.find_size(model, data) == sum(p.numel() for p in built.parameters())
    if theirs := paper.find_layers(model, data):
        layers = [sum(p.numel() for p in m.parameters()) for m in built.modules() if not list(m.children())]
        assert [n for n in layers if n] == list(theirs)


# ---------------------------------------------------------------- records


def test_records_come_back_as_they_were_saved(results):
    runs = load.sweep(results, "dimension", "quick")
    saved = {r.config.id: r for r in made_up.load_all(results / "runs" / "dimension-quick")}
    assert set(runs.table.id) == set(saved) and runs.expected == len(saved) and runs.missing == () and runs.gaps == ""
    for row in runs.table.to_dict("records"):
        r = saved[row["id"]]
        assert all(row[k] == v or (v is None and row[k] != row[k]) or row[k] is v for k, v in asdict(r.config).items())
        assert row["accuracy"] == r.curve[-1].accuracy and row["best"] == max(p.accuracy for p in r.curve)
        assert row["images"] == r.curve[-1].images and row["seconds"] == r.seconds[-1]
        assert runs.curves[runs.curves.id == row["id"]].accuracy.tolist() == [p.accuracy for p in r.curve]
        if r.config.method == "rbd":
            assert row["cosine"] == pytest.approx(mean(p.cosine for p in r.curve))


def test_committed_records_are_valid():
    paths = list((ROOT / "results" / "runs").glob("*/*.json"))
    assert len(paths) > 500
    for path in paths:
        assert load.read(path).config.id == path.stem


def test_missing_runs_are_named(dimension):
    gone = records(dimension, "dimension")[3]
    gone.unlink()
    with pytest.raises(
        load.Missing, match=rf"1 of 51 runs are missing, `rbd sweep dimension --profile quick`.*{gone.stem} \(fc mnist"
    ):
        load.sweep(dimension, "dimension", "quick")
    runs = load.sweep(dimension, "dimension", "quick", allow_missing=True)
    assert runs.gaps == "1 of 51 runs are missing" and len(runs.table) == 50
    assert "INCOMPLETE: 1 of 51 runs are missing" in runs.note([runs.table])


def test_interrupted_runs_are_missing_and_diverged_ones_count_as_chance(dimension):
    first, second, *_ = records(dimension, "dimension")
    change(first, lambda r: r.update(outcome="interrupted"))
    change(second, lambda r: r.update(outcome="diverged"))
    runs = load.sweep(dimension, "dimension", "quick", allow_missing=True)
    assert first.stem not in set(runs.table.id) and first.stem in runs.missing[0]
    assert runs.table.set_index("id").accuracy[second.stem] == 10.0


def test_a_sweep_without_list_or_runs(tmp_path, dimension):
    with pytest.raises(
        load.Missing, match=r"redraw-quick\.json: no such list of runs, `rbd sweep redraw --profile quick` makes it"
    ):
        load.sweep(dimension, "redraw", "quick")
    with pytest.raises(load.Nothing, match="redraw, profile quick: not a single run is there"):
        load.sweep(dimension, "redraw", "quick", allow_missing=True)
    (dimension / "sweeps" / "dimension-quick.json").unlink()
    assert len(load.sweep(dimension, "dimension", "quick", allow_missing=True).table) == 51


def test_runs_without_a_learning_rate_yet_are_missing_each_of_them(dimension):
    """Counted by run, not by learning rate: d = 5 with three seeds, one of which is listed twice."""
    path = dimension / "sweeps" / "dimension-quick.json"
    waiting = [json.loads(RunConfig(data="mnist", dim=5, seed=seed).canonical()) for seed in (0, 1, 2, 2)]
    change(path, lambda m: m.update(untuned=["fc mnist rbd dim=5"], waiting=waiting))
    told = r"3 of 54 runs are missing.*no learning rate yet, 3 \(fc mnist rbd dim=5 seed=2\)"
    with pytest.raises(load.Missing, match=told):
        load.sweep(dimension, "dimension", "quick")
    assert load.sweep(dimension, "dimension", "quick", allow_missing=True).gaps == "3 of 54 runs are missing"
    change(path, lambda m: m.update(waiting={}))
    with pytest.raises(load.Damaged, match=r"dimension-quick\.json: waiting: got '{}', allowed a list"):
        load.sweep(dimension, "dimension", "quick")


def test_lists_of_before_runs_waited_tell_keys_alone(dimension):
    def older(m):
        m.pop("waiting", None)
        m.update(untuned=["fc mnist rbd dim=5"])

    change(dimension / "sweeps" / "dimension-quick.json", older)
    with pytest.raises(load.Missing, match="1 of 52 runs are missing.*fc mnist rbd dim=5, no learning rate yet"):
        load.sweep(dimension, "dimension", "quick")


def test_records_may_stand_in_any_folder(dimension):
    moved = records(dimension, "dimension")[0]
    (dimension / "runs" / "elsewhere").mkdir()
    shutil.move(moved, dimension / "runs" / "elsewhere")
    runs = load.sweep(dimension, "dimension", "quick")
    assert set(map(str, runs.table.path.map(lambda p: p.parent.name))) == {"dimension-quick", "elsewhere"}


@pytest.mark.parametrize(("damage", "cause"), [
    (lambda p: p.write_text("{"), "not a valid record"),
    (lambda p: p.write_bytes(b"\xff\xfe"), "not a valid record"),
    (lambda p: p.write_text("[]"), r"record: got \[\]"),
    (lambda p: change(p, lambda r: r.update(format=3)), "format: got 3, allowed 1 or 2"),
    (lambda p: change(p, lambda r: r.update(outcome="fine")), "outcome: got 'fine'"),
    (lambda p: change(p, lambda r: r["config"].update(lr=9.0)), "file name: got .* the id of its config"),
    (lambda p: change(p, lambda r: r["seconds"].pop()), r"seconds: got \(1\.0, 2\.0\), allowed 3"),
    (lambda p: change(p, lambda r: r.update(curve={name: [] for name in r["curve"]}, seconds=[])), "got 0 epochs of a fin"),
    (lambda p: change(p, lambda r: r["curve"].update(accuracy=["high"] * 3)), "accuracy: got 'high', allowed a number"),
    (lambda p: change(p, lambda r: r["curve"].pop("loss")), "curve: missing 'loss'"),
    (lambda p: change(p, lambda r: r["curve"]["loss"].pop()), "got lists of lengths .*'loss': 2"),
    (lambda p: p.write_text(p.read_text().replace('"seconds": [', '"seconds": [NaN, ')), "a bare NaN"),
])  # fmt: skip
def test_damaged_records_are_named_all_of_them(dimension, damage, cause):
    first, second, *_ = records(dimension, "dimension")
    contents = []
    for path in (first, second):
        damage(path)
        contents.append(path.read_bytes())
    for allow in (False, True):
        with pytest.raises(load.Damaged, match=cause) as raised:
            load.sweep(dimension, "dimension", "quick", allow_missing=allow)
        assert first.name in str(raised.value) and second.name in str(raised.value)
    assert [first.read_bytes(), second.read_bytes()] == contents


def test_a_record_without_a_network_is_named(dimension):
    path = records(dimension, "dimension")[0]
    change(path, lambda r: r["config"].pop("model"))
    with pytest.raises(load.Damaged, match=rf"{path.name}: not a valid record, file not touched: config: missing 'model'"):
        load.read(path)


def test_a_damaged_list_is_named(dimension):
    path = dimension / "sweeps" / "dimension-quick.json"
    change(path, lambda m: m["runs"][0]["config"].update(dim=3))
    with pytest.raises(load.Damaged, match=r"dimension-quick\.json: ids that are not those of their configurations"):
        load.sweep(dimension, "dimension", "quick")
    path.write_text('{"name": "dimension-quick"}')
    with pytest.raises(load.Damaged, match=r"dimension-quick\.json: runs: got"):
        load.sweep(dimension, "dimension", "quick")


def test_a_loss_that_is_not_finite_is_read(dimension):
    path = records(dimension, "dimension")[0]
    change(path, lambda r: r["curve"].update(loss=[2.0, "nan", 1.0]))
    curves = load.sweep(dimension, "dimension", "quick").curves
    assert curves[curves.id == path.stem].loss.isna().tolist() == [False, True, False]


# ---------------------------------------------------------------- runs that do not belong together


def test_different_stream_versions_are_refused_and_named(dimension):
    other = records(dimension, "dimension")[7]
    change(other, lambda r: r["environment"].update(stream_version=2))
    with pytest.raises(load.Inconsistent, match=rf"different stream versions: version 1: .*; version 2: {other.stem} \(fc"):
        load.sweep(dimension, "dimension", "quick", allow_missing=True)


def test_mixed_profiles_are_refused_and_named(dimension):
    full = RunConfig(data="mnist", dim=10, distribution="rademacher", epochs=3)
    wanted = [*made_up.configs("dimension", "quick"), {k: v for k, v in asdict(full).items() if v is not None}]
    made_up.manifest(dimension, "dimension", "quick", wanted)
    record.save(made_up.made_up(wanted[-1]), dimension / "runs" / "elsewhere")
    with pytest.raises(load.Inconsistent, match=rf"mixed profiles, mnist is there embedded and in full: {full.id}"):
        load.sweep(dimension, "dimension", "quick")


@pytest.mark.parametrize("name", ["dimension-paper", "redraw-quick", "dimension", "dimension-quick-2"])
def test_a_list_of_another_profile_or_sweep_is_refused(dimension, name):
    change(dimension / "sweeps" / "dimension-quick.json", lambda m: m.update(name=name))
    with pytest.raises(load.Inconsistent, match=rf"dimension-quick\.json: name: got '{name}', allowed 'dimension-quick'"):
        load.sweep(dimension, "dimension", "quick", allow_missing=True)


def test_the_committed_list_of_a_profile_does_not_pass_for_another(tmp_path):
    """As the suite wrote it, not as made_up does."""
    (tmp_path / "sweeps").mkdir()
    shutil.copyfile(ROOT / "results" / "sweeps" / "table1-quick.json", tmp_path / "sweeps" / "table1-paper.json")
    with pytest.raises(load.Inconsistent, match="name: got 'table1-quick', allowed 'table1-paper'"):
        load.sweep(tmp_path, "table1", "paper", allow_missing=True)


def test_cells_hold_runs_that_differ_in_the_seed_alone(results):
    table = load.sweep(results, "dimension", "quick").table
    cells = load.cells(table, "model", "data", "method", "distribution", "dim")
    assert {len(cell) for cell in cells.values()} == {3}
    assert {key[4] for key in cells if key[2:4] == ("rbd", "rademacher")} == {2, 10, 100, 1000, 10_000}
    assert ("fc", "mnist-embedded", "sgd", None, None) in cells
    with pytest.raises(load.Inconsistent, match=r"runs differ in dim: .*dim 2.0: [0-9a-f]{16}"):
        load.cells(table, "model", "data", "method", "distribution")
    twice = table.assign(seed=0)
    with pytest.raises(load.Inconsistent, match="runs share a seed: [0-9a-f]{16}"):
        load.cells(twice, "model", "data", "method", "distribution", "dim")


def test_a_field_that_this_code_does_not_know_is_not_averaged_over(dimension):
    """A later field of a config, such as the number of workers, must not slip into a mean."""
    table = load.sweep(dimension, "dimension", "quick").table
    later = table.assign(later=[2.0] + [1.0] * (len(table) - 1))
    with pytest.raises(load.Inconsistent, match=rf"runs differ in later: .*later 2.0: {table.id[0]}"):
        load.cells(later, "model", "data", "method", "dim")
    path = records(dimension, "dimension")[0]
    change(path, lambda r: r["config"].update(later=2))
    with pytest.raises(load.Damaged, match=rf"{path.name}: .*config: unknown 'later'"):
        load.sweep(dimension, "dimension", "quick")


def test_a_list_with_a_field_that_this_code_does_not_know_is_named(dimension):
    change(dimension / "sweeps" / "dimension-quick.json", lambda m: m["runs"][0]["config"].update(later=2))
    with pytest.raises(load.Damaged, match=r"dimension-quick\.json: config: unknown 'later'"):
        load.sweep(dimension, "dimension", "quick")


def test_counts_and_commits_are_told(results, dimension):
    runs = load.sweep(results, "dimension", "quick")
    first, three = runs.table[:1], runs.table[:3]
    told = [load.counts(groups) for groups in ([first], [three, three], [first, three])]
    assert told == ["n = 1 seed", "n = 3 seeds", "n = 1–3 seeds"]
    assert runs.commits == ["0123456"]
    change(records(dimension, "dimension")[0], lambda r: r["environment"].update(dirty=True))
    assert load.sweep(dimension, "dimension", "quick").commits == ["0123456", "0123456+"]
    first, second = records(dimension, "dimension")[:2]
    change(first, lambda r: r["environment"].update(commit=None, dirty=None))  # as where rbd is installed, not a checkout
    change(second, lambda r: r["environment"].update(dirty=None))  # and where the commit was stated
    assert load.sweep(dimension, "dimension", "quick").commits == ["0123456", "unknown"]
    for path in records(dimension, "dimension"):
        change(path, lambda r: r["environment"].update(commit=None, dirty=None))
    assert load.sweep(dimension, "dimension", "quick").commits == ["unknown"]


# ---------------------------------------------------------------- measurements and asv


def test_measurements(results, tmp_path):
    rows, commit = load.measurement(results, "orthogonality", "quick")
    assert (len(rows), rows[1]["size"], commit) == (8, 1000, "0123456")
    missing = r"orthogonality-paper\.json: no such measurement, `rbd sweep orthogonality --profile paper`"
    with pytest.raises(load.Nothing, match=missing):
        load.measurement(results, "orthogonality", "paper")
    made_up.measurement(tmp_path, "orthogonality-quick", [])
    with pytest.raises(load.Damaged, match=r"values: got \[\], allowed what was measured"):
        load.measurement(tmp_path, "orthogonality", "quick")
    path = tmp_path / "measurements" / "orthogonality-quick.json"
    change(path, lambda m: m.update(name="orthogonality-paper"))
    with pytest.raises(load.Inconsistent, match="name: got 'orthogonality-paper', allowed 'orthogonality-quick'"):
        load.measurement(tmp_path, "orthogonality", "quick")
    path.write_text("[]")
    with pytest.raises(load.Damaged, match=r"orthogonality-quick\.json: environment: got"):
        load.measurement(tmp_path, "orthogonality", "quick")


def test_measurements_of_different_streams_are_refused_and_named(tmp_path):
    made_up.measurements(tmp_path)
    assert load.measurement(tmp_path, "landscape", "quick")
    change(tmp_path / "measurements" / "landscape-quick.json", lambda m: m["environment"].update(stream_version=2))
    with pytest.raises(load.Inconsistent, match=r"landscape-quick\.json: version 2, orthogonality-quick\.json: version 1"):
        load.measurement(tmp_path, "orthogonality", "quick")


def test_asv_results_by_hand(results):
    table = load.asv(results)
    assert set(table.commit) == {"a" * 8, "b" * 8} and set(load.newest(table).commit) == {"b" * 8}
    row = table[(table.benchmark == "memory.Peak.track_step") & (table.d == 100) & (table.basis == "stored fp32")]
    assert row.value.tolist() == pytest.approx([970 + 400e6 / 2**20, 2 * (970 + 400e6 / 2**20)])
    products = table[table.benchmark == "kernels.Product.track_project"]
    assert len(products) == 2 * (5 * 9 - 1)  # the largest stored basis did not fit
    assert table[table.benchmark == "memory.track_import"].value.tolist() == [750.0, 1500.0]


@pytest.mark.parametrize("name", ["aaaa-other.json", "zzzz-other.json"])  # before and after the other file
def test_a_commit_that_is_measured_twice_counts_once_by_its_last_run(tmp_path, notes, name):
    """As with another version of torch: a file of its own, whose cells had stood beside the first one's."""
    made_up.asv(tmp_path)
    folder = tmp_path / "asv" / "here"
    for file, factor, started in (("bbbbbbbb-env.json", 1, 5), (name, 3, 6)):
        content = json.loads((folder / "bbbbbbbb-env.json").read_text("utf-8"))
        content["result_columns"] = ["result", "params", "version", "started_at"]
        for cell in content["results"].values():
            cell[:] = [[v and v * factor for v in cell[0]], *cell[1:3], started]
        (folder / file).write_text(json.dumps(content), "utf-8")
    table = load.newest(load.asv(tmp_path))
    assert table[table.benchmark == "memory.track_import"].value.tolist() == [3 * 1500.0]
    assert not table.duplicated(["machine", "benchmark", "device", "basis", "rival", "network", "method", "d", "D"]).any()
    for notebook in ("memory", "speed"):
        execute(notebook, tmp_path)
    told = json.loads((tmp_path / "tables" / "speed.json").read_text("utf-8"))["number"]
    assert "n = 2 commits" in told


def test_asv_results_of_another_version_or_shape(tmp_path):
    with pytest.raises(load.Nothing, match="asv: no results of asv, `tox -e bench` makes them"):
        load.asv(tmp_path)
    made_up.asv(tmp_path)
    change(tmp_path / "asv" / "benchmarks.json", lambda k: k["memory.Peak.track_step"].update(version="2"))
    assert "memory.Peak.track_step" not in set(load.asv(tmp_path).benchmark)
    path = next((tmp_path / "asv" / "here").glob("aaaa*.json"))
    change(path, lambda r: r["results"]["memory.track_import"][0].append(1.0))
    with pytest.raises(load.Damaged, match=r"aaaaaaaa-env\.json: memory.track_import: got 2 results, allowed 1"):
        load.asv(tmp_path)


@pytest.mark.parametrize(("file", "edit"), [
    ("aaaaaaaa-env.json", lambda r: r.update(commit_hash=1)),
    ("aaaaaaaa-env.json", lambda r: r.update(date={})),
    ("aaaaaaaa-env.json", lambda r: r.update(result_columns=[{}])),
    ("aaaaaaaa-env.json", lambda r: r["results"].update({"memory.track_import": 3})),
    ("aaaaaaaa-env.json", lambda r: r["results"]["memory.track_import"].__setitem__(0, 3)),
    ("../benchmarks.json", None), ("machine.json", None),
])  # fmt: skip
def test_asv_results_with_a_part_of_another_type_are_named(file, edit, tmp_path):
    made_up.asv(tmp_path)
    path = (tmp_path / "asv" / "here" / file).resolve()
    change(path, edit) if edit else path.write_text("[]")
    with pytest.raises(load.Damaged, match=f"^{re.escape(str(path))}: "):
        load.asv(tmp_path)
        load.describe_machine(tmp_path, "here")


# ---------------------------------------------------------------- style and tables


def frame(*values: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=["x", "accuracy"])


def figure(value: float = 1.0):
    made, (ax,) = style.axes()
    style.points(ax, frame((1, 1.0), (1, 2.0), (1, value), (2, 3.0)), "x", "rbd")
    style.star(ax, 1, paper.Accuracy(2.0, 0.5), "rbd")
    style.legend(made, [ax])
    return made


def drawn_intervals(ax) -> list[list[float]]:
    """(low, high) of every bar of a panel; those of NaN are empty."""
    return [segment[:, 1].tolist() for c in ax.collections for segment in c.get_segments() if len(segment) == 2]


def test_points_are_means_with_the_intervals_of_the_tables(recwarn):
    """Seaborn draws them, from our bootstrap, which depends on the order of the runs; none where there is one run."""
    _, (ax,) = style.axes()
    runs = {1: [5.0, 1.0, 9.0], 2: [2.0, 8.0, 3.0, 4.0], 3: [7.0]}
    style.points(ax, frame((2, 2.0), (1, 5.0), (3, 7.0), (1, 1.0), (2, 8.0), (2, 3.0), (1, 9.0), (2, 4.0)), "x", "rbd")
    summaries = {x: stats.summary(values) for x, values in runs.items()}
    (line,) = (line for line in ax.lines if line.get_label() == "RBD")
    assert line.get_xydata().tolist() == [[x, s.value] for x, s in summaries.items()]
    assert drawn_intervals(ax) == [pytest.approx([summaries[x].low, summaries[x].high]) for x in (1, 2)]
    assert ax.get_xlabel() == ax.get_ylabel() == "" and not recwarn.list
    style.plt.close("all")


def test_bands_are_the_intervals_of_the_tables():
    _, (ax,) = style.axes()
    style.band(ax, frame((1, 5.0), (2, 2.0), (1, 1.0), (2, 8.0)), "x", "fpd")
    (band,) = ax.collections
    found = {tuple(map(float, v)) for v in band.get_paths()[0].vertices}
    wanted = {(float(x), end) for x, values in ((1, [5.0, 1.0]), (2, [2.0, 8.0]))
              for end in stats.bootstrap(stats.mean, values)}  # fmt: skip
    assert sorted(found) == [pytest.approx(point) for point in sorted(wanted)]
    style.plt.close("all")


def test_figures_are_the_same_bytes_again_and_tell_no_date_or_version(tmp_path):
    for folder, value in (("one", 1.0), ("two", 1.0), ("other", 4.0)):
        style.save(figure(value), tmp_path / folder, "f", "the note")
    for kind in ("pdf", "png"):
        one, two, other = ((tmp_path / folder / "figures" / f"f.{kind}").read_bytes() for folder in ("one", "two", "other"))
        assert one == two != other and len(one) > 3000
        assert not re.search(rb"atplotlib|CreationDate|Producer|Software|tEXt|tIME", one)
    assert b"/Type3" not in (tmp_path / "one" / "figures" / "f.pdf").read_bytes()
    assert [p.name for p in (tmp_path / "one" / "figures").iterdir() if p.suffix == ".tmp"] == []


def test_the_note_is_in_the_figure(tmp_path):
    made = figure()
    style.save(made, tmp_path, "f", "profile quick, n = 3")
    assert made.get_supxlabel() == "profile quick, n = 3"


def test_looks_are_told_apart_with_and_without_colour():
    methods = [looks.LOOKS[m] for m in config.METHODS]
    variants = [looks.LOOKS[variant] for variant in worker_time.VARIANTS]
    distributions = [looks.LOOKS[name] for name in ("normal", "uniform", "rademacher", "countsketch")]
    for group in (methods, variants, looks.CYCLE, distributions):
        for what in ("color", "marker", "linestyle"):
            assert len({str(look[what]) for look in group}) == len(group), what
    assert not {look["marker"] for look in methods} & {look["marker"] for look in distributions}
    palette = set(style.sns.color_palette("colorblind").as_hex()) | NEUTRAL
    assert {look["color"] for look in (*looks.LOOKS.values(), *looks.CYCLE)} <= palette


def test_a_legend_goes_into_a_hidden_panel():
    made, panels = style.axes(2)
    panels[0].plot([0, 1], [0, 1], label="a line")
    panels[1].set_visible(False)
    style.legend(made, panels)
    assert not made.legends and [t.get_text() for t in panels[1].get_legend().get_texts()] == ["a line"]
    assert panels[1].get_visible() and not panels[1].axison
    style.plt.close("all")


@pytest.mark.parametrize(("lowest", "end"), [(9.0, 0), (52.0, 50), (51.9, 40), (97.0, 90)])
def test_an_axis_of_percentages_has_no_empty_part(lowest, end):
    _, (ax,) = style.axes()
    style.span(ax, lowest)
    assert ax.get_ylim() == (end, 100)
    style.plt.close("all")


def test_legends_fit_the_width():
    made, panels = style.axes(2)
    for ax in panels:
        for i in range(7):
            ax.plot([0, 1], [0, i], label=f"a name that is rather long, number {i}")
    style.legend(made, panels)
    assert made.legends[0].get_window_extent(made.canvas.get_renderer()).width < made.bbox.width
    assert len(made.legends[0].get_texts()) == 7


def test_tables_by_hand():
    rows = [["a|b", "1.0 ± 0.5 (n = 3)"], ["50 % & more", "–"]]
    assert tables.markdown(["x", "y_1"], rows, "A note.") == (
        "| x | y_1 |\n| --- | --- |\n| a\\|b | 1.0 ± 0.5 (n = 3) |\n| 50 % & more | – |\n\nA note.\n"
    )
    assert tables.latex(["x", "y_1"], rows).splitlines() == [
        r"\begin{tabular}{ll}", r"\toprule", r"x & y\_1 \\", r"\midrule", r"a|b & 1.0 $\pm$ 0.5 (n = 3) \\",
        r"50 \% \& more & -- \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    assert tables.latex(["x"], [], "A note.\nINCOMPLETE: 1 of 2.").splitlines()[-3:] == [
        r"\end{tabular}", "% A note.", "% INCOMPLETE: 1 of 2.",
    ]  # fmt: skip
    assert tables.number(stats.summary([90.0, 92.0, 94.0])) == "92.0 ± 2.0 (n = 3)"
    assert tables.number(stats.summary([90.0, 92.0, 94.0]), " %", 2) == "92.00 ± 2.00 % (n = 3)"
    assert tables.number(stats.summary([90.04])) == "90.0 (n = 1)" and tables.number(None) == "–"
    assert tables.interval(stats.summary([0.0, 1.0]), 2) == "[0.00, 1.00]"
    assert tables.interval(stats.summary([1.0])) == "no interval"


@pytest.mark.parametrize(("value", "digits", "text"), [
    (43.65, 1, "43.7"), (2.675, 2, "2.68"), (0.5, 0, "1"), (43.64, 1, "43.6"), (1 / 3, 3, "0.333"),
    (81.05 - 80.9, 1, "0.2"), (np.mean([89.4, 89.5]), 1, "89.5"),  # 0.1499999999999915 and np.float64(89.45)
    (1.25e-8, 9, "0.000000013"), (1e300, 1, f"1{'0' * 300}.0"),
])  # fmt: skip
def test_numbers_are_rounded_as_a_reader_does(value, digits, text):
    """Halves of the decimal number away from zero: Python rounds the binary one, which is 43.649999 in the first case."""
    assert looks.format_number(value, digits) == text and looks.format_number(value, digits, signed=True) == f"+{text}"
    assert looks.format_number(-value, digits) == looks.format_number(-value, digits, signed=True) == f"−{text}"


@pytest.mark.parametrize(("value", "text"), [(0.0, "+0.0"), (-1e-13, "+0.0"), (0.04, "+0.0"), (-0.04, "−0.0")])
def test_a_loss_keeps_its_sign_where_it_is_zero_when_rounded(value, text):
    """An interval that ends there excludes 0; noise of binary numbers is no loss."""
    assert looks.format_number(value, signed=True) == text and looks.format_number(value) == text.lstrip("+")


def test_a_number_stands_with_its_interval():
    known, single = stats.Summary(-1.25, -2.0, -0.5, 4, 1.0), stats.Summary(-0.5, math.nan, math.nan, 1)
    assert tables.points(known) == "−1.3 points [−2.0, −0.5]" and tables.points(single) == "−0.5 points, no interval"
    assert tables.difference(single, [([1], [2, 3])], 2) == "−0.50 points, no interval, n = 1 + 2"
    assert tables.estimate(stats.summary([92.3]), " %") == "92.3 % (n = 1), no interval"
    assert tables.value(known, digits=2) == "−1.25 [−2.00, −0.50]"
    assert tables.latex(["−1.3"], []).splitlines()[2] == r"$-$1.3 \\"


def test_the_scale_is_set_after_drawing():
    """Seaborn would average logarithms and draw a geometric mean."""
    _, (ax,) = style.axes()
    ax.set_yscale("log")
    with pytest.raises(ValueError, match="set the scale after drawing"):
        style.points(ax, frame((1, 1.0), (1, 2.0)), "x", "rbd")
    style.plt.close("all")


# ---------------------------------------------------------------- notebooks


def test_every_experiment_of_the_design_has_a_notebook():
    assert {p.stem for p in NOTEBOOKS} >= {*SWEEPS, "schematic", "orthogonality", "landscape", "speed", "memory"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_committed_without_outputs_and_say_what_they_show(notebook):
    cells = cells_of(notebook)
    code = [c for c in cells if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    assert [c["source"] for c in code if "parameters" in c["metadata"].get("tags", [])] == [
        ['profile, results, allow_missing = "quick", "../results", False']
    ]
    assert "version" not in json.loads(notebook.read_text("utf-8"))["metadata"]["language_info"]
    assert "".join(cells[0]["source"]).startswith("# ") and len(cells[0]["source"]) > 2


def check_print(figure) -> None:
    """Text of 7 points or more; nothing is cut off at the edge of the figure, which is 7 inches wide at most."""
    texts = [text for text in figure.findobj(style.plt.Text) if text.get_visible() and text.get_text()]
    assert texts and min(text.get_fontsize() for text in texts) >= 7 and figure.get_figwidth() <= 7
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())  # inches
    width, height = figure.get_size_inches()
    assert box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, box


@pytest.mark.parametrize("name", [p.stem for p in NOTEBOOKS])
def test_notebooks_draw_what_they_promise(results, name, monkeypatch):
    save = style.save

    def save_and_check(figure, *given) -> Path:
        path = save(figure, *given)
        check_print(figure)
        return path

    monkeypatch.setattr(style, "save", save_and_check)
    before = {p: p.stat().st_mtime_ns for p in results.glob("[ft]*/*")}
    execute(name, results)
    made = {p.relative_to(results).as_posix() for p in results.glob("[ft]*/*") if p.stat().st_mtime_ns != before.get(p)}
    figures = {p for p in made if p.startswith("figures")}
    assert {p[:-4] for p in figures if p.endswith(".png")} == {p[:-4] for p in figures if p.endswith(".pdf")}
    assert figures or name in ("nes", "verdicts")  # which are tables
    assert name == "schematic" or any(re.fullmatch(rf"tables/{name}(-quick)?\.json", p) for p in made)
    if name in ("table1", "nes", "learning_rate", "workers", "speed", "countsketch", "price", "intrinsic_dimension"):
        assert {f"tables/{name}{'' if name == 'speed' else '-quick'}.{kind}" for kind in ("md", "tex")} <= made


@pytest.mark.parametrize("name", SWEEPS)
def test_notebooks_fail_on_a_missing_run_and_draw_without_it_when_allowed(results, name, tmp_path, notes):
    wanted = list(made_up.configs(name, "quick"))
    made_up.manifest(tmp_path, name, "quick", wanted)
    shutil.copytree(results / "runs" / f"{name}-quick", tmp_path / "runs" / f"{name}-quick")
    gone = records(tmp_path, name)[0]
    gone.unlink()
    with pytest.raises(load.Missing, match=gone.stem):
        execute(name, tmp_path)
    assert notes == []
    execute(name, tmp_path, allow_missing=True)
    told = f"1 of {len(wanted)} runs are missing"
    drawn = [note for figure, note in notes if figure != "workers-model"]  # which has no runs
    assert all(f"INCOMPLETE: {told}" in note for note in drawn) and (drawn or name == "nes")
    assert told in json.loads((tmp_path / "tables" / f"{name}-quick.json").read_text("utf-8"))["evidence"]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_few_runs_are_drawn_or_are_nothing_to_draw(results, name, tmp_path, notes):
    """With --allow-missing whatever a sweep has made so far: its first run, its last one, those of one method or seed."""
    wanted = [RunConfig(**config) for config in made_up.configs(name, "quick")]
    kinds = {m: [c.id for c in wanted if c.method == m] for m in config.METHODS}
    kinds |= {"seed": [c.id for c in wanted if c.seed % 100 == 0], "first": [wanted[0].id], "last": [wanted[-1].id]}
    for kind, ids in kinds.items():
        folder = tmp_path / kind
        (folder / "runs" / "some").mkdir(parents=True)
        shutil.copytree(results / "sweeps", folder / "sweeps")
        for i in ids:
            shutil.copy(results / "runs" / f"{name}-quick" / f"{i}.json", folder / "runs" / "some")
        notes.clear()
        try:
            execute(name, folder, allow_missing=True)
        except load.Nothing as error:
            lacks = name in ("correlation", "effective_rate") and "not a single run of RBD" in str(error)
            assert not ids or lacks, kind
        else:
            assert ids and (folder / "tables" / f"{name}-quick.json").exists(), kind
            assert notes or name == "nes", kind


def test_table1_holds_the_numbers_of_the_records(results):
    execute("table1", results)
    found = made_up.load_all(results / "runs" / "table1-quick")
    lines = [
        [c.strip() for c in line.split("|")[1:-1]]
        for line in (results / "tables" / "table1-quick.md").read_text("utf-8").splitlines()
    ]
    assert lines[0] == ["network, data", "", "NES", "FPD", "RBD", "SGD"]
    for model, data in (("fc", "mnist-embedded"), ("cnn", "fmnist-embedded")):
        row, theirs = [line for line in lines if line and line[0] == looks.title(model, data)]
        for method, cell in zip(("nes", "fpd", "rbd", "sgd"), row[2:]):
            values = [
                r.curve[-1].accuracy
                for r in found
                if (r.config.model, r.config.data, r.config.method) == (model, data, method)
            ]
            assert cell == f"{mean(values):.1f} ± {stdev(values):.1f} (n = 3)"
        assert theirs[2:] == [f"{paper.find_accuracy(model, data, m)} (n = 3)" for m in ("nes", "fpd", "rbd", "sgd")]


def test_table1_agrees_with_the_table_of_the_readme(tmp_path, notes):
    """To the last digit, on the committed records: rbd report averages on its own."""
    for folder in ("runs", "sweeps"):
        shutil.copytree(ROOT / "results" / folder, tmp_path / folder)
    execute("table1", tmp_path)
    lines = (tmp_path / "tables" / "table1-quick.md").read_text("utf-8").splitlines()
    ours = [line for line in lines if "our rates" in line]
    records = experiment.load("table1").plan("quick", ROOT / "results").records(ROOT / "results")
    theirs = report.table(records, "quick").splitlines()[2::2]
    assert [line.split("|")[3:7] for line in ours] == [line.split("|")[3:7] for line in theirs] and len(ours) == 4


def test_table1_of_the_paper_profile_has_rows_for_rates_and_entries(tmp_path, notes):
    for name in ("table1", "paper_rates", "normals"):
        made_up.experiment(tmp_path, name, "paper")
    names = execute("table1", tmp_path, "paper")
    rows = [
        line
        for line in (tmp_path / "tables" / "table1-paper.md").read_text("utf-8").splitlines()
        if line.startswith("| FC, MNIST")
    ]
    kinds = [line.split("|")[2].strip() for line in rows]
    assert kinds == [
        "ours: our rates, signs",
        "ours: our rates, normal",
        "ours: the paper's rates, signs",
        "paper (full data, 100 epochs)",
    ]
    labels = {label for panel in names["panels"] for label in panel.get_legend_handles_labels()[1]}
    kinds = {"ours, signs", "ours, normal", "ours, SGD", "hollow: the paper's learning rates"}
    assert labels == kinds | {"paper (full data, 100 epochs)"}
    assert [cell.strip() for cell in rows[2].split("|")][3] == "–"  # NES: no rate is known


def test_table1_marks_what_is_apart_from_the_paper(tmp_path, notes):
    """FC, MNIST: the paper has 80 ± 0.4 and 98.27 ± 0.09; marked above 1.5 points and 2 √(0.4² + s²), as in the verdicts."""
    made_up.experiment(tmp_path, "table1", "paper")
    for name in ("paper_rates", "normals"):
        made_up.manifest(tmp_path, name, "paper", [])
    names = execute("table1", tmp_path, "paper")
    pair = ("fc", "mnist")
    for method, value, std, gap in [
        ("fpd", 81.6, 0.2, 1.6),
        ("fpd", 81.6, 3.0, None),  # within 2 × 3.03
        ("fpd", 81.4, 0.0, None),  # within 1.5 points, though more than 2 × 0.4
        ("fpd", 77.9, 0.3, -2.1),
        ("sgd", 98.0, float("nan"), None),
        ("sgd", 96.5, float("nan"), -1.77),  # one run: points alone
        ("rbd-nes", 50.0, 1.0, None),  # not in the paper
    ]:
        found = names["apart"](pair, method, stats.Summary(value, value, value, 3, std))
        assert found == (gap if gap is None else pytest.approx(gap)), (method, value)
    evidence = json.loads((tmp_path / "tables" / "table1-paper.json").read_text("utf-8"))["evidence"][-1]
    assert evidence.startswith("† ours − the paper's: FC, MNIST, ") and "FC, MNIST, FPD (our rates, signs) −" in evidence


@pytest.mark.parametrize("name", ["table1", "nes", "learning_rate", "workers", "countsketch", "price"])
def test_latex_is_plain_ascii(results, name, notes):
    """Any LaTeX sets it; the note is a comment."""
    execute(name, results)
    lines = (results / "tables" / f"{name}-quick.tex").read_text("utf-8").splitlines()
    end = lines.index(r"\end{tabular}") + 1
    assert "\n".join(lines[:end]).isascii() and lines[end:] and all(line.startswith("% ") for line in lines[end:])


def test_committed_latex_is_plain_ascii():
    for path in sorted((ROOT / "results" / "tables").glob("*.tex")):
        table, _ = path.read_text("utf-8").split(r"\end{tabular}")
        assert table.isascii(), path.name


def test_dimension_draws_means_of_the_records(results, monkeypatch):
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, *_: figures.append(figure))
    execute("dimension", results)
    (panel,) = figures[0].axes
    found = made_up.load_all(results / "runs" / "dimension-quick")
    for entries, dims in (("rademacher", (2, 10, 100, 1000, 10_000)), ("countsketch", (10, 1000, 101_770))):
        mine = [r for r in found if (r.config.method, r.config.distribution) == ("rbd", entries)]
        values = [[d, mean(r.curve[-1].accuracy for r in mine if r.config.dim == d)] for d in dims]
        drawn = np.array(lines(panel)[f"RBD, {looks.label(entries)}"])
        assert drawn[:, 1] == pytest.approx(np.array(values)[:, 1])
        assert drawn[:, 0] == pytest.approx(np.array(dims), rel=0.11)  # beside d, so that none hides another
    evidence = json.loads((results / "tables" / "dimension-quick.json").read_text("utf-8"))
    assert evidence["number"].startswith("RBD − FPD at d = 10,000, signs: ")  # d = D is left out: there both are SGD
    assert any(line.startswith("RBD, countsketch − signs, mean over d = 10, 1,000: ") for line in evidence["evidence"])
    assert panel.get_xlabel() == "directions d" and panel.get_ylabel() == "validation accuracy (%)"
    style.plt.close("all")


@pytest.mark.parametrize(("name", "stars"), [
    ("dimension", {"paper: RBD": [[275, 93.893]], "paper: FPD": [[275, 80]]}),  # beside d = 250
    ("redraw", {"paper: RBD": [[1.3, 93.893]], "paper: FPD": [[5_200, 80]]}),
    ("workers", {"paper: RBD, W = 1": [[0.8, 93.893]], "paper: SGD, W = 1": [[0.8, 98.27]]}),
    ("hybrid", {"paper: RBD": [[6.3, 93.893]], "paper: SGD": [[6.3, 98.27]]}),
    ("augmentation", {  # beside all settings: which one the paper had is the question
        f"paper: {m}": [[0, a], [1, a]] for m, a in (("SGD", 98.27), ("RBD", 93.893), ("FPD", 80))
    }),
])  # fmt: skip
def test_numbers_of_the_paper_stand_beside_runs_of_its_budget_only(results, tmp_path, monkeypatch, name, stars):
    """The paper's are of the full sets and 100 epochs: beside 5,000 images they would mislead."""
    figures: dict = {}
    monkeypatch.setattr(style, "save", lambda figure, _, name, note: figures.update({name: (figure, note)}))
    made_up.experiment(tmp_path, name, "paper")
    execute(name, tmp_path, "paper")
    execute(name, results)
    (full, told), (quick, untold) = figures[f"{name}-paper"], figures[f"{name}-quick"]
    found = {label: xy for label, xy in lines(full.axes[0]).items() if label.startswith("paper")}
    assert found == {label: pytest.approx(np.array(xy)) for label, xy in stars.items()}
    assert not any(label.startswith("paper") for ax in quick.axes for label in lines(ax))
    assert "the paper's table 1" not in untold and ("the paper's table 1" in told or name == "workers")
    style.plt.close("all")


def test_the_choice_of_a_learning_rate_is_the_best_mean(results, notes):
    names = execute("learning_rate", results)
    found = made_up.load_all(results / "runs" / "learning_rate-quick")
    for search, lr in names["chosen"].items():
        model, data, method, dim, partition, _ = search
        tried: dict[float, list[float]] = {}
        for r in found:
            if (r.config.model, r.config.data, r.config.method, r.config.dim, r.config.partition) == (
                model,
                data,
                method,
                dim,
                partition,
            ):
                tried.setdefault(r.config.lr, []).append(r.curve[-1].accuracy)
        assert lr == max(tried, key=lambda rate: mean(tried[rate])) and len(tried) == 11


def test_no_rate_of_nes_is_called_the_papers(tmp_path, notes):
    """The paper does not give one; the released configuration lets NES inherit RBD's."""
    wanted = []
    for data, method, lr in (("mnist", "nes", 319.0), ("mnist", "rbd", 1.0), ("fmnist", "nes", 2.0)):
        wanted.append(dict(model="fc", data=data, method=method, epochs=3, lr=lr, **made_up.SIGNS))
    for name in ("table1", "paper_rates", "normals"):
        made_up.manifest(tmp_path, name, "paper", wanted if name == "paper_rates" else [])
    for name in ("paper_rates", "learning_rate"):
        for values in wanted:
            made_up.save(values, tmp_path / "runs" / f"{name}-paper")
    made_up.manifest(tmp_path, "learning_rate", "paper", wanted)
    for name in ("table1", "learning_rate"):
        execute(name, tmp_path, "paper")
    rows = [read_rows(tmp_path / "tables" / f"{name}-paper.md") for name in ("table1", "table1-epochs", "learning_rate")]
    places = {row[1]: row[2:] for row in rows[0] if row[0] == "FC, MNIST"}
    assert places["ours: the paper's rates, signs"][0] == places["ours: the released configuration's rate, signs"][1] == "–"
    assert {row[2] for row in rows[1] if row[1] == "NES, signs"} == {"the released configuration's rate", "our rates"}
    assert {tuple(row[:2]): row[3:5] for row in rows[2]} == {
        ("FC, MNIST", "NES"): ["–", "319"], ("FC, MNIST", "RBD"): ["1", "–"], ("FC, F-MNIST", "NES"): ["–", "160"],
    }  # fmt: skip
    evidence = json.loads((tmp_path / "tables" / "learning_rate-paper.json").read_text("utf-8"))["evidence"]
    assert "; the released configuration's η: 319)" in evidence[0] and "; paper's η: 1)" in evidence[1]


def test_no_committed_row_of_nes_has_the_papers_rates():
    for name in ("table1", "table1-epochs", "learning_rate"):
        head, *rows = read_rows(ROOT / "results" / "tables" / f"{name}-paper.md", head=True)
        place = head.index("NES") if name == "table1" else head.index("paper's η") if name == "learning_rate" else 2
        mine = [row for row in rows if name == "table1" and "the paper's rates" in row[1] or row[1].startswith("NES")]
        assert mine and all(row[place] != "the paper's rates" and not re.search(r"\d", row[place]) for row in mine)


def read_rows(path: Path, head: bool = False) -> list[list[str]]:
    lines = [line for line in path.read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [*cells[: 1 if head else 0], *cells[2:]]


def test_the_verdict_on_distributions_is_how_much_worse_they_may_be(tmp_path, notes):
    """10 runs of each on both data sets; normal ones are k = 0 ... 9, signs 1 less: interquartile means 4.5 and 3.5."""
    level = {"mnist-embedded": 70.0, "fmnist-embedded": 50.0}
    configs = [
        dict(model="fc", data=data, method="rbd", distribution=name, seed=k, epochs=3, lr=4.0)
        for data in level for name in ("normal", "uniform", "rademacher") for k in range(10)
    ]  # fmt: skip
    made_up.manifest(tmp_path, "distributions", "quick", configs)
    for c in configs:
        path = made_up.save(c, tmp_path / "runs" / "distributions-quick")
        less = {"normal": 0, "uniform": 0, "rademacher": 1}[c["distribution"]]
        reached = level[c["data"]] + c["seed"] - less
        change(path, lambda r, reached=reached: r["curve"]["accuracy"].__setitem__(-1, reached))
    names = execute("distributions", tmp_path)
    evidence = json.loads((tmp_path / "tables" / "distributions-quick.json").read_text("utf-8"))["evidence"]
    normal, signs = ([[level[data] + k - less for k in range(10)] for data in level] for less in (0, 1))
    s = stats.gaps(list(zip(signs, normal)), stats.iqm)
    assert s.value == -1.0 and s.low < -1 < s.high and s.n == 40
    won = (36 + 9 / 2) / 100  # pairs with k - 1 > j: 0 + 1 + ... + 8 = 36; with k - 1 = j: 9, which count half
    told = f"signs − normal = −1.00 points {tables.interval(s, 2)}, no worse by more than {-s.low:.1f} points"
    assert told in evidence[1] and "interquartile means; n = 20 and 20 runs over 2 data sets" in evidence[1]
    assert f"P(signs > normal) = {won:.2f} [" in evidence[1] and "uniform − normal = +0.00 points" in evidence[0]
    assert "FC, F-MNIST, RBD, signs: 53.5 % [" in "".join(evidence)
    assert "Interquartile means. Learning rates: the best for signs." in notes[0][1] and len(names["rows"]) == 3


def test_every_partition_is_told_beside_the_whole(results, notes):
    """Not the best one of them alone, whose plain interval would be too good."""
    execute("compartments", results)
    evidence = json.loads((results / "tables" / "compartments-quick.json").read_text("utf-8"))["evidence"]
    table = load.sweep(results, "compartments", "quick").table
    table = table[table.distribution == "rademacher"]
    for line, data in zip(evidence, ("mnist-embedded", "fmnist-embedded")):
        whole = table[(table.partition == "whole") & (table.data == data)].accuracy
        for partition in ("even:2", "even:8", "even:32", "by_layer"):
            cut = table[(table.partition == partition) & (table.data == data)].accuracy
            gap = stats.gap(cut, whole)
            assert f"minus whole {tables.points(gap)}" in line
    assert evidence[2].startswith("signs: P(compartments > whole): even:2 0.") and "(n = 12 runs of both)" in evidence[2]
    assert evidence[3].endswith("n = 24 + 6") and evidence[4].startswith("FC, MNIST, d = 250, countsketch: whole ")
    assert evidence[6].startswith("countsketch: all compartments − one basis ") and evidence[6].endswith("n = 12 + 3")


def test_table1_tells_the_best_epoch_beside_the_last(results, notes):
    """Made-up curves fall in the last epoch by about 4 %."""
    execute("table1", results)
    found = made_up.load_all(results / "runs" / "table1-quick")
    rows = [line.split(" | ") for line in (results / "tables" / "table1-epochs-quick.md").read_text("utf-8").splitlines()]
    (row,) = (r for r in rows if r[0] == "| CNN, F-MNIST" and r[1] == "SGD")
    runs = [r for r in found if (r.config.model, r.config.data, r.config.method) == ("cnn", "fmnist-embedded", "sgd")]
    last, best = [r.curve[-1].accuracy for r in runs], [max(p.accuracy for p in r.curve) for r in runs]
    assert row[3].startswith(f"{mean(last):.1f} ± {stdev(last):.1f} (n = 3) [")
    assert row[4].startswith(f"{mean(best):.1f} ± {stdev(best):.1f} (n = 3) [")
    assert row[5].startswith(f"{mean(b - a for a, b in zip(last, best)):+.1f} [") and row[6] == "91.95 ± 0.18 (n = 3) |"


def test_curves_tell_the_directions_of_every_method(results, tmp_path, monkeypatch):
    """In the quick profile NES may have fewer: the figure, its note and the evidence say so."""
    drawn = []
    monkeypatch.setattr(style, "save", lambda figure, _, name, note: drawn.append((figure, note)))
    wanted = [c | {"dim": 50} if c["method"] == "nes" else c for c in made_up.configs("curves", "quick")]
    made_up.manifest(tmp_path, "curves", "quick", wanted)
    for c in wanted:
        made_up.save(c, tmp_path / "runs" / "curves-quick")
    for folder, dim, odd in ((results, 500, False), (tmp_path, 50, True)):
        execute("curves", folder)
        figure, note = drawn.pop()
        assert f"Directions d: NES {dim}, FPD 500, RBD 500." in note and ("NES has fewer" in note) == odd
        assert f"NES, d = {dim}" in {text.get_text() for text in figure.legends[0].get_texts()}
        evidence = json.loads((folder / "tables" / "curves-quick.json").read_text("utf-8"))["evidence"]
        assert evidence[1].startswith(f"ResNet-8, CIFAR-10: RBD, d = 500, − NES, d = {dim} = +")
    style.plt.close("all")


def test_the_distribution_of_the_entries_is_told_under_every_figure(results, notes):
    for name in ("redraw", "distributions"):
        execute(name, results)
    assert "3 epochs; entries: countsketch, signs; n = 3 seeds." in notes[0][1]
    assert "3 epochs; entries: normal, signs, uniform; n = 3 seeds." in notes[1][1]


def test_correlation_compares_with_the_theory(results, notes):
    names = execute("correlation", results)
    assert set(names["ratios"]) == {("fc", "mnist-embedded", d) for d in (2, 10, 100, 1000, 10_000)}
    assert list(names["ratios"].values()) == pytest.approx([1.0] * 5, abs=0.03)  # made up as √(d/D) times 1 ± 0.01
    assert "1.0" in names["found"][0]


def test_orthogonality_compares_with_the_theory(results, notes):
    names = execute("orthogonality", results)
    assert names["theory"].tolist() == pytest.approx([0.0798, 0.02523, 0.00798, 0.002523] * 2, rel=1e-3)
    assert names["ratios"].tolist() == pytest.approx([1.0] * 8, abs=0.03)
    assert re.search(r"the intervals of [4-6] of 6 points hold 1\)", names["found"][0])
    assert "n = 10,000 pairs of directions a point. Bars: 95 % bootstrap intervals over 40 blocks of them." in notes[0][1]
    first = load.measurement(results, "orthogonality", "quick")[0][0]
    assert (names["low"][0] * 0.0797885, names["high"][0] * 0.0797885) == pytest.approx(
        stats.bootstrap(stats.mean, first["blocks"]), rel=1e-5
    )


def test_blocks_of_pairs_have_the_mean_of_all_pairs():
    row = orthogonality.measure(("rademacher", 100), "quick")
    assert (row["n"], len(row["blocks"])) == (400, 40) and mean(row["blocks"]) == pytest.approx(row["mean"], rel=1e-5)
    assert len(set(row["blocks"])) > 10  # of 10 pairs each: were they all pairs, they would be equal


def test_orthogonality_measured_without_blocks_is_to_be_measured_again(results, tmp_path, notes):
    rows, _ = load.measurement(results, "orthogonality", "quick")
    made_up.measurement(tmp_path, "orthogonality-quick", [{k: v for k, v in r.items() if k != "blocks"} for r in rows])
    with pytest.raises(load.Damaged, match="orthogonality-quick: got no means of blocks.*measure again"):
        execute("orthogonality", tmp_path)


def lines(ax) -> dict[str, list[list[float]]]:
    """Label -> points of everything drawn in a panel that has one."""
    bars = {c.get_label(): c.lines[0].get_xydata().tolist() for c in ax.containers if c.lines[0] is not None}
    drawn = bars | {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    return {label: xy for label, xy in drawn.items() if label and not label.startswith("_")}  # older matplotlib: None


def test_workers_are_drawn_and_told_as_recorded(results, monkeypatch):
    """Made up with 2 W ms a step after 9 seconds of start-up, and (W - 1) 1000 bytes, 100,000 for DDP."""
    figures = {}
    monkeypatch.setattr(style, "save", lambda figure, _, name, note: figures.update({name: (figure, note)}))
    execute("workers", results)
    figure, note = figures["workers-quick"]
    accuracy, seconds, sent = map(lines, figure.axes)
    dense = [r for r in made_up.load_all(results / "runs" / "workers-quick") if r.config.distribution != "countsketch"]
    labels = {looks.label(v): v for v in ("common", "bases", "directions", "shares", "ddp")}
    assert set(accuracy) == set(seconds) == set(sent) == set(labels)
    for label, variant in labels.items():
        means = [
            [w, mean(r.curve[-1].accuracy for r in dense if (r.config.workers, r.config.variant) == (w, variant))]
            for w in (1, 2, 3, 4)
        ]
        each = 100_000 if variant == "ddp" else 1000
        sends = [[w, each * (w - 1)] for w in (2, 3, 4)]  # 0 has no place on a logarithmic axis
        for drawn, wanted in ((accuracy, means), (seconds, [[w, 2.0 * w] for w in (1, 2, 3, 4)]), (sent, sends)):
            drawn_at, values = np.array(drawn[label]).T
            assert values == pytest.approx(np.array(wanted)[:, 1])
            assert drawn_at == pytest.approx(np.array(wanted)[:, 0], rel=0.08)  # beside W, so that none hides another
    assert figure.axes[2].get_yscale() == "log" and figure.axes[1].get_title("left") == "W processes, one machine"
    assert "W processes share one machine (a processor, 2 cores)" in note and "n = 3 seeds" in note
    evidence = json.loads((results / "tables" / "workers-quick.json").read_text("utf-8"))["evidence"]
    sparse = [line for line in evidence if "countsketch" in line]  # both ends of two variants, the gain, two beside DDP
    assert len(sparse) == 7 and "0.01 of its bytes" in sparse[-1]
    assert "directions, countsketch, d = 10,000, W = 1" in sparse[0]
    assert sparse[4].startswith("countsketch: 4 workers − 1 (directions) ") and sparse[4].endswith("n = 3 + 3")
    assert set(lines(figures["workers-bytes-quick"][0].axes[0])) == {
        "DDP (SGD)", *(f"{v}, signs" for v in worker_time.VARIANTS[:-1]), "directions, countsketch", "shares, countsketch",
    }  # fmt: skip
    assert len(evidence) == 6 + len(sparse) and re.search(
        r"common: .*W = 3: .* % \(n = 3\) \[.*\], a step 6\.00 ms, 2,000 bytes;", evidence[0]
    )
    rows = [line.split(" | ") for line in (results / "tables" / "workers-quick.md").read_text("utf-8").splitlines()]
    (row,) = (r for r in rows if r[1:3] == ["DDP (SGD)", "4"])
    assert row[6:] == ["8.00 ± 0.00 (n = 3)", "300000 ± 0 (n = 3)", "610620 |"]  # 8 D (W - 1) / W, D = 101,770
    style.plt.close("all")


def test_the_model_of_workers_is_told_as_a_model(results, monkeypatch):
    """Its lines are worker_time's, its parameters stand under the figure."""
    figures = {}
    monkeypatch.setattr(style, "save", lambda figure, _, name, note: figures.update({name: (figure, note)}))
    names = execute("workers", results)
    figure, note = figures["workers-model"]
    assert note.startswith(
        "A model, not measured: latency 25 µs, bandwidth 1250 MB/s and latency 1000 µs, bandwidth 12.5 MB/s"
    )
    for panel, machine in zip(figure.axes, names["networks"].values()):
        assert panel.get_title("left").startswith("model, not measured: ")
        drawn = lines(panel)
        assert set(drawn) == {"common", "bases, directions", "shares", "DDP (SGD)"}
        for label, variant in {"shares": "shares", "bases, directions": "directions", "DDP (SGD)": "ddp"}.items():
            w, ms = drawn[label][-1]
            assert (w, ms) == (4096, pytest.approx(1e3 * worker_time.step_seconds(variant, 4096, 250, 101_770, machine)))
    style.plt.close("all")


def test_the_model_takes_the_seconds_that_asv_measured(results, tmp_path, notes):
    """Made up: 0.5 ms of SGD; signs need 0.02 ms and d D / 3e10 s, doubled by the second commit."""
    names = execute("workers", results)
    product = 2 * (0.02e-3 + 250 * 100_000 / 3e10) * 1.0177
    assert list(names["times"].values()) == pytest.approx([1e-3, product, product])
    assert "1.7 ms to expand, as asv measured on the CPU of here (n = 1)." in dict(notes)["workers-model"]
    for folder in ("runs", "sweeps", "asv"):
        shutil.copytree(results / folder, tmp_path / folder)
    for path in (tmp_path / "asv" / "here").glob("*-env.json"):
        change(path, lambda r: r["results"].pop("step.Step.track_time"))
    assert execute("workers", tmp_path)["times"] == names["ASSUMED"]
    shutil.rmtree(tmp_path / "asv")
    assert execute("workers", tmp_path)["times"] == names["ASSUMED"]
    assert "0.8 ms to expand, as assumed." in notes[-1][1]


def test_speed_tells_how_many_commits_and_draws_quartiles(results, tmp_path, monkeypatch):
    """Made up: signs 7.5 times faster than stored fp32 in the first commit, half of it in the second, the newest."""
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, _, name, note: figures.append((figure, note)))
    execute("speed", results)
    evidence = json.loads((results / "tables" / "speed.json").read_text("utf-8"))["evidence"]
    assert "here, cpu: signs against stored fp32: project 3.8 × (n = 2 commits: 3.8 … 7.5 ×)" in "; ".join(evidence)
    shutil.copytree(results / "asv", tmp_path / "asv")
    for path in (tmp_path / "asv" / "here").glob("*-env.json"):
        content = json.loads(path.read_text("utf-8"))
        content["result_columns"] += ["stats_q_25", "stats_q_75"]
        for name, cell in content["results"].items():
            if name.startswith("kernels"):
                cell += [[v and v * share for v in cell[0]] for share in (0.5, 2)]
        path.write_text(json.dumps(content), "utf-8")
    execute("speed", tmp_path)
    (plain, without), (drawn, told) = figures
    assert "quartiles" not in without and "(n = 1); bars: quartiles of the calls." in told
    for figure, longest in ((plain, 1), (drawn, 4)):
        bars = [segment[:, 1] for ax in figure.axes for c in ax.collections for segment in c.get_segments()]
        assert bars and all(top / bottom == pytest.approx(longest) for bottom, top in bars)
    style.plt.close("all")


def set_accuracies(results: Path, name: str, accuracy: Callable[[dict], float]) -> None:
    """Let the last epoch of every record have an accuracy given by its config."""
    for path in records(results, name):
        change(path, lambda r: r["curve"]["accuracy"].__setitem__(-1, accuracy(r["config"])))


@pytest.mark.parametrize(("gap", "seeds", "decision"), [
    (-0.5, 0.2, ["yes"]),  # the lowest interval ends at -0.5 - 4.303 × 0.2 / √3 = -0.997
    (-0.5, 0.21, ["no", "below that bound: CNN, d = 250, FPD"]),  # at -1.02
    (0.5, 0.0, ["yes"]),
])  # fmt: skip
def test_the_rule_for_the_default(results, tmp_path, notes, gap, seeds, decision):
    """All runs are nearly equal but those of the CNN with FPD and countsketch: `gap` points, ± `seeds` for seeds 0 and 2."""
    for folder in ("sweeps", "runs"):
        shutil.copytree(results / folder, tmp_path / folder)

    def accuracy(config: dict) -> float:
        apart = (config["model"], config["method"], config["distribution"]) == ("cnn", "fpd", "countsketch")
        return 80 + apart * gap + (apart * seeds + 1e-6) * (config["seed"] - 1)

    set_accuracies(tmp_path, "countsketch", accuracy)
    execute("countsketch", tmp_path)
    evidence = json.loads((tmp_path / "tables" / "countsketch-quick.json").read_text("utf-8"))["evidence"]
    rule = evidence.pop(1)
    assert rule.startswith("rule: ") and evidence[: len(decision)] == [f"decision: {decision[0]}", *decision[1:]]
    differences = evidence[len(decision) :]
    assert len(differences) == 8
    assert "FC, d = 2,500, RBD: countsketch − dense signs = +0.00 points [−0.00, 0.00]" in differences[2]
    assert "(n = 6 + 6 runs, 2 data sets): passes" in differences[2]
    for path in tmp_path.glob(f"runs/*/{records(tmp_path, 'countsketch')[0].name}"):  # sweeps share runs
        path.unlink()
    execute("countsketch", tmp_path, allow_missing=True)
    evidence = json.loads((tmp_path / "tables" / "countsketch-quick.json").read_text("utf-8"))["evidence"]
    assert evidence[0] == "decision: no" and evidence[-1] == "1 of 72 runs are missing"


def test_a_single_run_of_countsketch_passes_nothing(results, tmp_path, notes):
    """Ten runs with dense signs beside it would give an interval that tells nothing of its own spread."""
    for folder in ("sweeps", "runs"):
        shutil.copytree(results / folder, tmp_path / folder)
    set_accuracies(tmp_path, "countsketch", lambda c: 80 + 1e-6 * (c["seed"] - 1))
    for path in records(tmp_path, "countsketch"):
        c = record.load(path).config
        if (c.model, c.method, c.distribution) == ("resnet8", "rbd", "countsketch") and c.seed:
            path.unlink()
    execute("countsketch", tmp_path, allow_missing=True)
    evidence = json.loads((tmp_path / "tables" / "countsketch-quick.json").read_text("utf-8"))["evidence"]
    assert evidence[0] == "decision: no" and evidence[-1] == "2 of 72 runs are missing"
    assert "no interval, as a mean is of a single run or of equal ones: ResNet-8, d = 500, RBD" in evidence
    assert any("0.00 points, no interval (n = 1 + 3 runs, 1 data set): no interval" in line for line in evidence)


def test_equal_runs_of_countsketch_pass_nothing(results, tmp_path, notes):
    """At chance, say: no interval tells how far other seeds would be."""
    for folder in ("sweeps", "runs"):
        shutil.copytree(results / folder, tmp_path / folder)
    set_accuracies(tmp_path, "countsketch", lambda c: 10.0)
    execute("countsketch", tmp_path)
    evidence = json.loads((tmp_path / "tables" / "countsketch-quick.json").read_text("utf-8"))["evidence"]
    assert evidence[0] == "decision: no" and any("+0.00 points, no interval (n = 6 + 6" in line for line in evidence)


def test_countsketch_is_compared_at_equal_rates(results, tmp_path, notes):
    other = next(c for c in made_up.configs("countsketch", "quick") if c["distribution"] == "countsketch")
    wanted = [c | {"lr": 4.0} if c == other else c for c in made_up.configs("countsketch", "quick")]
    made_up.manifest(tmp_path, "countsketch", "quick", wanted)
    for c in wanted:
        made_up.save(c, tmp_path / "runs" / "countsketch-quick")
    with pytest.raises(load.Inconsistent, match="runs differ in lr"):
        execute("countsketch", tmp_path)


def test_the_price_of_a_step_by_hand(results, tmp_path, notes):
    """A step takes 10 ms; with dense signs (1 + d/1,000) times that. η: SGD 0.25, the others 2."""
    for folder in ("sweeps", "runs", "asv"):
        shutil.copytree(results / folder, tmp_path / folder)
    for path in records(tmp_path, "price"):
        r = json.loads(path.read_text("utf-8"))["config"]
        slow = 1 + r["dim"] / 1000 if r.get("distribution") == "rademacher" else 1
        change(path, lambda r, slow=slow: r.update(seconds=[slow * s for s in r["seconds"]]))
    set_accuracies(tmp_path, "price", lambda c: 90.0 if c["method"] == "sgd" else 80 + c["dim"] / 1000)
    set_accuracies(tmp_path, "dimension", lambda c: {"fpd": 60.0}.get(c["method"], 99.0))
    names = execute("price", tmp_path)
    fc = ("fc", "mnist-embedded")
    assert names["middle"][(*fc, "sgd", None, None)] == pytest.approx(10)
    assert names["count_steps"]((*fc, "rbd", "rademacher", 2500)) == pytest.approx(3.5)
    assert names["predict"]((*fc, "rbd", "countsketch", 250)) == pytest.approx(0.25 * (101_770 / 250) ** 0.5)
    evidence = json.loads((tmp_path / "tables" / "price-quick.json").read_text("utf-8"))["evidence"]
    best = "best at ≤ 1.35 SGD steps: {} ± 0.0 % (n = 3) [{}, {}] at d = {} and {} SGD steps; SGD 90.0 ± 0.0 % (n = 3)"
    assert evidence[0] == f"FC, MNIST, RBD, dense signs: {best.format(80.3, 80.3, 80.3, 250, 1.25)}"
    assert evidence[1] == f"FC, MNIST, RBD, countsketch: {best.format(82.5, 82.5, 82.5, '2,500', '1.00')}"
    assert "off by at most 3.7 octaves over 6 scales (FC, MNIST, d = 10: η = 2, rule 25.2)" in evidence[4]
    row = (tmp_path / "tables" / "price-quick.md").read_text("utf-8").splitlines()[4]
    assert row.split(" | ")[1:7] == ["RBD, dense signs", "250", "80.3 ± 0.0 (n = 3)", "12.5", "1.25", "–"]
    fixed = names["fixed"]  # of the sweeps dimension and table1, in the same setting
    assert list(fixed[(*fc, "rbd", "rademacher", 10)]) == [60.0] * 3 and (*fc, "rbd", "countsketch", 250) not in fixed
    assert "Time of a step: the runs' records (FC, CNN)." in notes[0][1].replace("\n", " ")
    key = (*fc, "rbd", "rademacher", 250)
    (moved, *_) = [path for path in records(tmp_path, "price") if path.stem in set(names["cells"][key].id)]
    change(moved, lambda r: r["environment"].update(cpu="another") or r.update(seconds=[9 * s for s in r["seconds"]]))
    assert len(names["times"][key]) == 3 and len(execute("price", tmp_path)["times"][key]) == 2  # not of other processors


def test_the_price_of_a_step_as_asv_measured_it(results, tmp_path, notes):
    """Where one machine has every point of a panel: SGD's 1 ms (newest commit), times 4 with dense signs, 1.2 without."""
    for folder in ("sweeps", "runs", "asv"):
        shutil.copytree(results / folder, tmp_path / folder)
    points = [("sgd", 250), *((f"rbd {n}", d) for n in ("rademacher", "countsketch") for d in (10, 250, 2500))]
    values = [1.0 if "sgd" in m else 1.2 if "countsketch" in m else 4.0 for m, _ in points]
    change(tmp_path / "asv" / "benchmarks.json", lambda k: k.update({
        "step.Price.track_against_sgd": {"version": "1", "unit": "x", "param_names": ["device", "network", "d", "method"]},
    }))  # fmt: skip
    methods, dims = ["sgd", "rbd rademacher", "rbd countsketch"], [10, 250, 2500]
    known = dict(zip(points, values))
    grid = [known.get((m, d)) for d in dims for m in methods]
    params = [["'cpu'"], ["'fc'"], [repr(d) for d in dims], [repr(m) for m in methods]]
    change(
        next((tmp_path / "asv" / "here").glob("bbbb*.json")),
        lambda r: r["results"].update({"step.Price.track_against_sgd": [grid, params, "1"]}),
    )
    names = execute("price", tmp_path)
    assert "Time of a step: asv on here (FC), the runs' records (CNN)." in notes[0][1].replace("\n", " ")
    fc = ("fc", "mnist-embedded", "rbd")
    assert names["middle"][(*fc, "rademacher", 10)] == pytest.approx(4) and names["sources"]
    assert names["count_steps"]((*fc, "countsketch", 2500)) == pytest.approx(1.2)
    step = [[9.0], [["'cpu'"], ["'fc'"], ["'rbd countsketch'"]], "1"]  # at d = 250 too, in a file before and one after
    change(tmp_path / "asv" / "benchmarks.json", lambda k: k.update({
        "step.Step.track_against_sgd": {"version": "1", "unit": "x", "param_names": ["device", "network", "method"]},
    }))  # fmt: skip
    for commit in ("aaaaaaaa", "cccccccc"):
        content = {"commit_hash": commit * 5, "date": 2000, "result_columns": ["result", "params", "version"],
                   "results": {"step.Step.track_against_sgd": step}}  # fmt: skip
        path = tmp_path / "asv" / "here" / f"{commit}-other.json"
        path.write_text(json.dumps(content), "utf-8")
        ratios = execute("price", tmp_path)["multiples"]["here"]
        assert ratios["fc", "rbd", "countsketch", 250] == 1.2, commit
        path.unlink()


def test_a_machine_is_described_by_its_processor_where_that_is_known(tmp_path):
    made_up.asv(tmp_path)
    assert load.describe_machine(tmp_path, "here") == "here" and load.describe_machine(tmp_path, "gone") == "gone"
    change(tmp_path / "asv" / "here" / "machine.json", lambda m: m.update(cpu="AMD EPYC", num_cpu="2"))
    assert load.describe_machine(tmp_path, "here") == "here (AMD EPYC, 2 cores)"


def test_seconds_of_a_step_by_hand(results, tmp_path, notes):
    """The median of epochs that took 40, 2 and 1 s for 10, 20 and 5 steps; the first one does not count."""
    curves = pd.DataFrame(
        {"id": ["a"] * 4 + ["b"], "step": [10, 20, 40, 45, 10], "seconds": [99.0, 139.0, 141.0, 142.0, 7.0]}
    )
    found = load.step_seconds(curves)
    assert found["a"] == pytest.approx(0.2) and np.isnan(found["b"])
    made_up.manifest(tmp_path, "workers", "quick", made_up.configs("workers", "quick"))
    shutil.copytree(results / "runs" / "workers-quick", tmp_path / "runs" / "workers-quick")
    for path in records(tmp_path, "workers"):  # one epoch each, on a system that does not tell bytes
        change(path, lambda r: r.update(curve={k: v[-1:] for k, v in r["curve"].items()}, seconds=r["seconds"][-1:]))
        change(path, lambda r: r["environment"].update(bytes_per_step=None))
    execute("workers", tmp_path)
    evidence = json.loads((tmp_path / "tables" / "workers-quick.json").read_text("utf-8"))["evidence"]
    assert "a step unknown ms, unknown bytes" in evidence[0]


def test_runs_of_one_process_and_of_workers_are_told_apart(dimension):
    """A record without workers is one process's: it must not be averaged with those of W workers."""
    for path in records(dimension, "dimension"):  # as they were saved before there were workers
        change(path, lambda r: [r["config"].pop(name) for name in ("workers", "variant")])
    alone = load.sweep(dimension, "dimension", "quick").table
    assert alone.workers.isna().all() and alone.variant.isna().all()
    wanted = [*made_up.configs("dimension", "quick"), *made_up.configs("workers", "quick")]
    made_up.manifest(dimension, "dimension", "quick", wanted)
    for c in made_up.configs("workers", "quick"):
        made_up.save(c, dimension / "runs" / "dimension-quick")
    table = load.sweep(dimension, "dimension", "quick").table
    cells = load.cells(table, "method", "dim", "variant", "workers", "distribution")
    assert {key[2:4] for key in cells if key[0] == "rbd" and key[1] == 10} == {(None, None)}
    assert ("rbd", 250, "shares", 3, "rademacher") in cells and {len(cell) for cell in cells.values()} == {3}
    with pytest.raises(load.Inconsistent, match="runs differ in variant"):
        load.cells(table, "method", "dim", "distribution")


def test_a_notebook_draws_the_same_bytes_again(results):
    execute("curves", results)
    paths = [results / "figures" / f"curves-quick.{kind}" for kind in ("pdf", "png")] + [
        results / "tables" / "curves-quick.json"
    ]
    before = [p.read_bytes() for p in paths]
    style.plt.rcParams["axes.grid"] = True  # what somebody set before
    execute("curves", results)
    assert [p.read_bytes() for p in paths] == before


def test_records_of_another_stream_stop_a_notebook(results, tmp_path, notes):
    shutil.copytree(results, tmp_path / "results")
    change(records(tmp_path / "results", "redraw")[0], lambda r: r["environment"].update(stream_version=9))
    with pytest.raises(load.Inconsistent, match="stream versions"):
        execute("redraw", tmp_path / "results", allow_missing=True)


def test_random_numbers_of_partitions():
    """Σ d_k D_k = d D Σ (D_k/D)²: by hand for the FC net, 100,480 and 1,290 of 101,770 parameters."""
    names: dict = {}
    source = ["".join(c["source"]) for c in cells_of(ROOT / "analysis" / "compartments.ipynb") if c["cell_type"] == "code"]
    functions = source[1][source[1].index("def fractions") :]
    exec("from rbd.suite import config, paper\n" + functions, names)
    numbers = names["numbers"]
    assert numbers("fc", "mnist", 250, "whole") == 250 * 101_770
    assert numbers("fc", "mnist-embedded", 250, "even:10") == pytest.approx(25 * 101_770)
    assert numbers("fc", "mnist", 250, "by_layer") == pytest.approx(250 * (100_480**2 + 1_290**2) / 101_770)
    assert numbers("resnet8", "cifar10", 250, "by_layer") is None


def test_hollow_marks_of_runs_of_one_seed_have_no_interval(tmp_path, notes):
    """n = 1 must not look like certainty: the note says n, the table "none"."""
    made_up.manifest(tmp_path, "redraw", "quick", [c for c in made_up.configs("redraw", "quick") if c["seed"] == 0])
    for c in made_up.configs("redraw", "quick"):
        if c["seed"] == 0:
            made_up.save(c, tmp_path / "runs" / "redraw-quick")
    execute("redraw", tmp_path)
    assert "n = 1 seed." in notes[0][1]
    evidence = json.loads((tmp_path / "tables" / "redraw-quick.json").read_text("utf-8"))["evidence"]
    assert all("% (n = 1), no interval" in line for line in evidence if line.startswith("FC"))
    assert all("no interval" in line and "[" not in line for line in evidence)


def test_replaced_records_change_the_figure(results, tmp_path):
    """A drawing does not survive its data."""
    shutil.copytree(results / "sweeps", tmp_path / "sweeps")
    shutil.copytree(results / "runs" / "curves-quick", tmp_path / "runs" / "curves-quick")
    execute("curves", tmp_path)
    before = (tmp_path / "figures" / "curves-quick.png").read_bytes()
    path = records(tmp_path, "curves")[0]
    old = record.load(path)
    record.save(replace(old, curve=tuple(replace(p, accuracy=p.accuracy - 5) for p in old.curve)), path.parent)
    execute("curves", tmp_path)
    assert (tmp_path / "figures" / "curves-quick.png").read_bytes() != before


def test_the_effective_rate_by_hand(tmp_path, notes):
    """Curves are paired by η d/D; RBD follows SGD up to the rate below the first at which it loses more than 1.5 points."""
    wanted, losses = [], {2.0**-8: 0.5, 2.0**-6: 1.5, 2.0**-4: 1.6, 2.0**-2: 0.0}
    for rate, loss in losses.items():
        for method, lr, lost in (("sgd", rate, 0.0), ("rbd", rate * 101_770 / 250, loss)):
            config = dict(model="fc", data="mnist-embedded", method=method, lr=lr, epochs=2)
            wanted.append(config)
            values = (50.0 - 2 * lost, 90.0 - lost)
            curve = tuple(Point(e, e, 32 * e, e, 1.0, value, None) for e, value in enumerate(values, 1))
            made = Record(RunConfig(**config), "finished", curve, (1.0, 2.0), made_up.WHERE)
            record.save(made, tmp_path / "runs" / "effective_rate-quick")
    made_up.manifest(tmp_path, "effective_rate", "quick", wanted)
    execute("effective_rate", tmp_path)
    found = json.loads((tmp_path / "tables" / "effective_rate-quick.json").read_text("utf-8"))["evidence"]
    assert found == [
        "FC, MNIST, signs, d = 250: follows SGD up to η d/D = 0.016 (η = 6.36); best 90.0 % (n = 1) at 0.25",
        "the largest η that loses at most 1.5 points: 102; the least that loses more: 25.4",
        "follows: loses at most 1.5 points at this rate and all smaller ones",
    ]
    lines = (tmp_path / "tables" / "effective_rate-quick.md").read_text("utf-8").splitlines()[2:6]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[6] for row in rows] == ["−0.5", "−1.5", "−1.6", "+0.0"]
    assert [row[8] for row in rows] == ["1.0", "3.0", "3.2", "0.0"]  # at the first epoch


def test_effective_rate_tells_what_it_predicted_for_table_1(tmp_path, notes):
    """SGD at η d/D with the paper's rate for RBD, whether RBD has run already or not."""
    wanted = []
    for augment, accuracies in ((None, {"sgd": 93.0, "rbd": 94.5}), ("none", {"sgd": 95.0})):
        for method, accuracy in accuracies.items():
            lr = 1.0 if method == "rbd" else 250 / 101_770
            config = dict(model="fc", data="mnist", augment=augment, method=method, lr=lr)
            wanted.append(config)
            curve = (Point(100, 1, 32, 1, 1.0, accuracy, None),)
            made = Record(RunConfig(**config), "finished", curve, (1.0,), made_up.WHERE)
            record.save(made, tmp_path / "runs" / "effective_rate-paper")
    made_up.manifest(tmp_path, "effective_rate", "paper", wanted)
    execute("effective_rate", tmp_path, "paper")
    lines = (tmp_path / "tables" / "effective_rate-predictions-paper.md").read_text("utf-8").splitlines()[2:4]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows == [
        ["FC, MNIST", "1", "93.0 (n = 1)", "94.5 (n = 1)", "+1.5", "93.893 ± 0.024"],
        ["FC, MNIST, no augmentation", "1", "95.0 (n = 1)", "–", "–", "93.893 ± 0.024"],
    ]
    found = json.loads((tmp_path / "tables" / "effective_rate-paper.json").read_text("utf-8"))["evidence"]
    assert "SGD at η d/D predicts RBD in 1 of 1 rows of table 1 within 1.5 points; RBD − SGD from +1.5 to +1.5" in found


def test_as_released_is_told_beside_fpd(results, notes, tmp_path):
    execute("as_released", results)
    found = json.loads((results / "tables" / "as_released-quick.json").read_text("utf-8"))["evidence"]
    assert found[0] == "FC, MNIST, crop and brightness: kept 58.0 %, FPD 60.0 %, difference −2.0 points (n = 1, no interval)"
    values = json.loads((results / "measurements" / "as_released-quick.json").read_text("utf-8"))["values"]
    made_up.measurement(tmp_path, "as_released-paper", [row | {"data": "mnist"} for row in values if row["kept"]])
    made_up.experiment(tmp_path, "paper_rates", "paper")
    execute("as_released", tmp_path, "paper")
    found = json.loads((tmp_path / "tables" / "as_released-paper.json").read_text("utf-8"))["evidence"]
    (plain,) = [r for r in made_up.load_all(tmp_path / "runs" / "paper_rates-paper")
                if r.config.method == "fpd" and r.config.seed == 0]  # fmt: skip
    assert f"kept 58.0 %, FPD {plain.curve[-1].accuracy:.1f} %" in found[0] and "FPD – %" in found[1]


def test_compression_compares_rbd_with_the_best_rival_that_sends_no_more(results, notes):
    execute("compression", results)
    told = json.loads((results / "tables" / "compression-quick.json").read_text("utf-8"))
    assert "RBD, countsketch, d = 2,500 − PowerSGD, rank 4, which sends no more: −7.0 points" in told["evidence"][-3]
    kept = "RBD with error feedback, countsketch, d = 2,500 − "
    assert told["evidence"][-2].startswith(f"{kept}Top-K, K = 250, which sends no more: +1.0 points")
    assert told["evidence"][-1].startswith(f"{kept}without it: +6.0 points")
    assert told["verdict"] == "RBD lower" and "1 points: −7.0 points" in told["number"], "nothing sends less than d = 250"
    lines = (results / "tables" / "compression-quick.md").read_text("utf-8").splitlines()[2:8]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [
        "RBD, signs, d = 250", "Top-K, K = 250", "RBD with error feedback, countsketch, d = 2,500", "PowerSGD, rank 4",
        "RBD, countsketch, d = 2,500", "all gradients",
    ]  # fmt: skip
