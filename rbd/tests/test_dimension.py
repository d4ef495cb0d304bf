"""`rbd dimension`: a user's own function at many d, as a user types it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import matplotlib
import pytest

import rbd
from rbd.suite import dimension, looks
from rbd.suite.cli import main

ROOT = Path(rbd.__file__).parents[1]
SCRIPT = """
import math
from pathlib import Path
import helper

HERE = Path(__file__).parent

def accuracy(dim, seed):
    with open(HERE / "calls.txt", "a") as file:
        file.write(f"{dim} {seed}\\n")
    if dim == 7:
        raise RuntimeError("seven is not allowed")
    return helper.level(dim) + 0.01 * seed

def forgets(dim, seed):
    accuracy(dim, seed)

def blows_up(dim, seed):
    return float("nan")

def dies(dim, seed):
    import os
    os._exit(3)

def takes_one(model):
    return 1.0

def draws(dim, seed):
    import random
    return 1 + random.random()

def waits(dim, seed):
    import time
    accuracy(dim, seed)
    time.sleep(60 * (dim > 10) * (not (HERE / "go").exists()))
    return float(dim)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a user's script and a module beside it."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("import math\ndef level(dim):\n    return math.log10(dim) / 4\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(here: Path) -> list[str]:
    """What the function has been called with, in order."""
    path = here / "calls.txt"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def folder(here: Path, function: str = "accuracy") -> Path:
    (found,) = here.glob(f"results/dimension/mine-{function}-*")
    return found


def test_as_typed_then_more_then_again(here, capsys):
    words = ["dimension", "mine.py:accuracy", "--dims", "1000", "10", "100", "--seeds", "0", "1"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "mine.py:accuracy: 6 runs, 6 to do, records in results/dimension/mine-accuracy-" in said.out
    assert calls(here) == ["10 0", "100 0", "1000 0", "10 1", "100 1", "1000 1"]
    assert "[1/6] dim=10 seed=0: 0.25, 0 s; " in said.out
    assert "| 10 | 0.255 ± 0.007 (n = 2) | [0.250, 0.260] |" in said.out
    assert "d90 = 499 [" in said.out  # 100 · 10 ** ((0.6795 - 0.505) / 0.25)
    assert "]: the metric there is 0.6795, 90 % of the mean at d = 1,000; the smallest d tried that" in said.out
    assert (folder(here) / "dimension.png").stat().st_size > 5000
    kept = json.loads((folder(here) / "dim100-seed1.json").read_text())
    assert (kept["dim"], kept["seed"], kept["metric"], kept["function"]) == (100, 1, 0.51, "accuracy")
    assert kept["environment"]["rbd"] == rbd.__version__ and (folder(here) / "mine.py").read_text() == SCRIPT
    before = calls(here)
    assert main(["dimension", "mine.py:accuracy", "--dims", "10", "10000", "--seeds", "0", "1", "--baseline", "1"]) == 0
    said = capsys.readouterr()
    assert "4 runs, 2 to do" in said.out and calls(here)[len(before):] == ["10000 0", "10000 1"]
    assert "90 % of the baseline given" in said.out and "| 100 |" not in said.out
    assert main(["dimension", "mine.py:accuracy", "--dims", "10", "--baseline", "9"]) == 0
    assert "d90 > 10: the metric there is 8.1, 90 % of the baseline given; no d tried reaches it" in capsys.readouterr().out


def test_it_is_drawn_without_the_users_settings(here, monkeypatch, capsys):
    """text.usetex needs TeX, which this machine may lack."""
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setenv("PATH", "")
    assert main(["dimension", "mine.py:accuracy", "--dims", "10", "100", "--seeds", "0", "1"]) == 0
    assert "could not be drawn" not in capsys.readouterr().err
    assert (folder(here) / "dimension.png").exists() and matplotlib.rcParams["text.usetex"]


def test_as_a_user_types_it_with_jobs(here):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "rbd", "dimension", "mine.py:accuracy", "--dims", "10", "100", "--jobs", "2"]
    run = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    assert sorted(calls(here)) == sorted(f"{d} {s}" for d in (10, 100) for s in (0, 1, 2))
    assert "| 100 | 0.510 ± 0.010 (n = 3) | [0.500, 0.520] |" in run.stdout


