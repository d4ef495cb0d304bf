"""rbd.suite.figures: notebooks run by the command as a user types it, and the index of the evidence."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from math import nan
from pathlib import Path

import made_up
import numpy as np
import psutil
import pytest
import stats
import style
from test_analysis import execute

from rbd.suite import figures, findings
from rbd.suite.cli import main

ROOT = figures.ANALYSIS.parent
EVIDENCE = {
    "claim": "1: redrawing",
    "profile": "quick",
    "evidence": ["RBD 80.8 % [79, 82]", "a | b"],
    "runs": 5,
    "expected": 6,
    "command": "rbd sweep table1",
    "records": ["runs/table1-quick"],
    "commits": ["0123456"],
}


def put(results: Path, name: str, **changes) -> Path:
    (results / "tables").mkdir(parents=True, exist_ok=True)
    path = results / "tables" / f"{name}.json"
    path.write_text(json.dumps(EVIDENCE | changes), "utf-8")
    return path


def test_the_command_draws_in_kernels_what_is_there_and_tells_what_failed(tmp_path, capfd):
    made_up.experiment(tmp_path, "curves")
    (tmp_path / "README.md").write_text("before\n<!-- evidence -->\nold\n<!-- /evidence -->\nafter\n")
    assert main(["figures", "redraw", "curves", "--results-dir", str(tmp_path)]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert (
        lines[0].startswith("[1/2] redraw, profile quick: FAILED: Missing: ")
        and "rbd sweep redraw --profile quick" in lines[0]
    )
    assert lines[1].startswith("[2/2] curves, profile quick: drawn (")
    assert lines[2] == f"1 drawn, 1 failed; figures and tables: {tmp_path}; index: {tmp_path / 'README.md'}"
    made = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.glob("[ft]*/*")}
    assert set(made) == {"figures/curves-quick.pdf", "figures/curves-quick.png", "tables/curves-quick.json"}
    text = (tmp_path / "README.md").read_text("utf-8")
    assert text.startswith(f"before\n<!-- evidence -->\n{findings.RULES}\n\n### Full scale")  # no claims there
    assert "\nold\n" not in text and "[details](details.md#curves-quick)" in text
    assert "- ResNet-8, CIFAR-10: RBD, d = 500, − FPD, d = 500 =" in (tmp_path / "details.md").read_text("utf-8")
    execute("curves", tmp_path)  # in this process, not in a kernel
    assert {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.glob("[ft]*/*")} == made


def test_nothing_at_all_may_be_missing_too(tmp_path, capfd):
    assert main(["figures", "redraw", "--allow-missing", "--profile", "paper", "--results-dir", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert "[1/1] redraw, profile paper: nothing to draw yet: redraw, profile paper: not a single run is there" in out
    assert "1 empty" in out and list(tmp_path.iterdir()) == []


def test_evidence_that_cannot_be_drawn_again_is_marked_until_it_is(tmp_path, capfd):
    """Its numbers are of records that are not there any more."""
    made = made_up.experiment(tmp_path, "curves")
    (tmp_path / "README.md").write_text("<!-- evidence -->\n<!-- /evidence -->\n")
    command = ["figures", "curves", "--results-dir", str(tmp_path)]
    assert main(command) == 0
    table, told = tmp_path / "tables" / "curves-quick.json", tmp_path / "details.md"
    fresh, content = table.read_bytes(), made[0].read_bytes()
    made[0].unlink()
    assert main(command) == 1
    marked = json.loads(table.read_text("utf-8"))
    assert marked == json.loads(fresh) | {"stale": True} and figures.STALE in told.read_text("utf-8")
    made[0].write_bytes(content)
    assert main(command) == 0
    assert table.read_bytes() == fresh
    assert not any("STALE" in page.read_text("utf-8") for page in (told, tmp_path / "README.md"))
    shutil.rmtree(tmp_path / "runs")
    assert main([*command, "--allow-missing"]) == 0  # nothing at all is there, which is allowed
    assert "nothing to draw yet" in capfd.readouterr().out and figures.STALE in told.read_text("utf-8")


def test_a_damaged_record_fails_though_runs_may_be_missing(tmp_path, capfd):
    damaged = made_up.experiment(tmp_path, "curves")[0]
    damaged.write_text("{")
    assert main(["figures", "curves", "--allow-missing", "--results-dir", str(tmp_path)]) == 1
    assert f"FAILED: Damaged: {damaged}: not a valid record, file not touched" in capfd.readouterr().out
    assert damaged.read_text() == "{"


@pytest.mark.parametrize("change", [
    {"claim": None}, {"verdict": ["yes"]}, {"number": 3}, {"evidence": "text"}, {"evidence": [1]}, {"records": None},
    {"commits": 1}, {"runs": "5"}, {"expected": None}, {"stale": "no"},
], ids=str)  # fmt: skip
def test_evidence_of_other_types_is_named(change, tmp_path):
    path = put(tmp_path, "redraw-quick", **change)
    ((name, got),) = change.items()
    said = re.escape(f"{path}: not the evidence of a notebook: ")
    with pytest.raises(ValueError, match=f"^{said}{name}: got {re.escape(repr(got))}, allowed "):
        figures.index(tmp_path, ["redraw"])
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"^{said}"):
        figures.index(tmp_path, ["redraw"])


@pytest.mark.parametrize(("text", "given"), [("{", []), ("[]", ["--allow-missing"])])
def test_damaged_evidence_is_a_failure_of_its_notebook_alone(text, given, tmp_path, capfd):
    """It cannot be marked as stale; the others are drawn, and the index, which needs it, names it at the end."""
    damaged = put(tmp_path, "redraw-quick")
    damaged.write_text(text)
    assert main(["figures", "redraw", "schematic", *given, "--results-dir", str(tmp_path)]) == 2
    said = capfd.readouterr()
    first, second = said.out.splitlines()
    assert first.startswith("[1/2] redraw, profile quick: FAILED: ") and "`rbd sweep redraw --profile quick`" in first
    assert f"; {damaged}: not the evidence of a notebook: " in first and second.startswith("[2/2] schematic")
    assert f"{damaged}: not the evidence of a notebook: " in said.err and damaged.read_text() == text


def wait_for(reached: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.02)


def has_reader(fifo: Path) -> bool:
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("names", "place"), [
    (["curves"], "start"), (["curves"], "cell"), (["schematic", "curves"], "cell"),
])  # fmt: skip
@pytest.mark.parametrize(("number", "status", "word"), [
    (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"),
])  # fmt: skip
def test_interrupted_it_says_so_and_leaves_no_kernel(number, status, word, names, place, tmp_path):
    """While a kernel starts, and in a cell (which reads a record that never comes); in a later notebook, too."""
    fifo = made_up.experiment(tmp_path, "curves")[0]
    evidence = put(tmp_path, "curves-quick")
    fifo.unlink()
    os.mkfifo(fifo)
    words = [sys.executable, "-m", "rbd", "figures", *names, "--results-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = psutil.Process(run.pid)
    wait_for((lambda: has_reader(fifo)) if place == "cell" else (lambda: bool(process.children())))
    assert json.loads(evidence.read_text("utf-8"))["stale"]  # already, as nothing may come after a signal
    kernels = process.children(recursive=True)
    run.send_signal(number)
    said = run.communicate(timeout=60)
    assert (run.returncode, said[1]) == (status, f"\nrbd: {word}\n")
    assert "| STALE: " in (tmp_path / "README.md").read_text("utf-8")
    assert kernels and not any(kernel.is_running() for kernel in kernels)


def test_a_notebook_without_parameters_is_told_about(tmp_path):
    source = json.loads((figures.ANALYSIS / "schematic.ipynb").read_text("utf-8"))
    for cell in source["cells"]:
        cell["metadata"] = {}
    (tmp_path / "bare.ipynb").write_text(json.dumps(source), "utf-8")
    drawn = figures.draw("bare", "quick", tmp_path, analysis=tmp_path)
    assert (drawn.state, "0 cells tagged 'parameters', allowed exactly one" in drawn.message) == ("failed", True)


def test_unknown_names_and_profiles(capsys):
    assert main(["figures", "table1", "nothing"]) == 2
    assert "NAME: got 'nothing', allowed as_released, augmentation, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["figures", "--profile", "huge"])


def test_all_notebooks_are_the_default():
    assert figures.choose([]) == figures.list_notebooks() == sorted(p.stem for p in (ROOT / "analysis").glob("*.ipynb"))
    assert figures.choose(["table1", "curves", "table1"]) == ["table1", "curves"] and figures.choose(["index"]) == []


def test_what_is_not_installed_is_said(monkeypatch, capsys):
    real = figures.find_spec
    monkeypatch.setattr(figures, "find_spec", lambda name: None if name in ("nbclient", "pandas") else real(name))
    assert main(["figures", "table1"]) == 2
    assert "notebooks need nbclient, pandas: run `pip install -e .[suite]` in the clone" in capsys.readouterr().err


def test_outside_a_clone(tmp_path):
    with pytest.raises(ValueError, match="no notebooks; a clone of the repository has them"):
        figures.list_notebooks(tmp_path)


def test_index_by_hand(tmp_path):
    put(tmp_path, "table1-quick", verdict="seen at small scale", number="+9.4 points [6.8, 13.4], n = 3 + 3", paper="+8")
    asv = dict(claim="3. Is it faster?", profile="–", command="tox -e bench", records=["asv/m"], verdict="reproduced")
    path = put(tmp_path, "speed", **asv)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text("utf-8")).items() if k != "runs"}), "utf-8")
    (tmp_path / "figures").mkdir()
    for name in ("table1-quick", "table1-methods-quick", "table1-paper", "table12-quick"):
        (tmp_path / "figures" / f"{name}.png").touch()
    (tmp_path / "tables" / "table1-quick.md").touch()
    made = figures.index(tmp_path, ["speed", "table1", "schematic"])
    head = ["| question | verdict | our number | paper | see | command |", "| --- | --- | --- | --- | --- | --- |"]
    assert made.removeprefix(findings.RULES + "\n\n").splitlines() == [
        "### Full scale: profile paper, full data",
        "",
        *head,
        "| 1: redrawing | not run | – | – | – | `rbd sweep table1 --profile paper` |",
        "",
        "### Small scale: profile quick, 5,000 images, 5 to 20 epochs",
        "",
        *head,
        "| 1: redrawing | seen at small scale (5 of 6 runs) | +9.4 points [6.8, 13.4], n = 3 + 3 | +8 | "
        "[figure](figures/table1-quick.png), [figure: methods](figures/table1-methods-quick.png), "
        "[table](tables/table1-quick.md), [details](details.md#table1-quick) | `rbd sweep table1` |",
        "",
        "### Time and memory, without training",
        "",
        *head,
        "| 3. Is it faster? | reproduced | – | – | [details](details.md#speed) | `tox -e bench` |",
    ]
    assert figures.details(tmp_path).removeprefix(figures.ABOVE_DETAILS + "\n\n").splitlines() == [
        "## table1-quick",
        "",
        "1: redrawing (5 of 6 runs)",
        "",
        "![table1-quick](figures/table1-quick.png)",
        "",
        "![table1-methods-quick](figures/table1-methods-quick.png)",
        "",
        "- RBD 80.8 % [79, 82]",
        "- a | b",
        "",
        "Command: `rbd sweep table1`. Records: [runs/table1-quick](runs/table1-quick). Commits: 0123456.",
        "",
        "## speed",
        "",
        "3. Is it faster?",
        "",
        "- RBD 80.8 % [79, 82]",
        "- a | b",
        "",
        "Command: `tox -e bench`. Records: [asv/m](asv/m). Commits: 0123456.",
    ]


def test_the_claims_of_the_paper_open_the_index(tmp_path):
    """Their rules first; from full-scale runs where there is such a table; the notebook behind it has no row of its own."""
    put(tmp_path, "verdicts-quick", claim="the claims")
    (tmp_path / "tables" / "claims-quick.md").write_text("| claim |\n\nthe rule\n", "utf-8")
    made = figures.index(tmp_path, ["verdicts"])
    assert made.startswith("### The paper's claims\n\nthe rule\n\n| claim |\n\n`rbd figures`")
    assert "| the claims |" not in made and "verdicts-paper" not in made
    assert "## verdicts-quick\n\nthe claims" in figures.details(tmp_path)
    (tmp_path / "tables" / "claims-paper.md").write_text("| claim at full scale |\n", "utf-8")
    assert figures.index(tmp_path, []).startswith("### The paper's claims\n\n| claim at full scale |\n\n`rbd")


def test_questions_without_an_answer_come_last(tmp_path):
    put(tmp_path, "curves-quick", claim="1. Does it?", verdict="not run")
    put(tmp_path, "nes-quick", claim="2. Does that?", verdict="RBD higher")
    asked = [row[0] for row in cells(figures.index(tmp_path, []))]
    assert asked[2:] == ["2. Does that?", "1. Does it?"]


def test_evidence_of_before_there_were_verdicts_is_still_read(tmp_path):
    put(tmp_path, "table1-quick", runs=6)
    row = "| 1: redrawing | – | – | – | [details](details.md#table1-quick) | `rbd sweep table1` |"
    assert figures.index(tmp_path, []).endswith(f"\n{row}")


def test_a_notebook_that_never_ran_is_asked_by_its_heading(tmp_path):
    row = "| From RBD to FPD | not run | – | – | – | `rbd sweep redraw --profile paper` |"
    assert row in figures.index(tmp_path, ["redraw"])
    put(tmp_path, "redraw-quick", claim="1. How often?")
    assert row.replace("From RBD to FPD", "1. How often?") in figures.index(tmp_path, ["redraw"])


def cells(text: str) -> list[list[str]]:
    """The cells of every table, as they are shown: links without their targets."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return [[re.sub(r"\]\([^)]*\)", "]", cell).strip() for cell in row] for row in rows]


