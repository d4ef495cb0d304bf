"""Records to a table beside the paper's and a picture of the learning curves. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

from rbd.suite import paper
from rbd.suite.paper import METHODS
from rbd.suite.record import Record, final

MODELS = {"fc": "FC", "cnn": "CNN"}
DATA = {"mnist": "MNIST", "fmnist": "F-MNIST", "cifar10": "CIFAR-10"}
COLOURS = {"nes": "#777777", "fpd": "#0072b2", "rbd": "#d55e00", "sgd": "#000000"}  # Okabe and Ito: colour-blind safe
STYLES = {"nes": ":", "fpd": "-.", "rbd": "-", "sgd": "--"}


def interval(values: list[float]) -> str:
    """Mean, with the sample standard deviation where there are two values or more."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _groups(records: Iterable[Record]) -> dict[tuple[str, str], dict[str, list[Record]]]:
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for r in records:
        groups.setdefault((r.config.model, r.config.data), {}).setdefault(r.config.method, []).append(r)
    return groups


def title(model: str, data: str) -> str:
    """"fc", "mnist-embedded" -> "FC, MNIST"."""
    return f"{MODELS[model]}, {DATA[data.removesuffix('-embedded')]}"


def table(records: Iterable[Record], profile: str) -> str:
    """Markdown: our validation accuracy by network, data set and method, and the paper's below it."""
    head = ["network, data", "", *(m.upper() for m in METHODS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (model, data), by_method in _groups(records).items():
        ours = [_cell(by_method.get(m, [])) for m in METHODS]
        theirs = [str(paper.find_accuracy(model, data, m) or "") for m in METHODS]
        epochs = "/".join(map(str, sorted({r.config.epochs for rs in by_method.values() for r in rs})))
        images = "5,000 images" if data.endswith("-embedded") else "full data"
        lines.append("| " + " | ".join([title(model, data), f"{profile}: {images}, {epochs} epochs", *ours]) + " |")
        lines.append("| " + " | ".join(["", "paper: full data, 100 epochs", *theirs]) + " |")
    return "\n".join(lines)


def legend(missing: int) -> str:
    """What the numbers of the table are."""
    text = (
        "Validation accuracy, %: mean ± standard deviation of n seeds after the last epoch, d = 250, batches of 32 images, "
        "signs for entries, learning rates of our own. A run that diverged counts as chance, 10 %. "
        "NES spends d mini-batches on an update, the others one."
    )
    return text + (f" **{missing} runs are missing.**" if missing else "")


def _cell(records: list[Record]) -> str:
    if not records:
        return "–"
    diverged = sum(r.outcome == "diverged" for r in records)
    note = f", {diverged} diverged" if diverged else ""
    return f"{interval([final(r) for r in records])} (n = {len(records)}{note})"


def curves(records: Iterable[Record], path: str | os.PathLike[str], profile: str) -> Path:
    """Learning curves as a PNG: a panel per network and data set, mean and range over the seeds of each method.

    Raises:
        ValueError: there are no records.
        OSError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    groups = _groups(records)
    if not groups:
        raise ValueError("records: got none, allowed at least one")
    figure = Figure(figsize=(3.4 * len(groups), 3.2), layout="constrained")
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for ax, ((model, data), by_method) in zip(axes, groups.items()):
        for method in METHODS:
            _curve(ax, method, [r for r in by_method.get(method, []) if r.curve])
        ax.set(title=title(model, data), xlabel="epochs", ylim=(0, 100))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("validation accuracy (%)")
    drawn = {line.get_label(): line for ax in axes for line in ax.lines}
    if drawn:  # not where every run diverged at once
        axes[-1].legend(drawn.values(), drawn.keys(), frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.12))
    counts = {len(runs) for by_method in groups.values() for runs in by_method.values()}
    figure.suptitle(f"profile {profile}: mean and range of n = {'/'.join(map(str, sorted(counts)))} runs", fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def _curve(ax, method: str, records: list[Record]) -> None:
    if not records:
        return
    shortest = min(len(r.curve) for r in records)
    epochs = [p.epoch for p in records[0].curve[:shortest]]
    values = [[r.curve[i].accuracy for r in records] for i in range(shortest)]
    look = dict(color=COLOURS[method], linestyle=STYLES[method])
    ax.plot(epochs, [mean(v) for v in values], label=method.upper(), **look, marker="." if shortest == 1 else None)
    ax.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color=COLOURS[method], alpha=0.2, lw=0)


def insert(text: str, name: str, content: str) -> str:
    """text with what stands between <!-- name --> and <!-- /name --> replaced.

    Raises:
        ValueError: the two marks are not there.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"text: got no pair of marks {begin} ... {end}, allowed exactly one")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]
