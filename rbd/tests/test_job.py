"""rbd.suite.job: a run without a record is done once, after a check that it can be saved; an existing record is read."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import made_up
import pytest

from rbd.suite import experiment, job, record, store
from rbd.suite.config import RunConfig
from rbd.suite.record import Point, Record

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


@pytest.mark.parametrize("outcome", ["finished", "diverged"])
def test_what_is_there_is_not_run_again(outcome, tmp_path, trained_by):
    trainer = trained_by(Trainer())  # raises if called
    there = replace(MADE, outcome=outcome)
    path = record.save(there, tmp_path / "runs")
    before = path.stat().st_mtime_ns
    assert job.run(RUN, tmp_path / "runs", tmp_path) == there
    assert trainer.calls == [] and path.stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name]


@pytest.mark.parametrize("outcome", ["finished", "diverged"])
def test_ended_run_is_saved_and_its_checkpoint_removed(outcome, tmp_path, trained_by):
    trainer = trained_by(Trainer(outcome))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f".{RUN.id}.0123456789abcdef.tmp").touch()  # of a process that was killed
    made = job.run(RUN, tmp_path / "runs" / "x", tmp_path, threads=2, device="cpu")
    assert trainer.calls == [(RUN, tmp_path / "checkpoints", {"threads": 2, "device": "cpu"})]
    assert made.outcome == outcome and made_up.load_all(tmp_path / "runs" / "x") == [made]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_interrupted_run_keeps_its_checkpoint_and_is_run_again(tmp_path, trained_by):
    trainer = trained_by(Trainer("interrupted", "finished"))
    first = job.run(RUN, tmp_path / "runs", tmp_path)
    assert first.outcome == "interrupted" and record.find(RUN, tmp_path / "runs") == first
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"{RUN.id}.safetensors"]
    second = job.run(RUN, tmp_path / "runs", tmp_path)
    assert second.outcome == "finished" and made_up.load_all(tmp_path / "runs") == [second]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert job.run(RUN, tmp_path / "runs", tmp_path) == second
    assert len(trainer.calls) == 2


def test_other_checkpoints_stay(tmp_path, trained_by):
    trained_by(Trainer("finished"))
    other = tmp_path / "checkpoints" / f"{replace(RUN, seed=1).id}.safetensors"
    other.parent.mkdir()
    other.write_text("of another run")
    job.run(RUN, tmp_path / "runs", tmp_path)
    assert other.read_text() == "of another run"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_record_is_named_before_any_training(content, tmp_path, trained_by):
    trainer = trained_by(Trainer())
    path = tmp_path / f"{RUN.id}.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a valid record, file not touched") as caught:
        job.run(RUN, tmp_path, tmp_path)
    assert str(path) in str(caught.value)
    assert trainer.calls == [] and path.read_bytes() == content


def test_a_finished_run_is_read_where_nothing_can_be_removed(tmp_path, trained_by, monkeypatch):
    """A read-only mount refuses to remove even what is not there."""
    record.save(MADE, tmp_path / "runs" / "a")

    def refuse(path, missing_ok=False):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert job.run(RUN, tmp_path / "runs" / "a", tmp_path) == MADE


def test_directory_that_cannot_be_made_is_found_out_before_training(tmp_path, trained_by):
    trainer = trained_by(Trainer())
    (tmp_path / "results").write_text("a file")
    with pytest.raises(OSError, match="cannot save a record") as caught:
        job.run(RUN, tmp_path / "results" / "runs", tmp_path / "results")
    assert caught.value.filename == str(tmp_path / "results" / "runs")
    assert trainer.calls == [] and (tmp_path / "results").read_text() == "a file"


def test_directory_that_cannot_be_written_is_found_out_before_training(tmp_path, trained_by, monkeypatch):
    """Simulated, since root may write everywhere."""
    trainer = trained_by(Trainer())

    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError, match="cannot save a record: Permission denied") as caught:
        job.run(RUN, tmp_path / "runs", tmp_path)
    assert caught.value.filename == str(tmp_path / "runs")
    assert trainer.calls == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="modes bind neither root nor other systems")
def test_read_only_directory_is_found_out_before_training(tmp_path, trained_by):
    trainer = trained_by(Trainer())
    (tmp_path / "runs").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="cannot save a record"):
        job.run(RUN, tmp_path / "runs", tmp_path)
    assert trainer.calls == []


def test_impossible_checkpoint_directory_is_found_out_before_training(tmp_path, trained_by):
    """An epoch of the paper's profile takes minutes: not to be lost to a file that is in the way."""
    trainer = trained_by(Trainer())
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match="checkpoints"):
        job.run(RUN, tmp_path / "runs", tmp_path)
    assert trainer.calls == []