def test_the_committed_results_are_read_at_a_glance():
    """A cell holds one number or one short phrase, a verdict is one of the rules, and a question is no answer."""
    text = (ROOT / "results" / "README.md").read_text("utf-8")
    assert [cell for row in cells(text) for cell in row if len(cell) > 120] == []
    index = text[text.index("### Full scale") : text.index("<!-- /evidence -->")]
    rows = [row for row in cells(index) if row[0] not in ("question", "---")]
    assert len(rows) > 20
    for question, verdict, number, *_ in rows:
        assert any(word in verdict for word in findings.VERDICTS), (question, verdict)
        assert question.endswith("?") or findings.NOT_RUN in verdict, question  # else the heading of the notebook
        assert number == "–" or re.search(r"n = |\bof \d", number), number
        assert number != "–" or findings.NOT_RUN in verdict, question


NUMBER = r"([+−-]?\d+(?:\.\d+)?)"
SPREADS = re.compile(rf"{NUMBER} ± {NUMBER}")
INTERVALS = re.compile(rf"{NUMBER} (?:points? )?\[{NUMBER}, {NUMBER}\]")


def read_numbers(pattern: re.Pattern, text: str) -> list[tuple[float, ...]]:
    return [tuple(float(n.replace("−", "-")) for n in found) for found in pattern.findall(" ".join(text.split()))]