def test_a_changed_script_runs_anew_and_says_so(here, capsys):
    words = ["dimension", "mine.py:accuracy", "--dims", "10", "--seeds", "0"]
    assert main(words) == 0
    Path("mine.py").write_text(SCRIPT.replace("0.01 * seed", "0.5"))
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "the script or its modules have changed: not used: 1 run of other versions, see results/dimension" in said
    assert "1 run, 1 to do" in said and "| 10 | 0.750 (n = 1) | no interval |" in said
    Path("mine.py").write_text(SCRIPT)  # and back: the first one counts again
    assert main(words) == 0
    assert "1 run, 0 to do" in capsys.readouterr().out and len(calls(here)) == 2


def test_a_changed_module_below_the_folder_runs_anew_and_says_so(here, capsys):
    """However it is imported: beside the script, from a package, by another module, by name."""
    (here / "pack").mkdir()
    for name in ("pack/__init__.py", "deep.py", "named.py"):
        (here / name).write_text("X = 1\n")
    (here / "pack" / "part.py").write_text("import deep\n")
    begin = "import importlib\nimport pack.part\nimportlib.import_module('named')\n"
    Path("mine.py").write_text(begin + SCRIPT)
    words = ["dimension", "mine.py:accuracy", "--dims", "10", "--seeds", "0"]
    assert main(words) == 0 and main(words) == 0
    assert "1 run, 0 to do" in capsys.readouterr().out
    for number, name in enumerate(("helper.py", "pack/__init__.py", "pack/part.py", "deep.py", "named.py"), 1):
        path, made = here / name, looks.count(number, "run")
        path.write_text(path.read_text() + "# changed\n")
        assert main(words) == 0
        said = capsys.readouterr().out
        assert "1 run, 1 to do" in said
        assert f"the script or its modules have changed: not used: {made} of other versions" in said, name
    (here / "unused.py").write_text("X = 1\n")  # nor is what else lies there a module of the script
    assert main(words) == 0
    assert "1 run, 0 to do" in capsys.readouterr().out


def test_a_module_counts_through_links_too(here):
    """A folder that a link leads to, and a module that is a link to elsewhere."""
    (here / "link").symlink_to(here, target_is_directory=True)
    (here / "away").mkdir()
    (here / "helper.py").rename(here / "away" / "far.py")
    (here / "helper.py").symlink_to(here / "away" / "far.py")
    found = [dimension.find_target(f"{name}:accuracy", here / "results") for name in ("mine.py", "link/mine.py")]
    assert found[0].folder == found[1].folder and [name for name, _ in found[0].modules] == ["helper.py"]


def test_a_script_alone_keeps_the_folder_that_it_had(here):
    """Installed packages, Python and rbd do not count where they lie below the script's folder; nor do lazy imports."""
    site = here / "env" / "lib" / "python3" / "site-packages"
    site.mkdir(parents=True)
    (site / "installed.py").write_text("X = 1\n")
    text = f"import sys\nsys.path.append({str(site)!r})\nimport installed, json\ndef f(dim, seed):\n    import helper\n"
    (here / "alone.py").write_text(text)
    key = sha256(json.dumps(["../alone.py", "f", text]).encode()).hexdigest()[:8]
    assert dimension.find_target("alone.py:f", here / "results").folder == here / "results" / "dimension" / f"alone-f-{key}"


def test_python_and_rbd_are_no_modules_of_a_script_above_them():
    """As of a script in a home directory, or in a clone of this repository."""
    for package in (rbd, json):
        above = Path(package.__file__).parents[1]
        inner = [name for name, _ in dimension._list_modules(above / "script.py") if name.startswith(package.__name__)]
        assert inner == []


def test_a_module_that_changes_while_the_runs_are_made_is_a_failure(here):
    target = dimension.find_target("mine.py:accuracy", here / "results")
    (here / "helper.py").write_text("def level(dim):\n    return 0.25\n")
    (said,) = dimension.perform(target, [10], [0], here / "results")
    assert "helper.py: changed since the command began; run the same command again" in said and calls(here) == []


def test_any_name_of_a_script_is_taken_as_it_is(here, capsys):
    """Brackets and stars are no patterns of other names."""
    for name in ("ta[sk].py", "t*.py", "tas.py"):
        Path(name).write_text("def f(dim, seed):\n    return 1.0\n")
        assert main(["dimension", f"{name}:f", "--dims", "10", "--seeds", "0"]) == 0
        assert "have changed" not in capsys.readouterr().out
        Path(name).write_text("def f(dim, seed):\n    return 2.0\n")
        assert main(["dimension", f"{name}:f", "--dims", "10", "--seeds", "0"]) == 0
        assert "not used: 1 run of other versions" in capsys.readouterr().out