def test_errors_of_the_run_leave_no_record(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise FileNotFoundError("mnist: missing")

    monkeypatch.setattr("rbd.suite.train.train", fail)
    with pytest.raises(FileNotFoundError, match="mnist: missing"):
        job.run(RUN, tmp_path / "runs", tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_real_run_from_here_to_the_file(tmp_path):
    made = job.run(RUN, tmp_path / "runs", tmp_path, threads=1)
    assert (made.outcome, len(made.curve)) == ("finished", 1) and made.curve[0].accuracy > 25  # %, 10 steps of SGD
    assert record.load(tmp_path / "runs" / f"{RUN.id}.json") == made
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert job.run(RUN, tmp_path / "runs", tmp_path) == made


def test_a_record_in_the_folder_of_another_sweep_counts(tmp_path, trained_by):
    trainer = trained_by(Trainer())  # raises if called
    other = record.save(MADE, tmp_path / "runs" / "other")
    made = experiment.Plan("mine", (RUN,))
    assert job.run(RUN, made.directory(tmp_path), tmp_path) == MADE and trainer.calls == []
    assert made.records(tmp_path) == [MADE] and made.missing([MADE]) == ()
    assert experiment.place(MADE, made.directory(tmp_path), tmp_path) == other and not made.directory(tmp_path).exists()


def test_an_interrupted_record_elsewhere_does_not_count(tmp_path, trained_by):
    trainer = trained_by(Trainer("finished"))
    record.save(replace(MADE, outcome="interrupted"), tmp_path / "runs" / "another")
    directory = tmp_path / "runs" / "mine"
    assert job.run(RUN, directory, tmp_path).outcome == "finished" and len(trainer.calls) == 1
    assert experiment.find(RUN, directory, tmp_path).outcome == "finished"
    assert experiment.find(RUN, tmp_path / "runs" / "another", tmp_path).outcome == "finished"


def test_a_claimed_run_is_left_alone_or_waited_for(tmp_path, trained_by):
    trainer = trained_by(Trainer("finished"))
    (tmp_path / "locks").mkdir()
    with store.claim(RUN, tmp_path):
        with pytest.raises(store.Busy, match=f"{RUN.id}: another process is doing this run"):
            job.run(RUN, tmp_path / "runs" / "x", tmp_path, wait=0)
        assert trainer.calls == []
        other = replace(RUN, seed=1)
        with store.claim(other, tmp_path, wait=0):  # of its own
            pass
    assert list((tmp_path / "locks").iterdir()) == []
    assert job.run(RUN, tmp_path / "runs" / "x", tmp_path, wait=0).outcome == "finished"
    assert list((tmp_path / "locks").iterdir()) == []


def test_what_another_process_ends_while_it_is_waited_for_is_not_run_again(tmp_path, trained_by):
    trainer = trained_by(Trainer())  # raises if called
    (tmp_path / "locks").mkdir()
    directory = tmp_path / "runs" / "x"
    with ThreadPoolExecutor(1) as pool:
        with store.claim(RUN, tmp_path):
            waiting = pool.submit(job.run, RUN, directory, tmp_path)
            time.sleep(0.3)
            assert not waiting.done()
            record.save(MADE, directory)
        assert waiting.result(30) == MADE and trainer.calls == []


def test_lock_file_of_a_killed_process_does_not_block(tmp_path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / f"{RUN.id}.lock").write_text("left behind")
    with store.claim(RUN, tmp_path, wait=0):
        pass