@pytest.mark.parametrize("pattern", [SPREADS, INTERVALS])
def test_numbers_of_the_findings_stand_in_the_tables(pattern):
    """Findings are written by hand: every mean with a deviation or an interval is one that a notebook computed.

    Up to the digits shown, and up to the sign where a loss is told.
    """
    readme = (ROOT / "results" / "README.md").read_text("utf-8")
    computed, findings = readme.split("\n## Findings")
    findings = findings.split("\n## About the records")[0]
    tables = [path.read_text("utf-8") for path in sorted((ROOT / "results" / "tables").glob("*.*")) if path.suffix != ".tex"]
    known = np.array(read_numbers(pattern, " ".join([computed, *tables])))
    told = read_numbers(pattern, findings)
    assert len(told) > 10
    for values in told:
        same, turned = np.array(values), np.array([-values[0], *(-v for v in values[:0:-1])])
        near = np.abs(known - same).max(1).min(), np.abs(known - turned).max(1).min()
        assert min(near) <= 0.051, f"{values}: not in the tables"


def test_the_index_is_written_between_its_marks_alone(tmp_path):
    put(tmp_path, "table1-quick")
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- evidence -->\n<!-- /evidence -->\nb\n")
    figures.write_index(tmp_path, ["table1"])
    once = readme.read_text("utf-8")
    assert once.startswith("a\n<!-- evidence -->\n`rbd figures`") and once.endswith("<!-- /evidence -->\nb\n")
    figures.write_index(tmp_path, ["table1"])
    assert readme.read_text("utf-8") == once
    readme.write_text("no marks")
    with pytest.raises(ValueError, match=r"README\.md: text: got no pair of marks <!-- evidence -->"):
        figures.write_index(tmp_path, ["table1"])


