"""rbd.sweep: what table 1 consists of, and that only what is not there yet is run, after a look at the way."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import rbd
from rbd import rates, record, sweep
from rbd.config import RunConfig
from rbd.record import Point, Record

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
        monkeypatch.setattr("rbd.train.train", trainer)
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


def test_table1_without_any_rate_says_how_to_find_them(tmp_path):
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

    monkeypatch.setattr("rbd.train.train", fail)
    with pytest.raises(FileNotFoundError, match="mnist: missing"):
        sweep.run(RUN, tmp_path / "runs", tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_real_run_from_here_to_the_file(tmp_path):
    made = sweep.run(RUN, tmp_path / "runs", tmp_path, threads=1)
    assert (made.outcome, len(made.curve)) == ("finished", 1) and made.curve[0].accuracy > 25  # %, 10 steps of SGD
    assert record.load(tmp_path / "runs" / f"{RUN.id}.json") == made
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert sweep.run(RUN, tmp_path / "runs", tmp_path) == made
