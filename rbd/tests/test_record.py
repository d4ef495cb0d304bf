from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import load_all

from rbd import philox
from rbd.suite import record
from rbd.suite.config import RunConfig
from rbd.suite.record import Point, Record, find, load, save
from rbd.suite.replay import reproducible
from rbd.tests.conftest import on_a_gpu

ROOT = Path(record.__file__).parents[2]
POINTS = (
    Point(1, 1562, 49_984, 1562, 0.1 + 0.2, 93.28, 0.0497),
    Point(2, 3124, 99_968, 3124, 5e-324, 100.0, None),
)
MACHINE = {"python": "3.12", "cpu_count": 2, "dirty": True, "commit": None}
FINISHED = Record(RunConfig(epochs=2), "finished", POINTS, (1.25, 2.5), MACHINE)


@pytest.mark.parametrize("kept", [
    FINISHED,
    replace(FINISHED, outcome="interrupted", curve=(), seconds=()),
    replace(FINISHED, config=RunConfig(method="sgd", lr=1 / 3), outcome="diverged",
            curve=(replace(POINTS[0], loss=math.inf), replace(POINTS[1], loss=-math.inf))),
])
def test_round_trip(kept, tmp_path):
    path = save(kept, tmp_path / "runs" / "table1")
    assert path == tmp_path / "runs" / "table1" / f"{kept.config.id}.json"
    assert load(path) == kept == find(kept.config, path.parent)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_nan_survives_as_text(tmp_path):
    kept = replace(FINISHED, outcome="diverged", curve=(POINTS[0], replace(POINTS[1], loss=math.nan, cosine=math.nan)))
    path = save(kept, tmp_path)
    assert repr(load(path).curve) == repr(kept.curve)
    raw = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"bare {name} in the file"))
    assert raw["curve"]["loss"] == [0.1 + 0.2, "nan"] and raw["curve"]["cosine"] == [POINTS[0].cosine, "nan"]


def test_file_is_readable_sorted_and_same_every_time(tmp_path):
    text = save(FINISHED, tmp_path / "a").read_text()
    assert text == save(load(tmp_path / "a" / f"{FINISHED.config.id}.json"), tmp_path / "b").read_text()
    assert json.loads(text)["format"] == 2 and text.endswith("}\n") and text.count("\n") > 20
    assert list(json.loads(text)) == ["config", "curve", "environment", "format", "outcome", "seconds"]
    assert '\n  "accuracy": [93.28, 100.0],\n' in text and '\n "seconds": [1.25, 2.5]\n' in text


def test_a_line_per_quantity_however_long_the_run(tmp_path):
    config = RunConfig(epochs=1000)
    long = Record(config, "finished", tuple(replace(POINTS[0], epoch=e) for e in range(1, 1001)), (1.0,) * 1000, MACHINE)
    short = replace(FINISHED, config=replace(config, epochs=2))
    assert len({save(r, tmp_path).read_text().count("\n") for r in (long, short)}) == 1
    assert load(tmp_path / f"{config.id}.json") == long


def test_format_1_is_read_and_saved_as_format_2(tmp_path):
    path = tmp_path / f"{FINISHED.config.id}.json"
    points = [POINT | {"loss": "nan", "accuracy": 93.28, "cosine": 0.0497}, POINT | {"loss": "-inf", "epoch": 2}]
    path.write_text(text_of(curve=points))
    old = load(path)
    assert [repr(p.loss) for p in old.curve] == ["nan", "-inf"] and [p.cosine for p in old.curve] == [0.0497, None]
    save(old, tmp_path)
    assert json.loads(path.read_text())["format"] == 2 and repr(load(path)) == repr(old)


def test_newer_record_replaces_older(tmp_path):
    save(replace(FINISHED, outcome="interrupted"), tmp_path)
    save(FINISHED, tmp_path)
    assert load_all(tmp_path) == [FINISHED]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch, function, failure):
    path = save(FINISHED, tmp_path)
    before = path.read_bytes()

    def fail(*arguments):
        assert len(list(tmp_path.glob(".*.tmp"))) == 1  # the new text is in a file of its own by then
        raise failure

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(failure)) as error:
        save(replace(FINISHED, outcome="interrupted"), tmp_path)
    assert str(tmp_path) in str(error.value) or not isinstance(failure, OSError)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_directory_in_the_place_of_a_record_is_named(tmp_path):
    path = tmp_path / f"{FINISHED.config.id}.json"
    path.mkdir()
    with pytest.raises(ValueError, match=f"{path.name}: a directory, where a record is expected"):
        find(FINISHED.config, tmp_path)


