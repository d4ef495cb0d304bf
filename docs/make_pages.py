"""Pages that are made when the site is built: one for each notebook of analysis/, and one with the help of the command.

Also the tables that pages include. They hold what is committed under results/ and what the parser says, so they cannot
differ from it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
from pathlib import Path
from statistics import mean

import numpy as np

from rbd.suite import config, experiment, looks, report
from rbd.suite.cli import _parser

PROFILES = {
    "-quick": "Quick profile (5,000 images, minutes)",
    "-paper": "Paper profile (all images, the paper's budget)",
    "": "Figure",
}
TABLES = {
    "claims": ("claims-short-paper", "claims-short-quick"),
    "claims-measured": ("claims-paper", "claims-quick"),
    "table1": ("table1-verdicts-paper", "table1-paper"),
    "table1-quick": ("table1-quick",),
}
# ^ a table that a page includes -> the first of these in results/tables


def write(docs: Path) -> None:
    """Write docs/results/notebooks/*.md, docs/command.md and docs/_made/*.md, where they are not there or differ."""
    root, folder = docs.parent, docs / "results" / "notebooks"
    folder.mkdir(exist_ok=True)
    (docs / "_made").mkdir(exist_ok=True)
    names = sorted(path.stem for path in (root / "analysis").glob("*.ipynb"))
    for stale in {path.stem for path in folder.glob("*.md")} - {*names, "index"}:
        (folder / f"{stale}.md").unlink()
    for name in names:
        _update(folder / f"{name}.md", page(name, root))
    _update(folder / "index.md", gallery(names, root))
    _update(docs / "command.md", command())
    _update(docs / "_made" / "rates.md", rates(root / "results"))
    for made, found in TABLES.items():
        _update(docs / "_made" / f"{made}.md", first_table(found, root / "results"))


def _update(path: Path, text: str) -> None:
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


# ---------------------------------------------------------------- notebooks


def introduction(name: str, root: Path) -> str:
    """The first cell of a notebook: its title and what it asks."""
    cells = json.loads((root / "analysis" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "markdown")).strip()


def page(name: str, root: Path) -> str:
    """Introduction, figures, evidence and tables of one notebook, in both profiles."""
    parts = [introduction(name, root)]
    for suffix, heading in PROFILES.items():
        if found := _section(name, suffix, root / "results"):
            parts += [f"## {heading}", *found]
    return "\n\n".join(parts) + "\n"


def _section(name: str, suffix: str, results: Path) -> list[str]:
    stems = [f"{name}{suffix}", *(path.stem for path in sorted((results / "figures").glob(f"{name}-*{suffix}.png")))]
    pictures = [stem for stem in dict.fromkeys(stems) if (results / "figures" / f"{stem}.png").exists()
                and (suffix or not re.search(r"-(quick|paper)$", stem))]  # fmt: skip
    parts = [f"![{_describe(stem)}](../../../results/figures/{stem}.png)" for stem in pictures]
    evidence = results / "tables" / f"{name}{suffix}.json"
    if evidence.exists():
        found = json.loads(evidence.read_text("utf-8"))
        parts = [*_answer(found), *parts, _evidence(found)]
    for table in sorted((results / "tables").glob(f"{name}*{suffix}.md")):
        if suffix or not re.search(r"-(quick|paper)$", table.stem):
            parts.append(_fold(f"Table: {table.stem}", _name_column(table.read_text("utf-8")).strip()))
    return parts


def _describe(stem: str) -> str:
    return f"Figure {stem}; its numbers are in the lists and tables below"


def _answer(found: dict) -> list[str]:
    """The question and its verdict with the number, as in results/README.md."""
    if "verdict" not in found:
        return []
    question = re.sub(r"\A(\d[\d, ]*)\. ", r"Claim \1: ", found["claim"])  # a line that begins with "3. " would be a list
    number, paper = found.get("number") or "–", found.get("paper") or ""
    told = f"; {paper}" if paper.startswith("theory") else f"; paper: {paper}" if paper else ""
    return [f"{question} **{found['verdict']}**: {number}{told}"]


def _evidence(found: dict) -> str:
    lines = "\n".join(f"- {line}" for line in found["evidence"])
    runs = f"{found['runs']} of {found['expected']} runs are there. " if "runs" in found else ""
    return _fold("The numbers behind the figure", f"{runs}Command: `{found['command']}`\n\n{lines}")


def _fold(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def gallery(names: list[str], root: Path) -> str:
    """The list of the pages, each with its first figure."""
    parts = ["# Figures and tables", "A page for each notebook in `analysis/`, drawn from the committed records."]
    for name in names:
        title = introduction(name, root).splitlines()[0].lstrip("# ")
        found = [f"{name}{s}" for s in PROFILES if (root / "results" / "figures" / f"{name}{s}.png").exists()]
        picture = f"[![{title}](../../../results/figures/{found[0]}.png)]({name}.md)" if found else ""
        parts += [f"## [{title}]({name}.md)", picture]
    listed = "\n".join(names)
    return "\n\n".join([*parts, f":::{{toctree}}\n:hidden:\n\n{listed}\n:::"]) + "\n"


def first_table(names: tuple[str, ...], results: Path) -> str:
    """The first of these tables that is there."""
    paths = [results / "tables" / f"{name}.md" for name in names]
    found = next((path.read_text("utf-8") for path in paths if path.exists()), "")
    return _name_column(found) or f"There is no table yet: `rbd figures` makes {names[0]}.\n"


def _name_column(table: str) -> str:
    """A column without a name, of table 1, gets one: a screen reader tells it."""
    return re.sub(r"\A(\|[^|\n]+\|) +\|", r"\1 runs |", table)


# ---------------------------------------------------------------- learning rates


def rates(results: Path) -> str:
    """A table of the learning rates that the searches chose for whole bases that are redrawn, beside the rule's."""
    head = "| network, data | profile | d | η searched | η by the rule | octaves off | points lost |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|"]
    for profile in ("quick", "paper"):
        found = json.loads((results / f"learning_rate-{profile}.json").read_text("utf-8"))["rates"]
        tried = _accuracies(profile, results)
        for model, data, dim, lr in sorted(_searched(found)):
            sgd, size = found.get(f"{model} {data} sgd"), config.find_size(model, data)
            if sgd:
                rule = sgd["lr"] * math.sqrt(size / dim)
                name = f"{looks.title(model, data)} | {profile} | {dim:,}"
                accuracies = tried[model, data, dim]
                lost = max(accuracies.values()) - _interpolate(rule, accuracies)
                lines.append(f"| {name} | {lr:g} | {rule:.2g} | {math.log2(lr / rule):+.1f} | {lost:.1f} |")
    return "\n".join(lines) + "\n"


def _interpolate(lr: float, tried: dict[float, float]) -> float:
    """The accuracy (%) expected at a rate, linear in log η between those tried; nan outside of them."""
    known = sorted(tried)
    accuracies = [tried[rate] for rate in known]
    return float(np.interp(math.log2(lr), np.log2(known), accuracies, left=math.nan, right=math.nan))


def _accuracies(profile: str, results: Path) -> dict[tuple[str, str, int], dict[float, float]]:
    """(model, data, d) -> rate -> mean accuracy (%) of RBD in the search, with one basis, drawn anew at every step."""
    made: dict[tuple[str, str, int], dict[float, list[float]]] = {}
    for r in experiment.load("learning_rate").plan(profile, results).records(results):
        c = r.config
        if c.method == "rbd" and (c.partition, c.redraw) == ("whole", 1):
            made.setdefault((c.model, c.data, c.dim), {}).setdefault(c.lr, []).append(report.final(r))
    return {key: {lr: mean(values) for lr, values in of.items()} for key, of in made.items()}


def _searched(found: dict) -> list[tuple[str, str, int, float]]:
    """(model, data, d, rate) of RBD with one basis for all parameters, drawn anew at every step."""
    form = re.compile(r"(\S+) (\S+) rbd dim=(\d+) partition=whole redraw=1")
    return [(m[1], m[2], int(m[3]), chosen["lr"]) for name, chosen in found.items() if (m := form.fullmatch(name))]


# ---------------------------------------------------------------- command


def command() -> str:
    """What `rbd --help` and each verb's help print."""
    parts = ["# The command `rbd`", "What `rbd --help` and the help of each command print."]
    (verbs,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name in ("", *verbs.choices):
        parts += [f"## {f'rbd {name}'.strip()}", f"```text\n{_help(name)}\n```"]
    return "\n\n".join(parts) + "\n"


def _help(name: str) -> str:
    os.environ["COLUMNS"] = "100"  # for argparse, whatever the terminal has
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        _parser().parse_args([name, "--help"] if name else ["--help"])
    return printed.getvalue().rstrip()
