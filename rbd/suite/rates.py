"""Learning rates: chosen by a search, stored in <results>/learning_rate-<profile>.json, filled into the runs that request
them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from rbd.suite import store
from rbd.suite.config import RunConfig
from rbd.suite.record import Record
from rbd.suite.report import final

SHIPPED = Path(__file__).parent / "embedded"  # copies for a package without a results directory
FULL = " full length"  # ends a key whose rate was chosen among runs as long as the reported ones
SCALE = ("model", "data", "method", "dim", "partition", "redraw", "sigma")  # what the best rate depends on


def key(config: RunConfig) -> str:
    """The runs that share a rate: "fc mnist rbd dim=250 partition=whole redraw=1"; the distribution is not in it.

    Where another method takes over later, it is the key of the first one: see `keys`.
    """
    config = config.at(0)
    values = {name: getattr(config, name) for name in SCALE}
    named = [f"{name}={values[name]}" for name in SCALE[3:] if values[name] is not None]
    return " ".join([*(values[name] for name in SCALE[:3]), *named])


def keys(config: RunConfig) -> dict[str, str]:
    """Field -> key of its rate: lr, and then_lr where another method takes over."""
    then = {} if config.switch is None else {"then_lr": key(config.at(config.switch))}
    return {"lr": key(config)} | then


def choose(records: Iterable[Record], ends: tuple[Any, ...] = (min, max)) -> dict[str, dict[str, Any]]:
    """The rate with the highest validation accuracy, mean over the seeds, for each key; in a tie, the smaller one.

    Returns:
        key -> lr, accuracy (%), n (seeds), at_edge (whether it is at one of these ends of the rates that were tried).
    """
    tried: dict[str, dict[float, list[float]]] = {}
    for r in records:
        assert r.config.lr is not None
        tried.setdefault(key(r.config), {}).setdefault(r.config.lr, []).append(final(r))
    return {name: _best(accuracies, ends) for name, accuracies in sorted(tried.items())}


def _best(tried: dict[float, list[float]], ends: tuple[Any, ...]) -> dict[str, Any]:
    lr = max(sorted(tried), key=lambda rate: mean(tried[rate]))
    edges = [end(tried) for end in ends]
    return {"lr": lr, "accuracy": round(mean(tried[lr]), 3), "n": len(tried[lr]), "at_edge": lr in edges}


def path(profile: str, results: str | os.PathLike[str]) -> Path:
    """The file of the chosen rates."""
    return Path(results) / f"learning_rate-{profile}.json"


def conclude(
    profile: str, configs: Iterable[RunConfig], records: Iterable[Record], results: str | os.PathLike[str], ending: str = ""
) -> list[str]:
    """Write the choice for every key whose runs have all ended; all other keys keep their earlier choice, if there is one.

    Nothing is written where nothing is chosen.

    Args:
        ending: of the keys, FULL for runs of full length, from below the search's choice: larger rates have been tried.

    Returns:
        Warnings, a line each: keys that wait for runs, and those whose best rate lies at the edge of the grid.

    Raises:
        ValueError: the file of the choices is damaged (it is named).
    """
    ended = {r.config.id: r for r in records}
    waiting = {key(c) + ending for c in configs if c.id not in ended}
    best = choose((r for r in ended.values() if key(r.config) + ending not in waiting), (min,) if ending else (min, max))
    chosen = {name + ending: c for name, c in best.items()}
    there = _merge(profile, chosen, results)
    edges = [f"{name}: the best rate, {c['lr']:g}, is at the edge of the grid" for name, c in chosen.items() if c["at_edge"]]
    lacking = {True: "runs are missing, the rate chosen before stays", False: "not chosen yet, runs are missing"}
    return [f"{name}: {lacking[name in there]}" for name in sorted(waiting)] + edges


def _merge(profile: str, chosen: dict[str, dict[str, Any]], results: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Put choices into the file that it lacks; the choices that were there before. One process at a time."""
    file = path(profile, results)
    if chosen.items() <= (there := _choices(file, profile)).items():
        return there
    with store.lock(store.lock_path(file.stem, results), f"{file}: another process is writing it"):
        there = _choices(file, profile)
        content = {"profile": profile, "rates": there | chosen}
        store.write(file, json.dumps(content, indent=1, sort_keys=True) + "\n", "learning rates")
    return there


