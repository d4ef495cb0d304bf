"""rbd.suite.sweep: what table 1 consists of, and that only what is not there yet is run, after a look at the way."""

from __future__ import annotations

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import rbd
from rbd.suite import rates, record, sweep
from rbd.suite.config import RunConfig
from rbd.suite.record import Point, Record

ROOT = Path(rbd.__file__).parents[1]
RUN = RunConfig(method="sgd", epochs=1, batch_size=500)
MADE = Record(RUN, "finished", (Point(1, 10, 5000, 10, 2.25, 46.6, 1.0),), (0.5,), {"threads": 1})


class Trainer:
    """Stands for `train`: notes its calls, leaves a checkpoint as the real one does, returns what it was given."""

    def __init__(self, *outcomes: str) -> None:
        self.outcomes, self.calls = list(outcomes), []

    def __call__(self, config: RunConfig, checkpoints, **options) -> Record:
        self.calls.append((config, Path(checkpoints), options))
        Path(checkpoints).mkdir(parents=True, exist_ok=True)
        (Path(checkpoints) / f"{config.id}.safetensors").touch()
        return replace(MADE, config=config, outcome=self.outcomes.pop(0))


@pytest.fixture
def trained_by(monkeypatch):
    def put(trainer: Trainer) -> Trainer:
        monkeypatch.setattr("rbd.suite.train.train", trainer)
        return trainer

    return put


@pytest.fixture
def paper_rates(tmp_path) -> Path:
    """A results directory with a rate, 0.375, for everything that table 1 asks for in the paper profile."""
    pairs = [(m, d, n) for m in ("fc", "cnn") for d in ("mnist", "fmnist", "cifar10") for n in ("sgd", "rbd", "fpd", "nes")]
    keys = [rates.key(RunConfig(model=m, data=d, method=n)) for m, d, n in pairs]
    content = {"profile": "paper", "rates": {key: {"lr": 0.375} for key in keys}}
    rates.path("paper", tmp_path).write_text(json.dumps(content))
    return tmp_path


# ---------------------------------------------------------------- what is run


def test_grid_runs_through_the_last_axis_first():
    assert list(sweep.grid(a=(1, 2), b="xy")) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    assert list(sweep.grid(a=(1,), b=())) == []
    assert list(sweep.grid()) == [{}]


@pytest.mark.parametrize(("profile", "names", "seeds"), [
    ("quick", ("mnist-embedded", "fmnist-embedded"), {"fc": (0, 1, 2), "cnn": (0, 1)}),
    ("paper", ("mnist", "fmnist", "cifar10"), {"fc": (0, 1, 2), "cnn": (0, 1, 2)}),
])  # fmt: skip
def test_table1_has_every_method_on_every_pair(profile, names, seeds, paper_rates):
    made = sweep.table1(profile, paper_rates)
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
    for c in sweep.table1("paper", paper_rates).configs:
        assert (c.epochs, c.lr) == (100, 0.375)
        assert c.distribution == (None if c.method == "sgd" else "rademacher")
        assert c.sigma == (0.01 if c.method == "nes" else None)


def test_table1_without_any_rate_says_how_to_find_them(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="no learning rate yet for 'fc mnist nes dim=250', .*: run `rbd sweep learning"):
        sweep.table1("paper", tmp_path)


def test_quick_profile_is_small_and_leaves_an_update_to_nes():
    for c in sweep.table1("quick").configs:
        assert c.distribution == (None if c.method == "sgd" else "rademacher")
        assert 250 <= c.epochs * 156 <= 20 * 156  # 5,000 images are 156 batches; NES takes 250 to a step


def test_runs_of_one_pair_and_method_differ_in_the_seed_only(paper_rates):
    """They are samples of one thing."""
    for profile in sweep.PROFILES:
        by_cell: dict[tuple, set] = {}
        for c in sweep.table1(profile, paper_rates).configs:
            by_cell.setdefault((c.model, c.data, c.method), set()).add(replace(c, seed=0).id)
        assert {len(ids) for ids in by_cell.values()} == {1}


