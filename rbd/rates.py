"""Learning rates: chosen by a sweep, kept as data in <results>/learning_rate-<profile>.json, looked up by other sweeps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from rbd import record
from rbd.config import RunConfig
from rbd.record import Record
from rbd.report import final

SHIPPED = Path(__file__).parent / "embedded"  # copies for a package without a results directory
SCALE = ("model", "data", "method", "dim", "partition", "redraw")  # what the best rate depends on


def key(config: RunConfig) -> str:
    """The runs that share a rate: "fc mnist rbd dim=250 partition=whole redraw=1"; the law of the entries is not in it."""
    values = {name: getattr(config, name) for name in SCALE}
    named = [f"{name}={values[name]}" for name in SCALE[3:] if values[name] is not None]
    return " ".join([*(values[name] for name in SCALE[:3]), *named])


def choose(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """The rate with the highest validation accuracy, mean over the seeds, for each key; the smaller one of equals.

    Returns:
        key -> lr, accuracy (%), n (seeds), at_edge (whether no larger, or no smaller, rate was tried).
    """
    tried: dict[str, dict[float, list[float]]] = {}
    for r in records:
        assert r.config.lr is not None
        tried.setdefault(key(r.config), {}).setdefault(r.config.lr, []).append(final(r))
    return {name: _best(accuracies) for name, accuracies in sorted(tried.items())}


def _best(tried: dict[float, list[float]]) -> dict[str, Any]:
    lr = max(sorted(tried), key=lambda rate: mean(tried[rate]))
    return {"lr": lr, "accuracy": round(mean(tried[lr]), 3), "n": len(tried[lr]), "at_edge": lr in (min(tried), max(tried))}


def path(profile: str, results: str | os.PathLike[str]) -> Path:
    """The file of the chosen rates."""
    return Path(results) / f"learning_rate-{profile}.json"


def conclude(
    profile: str, configs: Iterable[RunConfig], records: Iterable[Record], results: str | os.PathLike[str]
) -> list[str]:
    """Write the choice for every key whose runs have all ended.

    Returns:
        Warnings, a line each: keys that wait for runs, and those whose best rate lies at the edge of the grid.
    """
    ended = {r.config.id: r for r in records}
    waiting = {key(c) for c in configs if c.id not in ended}
    chosen = choose(r for r in ended.values() if key(r.config) not in waiting)
    record.write(path(profile, results), json.dumps({"profile": profile, "rates": chosen}, indent=1, sort_keys=True) + "\n")
    edges = [f"{name}: the best rate, {c['lr']:g}, is at the edge of the grid" for name, c in chosen.items() if c["at_edge"]]
    return [f"{name}: not chosen yet, runs are missing" for name in sorted(waiting)] + edges


@dataclass(frozen=True)
class Tuned:
    """Makes configurations with the chosen rates of a profile; others are noted in `waiting`, at default rates."""

    profile: str
    rates: dict[str, float]
    waiting: list[RunConfig] = field(default_factory=list)

    def __call__(self, **fields: Any) -> RunConfig | None:
        """RunConfig(**fields) with the chosen lr, or None where none has been chosen yet."""
        config = RunConfig(**fields)
        if (name := key(config)) not in self.rates:
            self.waiting.append(config)
            return None
        return replace(config, lr=self.rates[name])


def load(profile: str, results: str | os.PathLike[str]) -> Tuned:
    """The rates in the results directory, else those that came with the package, else none.

    Raises:
        ValueError: the file is damaged (it is named).
    """
    for file in (path(profile, results), path(profile, SHIPPED)):
        try:
            rates = {name: float(chosen["lr"]) for name, chosen in json.loads(file.read_text("utf-8"))["rates"].items()}
            return Tuned(profile, rates)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a choice of learning rates: {error!r}; "
                             f"run `rbd sweep learning_rate --profile {profile}`") from error  # fmt: skip
    return Tuned(profile, {})
