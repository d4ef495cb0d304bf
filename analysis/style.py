"""How figures look: seaborn's theme and lines at print size, intervals of stats.py; the same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import stats
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from rbd.suite import store
from rbd.suite.looks import label, look
from rbd.suite.paper import Accuracy

WIDTH, NARROW = 6.5, 4.4  # inches: the text of a page; a figure with a single panel
SMALLEST = 7  # points, at print size
ACCURACY = "validation accuracy (%)"
RC: Mapping[str, Any] = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST, "legend.fontsize": SMALLEST, "legend.frameon": False, "legend.handlelength": 2.6,
    "lines.linewidth": 1.2, "lines.markersize": 4,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "axes.formatter.useoffset": False, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": "#e4e4e4", "grid.linewidth": 0.5,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4,
    "xtick.major.size": 3, "ytick.major.size": 3, "xtick.minor.size": 1.5, "ytick.minor.size": 1.5,
    "figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.06, "savefig.dpi": 200, "pdf.fonttype": 42,
}  # fmt: skip
BARE = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None}}  # no dates, no versions
BARS = {"capsize": 2, "elinewidth": 0.8, "capthick": 0.8}


def axes(columns: int = 1, rows: int = 1, height: float = 2.3, width: float | None = None,
         **options) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """A figure of print size and its axes, row by row; inches: height of a row, width of all (NARROW for one panel)."""
    width = width or (WIDTH if columns > 1 else NARROW)
    matplotlib.rcdefaults()
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font="DejaVu Sans", rc=dict(RC))
    figure, grid = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, **options)
    return figure, list(grid.flat)


def bootstrap(values: pd.Series) -> tuple[float, float]:
    """The interval of stats.summary, for seaborn; which asks for none where there is a single run."""
    return stats.bootstrap(stats.mean, values)


def points(ax: Axes, runs: pd.DataFrame, x: str, name: str, number: int = 0, y: str = "accuracy", **changes) -> None:
    """The mean of y over the runs at every x with its bootstrap interval as a bar, joined by a line."""
    _draw(ax, runs, x, y, _look(name, number, changes), err_style="bars", err_kws=BARS)


def band(ax: Axes, curves: pd.DataFrame, x: str, name: str, number: int = 0, y: str = "accuracy", **changes) -> None:
    """A curve of means with some ten markers on it, and its bootstrap intervals as a band."""
    every = max(1, curves[x].nunique() // 8)
    _draw(ax, curves, x, y, _look(name, number, {"markevery": every} | changes), err_kws={"alpha": 0.2, "lw": 0})


def _look(name: str, number: int, changes: dict[str, Any]) -> dict[str, Any]:
    shown = look(name, number) | {"label": label(name)} | changes
    return {"markeredgecolor": shown["color"], "markeredgewidth": 0.8} | shown


def _draw(ax: Axes, data: pd.DataFrame, x: str, y: str, shown: dict[str, Any], **options) -> None:
    if ax.get_yscale() != "linear":
        raise ValueError("got a logarithmic axis, on which seaborn averages logarithms: set the scale after drawing")
    names = ax.get_xlabel(), ax.get_ylabel()
    data = data.sort_values(x, kind="stable")  # not by seaborn, which would sort by y too: a bootstrap depends on the order
    sns.lineplot(data, x=x, y=y, errorbar=bootstrap, sort=False, legend=False, ax=ax, **shown, **options)
    ax.set(xlabel=names[0], ylabel=names[1])  # seaborn names an axis by its column


def level(ax: Axes, summary: Any, name: str, **changes) -> None:
    """A line to reach, with its interval as a band."""
    shown = {k: v for k, v in look(name).items() if k != "marker"} | {"label": label(name)} | changes
    ax.axhline(summary.value, **shown)
    if summary.low == summary.low:
        ax.axhspan(summary.low, summary.high, color=shown["color"], alpha=0.15, lw=0)


def star(ax: Axes, x: float, accuracy: Accuracy, method: str, **changes) -> None:
    """A value of the paper, of the budget of the runs beside it: a hollow star with its standard deviation."""
    shown = dict(marker="*", markersize=8, markerfacecolor="white", linestyle="none", zorder=5, clip_on=False)
    shown |= {"color": look(method)["color"], "label": f"paper: {label(method)}"} | changes
    ax.errorbar([x], [accuracy.mean], yerr=[accuracy.std], **shown)  # type: ignore[arg-type]


def reference(ax: Axes, accuracy: Accuracy, method: str) -> None:
    """A value of the paper beside all settings of a panel: a dotted line over its whole width."""
    ax.axhline(accuracy.mean, color=look(method)["color"], lw=0.9, ls=":", label=f"paper: {label(method)}", zorder=1)


def span(ax: Axes, lowest: float, top: float = 100) -> None:
    """Let an axis of percentages end at the ten below the lowest value, so that no part of the panel is empty."""
    ax.set_ylim(max(0, 10 * ((lowest - 2) // 10)), top)


def legend(figure: Figure, panels: Iterable[Axes], columns: int = 5) -> None:
    """One legend of everything drawn, in columns that fit, equal names once: above the panels, or in a hidden one."""
    drawn = {t: h for ax in panels for h, t in zip(*ax.get_legend_handles_labels())}
    if hidden := [ax for ax in figure.axes if not ax.get_visible()]:
        hidden[0].set(visible=True)
        hidden[0].set_axis_off()
        hidden[0].legend(drawn.values(), drawn.keys(), loc="center")
        return
    for count in range(min(columns, len(drawn)), 0, -1):
        made = figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=count)
        if count == 1 or made.get_window_extent(figure.canvas.get_renderer()).width < figure.bbox.width:  # type: ignore[attr-defined]
            return
        made.remove()


def ticks(ax: Axes, values: Iterable[float], named: Mapping[float, str] = MappingProxyType({})) -> None:
    """Ticks of a logarithmic axis at the values that were run; some may have names instead of numbers."""
    values = sorted(set(values))
    ax.set_xticks(values, [named.get(v, f"{v:,g}") for v in values])
    ax.set_xticks([], minor=True)


def save(figure: Figure, results: str | Path, name: str, note: str) -> Path:
    """Write results/figures/<name>.pdf and .png, with the note (profile, n, what is missing) under the panels.

    Equal figures give equal bytes, on one version of matplotlib and seaborn. Returns the path of the PNG.
    """
    for ax in figure.axes:
        _label_decades(ax.xaxis, ax.set_xlim)
        _label_decades(ax.yaxis, ax.set_ylim)
    figure.supxlabel(_wrap(note, figure.get_figwidth()), fontsize=SMALLEST, color="#444444", x=0.01, ha="left")
    for kind, metadata in BARE.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=metadata)
        path = store.write(Path(results) / "figures" / f"{name}.{kind}", content.getvalue(), "a figure")
    plt.close(figure)
    return path


def _label_decades(axis: Axis, set_limits: Callable[[float, float], Any]) -> None:
    """Let a logarithmic axis span a decade or more, so that it has a label, and none in between, which would overlap."""
    if axis.get_scale() != "log":
        return
    low, high = axis.get_view_interval()
    if 0 < low < high < 10 * low:
        middle = (low * high) ** 0.5
        set_limits(middle / 10**0.5, middle * 10**0.5)
    axis.set_minor_formatter("")


def _wrap(text: str, inches: float) -> str:
    return "\n".join(fill(line, int(inches * 18.8)) for line in text.split("\n"))