def test_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile: got 'fast', allowed quick, paper"):
        sweep.table1("fast")


def test_records_are_those_that_ended_in_the_order_of_the_sweep(tmp_path):
    configs = tuple(replace(RUN, seed=seed) for seed in range(4))
    made = sweep.Sweep("few", configs)
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


# ---------------------------------------------------------------- run


@pytest.mark.parametrize("outcome", ["finished", "diverged"])
def test_what_is_there_is_not_run_again(outcome, tmp_path, trained_by):
    trainer = trained_by(Trainer())  # raises if called
    there = replace(MADE, outcome=outcome)
    path = record.save(there, tmp_path / "runs")
    before = path.stat()
    assert sweep.run(RUN, tmp_path / "runs", tmp_path) == there
    assert trainer.calls == [] and path.stat() == before
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name]


@pytest.mark.parametrize("outcome", ["finished", "diverged"])
def test_ended_run_is_saved_and_its_checkpoint_removed(outcome, tmp_path, trained_by):
    trainer = trained_by(Trainer(outcome))
    made = sweep.run(RUN, tmp_path / "runs" / "x", tmp_path, threads=2, device="cpu")
    assert trainer.calls == [(RUN, tmp_path / "checkpoints", {"threads": 2, "device": "cpu"})]
    assert made.outcome == outcome and record.load_all(tmp_path / "runs" / "x") == [made]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_interrupted_run_keeps_its_checkpoint_and_is_run_again(tmp_path, trained_by):
    trainer = trained_by(Trainer("interrupted", "finished"))
    first = sweep.run(RUN, tmp_path / "runs", tmp_path)
    assert first.outcome == "interrupted" and record.find(RUN, tmp_path / "runs") == first
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"{RUN.id}.safetensors"]
    second = sweep.run(RUN, tmp_path / "runs", tmp_path)
    assert second.outcome == "finished" and record.load_all(tmp_path / "runs") == [second]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert sweep.run(RUN, tmp_path / "runs", tmp_path) == second
    assert len(trainer.calls) == 2


def test_other_checkpoints_stay(tmp_path, trained_by):
    trained_by(Trainer("finished"))
    other = tmp_path / "checkpoints" / f"{replace(RUN, seed=1).id}.safetensors"
    other.parent.mkdir()
    other.write_text("of another run")
    sweep.run(RUN, tmp_path / "runs", tmp_path)
    assert other.read_text() == "of another run"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_record_is_named_before_any_training(content, tmp_path, trained_by):
    trainer = trained_by(Trainer())
    path = tmp_path / f"{RUN.id}.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a valid record, file not touched") as caught:
        sweep.run(RUN, tmp_path, tmp_path)
    assert str(path) in str(caught.value)
    assert trainer.calls == [] and path.read_bytes() == content


def test_directory_that_cannot_be_made_is_found_out_before_training(tmp_path, trained_by):
    trainer = trained_by(Trainer())
    (tmp_path / "results").write_text("a file")
    with pytest.raises(OSError, match="cannot save a record") as caught:
        sweep.run(RUN, tmp_path / "results" / "runs", tmp_path / "results")
    assert caught.value.filename == str(tmp_path / "results" / "runs")
    assert trainer.calls == [] and (tmp_path / "results").read_text() == "a file"


def test_directory_that_cannot_be_written_is_found_out_before_training(tmp_path, trained_by, monkeypatch):
    """Simulated, since root may write everywhere."""
    trainer = trained_by(Trainer())

    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError, match="cannot save a record: Permission denied") as caught:
        sweep.run(RUN, tmp_path / "runs", tmp_path)
    assert caught.value.filename == str(tmp_path / "runs")
    assert trainer.calls == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="modes bind neither root nor other systems")
