"""Tables for a page (Markdown) and a paper (LaTeX), and the evidence behind a claim (JSON), under results/tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import style
from load import Runs, command

ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$", "–": "--",
    "−": "$-$", "√": r"$\surd$", "·": r"$\cdot$", "×": r"$\times$", "≥": r"$\ge$", "…": r"\dots{}", "†": r"$^\dagger$",
    "η": r"$\eta$",
}  # fmt: skip


def number(summary: Any, unit: str = "", digits: int = 1) -> str:
    """ "80.8 ± 1.2 % (n = 3)": mean and standard deviation of the runs; "–" for none."""
    if summary is None:
        return "–"
    spread = "" if math.isnan(summary.std) else f" ± {summary.std:.{digits}f}"
    return f"{summary.value:.{digits}f}{spread}{unit} (n = {summary.n})"


def interval(summary: Any, digits: int = 1) -> str:
    """ "[79.6, 82.0]", or "no interval" where there is no second run to resample."""
    if math.isnan(summary.low):
        return "no interval"
    return f"[{summary.low:.{digits}f}, {summary.high:.{digits}f}]"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A pipe table."""
    lines = [head, ["---"] * len(head), *rows]
    table = "".join("| " + " | ".join(c.replace("|", r"\|") for c in line) + " |\n" for line in lines)
    return table + (f"\n{note}\n" if note else "")


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A tabular of the package booktabs."""
    lines = [" & ".join(map(escaped, line)) + r" \\" for line in (head, *rows)]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    begin, end = rf"\begin{{tabular}}{{{'l' * len(head)}}}", r"\end{tabular}"
    return "\n".join([begin, *body, end, *(f"% {line}" for line in note.splitlines())]) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX sets it."""
    return "".join(ESCAPES.get(c, c) for c in text)


def save(results: str | Path, name: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Path:
    """Write results/tables/<name>.md and .tex; returns the path of the Markdown."""
    folder = Path(results) / "tables"
    style.write(folder / f"{name}.tex", latex(head, rows, note).encode())
    return style.write(folder / f"{name}.md", markdown(head, rows, note).encode())


def evidence(results: str | Path, runs: Runs, claim: str, found: Sequence[str]) -> Path:
    """Write what the runs say about a claim, for the index: results/tables/<sweep>-<profile>.json."""
    content = {
        "claim": claim, "profile": runs.profile, "evidence": [*found, *([runs.gaps] if runs.gaps else [])],
        "runs": len(runs.table), "expected": runs.expected, "command": command(runs.name, runs.profile),
        "records": sorted({p.parent.as_posix() for p in runs.table.path}), "commits": runs.commits,
    }  # fmt: skip
    return write_evidence(results, f"{runs.name}-{runs.profile}", content)


def write_evidence(results: str | Path, name: str, content: dict[str, Any]) -> Path:
    """The same for what is no sweep of runs."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return style.write(Path(results) / "tables" / f"{name}.json", text.encode())
