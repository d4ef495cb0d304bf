"""The documentation: its commands are accepted, its examples run, its links hold, and no page is too long."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from rbd.suite.cli import _parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is in the repository only")

MADE = ("results/notebooks", "_build", "_made", "command.md")  # when the site is built, see docs/make_pages.py
PAGES = sorted(path for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).as_posix().startswith(MADE))
NOTES = ROOT / "rbd" / "NOTES.md"
LINKED = [*PAGES, NOTES, ROOT / "CONTRIBUTING.md"]
UNDER_TORCHRUN = ("workers.py", "hook.py", "sharded.py", "restart.py")
SCRIPTS = {"my_experiment.py"}  # for `rbd sweep --sweeps-dir`


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def count_words(text: str) -> int:
    """Words outside of the code that a page includes, which is in other files."""
    return len(text.split())


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_page_has_no_more_than_1200_words(page):
    assert count_words(page.read_text("utf-8")) <= 1200


def test_notes_have_no_more_than_1800_words():
    assert count_words(NOTES.read_text("utf-8")) <= 1800


def slugs(text: str) -> set[str]:
    """What can stand after # in a link to a page: its headings, as MyST and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=relative)
def test_links_between_files_hold(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not relative(path).removeprefix("docs/").startswith(MADE):
            assert path.exists(), target
            assert not anchor or path.suffix != ".md" or anchor in slugs(path.read_text("utf-8")), target


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for block in re.findall(r":::\{toctree\}(.*?):::", page.read_text("utf-8"), re.DOTALL):
            listed |= {page.parent / f"{line.strip()}.md" for line in block.splitlines() if line.strip()}
    assert {relative(p) for p in PAGES} <= {relative(p) for p in listed}


# ---------------------------------------------------------------- commands


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def _commands() -> list[tuple[str, str]]:
    """(file, command line): of the shell scripts, and in backticks or indented by four spaces on the pages."""
    found = [(relative(path), line) for path in sorted((DOCS / "examples").glob("*.sh"))
             for line in _lines(path.read_text("utf-8")) if line and not line.startswith("#")]  # fmt: skip
    for page in LINKED:
        text = page.read_text("utf-8")
        shown = re.findall(r"`((?:rbd|tox|python3?|torchrun|pytest) [^`\n]+)`", text) + re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
        found += [(relative(page), line) for line in shown]
    return found


def _split(line: str) -> list[list[str]]:
    """The commands that a line joins by && or ;, without what a shell takes for itself."""
    line = re.sub(r"\s*#.*$|\s*>\s*\S+", "", line)
    parts = re.split(r"&&|;", line)
    return [shlex.split(re.sub(r"^\s*(for .* in .*|do|done)\s*", "", part)) for part in parts]


def check(arguments: list[str]) -> None:
    """Fail if a command would not be accepted: by rbd's own parser, or since tox, a module or a file lacks it."""
    name, rest = (Path(arguments[0]).name, arguments[1:]) if arguments else ("", [])
    if name == "torchrun" and "rbd" in rest:
        name, rest = "rbd", rest[rest.index("rbd") + 1 :]
    if name == "rbd" and rest and "..." not in rest:
        _accept(rest)
    elif name == "tox" and "-e" in rest:
        _check_tox(rest[rest.index("-e") + 1])
    elif name.startswith("python") and "-m" in rest:
        assert find_spec(rest[rest.index("-m") + 1].split(".")[0]) or rest[rest.index("-m") + 1] in ("venv", "sphinx")


def _accept(arguments: list[str]) -> None:
    arguments = [re.sub(r"^\$p$", "quick", a) for a in arguments]
    if {"--help", "--version"} & set(arguments):
        with pytest.raises(SystemExit) as ended:
            _parser().parse_args(arguments)
        assert ended.value.code == 0
    elif not all(a.isupper() for a in arguments[1:2]):  # as in `rbd sweep NAME`
        assert callable(_parser().parse_args(arguments).run)


def _check_tox(names: str) -> None:
    parsed = ConfigParser(interpolation=None)
    parsed.read(ROOT / "tox.ini")
    for name in names.split(","):
        assert parsed.has_section(f"testenv:{name}"), name


@pytest.mark.parametrize(("page", "line"), _commands(), ids=lambda value: value[:60])
def test_commands_are_accepted(page, line):
    for arguments in _split(line):
        check(arguments)


def test_the_check_of_commands_refuses_wrong_ones():
    for wrong in ("rbd train --dimension 3", "rbd sweeep all", "tox -e nothing", "python -m rbdd"):
        with pytest.raises((SystemExit, AssertionError)):
            check(shlex.split(wrong))


# ---------------------------------------------------------------- examples


def _run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


ALONE = sorted(p.name for p in (DOCS / "examples").glob("*.py") if p.name not in {*UNDER_TORCHRUN, *SCRIPTS})


@pytest.mark.parametrize("name", ALONE)
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(DOCS / "examples" / name))


@pytest.mark.parametrize("name", sorted(UNDER_TORCHRUN))
def test_an_example_runs_under_torchrun(name, tmp_path):
    if (path := DOCS / "examples" / name).exists():
        workers = str(UNDER_TORCHRUN[name])
        _run(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", workers, str(path)], tmp_path)


def test_every_example_stands_on_a_page():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert not [p.name for p in (DOCS / "examples").iterdir() if p.suffix in (".py", ".sh") and f"examples/{p.name}" not in text]


# ---------------------------------------------------------------- the site


def test_a_broken_link_is_found(tmp_path):
    sys.path.insert(0, str(DOCS))
    try:
        import check_links
    finally:
        sys.path.remove(str(DOCS))
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><a href="c.html">c</a><img src="https://x/y.png">', "utf-8")
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="a.html">a</a>', "utf-8")
    assert [line.split(": ")[1].split()[0] for line in check_links.problems(tmp_path)] == ["1", "loads", "b.html#there", "c.html"]