def test_what_json_lacks_is_kept():
    class Mine:
        __repr__ = lambda self: "mine"  # noqa: E731

    odd = {1: np.float32(0.5), "a": (np.arange(2), torch.ones(())), "b": [math.nan, -math.inf, None, True], "c": Mine()}
    same = {"1": 0.5, "a": [[0, 1], 1.0], "b": ["nan", "-inf", None, True], "c": "mine"}
    assert record.encode(odd) == same and json.dumps(same, allow_nan=False)


def test_two_writers_use_different_temporary_files(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(os, "fsync", lambda _: names.extend(p.name for p in tmp_path.glob(".*.tmp")))
    save(FINISHED, tmp_path)
    save(FINISHED, tmp_path)
    assert len(set(names)) == 2


def test_impossible_directories_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file/runs"):
        save(FINISHED, tmp_path / "file" / "runs")
    with pytest.raises(FileExistsError, match="file"):
        save(FINISHED, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert find(FINISHED.config, tmp_path / "file" / "runs") is None

    def denied(file, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", file)

    monkeypatch.setattr("builtins.open", denied)  # what a read-only directory does to everyone but root
    with pytest.raises(PermissionError, match="cannot save a record: Permission denied: '.*results'"):
        save(FINISHED, tmp_path / "results")


def text_of(**changes) -> str:
    """The file of FINISHED with top-level keys replaced, or removed where the new value is ...."""
    points = [POINT, {**POINT, "epoch": 2}]
    raw = json.loads(json.dumps({"format": 1, "outcome": "finished", "seconds": [1.25, 2.5], "environment": {},
                                 "config": json.loads(FINISHED.config.canonical()), "curve": points}))
    return json.dumps({k: v for k, v in {**raw, **changes}.items() if v is not ...})


POINT = {"epoch": 1, "step": 2, "images": 64, "forward_passes": 2, "loss": 2.3, "accuracy": 10.0, "cosine": None}
COLUMNS = {name: [value, value] for name, value in POINT.items()} | {"epoch": [1, 2]}
CONFIG = json.loads(FINISHED.config.canonical())


def columns_of(**changes) -> str:
    """The same in format 2, with quantities of the curve replaced or removed."""
    return text_of(format=2, curve={k: v for k, v in {**COLUMNS, **changes}.items() if v is not ...})


DAMAGE = {
    "empty": ("", "Expecting value"),
    "cut short": (text_of()[:-9], "delimiter"),
    "not text": ("\udcff\udcfe", "decode"),
    "too deep": ("[" * 100_000, "recursion"),
    "a list": ("[]", "record: got []"),
    "missing key": (text_of(outcome=...), "record: missing 'outcome'"),
    "unknown key": (text_of(note="x"), "record: unknown 'note'"),
    "format of the future": (text_of(format=3), "format: got 3, allowed 1 or 2"),
    "format true": (text_of(format=True), "format: got True, allowed 1 or 2"),
    "points in format 2": (text_of(format=2), "allowed a dict"),
    "columns in format 1": (text_of(curve=COLUMNS), "allowed a list"),
    "column missing": (columns_of(loss=...), "curve: missing 'loss'"),
    "column unknown": (columns_of(lr=[1, 1]), "curve: unknown 'lr'"),
    "column no list": (columns_of(loss=2.3), "curve: loss: got 2.3, allowed a list"),
    "column of text": (columns_of(cosine="ab"), "curve: cosine: got 'ab', allowed a list"),
    "column too short": (columns_of(loss=[2.3]), "'loss': 1"),
    "column with a null": (columns_of(loss=[2.3, None]), "loss: got None, allowed a number"),
    "column with a float step": (columns_of(step=[1, 2.0]), "step: got 2.0, allowed an integer >= 0"),
    "columns fewer than seconds": (columns_of(**{name: [] for name in COLUMNS}), "seconds: got (1.25, 2.5), allowed 0"),
    "unknown outcome": (text_of(outcome="lost"), "outcome: got 'lost', allowed finished, diverged, interrupted"),
    "outcome of wrong type": (text_of(outcome=[]), "outcome: got []"),
    "config missing key": (text_of(config={k: v for k, v in CONFIG.items() if k != "lr"}), "config: missing 'lr'"),
    "config unknown key": (text_of(config={**CONFIG, "momentum": 0.9}), "config: unknown 'momentum'"),
    "config bad value": (text_of(config={**CONFIG, "dim": 0}), "dim: got 0"),
    "config not resolved": (text_of(config={**CONFIG, "lr": None}), "resolved form"),
    "config of another run": (text_of(config={**CONFIG, "seed": 1}), "file name: got"),
    "config a list": (text_of(config=[]), "config: got []"),
    "curve no list": (text_of(curve={}), "curve: got {}, allowed a list"),
    "point missing key": (text_of(curve=[{"epoch": 1}] * 2), "point: missing 'accuracy'"),
    "point unknown key": (text_of(curve=[{**POINT, "lr": 1}] * 2), "point: unknown 'lr'"),
    "point no object": (text_of(curve=[1, 2]), "point: got 1"),
    "step a float": (text_of(curve=[{**POINT, "step": 2.0}] * 2), "step: got 2.0, allowed an integer >= 0"),
    "step true": (text_of(curve=[{**POINT, "step": True}] * 2), "step: got True"),
    "step negative": (text_of(curve=[{**POINT, "step": -1}] * 2), "step: got -1"),
    "epoch nan": (text_of(curve=[{**POINT, "epoch": "nan"}] * 2), "epoch: got nan"),
    "epoch 0": (columns_of(epoch=[0, 1]), "epochs [0, 1], allowed 1 ... 2 in order, each once"),
    "epochs beyond the end": (columns_of(epoch=[2, 3]), "epochs [2, 3], allowed 1 ... 2 in order, each once"),
    "epochs backwards": (columns_of(epoch=[2, 1]), "epochs [2, 1], allowed 1 ... 2 in order, each once"),
    "an epoch twice": (columns_of(epoch=[2, 2]), "epochs [2, 2], allowed 1 ... 2 in order, each once"),
    "finished, cut short": (text_of(curve=[POINT], seconds=[1.0]), "got 1 epochs of a finished run, allowed 2"),
    "finished, empty": (text_of(curve=[], seconds=[]), "got 0 epochs of a finished run, allowed 2"),
    "accuracy above 100": (columns_of(accuracy=[10.0, 8095]), "accuracy: got 8095.0, allowed 0 ... 100 (%)"),
    "accuracy below 0": (columns_of(accuracy=[-1, 10.0]), "accuracy: got -1.0, allowed 0 ... 100 (%)"),
    "accuracy nan": (columns_of(accuracy=["nan", 10.0]), "accuracy: got nan, allowed 0 ... 100 (%)"),
    "loss null": (text_of(curve=[{**POINT, "loss": None}] * 2), "loss: got None, allowed a number"),
    "loss text": (text_of(curve=[{**POINT, "loss": "low"}] * 2), "loss: got 'low'"),
    "loss a list": (text_of(curve=[{**POINT, "loss": []}] * 2), "loss: got []"),
    "outcome twice": (text_of().replace('"outcome"', '"outcome": "diverged", "outcome"', 1), "'outcome' twice"),
    "loss bare NaN": (text_of(curve=[{**POINT, "loss": math.nan}] * 2), "bare NaN"),
    "loss too large": (text_of(curve=[{**POINT, "loss": 10**400}] * 2), "too large"),
    "seconds too few": (text_of(seconds=[1.0]), "seconds: got (1.0,), allowed 2"),
    "seconds negative": (text_of(seconds=[1.0, -2.0]), "seconds: got (1.0, -2.0)"),
    "seconds text": (text_of(seconds=["1", "2"]), "seconds: got '1', allowed a number"),
    "seconds no list": (text_of(seconds=3), "seconds: got 3, allowed a list"),
    "environment no object": (text_of(environment=[]), "environment: got [], allowed a dict"),
    "environment nested": (text_of(environment={"gpu": {}}), "environment: got gpu = {}"),
    "environment float": (text_of(environment={"gpu": 0.5}), "environment: got gpu = 0.5"),
}


def test_undamaged_text_loads(tmp_path):
    path = tmp_path / f"{FINISHED.config.id}.json"
    for text in (text_of(), columns_of()):
        path.write_text(text)
        assert load(path).curve == (Point(**POINT), Point(**{**POINT, "epoch": 2}))


@pytest.mark.parametrize("text, cause", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_never_touched(tmp_path, text, cause):
    path = tmp_path / f"{FINISHED.config.id}.json"
    path.write_text(text, errors="surrogateescape")
    before = path.read_bytes()
    for action in (lambda: load(path), lambda: find(FINISHED.config, tmp_path), lambda: save(FINISHED, tmp_path)):
        with pytest.raises(ValueError) as error:
            action()
        message = str(error.value)
        assert message.startswith(f"{path}: not a valid record, file not touched: ") and cause in message, message
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_file_under_another_name(tmp_path):
    path = save(FINISHED, tmp_path).rename(tmp_path / "best.json")
    with pytest.raises(ValueError, match=f"best.json.*file name: got best.json, allowed {FINISHED.config.id}.json"):
        load(path)


def test_find(tmp_path):
    records = [replace(FINISHED, config=RunConfig(epochs=2, seed=seed)) for seed in range(5)]
    for r in records:
        save(r, tmp_path)
    (tmp_path / "README.md").write_text("not a record")
    (tmp_path / ".0123456789abcdef.00.tmp").write_text("left by a killed run")
    assert load_all(tmp_path) == sorted(records, key=lambda r: r.config.id)
    assert find(RunConfig(epochs=2, seed=3), tmp_path) == records[3]
    assert find(RunConfig(epochs=2, seed=9), tmp_path) is None and find(RunConfig(), tmp_path / "none") is None
    with pytest.raises(FileNotFoundError, match="gone.json"):
        load(tmp_path / "gone.json")


def test_values_are_checked_and_frozen():
    assert repr(replace(POINTS[0], loss=2)) == repr(replace(POINTS[0], loss=2.0))
    with pytest.raises(ValueError, match="accuracy: got '93', allowed a number"):
        replace(POINTS[0], accuracy="93")
    with pytest.raises(ValueError, match="outcome: got 'done'"):
        replace(FINISHED, outcome="done")
    with pytest.raises(FrozenInstanceError):
        FINISHED.outcome = "diverged"


def test_environment_of_this_machine(tmp_path):
    here = record.environment()
    assert set(here) == {"python", "torch", "numpy", "numba", "rbd", "stream_version", "commit", "dirty", "platform",
                         "cpu", "cpu_count", "threads", "device"}
    assert here["python"] == ".".join(map(str, sys.version_info[:3])) and here["torch"] == torch.__version__
    assert here["stream_version"] == philox.STREAM_VERSION and here["threads"] == torch.get_num_threads()
    assert here["cpu"] and here["device"] == here["cpu"] and here["numpy"]
    kept = replace(FINISHED, environment=here)
    assert load(save(kept, tmp_path)) == kept


def test_environment_of_a_gpu_says_what_decides_its_bits(monkeypatch):
    """TF32 and deterministic algorithms, as they are at that moment: a run's settings of them hold in its turns alone."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"name of {device}")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def told() -> tuple:
        here = record.environment("cuda")
        return here["device"], here["tf32"], here["deterministic"]

    with reproducible("cuda"):
        assert told() == ("name of cuda", False, True)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        assert told() == ("name of cuda", True, True)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(False)
        assert told() == ("name of cuda", True, False)
    assert not {"tf32", "deterministic"} & record.environment("cpu").keys()


@on_a_gpu
def test_environment_of_a_gpu():
    assert record.environment("cuda")["device"] == torch.cuda.get_device_name()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_edits_of_the_library_make_a_record_dirty():
    """All of rbd is looked at, kernels too, not the suite alone."""
    assert (record.PACKAGE / "kernels" / "cpu.py").exists() and (record.PACKAGE / "suite" / "record.py").exists()


def test_commit_is_that_of_the_package(tmp_path, monkeypatch):
    package, stranger = tmp_path / "rbd", tmp_path / "venv" / "rbd"
    for folder in (package, stranger):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("a = 1\n")
    outside = {"commit": None, "dirty": None}
    assert record._checkout(package) == outside
    git(tmp_path, "init", "-q")
    assert record._checkout(package) == outside
    git(tmp_path, "add", "rbd")
    assert record._checkout(package) == outside  # no commit yet
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as inside a hook of another repository
    assert record._checkout(package) == {"commit": head, "dirty": False}
    assert record._checkout(stranger) == outside  # within a checkout that does not track it
    (tmp_path / "notes.txt").write_text("outside the package")
    assert record._checkout(package)["dirty"] is False
    (package / "extra.py").write_text("")
    assert record._checkout(package)["dirty"] is True
    (package / "extra.py").unlink()
    (package / "__init__.py").write_text("a = 2\n")
    assert record._checkout(package) == {"commit": head, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record._checkout(package) == outside  # no git


def test_commit_may_be_stated_where_git_is_missing(tmp_path, monkeypatch):
    """By RBD_COMMIT, else by a file COMMIT beside the package; a checkout knows better."""
    package, (a, b) = tmp_path / "rbd", ("0123456789abcdef0123456789abcdef01234567", "f" * 40)
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "COMMIT").write_text(f"{a} 1600000000\n")
    assert record._checkout(package) == {"commit": a, "dirty": None}
    monkeypatch.setenv("RBD_COMMIT", f"{b} 1600000001")
    assert record._checkout(package) == {"commit": b, "dirty": None}
    assert record.stated_commit(package) == [b, "1600000001"]
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "rbd")
    git(tmp_path, "commit", "-qm", "first")
    assert record._checkout(package)["commit"] == git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setenv("RBD_COMMIT", "main")
    with pytest.raises(ValueError, match="^RBD_COMMIT or .*: got 'main', allowed what `git log -1 --format='%H %ct'` "):
        record.stated_commit(tmp_path)


def test_import_loads_neither_torch_nor_numpy():
    code = ("import sys, rbd.suite.config; before = set(sys.modules); import rbd.suite.record; "
            "print(*set(sys.modules) - before)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "rbd.suite.record" in loaded and not {"torch", "numpy", "numba", "rbd.philox"} & loaded
