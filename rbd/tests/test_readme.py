"""What README.md says can be typed, and what it shows comes from the committed records."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import rbd
from rbd.suite import experiment
from rbd.suite.cli import _parser, main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="README.md is in the repository only")


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def _commands() -> list[str]:
    indented = re.findall(r"^    (.+)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    return [part.strip() for line in indented for part in line.split("&&") if part.strip().startswith(".venv/bin/rbd")]


def test_the_python_block_runs_as_it_stands():
    x, y = torch.rand(8, 1, 28, 28), torch.randint(10, (8,))
    names: dict = {"batches": [(x, y)] * 2}
    (block,) = _blocks()
    exec(block, names)
    assert names["optimizer"].param_groups[0]["step"] == 2


def test_no_more_than_900_words():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split()) <= 900  # bars of tables too, but no code


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
    assert shown == {"reproduce", "report", "figures", "sweep"}


def test_changelog_and_citation_name_the_version():
    released = re.findall(r"^## \[(\d[\d.]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    cited = (ROOT / "CITATION.cff").read_text("utf-8")
    assert (rbd.__version__, *re.findall(r"^date-released: (\S+)$", cited, re.MULTILINE)) == released[0]
    assert re.findall(r"^version: (\S+)$", cited, re.MULTILINE) == [rbd.__version__]


def test_ci_runs_the_test_command():
    (command,) = re.findall(r"^    (.*bin/tox)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_the_runs_behind_table_1_are_complete_and_clean():
    table1 = experiment.load("table1").plan("quick", ROOT / "results")
    records = table1.records(ROOT / "results")
    assert len(records) == len(table1.configs)
    assert all(r.outcome == "finished" and not r.environment["dirty"] for r in records)


def test_the_report_command_changes_nothing(tmp_path, capsys):
    for name in ("runs", "tables"):
        shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name)
    shutil.copytree(ROOT / "results" / "figures", tmp_path / "results" / "figures", ignore=lambda *_: ["table1-quick.png"])
    shutil.copy(ROOT / "README.md", tmp_path)
    assert main(["report", "--into", str(tmp_path / "README.md"), "--results-dir", str(tmp_path / "results")]) == 0
    assert (tmp_path / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    assert (tmp_path / "results" / "figures" / "table1-quick.png").stat().st_size > 10_000
    main(["reproduce", "--results-dir", str(tmp_path / "results")])
    assert "0 to do" in capsys.readouterr().out