def test_read_only_directory_is_found_out_before_training(tmp_path, trained_by):
    trainer = trained_by(Trainer())
    (tmp_path / "runs").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="cannot save a record"):
        sweep.run(RUN, tmp_path / "runs", tmp_path)
    assert trainer.calls == []


def test_impossible_checkpoint_directory_is_found_out_before_training(tmp_path, trained_by):
    """An epoch of the paper's profile takes minutes: not to be lost to a file that stands in the way."""
    trainer = trained_by(Trainer())
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match="checkpoints"):
        sweep.run(RUN, tmp_path / "runs", tmp_path)
    assert trainer.calls == []


def test_errors_of_the_run_leave_no_record(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise FileNotFoundError("mnist: missing")

    monkeypatch.setattr("rbd.suite.train.train", fail)
    with pytest.raises(FileNotFoundError, match="mnist: missing"):
        sweep.run(RUN, tmp_path / "runs", tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_real_run_from_here_to_the_file(tmp_path):
    made = sweep.run(RUN, tmp_path / "runs", tmp_path, threads=1)
    assert (made.outcome, len(made.curve)) == ("finished", 1) and made.curve[0].accuracy > 25  # %, 10 steps of SGD
    assert record.load(tmp_path / "runs" / f"{RUN.id}.json") == made
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert sweep.run(RUN, tmp_path / "runs", tmp_path) == made


def test_a_record_in_the_folder_of_another_sweep_counts(tmp_path, trained_by):
    trainer = trained_by(Trainer())  # raises if called
    other = record.save(MADE, tmp_path / "runs" / "other")
    made = sweep.Sweep("mine", (RUN,))
    assert sweep.run(RUN, made.directory(tmp_path), tmp_path) == MADE and trainer.calls == []
    assert made.records(tmp_path) == [MADE] and made.missing([MADE]) == ()
    assert sweep.place(RUN, made.directory(tmp_path), tmp_path) == other and not made.directory(tmp_path).exists()


def test_an_interrupted_record_elsewhere_does_not_count(tmp_path, trained_by):
    trainer = trained_by(Trainer("finished"))
    record.save(replace(MADE, outcome="interrupted"), tmp_path / "runs" / "another")
    directory = tmp_path / "runs" / "mine"
    assert sweep.run(RUN, directory, tmp_path).outcome == "finished" and len(trainer.calls) == 1
    assert sweep.find(RUN, directory, tmp_path).outcome == "finished"
    assert sweep.find(RUN, tmp_path / "runs" / "another", tmp_path).outcome == "finished"


def test_a_claimed_run_is_left_alone_or_waited_for(tmp_path, trained_by):
    trainer = trained_by(Trainer("finished"))
    (tmp_path / "locks").mkdir()
    with sweep.claim(RUN, tmp_path):
        with pytest.raises(sweep.Busy, match=f"{RUN.id}: another process is at this run"):
            sweep.run(RUN, tmp_path / "runs" / "x", tmp_path, wait=0)
        assert trainer.calls == []
        other = replace(RUN, seed=1)
        with sweep.claim(other, tmp_path, wait=0):  # of its own
            pass
    assert list((tmp_path / "locks").iterdir()) == []
    assert sweep.run(RUN, tmp_path / "runs" / "x", tmp_path, wait=0).outcome == "finished"
    assert list((tmp_path / "locks").iterdir()) == []


def test_what_another_process_ends_while_it_is_waited_for_is_not_run_again(tmp_path, trained_by):
    trainer = trained_by(Trainer())  # raises if called
    (tmp_path / "locks").mkdir()
    directory = tmp_path / "runs" / "x"
    with ThreadPoolExecutor(1) as pool:
        with sweep.claim(RUN, tmp_path):
            waiting = pool.submit(sweep.run, RUN, directory, tmp_path)
            time.sleep(0.3)
            assert not waiting.done()
            record.save(MADE, directory)
        assert waiting.result(30) == MADE and trainer.calls == []


def test_lock_file_of_a_killed_process_does_not_block(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / f"{RUN.id}.lock").write_text("left behind")
    with sweep.claim(RUN, tmp_path, wait=0):
        pass


# ---------------------------------------------------------------- scripts


def test_script_that_is_not_there_or_not_whole_is_named(tmp_path):
    with pytest.raises(ValueError, match="sweeps-dir: got .*, allowed a folder of sweep scripts"):
        sweep.script("x", tmp_path)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="name: got 'x', allowed empty"):
        sweep.script("x", tmp_path)
    with pytest.raises(ValueError, match="empty.py: got no docstring or neither of configs and measure"):
        sweep.script("empty", tmp_path)


def test_plan_has_every_run_once_and_tells_what_waits_for_a_rate(tmp_path):
    (tmp_path / "demo.py").write_text(
        '"""Why?"""\nfrom rbd.suite.config import RunConfig\ndef configs(profile, tuned):\n'
        "    yield from [RunConfig(seed=1), RunConfig(seed=1), tuned(method='rbd', dim=3), RunConfig(seed=2)]\n"
        "    yield tuned(method='rbd', dim=3)\n"
    )
    made = sweep.plan("demo", "quick", tmp_path, tmp_path)
    key = "fc mnist-embedded rbd dim=3 partition=whole redraw=1"
    assert made == sweep.Sweep("demo-quick", (RunConfig(seed=1), RunConfig(seed=2)), "Why?", (RunConfig(dim=3),), (key,))
    kept = json.loads(made.manifest())
    assert [RunConfig.from_dict(RunConfig.completed(config)) for config in kept["waiting"]] == [RunConfig(dim=3)]
    assert kept["untuned"] == [key] and [run["id"] for run in kept["runs"]] == [c.id for c in made.configs]
    assert [RunConfig.from_dict(RunConfig.completed(run["config"])) for run in kept["runs"]] == list(made.configs)
    assert [c.seed for c in made.with_seeds([7, 8]).configs] == [7, 8]


in_repository = pytest.mark.skipif(not (ROOT / sweep.SCRIPTS).is_dir(), reason="the scripts are in the repository only")
NAMES = sorted(path.stem for path in (ROOT / sweep.SCRIPTS).glob("*.py"))
WITH_RUNS = {"table1", "curves", "dimension", "compartments", "networks", "distributions", "redraw", "correlation", "hybrid",
             "augmentation", "learning_rate", "nes", "paper_rates", "normals"}  # fmt: skip


def with_runs() -> set[str]:
    return {name for name in NAMES if hasattr(sweep.script(name, ROOT / sweep.SCRIPTS), "configs")}


@in_repository
def test_every_experiment_of_the_design_that_trains_has_a_script():
    assert with_runs() >= WITH_RUNS and {"orthogonality", "landscape"} <= set(NAMES)
    assert not (ROOT / sweep.SCRIPTS / "__init__.py").exists()  # asv imports packages


class Guess(rates.Tuned):
    """A rate for everything, so that plans are whole."""

    def __call__(self, **fields) -> RunConfig:
        return RunConfig(**fields, lr=0.375)


def whole(name: str, profile: str) -> list[RunConfig]:
    return [c for c in sweep.script(name, ROOT / sweep.SCRIPTS).configs(profile, Guess(profile, {})) if c]


@in_repository
@pytest.mark.parametrize("name", sorted(WITH_RUNS & set(NAMES)))
def test_scripts_keep_to_their_profile(name):
    small = whole(name, "quick")
    assert {c.data for c in small} <= {"mnist-embedded", "fmnist-embedded"}
    assert not {c.data for c in whole(name, "paper")} & {"mnist-embedded", "fmnist-embedded"}
    assert all(c.epochs <= 20 for c in small) and not {c.model for c in small} & {"resnet32"}
    if name != "distributions":
        assert {c.distribution for c in small} <= {None, "rademacher"}
    seeds = {c.seed for profile in sweep.PROFILES for c in whole(name, profile)}
    assert seeds <= ({100, 101} if name == "learning_rate" else set(range(10)))


@in_repository
@pytest.mark.parametrize("profile", sweep.PROFILES)
def test_learning_rate_searches_nine_octaves_for_whatever_is_asked_for(profile):
    others = with_runs() - {"learning_rate", "paper_rates"}
    asked = {rates.key(c) for name in others for c in whole(name, profile) if not c.switch}
    tried: dict[str, set[float]] = {}
    for c in whole("learning_rate", profile):
        tried.setdefault(rates.key(c), set()).add(c.lr)
    assert set(tried) == asked
    for key, values in tried.items():
        coarse = key.startswith("resnet")
        assert (max(values) / min(values), len(values)) == ((2**10, 6) if coarse else (2**9, 10)), key


@in_repository
def test_the_papers_own_rates_are_inside_the_search():
    tried: dict[str, list[float]] = {}
    for c in whole("learning_rate", "paper"):
        tried.setdefault(rates.key(c), []).append(c.lr)
    for c in whole("paper_rates", "paper"):
        assert 2 * min(tried[rates.key(c)]) <= c.lr <= max(tried[rates.key(c)]) / 2, rates.key(c)


@in_repository
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


@in_repository
def test_hybrids_switch_both_ways_at_the_rates_of_the_pure_methods():
    switched = [c for c in whole("hybrid", "quick") if c.switch]
    assert {(c.method, c.switch) for c in switched} == {(m, e) for m in ("rbd", "sgd") for e in (5, 10, 15)}
    assert all(c.at(0).method == c.method and c.at(c.switch).method != c.method for c in switched)


@in_repository
@pytest.mark.parametrize(("profile", "sets"), [("quick", "mnist-embedded fmnist-embedded"), ("paper", "mnist fmnist")])
def test_hybrids_without_rates_wait_all_of_them(profile, sets):
    """2 sets × 3 seeds × (2 pure + 3 epochs × 2 ways), whatever is known."""
    module = sweep.script("hybrid", ROOT / sweep.SCRIPTS)
    keys = [rates.key(RunConfig(data=data, method=method)) for data in sets.split() for method in ("sgd", "rbd")]
    for known in range(len(keys) + 1):
        tuned = rates.Tuned(profile, dict.fromkeys(keys[:known], 0.5))
        ready = [c for c in module.configs(profile, tuned) if c]
        assert len(ready) + len(set(tuned.waiting)) == 48 and tuned.untuned == keys[known:]
        assert len({c.id for c in ready}) == len(ready)


@in_repository
def test_all_begins_with_the_rates_and_follows_the_design():
    names = sweep.ordered(ROOT / sweep.SCRIPTS)
    assert sorted(names) == NAMES and names[:4] == ["learning_rate", "table1", "curves", "dimension"]
    assert names[-3:] == ["nes", "normals", "paper_rates"] and set(sweep.ORDER) <= set(names)


@in_repository
@pytest.mark.parametrize("profile", sweep.PROFILES)
def test_reproduce_and_the_script_of_table1_list_the_same_runs(profile, paper_rates):
    """So whoever reads the list need not know which of them wrote it."""
    assert sweep.table1(profile, paper_rates) == sweep.plan("table1", profile, paper_rates, ROOT / sweep.SCRIPTS)


@in_repository
@pytest.mark.parametrize("path", sorted((ROOT / "results" / "sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_committed_manifests_are_those_of_the_scripts(path):
    """Else a script or a learning rate has changed, and `rbd sweep NAME --profile PROFILE --dry-run` writes them anew."""
    name, _, profile = path.stem.rpartition("-")
    assert sweep.plan(name, profile, ROOT / "results", ROOT / sweep.SCRIPTS).manifest() == path.read_text("utf-8")


@in_repository
def test_every_sweep_has_its_manifests():
    there = {path.stem for path in (ROOT / "results" / "sweeps").glob("*.json")}
    assert there == {f"{name}-{profile}" for name in with_runs() for profile in sweep.PROFILES}