def test_the_index_keeps_the_line_ends_of_windows(tmp_path):
    put(tmp_path, "table1-quick")
    (tmp_path / "README.md").write_bytes(b"a\r\n<!-- evidence -->\r\n<!-- /evidence -->\r\nb\r\n")
    content = figures.write_index(tmp_path, ["table1"]).read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n") > 10 and content.endswith(b"<!-- /evidence -->\r\nb\r\n")


def test_a_new_results_directory_gets_an_index(tmp_path):
    assert figures.write_index(tmp_path, ["table1"]) is None and not list(tmp_path.iterdir())
    put(tmp_path, "table1-quick")
    text = figures.write_index(tmp_path, ["table1"]).read_text("utf-8")
    assert text.startswith("# Results\n\n<!-- evidence -->\n`rbd figures`") and text.endswith("<!-- /evidence -->\n")


# ---------------------------------------------------------------- verdicts


def summary(value: float, low: float = nan, high: float = nan, std: float = nan) -> stats.Summary:
    return stats.Summary(value, low, high, 3, std)


LEAD, NO_LEAD, ALONE = summary(14, 12, 16), summary(0.5, -1, 2), summary(9.0)


@pytest.mark.parametrize(("gaps", "verdict", "small"), [
    ([LEAD, ALONE], "reproduced", "seen at small scale"),
    ([LEAD, NO_LEAD], "partly reproduced", "partly seen at small scale"),
    ([NO_LEAD, summary(1.5)], "not reproduced", "not seen at small scale"),
    ([], "not run", "not run"),
])  # fmt: skip
def test_verdicts_on_leads(gaps, verdict, small):
    assert findings.judge_leads(gaps, "paper") == verdict and findings.judge_leads(gaps, "quick") == small


