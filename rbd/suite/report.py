"""From records, a table beside the paper's and a picture of the learning curves. No torch, pandas or seaborn."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from rbd.suite import paper, store, tables
from rbd.suite.looks import GREY, count, label, look, title
from rbd.suite.paper import METHODS
from rbd.suite.record import Record, final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 5.5, 1.9  # inches: the text of a page, a row of panels
RC: Any = {"font.family": "DejaVu Sans", "font.size": 7, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7,
      "axes.linewidth": 0.6, "lines.linewidth": 1.2, "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
BUDGET = "full data, 100 epochs"  # of the paper's table 1
DRAWN = {"table1-paper": "table1-verdicts-paper", "claims": "claims-short-paper"}  # of verdicts.ipynb
EVIDENCE = {  # what a claim is linked to, in the results directory
    "1: redraw beats fixed": "figures/table1-methods-paper.png", "2: compartments improve": "figures/compartments-paper.png",
    "3: less memory": "figures/memory.png", "3: up to 10 × faster": "figures/speed-cpu.png",
    "4: workers share seeds": "figures/workers-quick.png", "5: on all networks and data": "tables/verdicts-paper.md",
}  # fmt: skip


def _group(records: Iterable[Record]) -> dict[tuple[str, str], dict[str, list[Record]]]:
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for r in records:
        groups.setdefault((r.config.model, r.config.data), {}).setdefault(r.config.method, []).append(r)
    return groups


def table(records: Iterable[Record], profile: str) -> str:
    """Markdown: our validation accuracy by network, data set and method, and the paper's below it."""
    rows = []
    for (model, data), by_method in _group(records).items():
        ours = [_format_runs(by_method.get(m, [])) for m in METHODS]
        theirs = [str(paper.find_accuracy(model, data, m) or "") for m in METHODS]
        epochs = "/".join(map(str, sorted({r.config.epochs for rs in by_method.values() for r in rs})))
        images = "5,000 images" if data.endswith("-embedded") else "full data"
        rows.append([title(model, data), f"{profile}: {images}, {epochs} epochs", *ours])
        rows.append(["", f"paper: {BUDGET}", *theirs])
    return tables.markdown(["network, data", "", *(m.upper() for m in METHODS)], rows).removesuffix("\n")