@pytest.mark.parametrize(("metrics", "row"), [
    ([88.0, 90.0], "89.0 ± 1.4 (n = 2) | [88.0, 90.0]"),
    ([0.5, 0.51], "0.505 ± 0.007 (n = 2) | [0.500, 0.510]"),
    ([0.01, 0.02], "0.015 ± 0.007 (n = 2) | [0.010, 0.020]"),
    ([0.0012, 0.0034], "0.00230 ± 0.00156 (n = 2) | [0.00120, 0.00340]"),
    ([1e-7, 2e-7], "0.000000150 ± 0.000000071 (n = 2) | [0.000000100, 0.000000200]"),
    ([0.0, 0.0], "0.000 ± 0.000 (n = 2) | [0.000, 0.000]"),
])  # fmt: skip
def test_metrics_of_any_size_are_printed_with_three_digits(metrics, row):
    assert dimension.format_table({10: metrics}).splitlines()[-1] == f"| 10 | {row} |"


def test_a_script_on_another_drive_of_windows_has_a_folder_too(here, monkeypatch):
    """The same one at each call, and another one than that of a script elsewhere with equal text."""
    (here / "other").mkdir()
    for name in ("mine.py", "helper.py"):
        shutil.copy(name, here / "other" / name)

    def refuse(*_):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(os.path, "relpath", refuse)
    names = ("mine.py", "mine.py", "other/mine.py")
    first, again, other = (dimension.find_target(f"{name}:accuracy", here / "results").folder for name in names)
    assert first == again != other and first.parent == here / "results" / "dimension"


def test_what_fails_is_named_and_the_others_go_on(here, capsys):
    words = ["dimension", "mine.py:accuracy", "--dims", "7", "10", "100", "--seeds", "0"]
    assert main(words) == 1
    said = capsys.readouterr()
    where = f"{folder(here).relative_to(here)}/dim7-seed0.error.txt"
    assert said.err == f"failed: dim=7 seed=0: RuntimeError: seven is not allowed ({where})\n"
    trace = Path(where).read_text()
    assert 'mine.py", line' in trace and "dimension.py" not in trace
    assert "| 10 |" in said.out and "| 7 |" not in said.out and "d90 = " in said.out
    assert main(words) == 1 and calls(here)[-1] == "7 0" and len(calls(here)) == 4
    capsys.readouterr()
    assert main([*words[:3], "10", "7", "--seeds", "0"]) == 1
    assert "d90" in capsys.readouterr().out


def test_the_baseline_that_failed_is_not_replaced_by_another(here, capsys):
    assert main(["dimension", "mine.py:accuracy", "--dims", "1", "5", "7", "--seeds", "0"]) == 1
    assert "d90: not known, there is no run at d = 7, the baseline" in capsys.readouterr().out
    assert main(["dimension", "mine.py:accuracy", "--dims", "1", "--seeds", "0"]) == 0
    assert "d90: not known: baseline: got 0, allowed a number > 0" in capsys.readouterr().out


@pytest.mark.parametrize(("function", "message"), [
    ("forgets", "TypeError: the function returned None, allowed a number: the metric, larger where better"),
    ("blows_up", "ValueError: the function returned nan, allowed a finite number"),
    ("dies", "BrokenProcessPool: the process died"),
])  # fmt: skip
def test_no_metric_is_a_failure(function, message, here, capsys):
    assert main(["dimension", f"mine.py:{function}", "--dims", "10", "--seeds", "3"]) == 1
    said = capsys.readouterr()
    assert f"failed: dim=10 seed=3: {message}" in said.err and "Traceback" not in said.err
    assert not list(folder(here, function).glob("*.json"))


