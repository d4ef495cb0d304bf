"""The command `rbd`, as a user types it: in this process where that is enough, else in a new one."""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import struct
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import matplotlib
import pytest
import torch

import rbd
from rbd.suite import cli, config, cost, datasets, executor, experiment, job, looks, rates, record, report, store, train
from rbd.suite.cli import main
from rbd.suite.config import DEFAULTS, RunConfig
from rbd.suite.experiment import Plan

ROOT = Path(rbd.__file__).parents[1]
SMALL = ["train", "--method", "sgd", "--epochs", "2", "--batch-size", "500"]  # 20 steps on the embedded MNIST
RUN = RunConfig(method="sgd", epochs=2, batch_size=500)


def command(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    """`rbd` in a new process, as after an installation; neither stdout nor stderr is a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    words = [sys.executable, "-m", "rbd", *arguments]
    return subprocess.run(words, cwd=cwd, env=environment, text=True, timeout=120, **options)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")  # for argparse
    return tmp_path


@pytest.fixture
def few(monkeypatch) -> None:
    """Every data set cut to 320 training and 200 validation images."""
    real = datasets.load

    def load(name: str, data_dir=None) -> datasets.Dataset:
        sets = real(name, data_dir)
        parts = ((sets.train, 320), (sets.validation, 200))
        return datasets.Dataset(name, *(datasets.Split(split.images[:n], split.labels[:n]) for split, n in parts))

    monkeypatch.setattr(datasets, "load", load)


def refused(arguments: list[str], capsys) -> str:
    """What the command says on stderr when it exits with 2, whether argparse or the run refuses."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    assert status == 2 and said.out == "" and "Traceback" not in said.err
    return " ".join(said.err.split())


# ---------------------------------------------------------------- help


@pytest.mark.parametrize(("arguments", "words"), [
    (["--help"], ["reproduce", "train", "report", "data", "--version"]),
    (["reproduce", "--help"], ["--profile NAME", "default: quick", "--results-dir", "--data-dir", "(default: 1)"]),
    (["report", "--help"], ["--profile NAME", "quick, paper", "--into README", "default: results"]),
    (["sweep", "--help"], ["or all", "--jobs", "--seeds", "figures do not use such runs", "--dry-run", "--ray ADDRESS"]),
    (["dimension", "--help"], ["SCRIPT:FUNCTION", "--dims D", "default: 0 1 2", "--jobs", "--baseline VALUE", "90 %"]),
    (["data", "--help"], ["--download", "mnist, fmnist or cifar10", "RBD_DATA_DIR"]),
])  # fmt: skip
def test_help(arguments, words, here, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr()
    assert stop.value.code == 0 and said.err == ""
    assert all(word in " ".join(said.out.split()) for word in words), said.out


def test_help_fits_a_screen_and_ends_with_examples_that_are_accepted(here, capsys, monkeypatch):
    """80 columns and 30 lines before the examples; `train`, whose options are many, is in groups."""
    monkeypatch.setenv("COLUMNS", "80")
    choices = next(a.choices for a in cli._parser()._actions if isinstance(a.choices, dict))
    for name in choices:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        text, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
        lines = text.splitlines()
        assert len(lines) < (58 if name == "train" else 30) and max(map(len, lines)) < 80, (name, len(lines))
        assert examples and lines[2].endswith("."), name  # what the command does
        for line in examples.splitlines():
            assert callable(cli._parser().parse_args(shlex.split(line)[1:]).run), line
    with pytest.raises(SystemExit):
        main(["--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 28
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    titles = re.findall(r"^(\w.*):$", capsys.readouterr().out, re.MULTILINE)
    assert titles == ["options", *config.GROUPS, "examples"]


def test_train_help_names_every_field_its_unit_and_default(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # no line is broken
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out.split("options:")[1]
    entries = {part.split()[0]: " ".join(part.split()) for part in re.split(r"\n  (?=-)", text)[1:]}
    for f in fields(RunConfig):
        entry = entries[f"--{f.name.replace('_', '-')}"]
        assert "(default: " in entry, f.name
        defaults = {f.default} | {used[f.name] for used in DEFAULTS.values() if f.name in used}
        for default in defaults - {None}:  # that of sigma depends on D
            assert str(default) in entry.split("(default: ")[1], f.name
    units = {"epochs": "passes over the training images", "batch-size": "images per", "redraw": "steps between",
             "dim": "number of random directions", "sigma": "length", "lr": "mean loss of a batch"}  # fmt: skip
    for name, unit in units.items():
        assert unit in entries[f"--{name}"]
    for name in ("device", "threads", "results-dir", "data-dir"):
        assert "(default: " in entries[f"--{name}"]


def test_version(here, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"rbd {rbd.__version__}\n"


def test_no_command_is_refused(here, capsys):
    assert "COMMAND" in refused([], capsys)
    assert "invalid choice: 'trian'" in refused(["trian"], capsys)


@pytest.mark.parametrize("script", [
    "import rbd",
    "import rbd.suite.cli, rbd.suite.config, rbd.suite.record, rbd.suite.experiment, rbd.suite.report",
    "import sys; sys.argv = ['rbd', '--help']\nfrom rbd.suite.cli import main\ntry: main()\nexcept SystemExit: pass",
    "from rbd.suite.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
    "from rbd.suite.cli import main\ntry: main(['train', '--model', 'none'])\nexcept SystemExit: pass",
    "from rbd.suite.cli import main\nmain(['report'])",  # there is nothing to report
    "from rbd.suite.cli import main\nmain(['sweep', '--list'])",
    "from rbd.suite.cli import main\nmain(['sweep', 'table1', '--dry-run'])",
])  # fmt: skip
def test_nobody_waits_for_torch_who_does_not_train(script, tmp_path):
    heavy = ("torch", "torchvision", "numba", "numpy", "matplotlib")
    words = [sys.executable, "-c", f"{script}\nimport sys\nprint([m for m in {heavy} if m in sys.modules], file=sys.stderr)"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-1] == "[]"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(("arguments", "message"), [
    (["--model", "vgg"], "argument --model: model: got 'vgg', allowed fc, cnn, resnet8, resnet32"),
    (["--data", "imagenet"], "argument --data: data: got 'imagenet', allowed mnist, fmnist, cifar10, mnist-embedded"),
    (["--method", "adam"], "argument --method: method: got 'adam', allowed sgd, rbd, fpd, nes, rbd-nes"),
    (["--distribution", "cauchy"], "--distribution: distribution: got 'cauchy', allowed normal, uniform, rademacher"),
    (["--partition", "even"], "argument --partition: partition: got 'even', allowed whole, by_layer, by_tensor, even:K"),
    (["--partition", "even:0"], "partition: got 'even:0', allowed"),
    (["--partition", "by_ratio:nan"], "partition: got 'by_ratio:nan', allowed"),
    (["--dim", "many"], "argument --dim: dim: got 'many', allowed an integer 1 ... 4294967295"),
    (["--dim", "2.5"], "dim: got '2.5', allowed an integer"),
    (["--dim", "-3"], "dim: got -3, allowed an integer 1 ..."),
    (["--dim", "0"], "dim: got 0, allowed an integer 1 ..."),
    (["--epochs", "0"], "epochs: got 0, allowed an integer 1 ..."),
    (["--batch-size", "-1"], "batch_size: got -1, allowed an integer 1 ..."),
    (["--seed", "-1"], "seed: got -1, allowed an integer 0 ..."),
    (["--redraw", "0"], "redraw: got 0, allowed an integer 1 ... 4294967295 (drawn once: method fpd)"),
    (["--lr", "-0.5"], "lr: got -0.5, allowed a finite number > 0"),
    (["--lr", "nan"], "lr: got nan, allowed a finite number > 0"),
    (["--sigma", "inf"], "sigma: got inf, allowed a finite number > 0"),
    (["--threads", "0"], "argument --threads: got '0', allowed an integer 1 ... 4294967295"),
    (["--colour", "red"], "unrecognized arguments: --colour red"),
    # what does not fit together
    (["--method", "sgd", "--dim", "5"], "rbd: error: dim=5 does not apply to method 'sgd'"),
    (["--method", "fpd", "--redraw", "2"], "redraw=2 does not apply to method 'fpd'"),
    (["--method", "nes", "--partition", "whole"], "partition='whole' does not apply to method 'nes'"),
    (["--partition", "by_ratio:60", "--dim", "9"], "dim=9 is not supported with partition='by_ratio:60', which decides it"),
    # what does not fit the network or the data
    (["--dim", "101771"], "rbd: error: dim: got 101771, allowed 1 ... 101770"),
    (["--partition", "even:9", "--dim", "8"], "rbd: error: dim: got 8, allowed 9 ... 101770"),
    (["--method", "nes", "--epochs", "1"], "rbd: error: epochs: got 1, allowed 2 and above: nes takes 250 batches a step"),
    (["--workers", "100000"], "rbd: error: workers: got 100000, allowed 1 ..."),
    (["--batch-size", "5001"], "rbd: error: batch_size: got 5001, allowed 1 ... 5000"),
    pytest.param(["--device", "cuda"], "rbd: error: device: got 'cuda', allowed cpu",
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_bad_input_of_train_is_refused(arguments, message, here, capsys):
    assert message in refused(["train", *arguments], capsys)
    assert not [path for path in here.rglob("*") if path.is_file()]


def test_bad_input_as_typed(tmp_path):
    run = command("train", "--dim", "101771", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    limits = "at least 1 per compartment, at most 1 per parameter"
    assert run.stderr == f"rbd: error: dim: got 101771, allowed 1 ... 101770 ({limits})\n"


@pytest.mark.parametrize(("words", "rates"), [
    ("", (1, None)), ("--dim 250", (1, None)), ("--method sgd", (0.125, None)), ("--dim 101770", (0.125, None)),
    ("--dim 1017 --method fpd --data fmnist", (2.5, None)), ("--dim 1017 --method subspace-sgd --data fmnist", (2.5, None)),
    ("--dim 9332 --model cnn --data mnist", (0.0988, None)), ("--model resnet8 --data cifar10 --method sgd", (0.5, None)),
    ("--model resnet8 --data cifar10 --dim 7833", (1.58, None)), ("--dim 10177 --method sgd --switch 1", (0.125, 0.395)),
    ("--dim 10177 --switch 1", (0.395, 0.125)), ("--dim 10177 --method subspace-adam", (0.00316, None)),
    ("--dim 101770 --lr 0.5", (0.5, None)), ("--dim 20 --method nes", (319, None)),
    ("--partition by_ratio:60", (0.968, None)), ("--dim 9 --method sgd --switch 1 --then-lr 2", (0.125, 2)),
])  # fmt: skip
def test_train_without_a_rate_takes_the_papers_or_sgds_times_the_root(words, rates, here, monkeypatch):
    """√(101,770/1,017) is 10, √(93,322/9,332) = √(101,770/10,177) = 3.16."""
    seen = []
    monkeypatch.setattr(job, "run", lambda wanted, *_, **__: seen.append((wanted.lr, wanted.then_lr)))
    assert main(["train", *words.split()]) == 0 and seen == [rates]


def test_help_says_what_the_default_rates_are(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if "-lr VALUE" in line]
    assert [name for name, *_ in lines] == ["--lr", "--then-lr"]
    default = "(default: the paper's for d = 250, else SGD's rate times √(D/d))"
    assert all(text.endswith(default) for *_, text in lines)


def test_missing_data_is_named_with_the_command_that_mends_it(here, capsys):
    said = refused(["train", "--data", "mnist", "--data-dir", "empty"], capsys)
    assert "mnist: missing in empty: MNIST/raw/train-images-idx3-ubyte" in said
    assert "run `rbd data --download mnist` with RBD_DATA_DIR=empty" in said
    assert "--data mnist-embedded" in said
    assert not [path for path in here.rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", [["train"], ["reproduce"], ["sweep", "table1"], ["sweep", "--list"], ["report"],
                                   ["figures", "index"], ["dimension", "a.py:f", "--dims", "1"]], ids=" ".join)  # fmt: skip
def test_what_is_no_directory_is_refused_by_every_command(words, here, capsys):
    Path("results").write_text("mine")
    with suppress(OSError):  # Windows allows it to few
        Path("link").symlink_to("nowhere")
    places = {"results/a/b": "; results is not one", "link": "; link is not one", "": ""}
    assert "argument --results-dir: got 'results', allowed a directory; results is not one" in refused(words, capsys)
    for name, place in places.items() if Path("link").is_symlink() else ():
        said = refused([*words, "--results-dir", name], capsys)
        assert said.endswith(f"argument --results-dir: got {name!r}, allowed a directory{place}")
    assert Path("results").read_text() == "mine" and len(list(here.iterdir())) <= 2


def test_what_is_no_directory_of_data_or_scripts_is_refused(here, capsys):
    Path("file").touch()
    assert "--data-dir: got 'file', allowed a directory; file is not one" in refused(["data", "--data-dir", "file"], capsys)
    assert "--sweeps-dir: got '', allowed a directory" in refused(["sweep", "x", "--sweeps-dir", ""], capsys)


def test_damaged_record_is_named(here, capsys):
    path = Path("results/runs/train") / f"{RUN.id}.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"format": 1}')
    said = refused(SMALL, capsys)
    assert f"rbd: error: {path}: not a valid record, file not touched: record: missing 'config'" in said
    assert path.read_text() == '{"format": 1}'


def test_report_without_records_says_what_to_run(here, capsys, monkeypatch):
    said = refused(["report"], capsys)
    assert "results/runs/table1-quick: no records of table1-quick; run `rbd reproduce --profile quick`" in said
    monkeypatch.setattr(rates, "SHIPPED", here)
    assert "run `rbd sweep learning_rate --profile paper`" in refused(["report", "--profile", "paper"], capsys)
    assert list(here.iterdir()) == []


# ---------------------------------------------------------------- data


def states(text: str) -> dict[str, list[str]]:
    """data set -> states of its files, of the lines after the first."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines()[1:]:
        if line.startswith("fetch what is missing or damaged with `rbd data --download NAME`"):
            continue
        name, state, path = line.split(maxsplit=2)
        assert Path(path).exists() == (state != "missing")
        found.setdefault(name, []).append(state)
    return found


def test_data_shows_every_set_and_what_is_missing(here, capsys):
    assert main(["data", "--data-dir", str(here / "empty")]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == f"directory of the full data sets: {here / 'empty'}"
    assert states(text) == {
        "mnist": ["missing"] * 4, "fmnist": ["missing"] * 4, "cifar10": ["missing"] * 7,
        "mnist-embedded": ["ok"], "fmnist-embedded": ["ok"],
    }  # fmt: skip
    assert list(here.iterdir()) == []  # looking makes nothing


def test_data_shows_damage(here, capsys):
    path = here / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    assert main(["data", "--data-dir", str(here)]) == 0
    text = capsys.readouterr().out
    assert states(text)["mnist"] == ["damaged", "missing", "missing", "missing"]
    assert re.search(rf"^mnist +damaged +{re.escape(str(path))}$", text, re.MULTILINE)


def test_data_says_what_mends_damage_alone(here, capsys, monkeypatch):
    from rbd.suite import datasets

    monkeypatch.setattr(datasets, "status", lambda _: [datasets.FileStatus("mnist", here / "file", "damaged")])
    assert main(["data"]) == 0
    assert "fetch what is missing or damaged with `rbd data --download NAME`" in capsys.readouterr().out


def test_data_as_json(here, capsys):
    assert main(["data", "--json", "--data-dir", "empty"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["directory"] == "empty" and len(told["files"]) == 17
    first = str(Path("empty/MNIST/raw/train-images-idx3-ubyte"))
    assert told["files"][0] == {"dataset": "mnist", "path": first, "state": "missing"}


def test_data_directory_is_that_of_the_environment(here, capsys, monkeypatch):
    monkeypatch.setenv("RBD_DATA_DIR", str(here / "mine"))
    assert main(["data"]) == 0
    assert capsys.readouterr().out.startswith(f"directory of the full data sets: {here / 'mine'}\n")


def test_data_refuses_to_download_what_is_embedded(here, capsys):
    assert "invalid choice: 'mnist-embedded'" in refused(["data", "--download", "mnist-embedded"], capsys)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_nothing_is_said_about_a_reader_that_left(unbuffered, tmp_path, monkeypatch):
    """`rbd data | head -1`."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    run = command("data", "--data-dir", "empty", cwd=tmp_path, stdout=writer)
    os.close(writer)
    assert run.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_broken_pipe_to_a_worker_is_an_error_and_not_silence(tmp_path):
    script = """
import sys
from rbd.suite import cli, experiment
def fail(*_):
    raise BrokenPipeError(32, "Broken pipe")
experiment.survey = fail
sys.exit(cli.main(["sweep", "--list"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "rbd: error: [Errno 32] Broken pipe\n")


# ---------------------------------------------------------------- train


def test_train_from_end_to_end_as_typed(tmp_path):
    """One line on stdout, nothing on stderr (no terminal: no bar), one record; and the second time at once."""
    train.train(RUN, threads=1)  # compiles the kernel of the images, which would be told
    first = command(*SMALL, cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    name = f"results/runs/train/{RUN.id}.json"
    assert re.fullmatch(
        rf"{re.escape(name)}: finished after 2 epochs: \d\d\.\d\d % validation accuracy"
        r"(, cosine of update and gradient 1\.0000)?, \d+\.\d s\n", first.stdout,
    ), first.stdout  # fmt: skip
    made = record.load(tmp_path / name)
    assert (made.config, made.outcome, len(made.curve)) == (RUN, "finished", 2)
    assert made.environment["device"] == made.environment["cpu"]
    assert made.curve[-1].accuracy > 35  # %; 20 steps of SGD gave 59, chance is 10
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()] == [Path(name)]
    before = (tmp_path / name).read_bytes()
    second = command(*SMALL, cwd=tmp_path)
    again = first.stdout.replace(": finished", ": already done: finished")  # with the seconds of the first
    assert (second.returncode, second.stdout, second.stderr) == (0, again, "")
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="terminals of POSIX")
def test_bar_is_on_a_terminal_and_not_in_stdout(tmp_path):
    import fcntl
    import termios

    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows, columns; a bar needs some
    run = command(*SMALL, cwd=tmp_path, stderr=end)  # 20 states of the bar at most: they fit the terminal's 4 KiB
    os.set_blocking(terminal, False)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    os.close(end)
    assert run.returncode == 0 and run.stdout.count("\n") == 1 and "\r" not in run.stdout
    assert "fc mnist-embedded sgd seed 0" in shown and "/20" in shown


def test_train_is_the_same_in_this_process(here, few, capsys):
    arguments = ["train", "--method", "rbd", "--dim", "9", "--lr", "1", "--epochs", "1", "--threads", "1"]
    arguments += ["--results-dir", "mine"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    (path,) = Path("mine/runs/train").iterdir()
    assert first.err == "" and first.out.startswith(f"{path}: finished after 1 epoch: ")
    assert record.load(path).config == RunConfig(dim=9, lr=1.0, epochs=1)
    assert main(arguments) == 0
    assert capsys.readouterr().out == first.out.replace(": finished", ": already done: finished")
    assert not Path("results").exists()


def test_environment_tells_the_threads_that_were_asked_for(here, few):
    """For the FC net kernels take two threads, torch one; a timing can only be read with the number asked for."""
    assert main(["train", "--dim", "9", "--epochs", "1", "--threads", "2"]) == 0
    (path,) = Path("results/runs/train").iterdir()
    assert record.load(path).environment["threads"] == 2


def test_divergence_is_a_result_with_status_1(here, few, capsys):
    assert main([*SMALL[:3], "--epochs", "2", "--lr", "1e6"]) == 1
    said = capsys.readouterr()
    assert said.err == "" and "diverged after 1 epoch" in said.out
    (path,) = Path("results/runs/train").iterdir()
    kept = record.load(path)
    assert kept.outcome == "diverged" and json.loads(path.read_text())["curve"]["loss"][0] in ("nan", "inf")
    assert list(Path("results/checkpoints").iterdir()) == []
    assert main([*SMALL[:3], "--epochs", "2", "--lr", "1e6"]) == 1  # read, and said again
    assert capsys.readouterr().out == said.out.replace(": diverged", ": already done: diverged")
    assert main(["train", "--method", "rbd", "--dim", "9", "--lr", "1e30"]) == 1
    assert "diverged before the end of the first epoch" in capsys.readouterr().out


def interrupted_once(monkeypatch) -> None:
    """Ctrl-C in the second validation from now on, and never after."""
    import rbd.suite.train as loop

    real, calls = loop._count_right, []

    def count_right(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(loop, "_count_right", count_right)


def test_interrupted_train_goes_on(here, few, capsys, monkeypatch):
    arguments = ["train", "--method", "sgd", "--epochs", "3"]
    interrupted_once(monkeypatch)
    assert main(arguments) == 130
    said = capsys.readouterr()
    assert "interrupted after 1 epoch" in said.out
    assert said.err == "\nrbd: interrupted; run the same command again to continue from the last full epoch\n"
    assert main(arguments) == 0
    assert f"{RunConfig(method='sgd', epochs=3).id}.json: finished after 3 epochs" in capsys.readouterr().out  # only now
    resumed = record.load(next(Path("results/runs/train").iterdir()))
    assert main([*arguments, "--results-dir", "whole"]) == 0
    assert resumed.curve == record.load(next(Path("whole/runs/train").iterdir())).curve


# ---------------------------------------------------------------- reproduce and report


class Here(executor.Processes):
    """Workers of this process, which run at once."""

    def submit(self, *task) -> Future:
        future: Future = Future()
        future.set_result(job.attempt(*task))
        return future


TINY = """
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment

def runs(profile):
    for seed in (0, 1):
        yield RunConfig(method="sgd", epochs=2, lr={lr}, seed=seed)
    yield RunConfig(method="rbd", dim=20, distribution="rademacher", epochs=2, lr=4.0)

EXPERIMENT = Experiment("table1", "How accurate?", runs)
"""


@pytest.fixture
def tiny(monkeypatch, few, tmp_path_factory) -> Plan:
    """Three runs of a second in place of table 1, done in this process."""
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "table1.py").write_text(TINY.format(lr=0.125))
    monkeypatch.setattr(experiment, "PACKAGED", folder)
    monkeypatch.setattr(executor, "Processes", Here)
    return experiment.load("table1").plan("quick", "results")


def test_reproduce_runs_reports_and_the_second_time_only_reports(here, tiny, capsys, monkeypatch):
    assert main(["reproduce"]) == 0
    first = capsys.readouterr()
    lines = [line for line in first.out.splitlines() if ": begun; " not in line]
    assert first.err == "" and first.out.count(": begun; ") == 3
    assert lines[0] == "table1-quick: 3 runs, 3 to do, records in results/runs/table1-quick"
    for number, (line, c) in enumerate(zip(lines[1:4], tiny.configs), 1):
        assert line.startswith(f"[{number}/3] {executor.describe(c)}: finished after 2 epochs: ") and line.endswith(" left")
    assert Path("results/sweeps/table1-quick.json").read_text("utf-8") == tiny.manifest()  # what `rbd figures` asks for
    table = report.table(tiny.records("results"), "quick")
    assert table in first.out
    assert re.search(r"FC, MNIST \| quick: 5,000 images, 2 epochs .* \(n = 1\) .* ± .* \(n = 2\)", table)
    assert "missing" not in first.out
    picture = Path("results/figures/table1-quick.png")
    assert lines[-1] == f"curves: {picture}"
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")

    monkeypatch.setattr("rbd.suite.train.train", lambda *args, **kwargs: pytest.fail("it trained again"))
    began = time.perf_counter()
    assert main(["reproduce"]) == 0
    assert time.perf_counter() - began < 5  # s; reading and drawing take half a second on a quiet machine
    second = capsys.readouterr().out.splitlines()
    assert second[0] == "table1-quick: 3 runs, 0 to do, records in results/runs/table1-quick"
    assert second[1:-2] == lines[4:-1]
    assert second[-2].startswith(f"curves: {picture} ") and second[-1].endswith("--results-dir my-results")
    assert picture.read_bytes() == content


def test_reproduce_leaves_a_picture_alone_whose_runs_are_all_there(here, tiny, capsys):
    """In a clone the records and the picture are committed; `rbd report` is asked to draw it again."""
    picture = Path("results/figures/table1-quick.png")
    picture.parent.mkdir(parents=True)
    for c in tiny.configs:
        job.run(c, tiny.directory("results"), "results")
    picture.write_text("by another version of matplotlib")
    assert main(["reproduce"]) == 0 and picture.read_text() == "by another version of matplotlib"
    assert main(["report"]) == 0 and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_runs_of_ones_own_are_not_seen_by_git():
    """A single run in a clone, and the directories that README gives results, leave `git status` as it was."""
    named = set(re.findall(r"--results-dir (\S+)", (ROOT / "README.md").read_text("utf-8")))
    files = ["results/runs/train/0123456789abcdef.json", *(f"{name}/runs/x.json" for name in named | {"my-results"})]
    done = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == files, done.stderr


def test_compiling_is_told_on_stderr_when_it_happens(tmp_path, monkeypatch):
    """And only then: it takes seconds, once for each kernel and dtype on a machine."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    words = ["train", "--distribution", "rademacher", "--dim", "2", "--lr", "1", "--epochs", "1", "--batch-size", "2500"]
    told = "rbd: compiling kernels, which takes some seconds\n"
    assert [command(*words, "--seed", seed, cwd=tmp_path).stderr for seed in "01"] == [told, ""]


def test_reproduce_fills_the_gaps(here, tiny, capsys):
    assert main(["reproduce"]) == 0
    kept = {path: path.read_bytes() for path in Path("results/runs/table1-quick").iterdir()}
    gone = Path("results/runs/table1-quick") / f"{tiny.configs[1].id}.json"
    gone.unlink()
    capsys.readouterr()
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert "3 runs, 1 to do" in out and re.findall(r"^\[\d/3\]", out, re.MULTILINE) == ["[2/3]", "[2/3]"]  # begun, ended
    for path, content in kept.items():
        assert path.read_bytes() == content or path == gone
    was, now = (json.loads(content) for content in (kept[gone], gone.read_bytes()))
    assert was["curve"] == now["curve"]


def test_reproduce_interrupted_goes_on(here, tiny, capsys, monkeypatch):
    def interrupt(self, config, *task) -> Future:  # Ctrl-C in the parent, in its second run; stop ends the workers
        if config == tiny.configs[1]:
            raise KeyboardInterrupt
        return Here.submit(self, config, *task)

    monkeypatch.setattr(executor, "Processes", type("Interrupted", (Here,), {"submit": interrupt}))
    assert main(["reproduce", "--threads", str(cost.count_cores())]) == 130  # one run at a time
    said = capsys.readouterr()
    assert "run the same command again" in said.err and "curves:" not in said.out
    assert re.findall(r"^(\[\d/3\]).* (?:finished|diverged) after", said.out, re.MULTILINE) == ["[1/3]"]
    monkeypatch.setattr(executor, "Processes", Here)
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert "3 runs, 2 to do" in out
    assert re.findall(r"^(\[\d/3\]).* (?:finished|diverged) after", out, re.MULTILINE) == ["[2/3]", "[3/3]"]


def test_reproduce_goes_on_after_a_failure_and_says_so(here, tiny, capsys, monkeypatch):
    """The others are run and reported; the failed one is tried again."""
    from rbd.suite.train import train

    def fail(config, *args, **options):
        if config == tiny.configs[0]:
            raise ValueError("no such luck")
        return train(config, *args, **options)

    monkeypatch.setattr("rbd.suite.train.train", fail)
    assert main(["reproduce"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"failed: {executor.describe(tiny.configs[0])}: ValueError: no such luck (results/failures/")
    assert "**1 run is missing.**" in said.out
    monkeypatch.setattr("rbd.suite.train.train", train)
    assert main(["reproduce"]) == 0 and "3 runs, 1 to do" in capsys.readouterr().out


def test_reproduce_counts_runs_that_wait_for_a_learning_rate(here, tiny, capsys):
    """Also once all others are done: it is not complete."""
    script = experiment.PACKAGED / "table1.py"
    request = "    yield rates.tuned(method='rbd', dim=3, epochs=2)\n\nEXPERIMENT"
    script.write_text("from rbd.suite import rates\n" + script.read_text().replace("\nEXPERIMENT", request))
    for _ in range(2):
        assert main(["reproduce"]) == 1
        said = capsys.readouterr()
        assert "**1 run is missing.**" in said.out and "All runs were done before" not in said.out
        assert "no learning rate yet for 'fc mnist-embedded rbd dim=3" in said.err


def test_threads_of_reproduce_leave_cores_to_as_many_runs(monkeypatch):
    monkeypatch.setattr(cost, "count_cores", lambda: 8)
    for threads, jobs, each in ((None, 5, 1), (2, 4, 2), (8, 1, 8), (16, 1, 16)):
        crew = executor.hire(executor.Resources(threads=threads), 5)
        assert (crew.jobs, crew.threads) == (jobs, each)


@pytest.mark.parametrize("missing", [1, 3, 50])
def test_threads_of_a_run_do_not_depend_on_how_many_are_missing(missing, monkeypatch):
    """Nor on jobs and lanes: convolutions add up by thread, so a run would have other bits."""
    monkeypatch.setattr(cost, "count_cores", lambda: 8)
    for given, alone, each in (({}, False, 1), ({"jobs": 2}, False, 1), ({"threads": 2}, False, 2), ({}, True, 1),
                               ({"lanes": 3}, False, 1)):  # fmt: skip
        crew = executor.hire(executor.Resources(**given), missing, alone)
        assert crew.threads == each and 1 <= crew.jobs <= max(missing, given.get("lanes", 1))


def test_a_device_that_is_not_there_is_told_once(scripts, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["sweep", "demo", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "rbd: error: device: got 'cuda', allowed cpu (no GPU is available)"
    assert not Path("results/failures").exists()


def test_reproduce_stops_at_a_damaged_record_before_any_training(here, tiny, capsys, monkeypatch):
    monkeypatch.setattr("rbd.suite.train.train", lambda *args, **kwargs: pytest.fail("it trained"))
    path = Path("results/runs/table1-quick") / f"{tiny.configs[-1].id}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert f"{path}: not a valid record, file not touched" in refused(["reproduce"], capsys)


def test_reproduce_without_the_data_says_how_to_get_them(here, capsys, monkeypatch):
    """The profile needs the full sets: as typed for the first time on a new machine."""
    monkeypatch.setattr(rates, "SHIPPED", here)
    file = rates.path("paper", "results")
    file.parent.mkdir()
    file.write_text(json.dumps({"rates": {"fc mnist sgd": {"lr": 0.125}}}))
    assert main(["reproduce", "--profile", "paper", "--data-dir", "empty"]) == 2
    said = capsys.readouterr()
    assert said.out == "table1-paper: 3 runs, 3 to do, records in results/runs/table1-paper\n"
    assert "rbd data --download mnist" in said.err
    assert "rbd: warning: table1-paper: no learning rate yet for 'fc mnist " in said.err
    assert "'fc mnist nes dim=250 sigma=3.19', " in said.err


def test_diverged_run_is_shown_once_and_counted(here, tiny, capsys, monkeypatch):
    """SGD's record then holds a NaN, which equals nothing, and yet it is not news the second time."""
    (experiment.PACKAGED / "table1.py").write_text(TINY.format(lr=1e6))
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\[1/3\] fc mnist-embedded sgd .* seed=0: diverged after 1 epoch", out, re.MULTILINE)
    assert "(n = 2, 2 diverged)" in out
    assert main(["reproduce"]) == 0
    out = capsys.readouterr().out
    assert "3 runs, 0 to do" in out and "[1/3]" not in out


def test_report_of_a_part_says_how_much_is_missing_and_goes_between_the_marks(here, tiny, capsys):
    made = job.run(tiny.configs[0], tiny.directory("results"), "results")
    readme = Path("README.md")
    readme.write_text("# Ünïcode\n<!-- table1-quick -->\nold\n<!-- /table1-quick -->\nend\n", "utf-8")
    assert main(["report", "--into", "README.md"]) == 0
    out = capsys.readouterr().out
    assert "**2 runs are missing.**" in out and f"{looks.format_number(made.curve[-1].accuracy)} (n = 1)" in out
    text = readme.read_text("utf-8")
    assert text.startswith("# Ünïcode\n<!-- table1-quick -->\n| network") and text.endswith("<!-- /table1-quick -->\nend\n")
    assert "old" not in text and report.table([made], "quick") in text
    assert main(["report", "--into", "README.md"]) == 0
    assert readme.read_text("utf-8") == text


def test_report_as_json_has_the_numbers_of_the_table_and_draws_nothing(here, tiny, capsys):
    made = [job.run(config, tiny.directory("results"), "results") for config in tiny.configs[:2]]
    assert main(["report", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    accuracies = [r.curve[-1].accuracy for r in made]
    (cell,) = told["cells"]
    assert (told["name"], told["missing"], cell["method"], cell["runs"]) == ("table1-quick", 1, "sgd", 2)
    assert cell["mean"] == statistics.mean(accuracies) and cell["std"] == statistics.stdev(accuracies)
    assert cell["paper"] == {"mean": 98.27, "std": 0.09} and not Path("results/figures").exists()


def test_table_on_a_terminal_is_aligned_and_elsewhere_as_it_goes_into_a_file(here, tiny, capsys, monkeypatch):
    made = [job.run(config, tiny.directory("results"), "results") for config in tiny.configs]
    plain = report.table(made, "quick")
    assert main(["report"]) == 0 and plain in capsys.readouterr().out
    Path("README.md").write_text("<!-- table1-quick -->\n<!-- /table1-quick -->\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["report", "--into", "README.md"]) == 0
    aligned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    bars = [[at for at, letter in enumerate(line) if letter == "|"] for line in aligned]
    assert len(aligned) == len(plain.splitlines()) and all(places == bars[0] for places in bars)
    assert [line.replace(" ", "") for line in aligned[2:]] == [line.replace(" ", "") for line in plain.splitlines()[2:]]
    assert plain in Path("README.md").read_text("utf-8")


def test_report_tells_the_table_where_the_picture_cannot_be_drawn(here, tiny, capsys, monkeypatch):
    """A folder that cannot be written, or settings of the user that ask for what is not there."""
    made = job.run(tiny.configs[0], tiny.directory("results"), "results")
    Path("results/figures").write_text("a file")
    assert main(["report"]) == 0
    said = capsys.readouterr()
    assert report.table([made], "quick") in said.out and "curves:" not in said.out
    assert "rbd: warning: the curves could not be drawn: " in said.err and "Traceback" not in said.err
    Path("results/figures").unlink()
    matplotlib.rcParams["text.usetex"] = True  # without TeX
    assert main(["report"]) == 0
    assert "curves: results/figures/table1-quick.png" in capsys.readouterr().out and matplotlib.rcParams["text.usetex"]


def test_optimized_python_says_the_same(here):
    """Without docstrings and asserts, questions of experiments included."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["sweep", "--list"], ["--help"], ["train", "--help"]):
        commands = [[sys.executable, *optimized, "-m", "rbd", *words] for optimized in ([], ["-OO"])]
        run = partial(subprocess.run, cwd=here, env=environment, capture_output=True, text=True, timeout=120)
        plain, without = (run(command) for command in commands)
        assert (without.returncode, without.stdout, without.stderr) == (0, plain.stdout, plain.stderr)


def test_report_into_a_file_with_line_ends_of_windows(here, tiny, capsys):
    job.run(tiny.configs[0], tiny.directory("results"), "results")
    Path("README.md").write_bytes(b"one\r\n<!-- table1-quick -->\r\n<!-- /table1-quick -->\r\ntwo\r\n")
    assert main(["report", "--into", "README.md"]) == 0
    text = Path("README.md").read_bytes()
    assert text.startswith(b"one\r\n<!--") and text.endswith(b"two\r\n") and text.count(b"\n") == text.count(b"\r\n") > 6


def test_output_that_cannot_be_encoded_or_has_nowhere_to_go(here):
    """ASCII, where √ becomes a question mark, and stdout or stderr closed: no traceback, and exit status 0."""
    words = [sys.executable, "-m", "rbd", "sweep", "--list"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "?(2/(?D))" in done.stdout and "Traceback" not in done.stderr
    for closed in (">&-", "2>&-"):
        shell = f"{' '.join(words)} {closed}"
        done = subprocess.run(shell, shell=True, cwd=here, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, closed


def test_report_into_a_file_without_marks_leaves_it(here, tiny, capsys):
    job.run(tiny.configs[0], tiny.directory("results"), "results")
    Path("README.md").write_text("no marks")
    said = refused(["report", "--into", "README.md"], capsys)
    assert "<!-- table1-quick --> ... <!-- /table1-quick -->" in said and "README.md" in said
    assert Path("README.md").read_text() == "no marks"
    assert "nowhere.md" in refused(["report", "--into", "nowhere.md"], capsys)


# ---------------------------------------------------------------- sweep


HEAD = """
from rbd.suite import rates
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment
from rbd.suite.rates import tuned
"""
SCRIPTS = {
    "demo": """
def runs(profile):
    for seed in (0, 1) if profile == "quick" else ():
        yield RunConfig(method="sgd", epochs=2, batch_size=500, seed=seed)
    yield tuned(method="rbd", dim=3)

EXPERIMENT = Experiment("demo", "What?", runs)
""",
    "depth": """
def measure(profile, data_dir):
    return {"profile": profile, "depth": 7}

def cost(profile):
    return {"quick": 42, "paper": 420}[profile]

EXPERIMENT = Experiment("depth", "How deep?", measure=measure, cost=cost)
""",
}


@pytest.fixture
def scripts(here, monkeypatch) -> Path:
    """Experiments in place of those of the package."""
    folder = here / "experiments"
    folder.mkdir()
    for name, text in SCRIPTS.items():
        (folder / f"{name}.py").write_text(HEAD + text)
    monkeypatch.setattr(experiment, "PACKAGED", folder)
    return folder


def test_sweep_list_counts_what_is_done_and_missing(scripts, capsys):
    done(replace(RUN, seed=0))
    assert main(["sweep", "--list"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err == "" and (lines[0], lines[3]) == ("demo: What?", "depth: How deep?")
    waiting = r"^    quick: 3 runs, 1 done, 2 missing, about .* on \d+ cores; waiting for 1 learning rate: 1 of them$"
    assert re.search(waiting, said.out, re.MULTILINE)
    assert "    paper: 1 run, 0 done, 1 missing" in said.out
    assert lines.count("    quick: 1 measurement missing, about 42 s") == 1
    assert main(["sweep", "--list", "--profile", "paper"]) == 0
    assert "quick" not in capsys.readouterr().out
    assert sorted(p.name for p in Path("results").iterdir()) == ["runs"]  # looking makes nothing


def test_sweep_list_as_json_says_the_same(scripts, capsys):
    done(replace(RUN, seed=0))
    job.Failure(replace(RUN, seed=1), "ValueError: no").save("results")
    assert main(["sweep", "--list", "--json"]) == 0
    demo, depth = json.loads(capsys.readouterr().out)
    assert (demo["name"], demo["question"], depth["name"]) == ("demo", "What?", "depth")
    quick = demo["profiles"]["quick"]
    assert [quick[key] for key in ("runs", "done", "missing", "waiting", "failed", "damaged")] == [3, 1, 2, 1, 1, []]
    assert quick["seconds"] > 0 and demo["profiles"]["paper"]["done"] == 0
    assert depth["profiles"]["quick"] == {"measures": True, "runs": 1, "done": 0, "missing": 1, "seconds": 42}
    assert "--json: needs --list" in refused(["sweep", "demo", "--json"], capsys)


def test_sweep_list_names_what_is_damaged_and_counts_what_failed(scripts, capsys):
    path = Path("results/runs/demo-quick") / f"{replace(RUN, seed=0).id}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    job.Failure(replace(RUN, seed=1), "ValueError: no").save("results")
    assert main(["sweep", "--list", "--profile", "quick"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "3 runs" in line)
    assert "3 runs, 0 done, 3 missing" in line and "; 1 of them failed the last time" in line
    assert f"; {path}: not a valid record, file not touched" in line


def done(*configs: RunConfig) -> None:
    """Their records are there, the larger the rate the better."""
    for c in configs:
        points = (record.Point(c.epochs, 1, 1, 1, 2.0, 50.0 + c.lr, None),)
        record.save(record.Record(c, "finished", points, (1.0,), {}), "results/runs/elsewhere")


SEARCH = HEAD + """
def runs(profile):
    return [RunConfig(method="sgd", epochs=1, lr=lr, seed=100) for lr in (0.5, 0.25)]

EXPERIMENT = Experiment("learning_rate", "Which rate?", runs, conclude=rates.conclude)
"""


def test_sweep_with_other_seeds_leaves_the_choice_of_rates_alone(scripts):
    """A rate chosen on reported seeds would be chosen on what is reported."""
    (scripts / "learning_rate.py").write_text(SEARCH)
    searched = [RunConfig(method="sgd", epochs=1, lr=lr, seed=100) for lr in (0.5, 0.25)]
    done(*(replace(c, seed=0, lr=1 - c.lr) for c in searched), *(replace(c, seed=0) for c in searched))
    assert main(["sweep", "learning_rate", "--seeds", "0"]) == 0
    assert not rates.path("quick", "results").exists()
    done(*searched)
    assert main(["sweep", "learning_rate"]) == 0
    before = rates.path("quick", "results").read_bytes()
    assert json.loads(before)["rates"]["fc mnist-embedded sgd"]["lr"] == 0.5
    assert main(["sweep", "learning_rate", "--seeds", "0"]) == 0
    assert rates.path("quick", "results").read_bytes() == before


def test_sweep_all_goes_through_every_script_and_tells_all_that_failed_at_the_end(scripts, capsys):
    """The rates come first, and what follows trains at them."""
    (scripts / "learning_rate.py").write_text(SEARCH)
    (scripts / "curves.py").write_text(HEAD + 'def runs(profile):\n    raise ValueError("no such curve")\n'
                                       'EXPERIMENT = Experiment("curves", "Bad?", runs)\n')  # fmt: skip
    (scripts / "table1.py").write_text(HEAD + 'def runs(profile):\n    yield tuned(method="sgd", epochs=3)\n'
                                       'EXPERIMENT = Experiment("table1", "How good?", runs)\n')  # fmt: skip
    done(*(RunConfig(method="sgd", epochs=1, lr=lr, seed=100) for lr in (0.5, 0.25)))
    done(RunConfig(method="sgd", epochs=3, lr=0.5), replace(RUN, seed=0), replace(RUN, seed=1))
    assert main(["sweep", "all", "--profile", "quick"]) == 1
    said = capsys.readouterr()
    heads = [line.split(":")[0] for line in said.out.splitlines()]
    depth = ["depth-quick", "results/measurements/depth-quick.json"]
    assert heads == ["learning_rate-quick", "table1-quick", "demo-quick", *depth]
    assert all(", 0 to do," in line for line in said.out.splitlines()[:3])
    *_, failed, waits = said.err.splitlines()
    assert failed == "failed: curves: no such curve"
    assert waits.startswith("rbd: warning: demo-quick: no learning rate yet for 'fc mnist-embedded rbd dim=3")
    assert main(["sweep", "all", "--dry-run"]) == 1
    assert sorted(p.stem for p in Path("results/sweeps").iterdir()) == ["demo-quick", "learning_rate-quick", "table1-quick"]


def test_sweep_all_with_other_seeds_does_not_search_and_survives_a_broken_script(scripts, capsys):
    (scripts / "learning_rate.py").write_text(SEARCH)
    (scripts / "curves.py").write_text("import no_such_module\n")
    (scripts / "table1.py").write_text("def runs(profile:\n")
    (scripts / "ends.py").write_text("raise SystemExit(3)\n")
    late = "def runs(profile):\n    yield {}['lr']\nEXPERIMENT = Experiment('late', '?', runs)\n"
    (scripts / "late.py").write_text(HEAD + late)
    assert main(["sweep", "all", "--seeds", "5", "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "learning_rate-quick" not in said.out and "demo-quick" in said.out and "depth-quick" not in said.out
    problems = [line.removeprefix("failed: ") for line in said.err.splitlines() if line.startswith("failed: ")]
    assert problems[0] == f"table1: {scripts}/table1.py: SyntaxError: '(' was never closed (table1.py, line 1)"
    assert problems[1] == f"curves: {scripts}/curves.py: ModuleNotFoundError: No module named 'no_such_module'"
    assert problems[2:] == [f"ends: {scripts}/ends.py: SystemExit: 3", "late: experiment late: KeyError: 'lr'"]
    assert "rbd_experiment_ends" not in sys.modules
    assert main(["sweep", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert f"curves: {scripts}/curves.py: ModuleNotFoundError: No module named 'no_such_module'" in listed
    assert "late: experiment late: KeyError: 'lr'" in listed
    assert "name: got 'none', allowed" in refused(["sweep", "none", "--list"], capsys)
    assert main(["sweep", "demo", "--list"]) == 0 and capsys.readouterr().out.count("quick: ") == 1
    assert "seeds: depth measures" in refused(["sweep", "depth", "--seeds", "1"], capsys)
    assert "gpus: needs --ray" in refused(["sweep", "demo", "--gpus", "1"], capsys)


def test_a_script_may_define_dataclasses_under_postponed_annotations(scripts, capsys):
    """dataclass looks up sys.modules[cls.__module__]."""
    (scripts / "kept.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n" + HEAD
        + "@dataclass(frozen=True)\nclass Case:\n    lr: float\n"
        "def runs(profile):\n    yield RunConfig(method='sgd', lr=Case(0.5).lr, epochs=1)\n"
        'EXPERIMENT = Experiment("kept", "How?", runs)\n')  # fmt: skip
    assert main(["sweep", "kept", "--dry-run"]) == 0 and "kept-quick: 1 run, 1 to do" in capsys.readouterr().out


class Cluster:
    """Stands for Ray's; where everything is done, nothing is sent."""

    made: list[tuple] = []
    places = 3

    def __init__(self, *arguments) -> None:
        self.made.append(arguments)

    def submit(self, config, directory, results, wait, options):
        return executor.Processes.submit  # never called

    def is_over(self) -> bool:
        return False

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(("words", "share"), [
    ([], 0.0), (["--device", "cuda"], 0.25), (["--device", "cuda", "--gpus", "0"], 0.0), (["--gpus", "0.5"], 0.5),
    (["--gpus", "2"], 2.0),
])  # fmt: skip
def test_share_of_a_gpu(words, share, scripts, monkeypatch):
    crews = []
    monkeypatch.setattr("rbd.suite.cluster.Cluster", Cluster)
    monkeypatch.setattr(executor, "run_all", lambda *args: crews.append(args[3]) or [])
    Cluster.made.clear()
    assert main(["sweep", "demo", "--profile", "quick", "--ray", "auto", *words]) == 1  # a rate is missing
    assert Cluster.made == [("auto", 1, share)] and crews == [3]


def test_on_ray_the_data_sets_are_the_nodes_affair(scripts, monkeypatch):
    """The driver may be a laptop without them; a node that lacks them says so, in a failure."""
    (scripts / "full.py").write_text(HEAD + 'def runs(profile):\n    yield RunConfig(data="mnist", method="sgd")\n'
                                     'EXPERIMENT = Experiment("full", "Full?", runs)\n')  # fmt: skip
    monkeypatch.setattr("rbd.suite.cluster.Cluster", Cluster)
    monkeypatch.setattr(executor, "run_all", lambda *args: [])
    assert main(["sweep", "full", "--data-dir", "empty"]) == 2
    assert main(["sweep", "full", "--data-dir", "empty", "--ray", "auto"]) == 0


def test_sweep_dry_run_writes_the_list_and_runs_nothing(scripts, capsys, monkeypatch):
    monkeypatch.setattr("rbd.suite.train.train", lambda *args, **kwargs: pytest.fail("it trained"))
    assert main(["sweep", "demo", "--dry-run"]) == 1  # a rate is missing
    said = capsys.readouterr()
    first, *runs = said.out.splitlines()
    assert first == "demo-quick: 2 runs, 2 to do, records in results/runs/demo-quick"
    assert runs == [f"{replace(RUN, seed=s).id} fc mnist-embedded sgd batch_size=500 epochs=2 seed={s}" for s in (0, 1)]
    assert "no learning rate yet for 'fc mnist-embedded rbd dim=3" in said.err
    assert "run `rbd sweep learning_rate --profile quick`" in said.err
    path = Path("results/sweeps/demo-quick.json")
    before = path.read_bytes()
    assert [p for p in Path("results").rglob("*") if p.is_file()] == [path]
    assert main(["sweep", "demo", "--dry-run", "--seeds", "5", "6", "7"]) == 1
    assert "3 runs, 3 to do" in (out := capsys.readouterr().out) and "seed=7" in out
    assert path.read_bytes() == before  # the script's own runs, whatever seeds are asked for


def test_sweep_measures_once(scripts, capsys):
    path = Path("results/measurements/depth-quick.json")
    assert main(["sweep", "depth", "--dry-run"]) == 0 and f"{path}: to be measured" in capsys.readouterr().out
    assert main(["sweep", "depth"]) == 0
    assert "depth-quick: measuring, about 42 s\n" in capsys.readouterr().out
    made = json.loads(path.read_text())
    assert (made["name"], made["question"], made["values"]) == ("depth-quick", "How deep?", {"profile": "quick", "depth": 7})
    assert made["environment"]["rbd"] == rbd.__version__
    before = path.stat().st_mtime_ns
    assert main(["sweep", "depth"]) == 0 and path.stat().st_mtime_ns == before
    assert "measured before; remove the file to measure again" in capsys.readouterr().out
    assert main(["sweep", "--list"]) == 0 and "    quick: done\n" in capsys.readouterr().out
    path.unlink()
    with store.lock(store.lock_path("depth-quick", "results"), ""):
        assert f"{path}: another process is measuring it" in refused(["sweep", "depth"], capsys)


@pytest.mark.parametrize(("arguments", "message"), [
    (["nothing"], "name: got 'nothing', allowed demo, depth"),
    (["demo", "--sweeps-dir", "nowhere"], "sweeps-dir: there are no experiment scripts (*.py) in nowhere"),
    (["--list", "--sweeps-dir", "nowhere"], "sweeps-dir: there are no experiment scripts (*.py) in nowhere"),
    (["demo", "--jobs", "0"], "argument --jobs: got '0', allowed an integer 1 ... 4294967295"),
    (["demo", "--seeds", "-1"], "argument --seeds: got '-1', allowed an integer 0 ... 4294967295"),
    (["demo", "--jobs", "9" * 5000], "9', allowed an integer 1 ... 4294967295"),
    (["demo", "--profile", "big"], "invalid choice: 'big'"),
    (["demo", "--gpus", "-1"], "argument --gpus: got '-1', allowed 0 ... 1, or a whole number of GPUs"),
    (["demo", "--gpus", "nan"], "argument --gpus: got 'nan', allowed"),
    (["demo", "--gpus", "1.5"], "argument --gpus: got '1.5', allowed"),
    (["demo", "--gpus", "half"], "argument --gpus: got 'half', allowed"),
    (["--seeds", "0"], "--seeds: needs NAME, an experiment that `rbd sweep --list` names, or all"),
    (["--gpus", "0"], "--gpus: needs NAME"), (["--dry-run", "--json"], "--dry-run: needs NAME"),
    (["--device", "cuda"], "--device: needs NAME"),
])  # fmt: skip
def test_bad_input_of_sweep_is_refused(arguments, message, scripts, capsys):
    assert message in refused(["sweep", *arguments], capsys)


def test_reproduce_counts_records_of_other_sweeps(here, tiny, capsys, monkeypatch):
    """And prints each run only when it is news."""
    monkeypatch.setattr("rbd.suite.train.train", lambda *args, **kwargs: pytest.fail("it trained"))
    done(*tiny.configs)
    assert main(["reproduce"]) == 0
    assert "3 runs, 0 to do" in (out := capsys.readouterr().out) and "[1/3]" not in out