def values(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The numbers of the table, %, a cell each: ours with runs, diverged, mean, and std, None for one run; the paper's."""
    made = []
    for (model, data), by_method in _group(records).items():
        for method, runs in by_method.items():
            results, known = [final(r) for r in runs], paper.find_accuracy(model, data, method)
            made.append({
                "model": model, "data": data, "method": method, "runs": len(runs),
                "diverged": sum(r.outcome == "diverged" for r in runs), "mean": mean(results),
                "std": stdev(results) if len(results) > 1 else None,
                "paper": {"mean": known.mean, "std": known.std} if known else None,
            })  # fmt: skip
    return made


def legend(missing: int) -> str:
    """What the numbers of the table are."""
    text = (
        "Validation accuracy, %: mean ± standard deviation of n seeds after the last epoch, d = 250, batches of 32 images, "
        "signs for entries, learning rates of our own. A run that diverged counts as chance, 10 %. "
        "NES spends d mini-batches on an update, the others one."
    )
    return text + (f" **{count(missing, 'run')} {'is' if missing == 1 else 'are'} missing.**" if missing else "")


def _format_runs(records: Sequence[Record]) -> str:
    if not records:
        return "–"
    values, diverged = [final(r) for r in records], sum(r.outcome == "diverged" for r in records)
    std = stdev(values) if len(values) > 1 else math.nan
    return tables.mean(mean(values), std, len(values), note=f", {diverged} diverged" if diverged else "")


def curves(records: Iterable[Record], path: str | os.PathLike[str], profile: str) -> Path:
    """Learning curves as a PNG: a panel per network and data set, mean and range over the seeds of each method.

    Raises:
        ValueError: there are no records.
        OSError: the picture cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = _group(records)
    if not groups:
        raise ValueError("records: got none, allowed at least one")
    columns, content = (1 if len(groups) == 1 else 2), io.BytesIO()
    rows = -(-len(groups) // columns)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nothing of the user's own settings, such as text.usetex
        matplotlib.rcParams.update(RC)
        figure = Figure(figsize=(WIDTH, HEIGHT * rows + 0.6), layout="constrained")
        axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for ax, (pair, by_method) in zip(axes, groups.items()):
            _draw_panel(ax, pair, by_method)
        for ax in axes[len(groups) :]:
            ax.set_visible(False)
        for ax in axes[::columns]:
            ax.set_ylabel("validation accuracy (%)")
        drawn = {name: line for ax in axes for line, name in zip(*ax.get_legend_handles_labels())}
        if any(line.get_marker() == "*" for ax in axes for line in ax.lines):
            star = dict(color=GREY, marker="*", markerfacecolor="white", linestyle="none")
            drawn[f"paper ({BUDGET})"] = Line2D([], [], **star)
        if drawn:  # not where every run diverged at once
            figure.legend(drawn.values(), drawn.keys(), frameon=False, loc="outside upper center", ncols=len(drawn))
        counts = sorted({len(runs) for by_method in groups.values() for runs in by_method.values()})
        runs = [r for by_method in groups.values() for group in by_method.values() for r in group]
        diverged = sum(r.outcome == "diverged" for r in runs)
        note = f"Profile {profile}: mean and range of n = {'/'.join(map(str, counts))} runs." + (
            f" {diverged} diverged: a mean ends where its first run does." if diverged else "")
        figure.supxlabel(note, fontsize=7, color="#444444", x=0.01, ha="left")
        figure.savefig(content, format="png", dpi=200, metadata={"Software": None})
    return store.write(Path(path), content.getvalue(), "a picture")


def _draw_panel(ax: Axes, pair: tuple[str, str], by_method: dict[str, list[Record]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for method in METHODS:
        _draw_curve(ax, method, [r for r in by_method.get(method, []) if r.curve])
    start, end = ax.get_xlim()
    for number, method in enumerate(METHODS):
        if (theirs := paper.find_accuracy(*pair, method)) and by_method.get(method):
            star = dict(color=look(method)["color"], marker="*", markerfacecolor="white", linestyle="none", clip_on=False)
            beside = end + (0.01 + 0.03 * (number % 2)) * (end - start)  # so that no star hides its neighbour
            ax.plot([beside], [theirs.mean], zorder=5 + number, **star)
    ax.set_title(title(*pair), loc="left")
    ax.set(xlabel="epochs", ylim=(0, 100), xlim=(None, end))
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    ax.grid(axis="y", color=GREY, alpha=0.2, lw=0.5)


def _draw_curve(ax: Axes, method: str, records: list[Record]) -> None:
    if not records:
        return
    shortest = min(len(r.curve) for r in records)
    epochs = [p.epoch for p in records[0].curve[:shortest]]
    values = [[r.curve[i].accuracy for r in records] for i in range(shortest)]
    shown = look(method) | {"marker": "." if shortest == 1 else None}
    ax.plot(epochs, [mean(v) for v in values], label=label(method), **shown)
    ax.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color=shown["color"], alpha=0.2, lw=0)


def insert(text: str, name: str, content: str) -> str:
    """text with the part between <!-- name --> and <!-- /name --> replaced; its line ends are those of the text.

    Raises:
        ValueError: the two marks are not there.
    """
    begin, end, line_end = f"<!-- {name} -->", f"<!-- /{name} -->", "\r\n" if "\r\n" in text else "\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"text: got no pair of marks {begin} ... {end}, allowed exactly one")
    lines = f"\n{content}\n".replace("\n", line_end)
    return text[: text.index(begin) + len(begin)] + lines + text[text.index(end) :]


def insert_into(path: Path, contents: Mapping[str, Callable[[], str]], blank: str = "") -> None:
    """`insert` into a file whatever it has marks for, by name; its other lines stay as they are, and a link stays a link.

    Args:
        blank: the text of a file that is not there yet; "": there has to be one.

    Raises:
        ValueError: it has no marks, or not both of a name, or is not UTF-8 (it is named). OSError: it cannot be written.
    """
    try:
        text = blank if blank and not path.exists() else path.read_bytes().decode("utf-8")
        made = text
        there = [name for name in contents if f"<!-- {name} -->" in text or f"<!-- /{name} -->" in text]
        for name in there or list(contents)[:1]:  # of none, `insert` says what is lacking
            made = insert(made, name, contents[name]())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if made != text:
        store.write(path.resolve(), made, "the page")


def read_table(name: str, results: str | os.PathLike[str]) -> str:
    """The table <results>/tables/<name>.md. Raises ValueError where there is none."""
    path = Path(results) / "tables" / f"{name}.md"
    try:
        return path.read_text("utf-8").removesuffix("\n")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such table; run `rbd figures verdicts --profile paper --allow-missing`") from error


def link_claims(table: str, results: str | os.PathLike[str], folder: Path) -> str:
    """A table whose claims are linked to their evidence, seen from a folder; those without any stay as they are."""
    for claim, name in EVIDENCE.items():
        if (path := Path(results) / name).exists():
            table = table.replace(f"| {claim} |", f"| {tables.link(claim, store.relate(path, folder))} |")
    return table
