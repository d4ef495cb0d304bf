"""Tables for a page (Markdown) and a paper (LaTeX), and the evidence behind a claim (JSON), under results/tables."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from rbd.suite import store
from rbd.suite.looks import format_number

ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$", "–": "--",
    "−": "$-$", "√": r"$\surd$", "·": r"$\cdot$", "×": r"$\times$", "≥": r"$\ge$", "…": r"\dots{}", "†": r"$^\dagger$",
    "≤": r"$\le$", "η": r"$\eta$", "✓": r"$\surd$", "◐": r"$\circ$", "✗": r"$\times$",
}  # fmt: skip


class Summary(Protocol):
    """What analysis/stats.py makes of several runs; std, low and high are NaN for a single run."""

    @property
    def value(self) -> float: ...
    @property
    def std(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...


def mean(value: float, std: float, n: int, unit: str = "", digits: int = 1, note: str = "") -> str:
    """ "80.8 ± 1.2 % (n = 3)": mean and sample standard deviation, which is NaN for one run."""
    spread = "" if math.isnan(std) else f" ± {format_number(std, digits)}"
    return f"{format_number(value, digits)}{spread}{unit} (n = {n}{note})"


def align(text: str) -> str:
    """A Markdown table whose columns stand below each other, as a terminal shows it."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    cells = [[cell.ljust(width, "-" if cell == "---" else " ") for cell, width in zip(row, widths)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def number(summary: Summary | None, unit: str = "", digits: int = 1) -> str:
    """ "80.8 ± 1.2 % (n = 3)"; "–" for none."""
    return "–" if summary is None else mean(summary.value, summary.std, summary.n, unit, digits)


def interval(summary: Summary, digits: int = 1) -> str:
    """ "[79.6, 82.0]", or "no interval" where the spread of the runs is not known."""
    if math.isnan(summary.low):
        return "no interval"
    return f"[{format_number(summary.low, digits)}, {format_number(summary.high, digits)}]"


def estimate(summary: Summary, unit: str = "", digits: int = 1) -> str:
    """ "80.8 ± 1.2 % (n = 3) [79.6, 82.0]"."""
    return _append_interval(number(summary, unit, digits), summary, digits)


def value(summary: Summary, unit: str = "", digits: int = 1, signed: bool = False) -> str:
    """ "80.8 % [79.6, 82.0]"."""
    return _append_interval(format_number(summary.value, digits, signed) + unit, summary, digits)


def points(summary: Summary, digits: int = 1) -> str:
    """ "+9.4 points [6.8, 13.4]": a difference of accuracies."""
    return value(summary, " points", digits, signed=True)


def _append_interval(text: str, summary: Summary, digits: int) -> str:
    """Also "92.3 % (n = 1), no interval"."""
    return f"{text}{',' * math.isnan(summary.low)} {interval(summary, digits)}"


def difference(summary: Summary, pairs: Sequence[tuple[Sized, Sized]], digits: int = 1) -> str:
    """ "+9.4 points [6.8, 13.4], n = 3 + 3": a difference of means, and how many runs of each are behind it."""
    first, second = (sum(map(len, side)) for side in zip(*pairs))
    return f"{points(summary, digits)}, n = {first} + {second}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A pipe table."""
    lines = [head, ["---"] * len(head), *rows]
    table = "".join("| " + " | ".join(c.replace("|", r"\|") for c in line) + " |\n" for line in lines)
    return table + (f"\n{note}\n" if note else "")


def link(text: str, path: str) -> str:
    """A link of Markdown, whose target may have no spaces or brackets."""
    return f"[{text}]({quote(path, safe='/:')})"


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A tabular of the package booktabs."""
    lines = [" & ".join(map(escape, line)) + r" \\" for line in (head, *rows)]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    begin, end = rf"\begin{{tabular}}{{{'l' * len(head)}}}", r"\end{tabular}"
    return "\n".join([begin, *body, end, *(f"% {line}" for line in note.splitlines())]) + "\n"


def escape(text: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(ESCAPES.get(c, c) for c in text)


def save(results: str | os.PathLike[str], name: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Path:
    """Write results/tables/<name>.md and .tex, the note in lines of 120 characters; returns the path of the Markdown."""
    folder = Path(results) / "tables"
    wrap = textwrap.TextWrapper(120, break_long_words=False, break_on_hyphens=False)
    note = "\n".join(wrap.fill(line) for line in note.split("\n"))
    store.write(folder / f"{name}.tex", latex(head, rows, note), "a table")
    return store.write(folder / f"{name}.md", markdown(head, rows, note), "a table")


def write_evidence(results: str | os.PathLike[str], name: str, content: dict[str, Any]) -> Path:
    """Write results/tables/<name>.json: what the runs say about a claim, for the index that rbd.suite.figures makes."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return store.write(Path(results) / "tables" / f"{name}.json", text, "evidence")
