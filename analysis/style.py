"""How figures look: print size, colour-blind safe, told apart in grey by markers and dashes; the same bytes every time."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from load import LAWS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.5  # inches: the text of a page
# Okabe and Ito's colours: black, orange, sky blue, green, blue, vermilion, purple
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"
GREY = "#777777"
LOOKS: dict[str, dict[str, Any]] = {  # method, distribution or variant -> how it is drawn, everywhere
    "sgd": dict(color=BLACK, marker="s", linestyle="--"),
    "rbd": dict(color=VERMILION, marker="o", linestyle="-"),
    "fpd": dict(color=BLUE, marker="^", linestyle="-."),
    "nes": dict(color=GREY, marker="v", linestyle=":"),
    "rbd-nes": dict(color=GREEN, marker="D", linestyle=(0, (3, 1, 1, 1, 1, 1))),
    "common": dict(color=VERMILION, marker="o", linestyle="-"),
    "bases": dict(color=BLUE, marker="^", linestyle="-."),
    "directions": dict(color=SKY, marker="v", linestyle=":"),
    "shares": dict(color=GREEN, marker="D", linestyle=(0, (3, 1, 1, 1, 1, 1))),
    "ddp": dict(color=BLACK, marker="s", linestyle="--"),
    "normal": dict(color=BLUE, marker="o", linestyle="-"),
    "uniform": dict(color=ORANGE, marker="^", linestyle="--"),
    "rademacher": dict(color=GREEN, marker="s", linestyle="-."),
    "stored fp32": dict(color=BLACK, marker="s", linestyle="--", markerfacecolor="white"),
    "stored bf16": dict(color=GREY, marker="^", linestyle=":", markerfacecolor="white"),
    "stored bits": dict(color=PURPLE, marker="D", linestyle="--", markerfacecolor="white"),
    "randn": dict(color=VERMILION, marker="v", linestyle=":", markerfacecolor="white"),
    "sklearn gaussian": dict(color=SKY, marker="<", linestyle="-.", markerfacecolor="white"),
    "sklearn sparse": dict(color=SKY, marker=">", linestyle=":", markerfacecolor="white"),
}
CYCLE = [dict(color=c, marker=m, linestyle=s) for c, m, s in zip(
    (VERMILION, BLUE, BLACK, GREEN, PURPLE, ORANGE, SKY, GREY), "o^sDv<>p",
    ("-", "-.", "--", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 1)), (0, (1, 1)), (0, (5, 5))))]  # fmt: skip
NAMES = {"sgd": "SGD", "rbd": "RBD", "fpd": "FPD", "nes": "NES", "rbd-nes": "RBD-NES", "fc": "FC", "cnn": "CNN",
         "resnet8": "ResNet-8", "resnet32": "ResNet-32", "mnist": "MNIST", "fmnist": "F-MNIST", "cifar10": "CIFAR-10",
         "ddp": "DDP (SGD)", **LAWS}  # fmt: skip
ACCURACY = "validation accuracy (%)"
RC = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "legend.handlelength": 2.6, "lines.linewidth": 1.2, "lines.markersize": 4,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "errorbar.capsize": 2,
    "figure.constrained_layout.use": True, "savefig.dpi": 200, "pdf.fonttype": 42, "axes.formatter.useoffset": False,
    "axes.titlelocation": "left",
}  # fmt: skip
BARE = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None}}  # no dates, no versions


def axes(columns: int = 1, rows: int = 1, height: float = 2.3, **options) -> tuple[Figure, list[Axes]]:
    """A figure of print size and its axes, row by row; height in inches, of a row."""
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(RC)
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, **options)
    return figure, list(grid.flat)


def look(name: str, number: int = 0) -> dict[str, Any]:
    """How something is drawn: by its name, else by its number."""
    return dict(LOOKS.get(name) or CYCLE[number % len(CYCLE)])


def label(name: str) -> str:
    """The name in print."""
    return NAMES.get(name.removesuffix("-embedded"), name)


def title(model: str, data: str) -> str:
    """ "fc", "mnist-embedded" -> "FC, MNIST"."""
    return f"{label(model)}, {label(data)}"


def series(ax: Axes, x: Sequence[float], summaries: Sequence[Any], name: str, number: int = 0, **changes) -> None:
    """Points with the intervals of stats.Summary as bars, joined by a line."""
    errors = [[max(s.value - s.low, 0) for s in summaries], [max(s.high - s.value, 0) for s in summaries]]
    errors = [[0 if e != e else e for e in side] for side in errors]  # NaN: one run, no interval
    ax.errorbar(x, [s.value for s in summaries], yerr=errors, **look(name, number) | {"label": label(name)} | changes)


def level(ax: Axes, summary: Any, name: str, **changes) -> None:
    """A line to reach, with its interval as a band."""
    looks = {k: v for k, v in look(name).items() if k != "marker"} | {"label": label(name)} | changes
    ax.axhline(summary.value, **looks)
    if summary.low == summary.low:
        ax.axhspan(summary.low, summary.high, color=looks["color"], alpha=0.15, lw=0)


def band(ax: Axes, x: Sequence[float], summaries: Sequence[Any], name: str, number: int = 0, **changes) -> None:
    """A curve, some ten markers on it, and its intervals as a band."""
    looks = look(name, number) | {"label": label(name), "markevery": max(1, len(x) // 8)} | changes
    ax.plot(x, [s.value for s in summaries], **looks)
    ax.fill_between(x, [s.low for s in summaries], [s.high for s in summaries], color=looks["color"], alpha=0.2, lw=0)


def reference(ax: Axes, x: float, value: float, std: float | None = None, label: str | None = None, **changes) -> None:
    """A value of the paper: a hollow star with its standard deviation."""
    looks = dict(marker="*", markersize=8, markerfacecolor="white", linestyle="none", color=BLACK, zorder=5, clip_on=False)
    looks |= changes
    ax.errorbar([x], [value], yerr=None if std is None else [std], label=label, **looks)  # type: ignore[arg-type]


def legend(figure: Figure, panels: Iterable[Axes], columns: int = 5) -> None:
    """One legend of everything drawn, above the panels (beside a single one), in columns that fit; equal names once."""
    panels = list(panels)
    drawn = {t: h for ax in panels for h, t in zip(*ax.get_legend_handles_labels())}
    if len(panels) == 1:
        figure.legend(drawn.values(), drawn.keys(), loc="outside right upper")
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

    Equal figures give equal bytes, on one version of matplotlib. Returns the path of the PNG.
    """
    figure.supxlabel(_wrapped(note, figure.get_figwidth()), fontsize=6, color="#444444", x=0.01, ha="left")
    for kind, metadata in BARE.items():
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=metadata)
        path = write(Path(results) / "figures" / f"{name}.{kind}", content.getvalue())
    plt.close(figure)
    return path


def _wrapped(text: str, inches: float) -> str:
    from textwrap import fill

    return "\n".join(fill(line, int(inches * 21)) for line in text.split("\n"))


def write(path: Path, content: bytes) -> Path:
    """The file, whole or not at all; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