@pytest.mark.parametrize(("words", "message"), [
    (["mine.py", "--dims", "1"], "SCRIPT:FUNCTION: got 'mine.py', allowed a script and a function in it, as train.py:"),
    (["gone.py:f", "--dims", "1"], "gone.py: there is no such script"),
    (["mine.py:f", "--dims", "1"], "mine.py: got no function 'f', allowed accuracy, forgets, blows_up, dies, takes_one"),
    (["broken.py:f", "--dims", "1"], "broken.py: not a Python script: expected ':' (broken.py, line 1)"),
    (["raises.py:f", "--dims", "1"], "raises.py: ModuleNotFoundError: No module named 'no_such_module'"),
    (["mine.py:takes_one", "--dims", "1"], "takes_one: too many positional arguments; allowed a function of (dim, seed)"),
    (["mine.py:HERE", "--dims", "1"], "allowed a function of (dim, seed)"),
    (["mine.py:accuracy"], "the following arguments are required: --dims"),
    (["mine.py:accuracy", "--dims", "0"], "argument --dims: got '0', allowed an integer 1 ... 4294967295"),
    (["mine.py:accuracy", "--dims", "1", str(2**32)], "argument --dims: got '4294967296', allowed an integer 1 ..."),
    (["mine.py:accuracy", "--dims", "1", "--seeds", "-1"], "argument --seeds: got '-1', allowed an integer 0 ..."),
    (["mine.py:accuracy", "--dims", "1", "--baseline", "-1"], "argument --baseline: got '-1', allowed a finite number > 0"),
])  # fmt: skip
def test_bad_input_is_refused(words, message, here, capsys):
    Path("broken.py").write_text("def f(dim, seed) return 1\n")
    Path("raises.py").write_text("import no_such_module\ndef f(dim, seed):\n    return 1\n")
    try:
        status = main(["dimension", *words])
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and message in " ".join(capsys.readouterr().err.split())
    assert not list(here.rglob("*.json"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_a_script_is_read_as_python_reads_it(encoding, here, capsys):
    cookie = "# coding: latin-1\n" * (encoding == "latin-1")
    Path("odd.py").write_bytes(f"{cookie}def f(dim, seed):\n    return float(len('ä'))\n".encode(encoding))
    assert main(["dimension", "odd.py:f", "--dims", "1", "--seeds", "0"]) == 0
    assert "| 1 | 1.000 (n = 1) |" in capsys.readouterr().out


def test_a_damaged_record_is_named_and_left(here, capsys):
    words = ["dimension", "mine.py:accuracy", "--dims", "10", "--seeds", "0"]
    assert main(words) == 0
    path = folder(here) / "dim10-seed0.json"
    whole = {"format": 1, "dim": 10, "seed": 0, "metric": 1, "seconds": 1}
    bad = [whole | {name: value} for name in ("metric", "seconds") for value in ("3", True, None, [3], math.nan, 10**400)]
    for text in ("{", "[" * 100_000, "3", '{"format": 1}', *map(json.dumps, [whole | {"dim": 11}, *bad])):
        path.write_text(text)
        assert main(words) == 2
        assert f"{path.relative_to(here)}: damaged: " in capsys.readouterr().err and path.read_text() == text


def test_generators_are_seeded_so_no_run_depends_on_another(here, capsys):
    for seeds in ("3", "2"), ("2", "3"):
        assert main(["dimension", "mine.py:draws", "--dims", "10", "--seeds", *seeds, "--results-dir", seeds[0]]) == 0
    first, second = (sorted(here.glob(f"{top}/dimension/*/*.json")) for top in "32")
    assert [json.loads(p.read_text())["metric"] for p in first] == [json.loads(p.read_text())["metric"] for p in second]


def test_interrupted_it_keeps_what_ended_and_goes_on(here, capsys):
    """And two at once do no run twice."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["dimension", "mine.py:waits", "--dims", "10", "100", "--seeds", "0"]
    run = subprocess.Popen([sys.executable, "-m", "rbd", *words], cwd=here, env=environment, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    limit = time.monotonic() + 100
    while len(calls(here)) < 2 and time.monotonic() < limit:
        time.sleep(0.1)
    assert main(words) == 2
    assert "another process is doing these runs" in capsys.readouterr().err
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)
    hint = "run the same command again to continue from the last run that ended"
    assert run.returncode == 130 and said[1] == f"\nrbd: interrupted; {hint}\n"
    assert [p.name for p in folder(here, "waits").glob("*.json")] == ["dim10-seed0.json"]
    Path("go").touch()
    assert main(words) == 0
    assert "2 runs, 1 to do" in capsys.readouterr().out and calls(here) == ["10 0", "100 0", "100 0"]
