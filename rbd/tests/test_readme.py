"""What README.md says can be typed, and what it shows comes from the committed records."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rbd.suite import experiment, report
from rbd.suite.cli import _parser, main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="README.md is in the repository only")


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def _commands() -> list[str]:
    indented = re.findall(r"^    (.+)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    return [part.strip() for line in indented for part in line.split("&&") if part.strip().startswith(".venv/bin/rbd")]


def test_python_blocks_run_as_they_stand():
    x, y = torch.rand(8, 1, 28, 28), torch.randint(10, (8,))
    names: dict = {"batches": [(x, y)] * 2, "g": torch.randn(101_770)}
    alone = [block for block in _blocks() if "init_process_group" not in block]
    assert len(alone) == 2
    for block in alone:
        exec(block, names)
    assert names["u"].shape == (101_770,)
    assert names["optimizer"].param_groups[0]["step"] == 2


def test_the_script_for_workers_runs_under_torchrun(tmp_path):
    (block,) = [block for block in _blocks() if "init_process_group" in block]
    ended = 'assert optimizer.param_groups[0]["step"] == 10 and not dist.is_initialized()\n'
    (tmp_path / "own.py").write_text(block + ended, "utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "own.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr


def _named_packages(text: str) -> list[str]:
    """What commands `pip install` in a text fetch by the name rbd, which at an index may be somebody else's."""
    found = re.findall(r"pip install ([^`\n]*)", text)
    return [words for words in found if re.search(r"(?<![\w./:+-])rbd(?![\w/.-])", words) and "git+" not in words]


def test_no_text_installs_a_package_called_rbd_from_an_index():
    assert _named_packages("so `pip install 'rbd[ray]'`") and _named_packages("pip install -U rbd") == ["-U rbd"]
    for harmless in ("'rbd[ray] @ git+https://host/owner/rbd'", "-e '.[suite]'", "./rbd", "git+https://host/owner/rbd"):
        assert not _named_packages(f"pip install {harmless}"), harmless
    texts = [path for folder in ("rbd", "analysis", "benchmarks", "docs") for path in (ROOT / folder).rglob("*")]
    texts = [path for path in (*texts, *ROOT.glob("*")) if path.suffix in (".py", ".md", ".ipynb", ".toml", ".ini", ".cff")]
    assert len(texts) > 50
    for path in texts:
        if "tests" not in path.parts:
            assert not _named_packages(path.read_text("utf-8")), path


@pytest.mark.parametrize("command", _commands())
def test_commands_are_accepted(command):
    arguments = shlex.split(command)[1:]
    if arguments[-1] == "--help":
        with pytest.raises(SystemExit) as ended:
            _parser().parse_args(arguments)
        assert ended.value.code == 0
    else:
        assert callable(_parser().parse_args(arguments).run)


def test_there_are_commands():
    shown = {shlex.split(command)[1] for command in _commands()}
    assert shown == {"reproduce", "report", "figures", "sweep", "train", "data"}


def test_ci_runs_the_test_command():
    (command,) = re.findall(r"^    (.*bin/tox)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_table_and_picture_are_those_of_the_records():
    table1 = experiment.load("table1").plan("quick", ROOT / "results")
    records = table1.records(ROOT / "results")
    assert len(records) == len(table1.configs)
    text = f"{report.table(records, 'quick')}\n\n{report.legend(0)}"
    readme = (ROOT / "README.md").read_text("utf-8")
    assert report.insert(readme, table1.name, text) == readme
    assert all(r.outcome == "finished" and not r.environment["dirty"] for r in records)
    assert (ROOT / "results" / "figures" / f"{table1.name}.png").stat().st_size > 10_000


def test_the_report_command_changes_nothing(tmp_path, capsys):
    shutil.copytree(ROOT / "results" / "runs", tmp_path / "results" / "runs")
    shutil.copy(ROOT / "README.md", tmp_path)
    assert main(["report", "--into", str(tmp_path / "README.md"), "--results-dir", str(tmp_path / "results")]) == 0
    assert (tmp_path / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    assert (tmp_path / "results" / "figures" / "table1-quick.png").stat().st_size > 10_000
    main(["reproduce", "--results-dir", str(tmp_path / "results")])
    assert "0 to do" in capsys.readouterr().out