@pytest.mark.parametrize(("described", "bare", "verdict"), [
    ([True, True], [False, False], "reproduced"), ([False, False], [True, True], "reproduced without augmentation"),
    ([True, False], [False, True], "partly reproduced"), ([False], [False], "not reproduced"), ([], [], "not run"),
    ([False, False], [], "not reproduced"), ([True, False], [], "partly reproduced"),
])  # fmt: skip
def test_verdicts_on_numbers(described, bare, verdict):
    assert findings.judge_numbers(described, bare) == verdict


@pytest.mark.parametrize(("s", "verdict"), [
    (LEAD, "RBD higher"), (summary(-3, -5, -1), "RBD lower"), (NO_LEAD, "no difference seen"), (ALONE, "too few runs"),
    (None, "not run"),
])  # fmt: skip
def test_verdicts_on_comparisons(s, verdict):
    assert findings.judge_difference(s, "RBD") == verdict


@pytest.mark.parametrize(("ratios", "verdict"), [
    ([summary(1.04, 1.03, 1.05), summary(0.8, 0.6, 1.01)], "agrees with theory"),
    ([summary(1.0, 0.9, 1.1), summary(0.8, 0.7, 0.9)], "agrees in part with theory"),
    ([summary(0.8, 0.7, 0.9)], "differs from theory"), ([], "not run"),
])  # fmt: skip
def test_verdicts_on_theories(ratios, verdict):
    assert findings.judge_theory(ratios) == verdict


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"claim": "x"}'])
def test_damaged_evidence_is_named(tmp_path, text):
    put(tmp_path, "table1-quick").write_text(text)
    with pytest.raises(ValueError, match=r"table1-quick\.json: not the evidence of a notebook"):
        figures.index(tmp_path, ["table1"])


def test_the_command_draws_the_committed_records_in_both_profiles(tmp_path, capfd):
    """The two cheapest notebooks of runs; all of them, without kernels, below."""
    for folder in ("runs", "sweeps"):
        shutil.copytree(ROOT / "results" / folder, tmp_path / folder)
    for profile in ("quick", "paper"):
        given = ["--allow-missing", "--profile", profile, "--results-dir", str(tmp_path)]
        assert main(["figures", "nes", "table1", *given]) == 0
        drawn = f"[2/2] table1, profile {profile}: drawn (" in capfd.readouterr().out
        assert drawn or profile == "paper"  # of which nothing may be there yet
        assert (tmp_path / "figures" / f"table1-methods-{profile}.png").exists() == drawn


def test_the_committed_index_and_tables_are_those_of_the_committed_records(tmp_path, monkeypatch):
    """The bytes of figures depend on matplotlib's version; tables and evidence do not. So no figure is written."""
    monkeypatch.setattr(style, "save", lambda figure, *_: style.plt.close(figure))
    committed = ROOT / "results"
    readme = (committed / "README.md").read_text("utf-8")
    index = figures.index(committed, figures.list_notebooks())
    assert index in readme and index.count("\n") > 2
    assert figures.details(committed) == (committed / "details.md").read_text("utf-8")
    for folder in ("runs", "sweeps", "measurements", "asv"):
        if (committed / folder).exists():
            shutil.copytree(committed / folder, tmp_path / folder)
    evidence = sorted((committed / "tables").glob("*.json"))
    assert evidence
    drawn = set()
    for name, profile in product(figures.list_notebooks(), ("quick", "paper")):
        try:
            execute(name, tmp_path, profile, allow_missing=True)
            drawn.add(figures.name_files(name, profile))
        except ValueError as error:
            assert type(error).__name__ == "Nothing", (name, profile, error)
    assert drawn >= {path.stem for path in evidence} | {"schematic"}
    for path in sorted((committed / "tables").glob("*.*")):
        assert (tmp_path / "tables" / path.name).read_text("utf-8") == path.read_text("utf-8"), path.name
