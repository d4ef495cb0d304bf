"""The documentation: its commands are accepted, its examples run, its links hold, and no page is too long."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from rbd.suite.cli import _parser, main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is in the repository only")

MADE = ("results/notebooks", "_build", "_made", "command.md")  # when the site is built, see docs/make_pages.py
PAGES = sorted(path for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).as_posix().startswith(MADE))
NOTES = ROOT / "rbd" / "NOTES.md"
LINKED = [*PAGES, NOTES, ROOT / "CONTRIBUTING.md"] if DOCS.is_dir() else []
AMONG_WORKERS = ("hook.py", "restart.py", "sharded.py")
UNDER_TORCHRUN = "workers.py"
SCRIPTS = {"my_experiment.py"}  # for `rbd sweep --sweeps-dir`
ELSEWHERE = {"finetune.py", "mezo.py"}  # run by test_subspace.py


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_page_has_no_more_than_1200_words(page):
    assert len(page.read_text("utf-8").split()) <= 1200


def test_notes_have_no_more_than_1800_words():
    assert len(NOTES.read_text("utf-8").split()) <= 1800


def slugs(text: str) -> set[str]:
    """What can stand after # in a link to a page: its headings, as MyST and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


WITH_COMMANDS = [*LINKED, *(ROOT / name for name in ("README.md", "benchmarks/README.md", "results/README.md"))]


@pytest.mark.parametrize("page", WITH_COMMANDS if LINKED else [], ids=relative)
def test_every_line_of_an_indented_block_is_a_command(page):
    """Wrapped as prose, commands run into each other."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE):
        command = re.sub(r"^([A-Z_]+=\S+ )+", "", line)
        assert re.match(r"(\S*/)?(python3?|rbd|tox|git|export|benchmarks/\w+)\b", command), line


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
        shown = re.findall(r"`((?:rbd|tox|python3?|torchrun|pytest) [^`\n]+)`", text)
        shown += re.findall(r"^ {4}(\S.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
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
    arguments = ["quick" if a == "$p" else a for a in arguments]
    if any(a.isupper() for a in arguments):  # a name to be filled in, as in `rbd sweep NAME`
        return
    if {"--help", "--version"} & set(arguments):
        with pytest.raises(SystemExit) as ended:
            _parser().parse_args(arguments)
        assert ended.value.code == 0
    else:
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

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ALONE = sorted(p.name for p in (DOCS / "examples").glob("*.py")
               if p.name not in {*AMONG_WORKERS, UNDER_TORCHRUN, *SCRIPTS, *ELSEWHERE})  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(DOCS / "examples" / name), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", AMONG_WORKERS)
def test_an_example_runs_among_two_workers(name, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    places = [{**ENVIRONMENT, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]  # as torchrun does
    command = [sys.executable, str(DOCS / "examples" / name)]
    workers = [subprocess.Popen(command, cwd=tmp_path, env=place, stderr=subprocess.PIPE, text=True) for place in places]
    try:
        told = [worker.communicate(timeout=200)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], told


def test_the_example_of_workers_runs_under_torchrun(tmp_path):
    command = shlex.split((DOCS / "examples" / "workers.sh").read_text("utf-8").splitlines()[0])
    assert command[-2:] == ["4", UNDER_TORCHRUN]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *command[1:-2], "2", str(DOCS / "examples" / UNDER_TORCHRUN)]
    done = subprocess.run(torchrun, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_the_experiment_of_the_page_is_planned(tmp_path, monkeypatch, capsys):
    shutil.copy(DOCS / "examples" / "my_experiment.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    first = (DOCS / "examples" / "my_experiment.sh").read_text("utf-8").splitlines()[0]
    assert main(shlex.split(first)[1:]) == 0
    assert "6 to do" in capsys.readouterr().out


def test_every_example_stands_on_a_page():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    examples = [p.name for p in (DOCS / "examples").iterdir() if p.suffix in (".py", ".sh")]
    assert not [name for name in examples if f"examples/{name}" not in text]


def test_every_part_of_an_example_that_a_page_shows_is_there():
    """Sphinx says so too, but only when the site is built."""
    for page in PAGES:
        for name, options in re.findall(r"```\{literalinclude\} (\S+)\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            text = (page.parent / name).read_text("utf-8")
            for mark in re.findall(r"^:(?:start-after|start-at|end-before|end-at): (.+)$", options, re.MULTILINE):
                assert mark.strip('"') in text, (relative(page), mark)


# ---------------------------------------------------------------- the site


@pytest.fixture
def from_docs(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))


def test_a_broken_link_is_found(from_docs, tmp_path):
    import check_links

    first = '<a href="b.html#there">b</a><a href="c.html">c</a><img src="https://x/y.png">'
    (tmp_path / "a.html").write_text(first, "utf-8")
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="a.html">a</a><a href="#here">here</a>', "utf-8")
    assert [re.sub(r"^a.html: ", "", line) for line in check_links.problems(tmp_path)] == [
        "1 pictures without a description", "loads https://x/y.png from the network",
        "b.html#there has no such place in the page", "c.html is not there",
    ]  # fmt: skip


def test_every_notebook_and_rate_has_its_place(from_docs):
    import make_pages

    for path in (ROOT / "analysis").glob("*.ipynb"):
        page = make_pages.page(path.stem, ROOT)
        assert page.startswith("# ")
        for picture in re.findall(r"!\[.+\]\(\.\./\.\./\.\./(.+)\)", page):
            assert (ROOT / picture).is_file()
    assert re.search(r"^Claim 3: .+\? \*\*reproduced\*\*: at d = 1,000", make_pages.page("memory", ROOT), re.MULTILINE)
    assert "| FC, MNIST | quick | 250 |" in make_pages.rates(ROOT / "results")
    assert "rbd sweep" in make_pages.command()