@dataclass(frozen=True)
class Request:
    """A run at a multiple of the learning rate that has been chosen, or will be, for its key.

    Attributes:
        config: the run, at default learning rates.
        factor: how many times the chosen rate.
        searched: whether it is the short search's choice, also where runs of full length have chosen another.
    """

    config: RunConfig
    factor: float = 1.0
    searched: bool = False


def tuned(factor: float = 1.0, **fields: Any) -> Request:
    """The request for ``RunConfig(**fields)`` at ``factor`` times the chosen rate. Raises ValueError as RunConfig does."""
    return Request(RunConfig(**fields), factor)


@dataclass(frozen=True)
class Resolved:
    """What has become of requests, each run once.

    Attributes:
        configs: the runs whose learning rate is known.
        waiting: those that have none yet, at default rates; so their ids are not known.
        untuned: the keys that lack a rate.
    """

    configs: tuple[RunConfig, ...]
    waiting: tuple[RunConfig, ...]
    untuned: tuple[str, ...]


def resolve(requests: Iterable[RunConfig | Request], rates: Mapping[str, float]) -> Resolved:
    """Put learning rates (key -> rate) into requests; a RunConfig has its own and stays as it is."""
    asked = list(requests)
    resolved = [_resolve(request, rates) for request in asked]
    waiting = dict.fromkeys(r.config for r, config in zip(asked, resolved) if isinstance(r, Request) and config is None)
    names = dict.fromkeys(name for config in waiting for name in keys(config).values())
    configs = dict.fromkeys(config for config in resolved if config is not None)
    return Resolved(tuple(configs), tuple(waiting), tuple(name for name in names if name not in rates))


def _resolve(request: RunConfig | Request, rates: Mapping[str, float]) -> RunConfig | None:
    """The run at its rates; None where one is not known."""
    if isinstance(request, RunConfig):
        return request
    names = keys(request.config)
    if not all(name in rates for name in names.values()):
        return None
    if not request.searched:
        names = {field: name + FULL if name + FULL in rates else name for field, name in names.items()}
    chosen: dict[str, Any] = {field: rates[name] * request.factor for field, name in names.items()}
    return replace(request.config, **chosen)


def explain(untuned: Iterable[str], profile: str) -> str:
    """What is to be done about keys that lack a rate."""
    return (f"no learning rate yet for {', '.join(map(repr, untuned))}: "
            f"run `rbd sweep learning_rate --profile {profile}`")  # fmt: skip


def load(profile: str, results: str | os.PathLike[str]) -> dict[str, float]:
    """Key -> rate: those in the results directory; for keys that it lacks, those that came with the package.

    Raises:
        ValueError: a file is damaged (it is named).
    """
    found = _choices(path(profile, SHIPPED), profile) | _choices(path(profile, results), profile)
    return {name: chosen["lr"] for name, chosen in found.items()}


def _choices(file: Path, profile: str) -> dict[str, dict[str, Any]]:
    """Key -> what has been chosen; nothing where there is no file."""
    try:
        found = json.loads(file.read_text("utf-8"))
        if (other := found.get("profile", profile)) != profile:
            raise ValueError(f"profile: got {other!r}, allowed {profile!r}")
        for name, chosen in found["rates"].items():
            if type(chosen["lr"]) not in (int, float) or not 0 < chosen["lr"] < math.inf:
                raise ValueError(f"{name}: lr: got {chosen['lr']!r}, allowed 0 < lr < infinity")
        return {name: chosen | {"lr": float(chosen["lr"])} for name, chosen in found["rates"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file}: not a choice of learning rates, file not touched: {error!r}; remove it, then run "
                         f"`rbd sweep learning_rate --profile {profile}`, which chooses anew") from error  # fmt: skip
