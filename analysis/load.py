"""results/ as pandas DataFrames, checked: a damaged file is named, never skipped. Reads files only (no torch).

Raised, all of them ValueError: Damaged (a file is not what it should be), Missing (runs are not there), Inconsistent
(runs that must not be averaged or compared), Nothing (not a single run is there, also where some may be missing).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from rbd.suite import record, tables
from rbd.suite.config import RunConfig
from rbd.suite.looks import label
from rbd.suite.record import CHANCE, Point, Record

ENVIRONMENT = ("stream_version", "commit", "dirty", "earlier_commits", "cpu", "cpu_count", "device", "bytes_per_step")
OUTCOME = ("id", "path", "sweeps", "outcome", "accuracy", "best", "cosine", "images", "forward_passes", "steps", "seconds",
           *ENVIRONMENT)  # fmt: skip  # columns of runs; the others are their config
POINT = tuple(f.name for f in fields(Point))
SHOWN = 20  # runs that a message names


class Damaged(ValueError):
    """A file is not what it should be."""


class Missing(ValueError):
    """Runs are not there."""


class Inconsistent(ValueError):
    """Runs must not be averaged or compared."""


class Nothing(ValueError):
    """There is nothing at all to draw."""


@dataclass(frozen=True)
class Runs:
    """The runs of one sweep in one profile that are there, and what is missing."""

    name: str
    profile: str
    table: pd.DataFrame  # a row per run: OUTCOME (accuracy, %, of the last epoch), and the config
    curves: pd.DataFrame  # a row per run and epoch: id, POINT, seconds
    expected: int
    missing: tuple[str, ...]

    @property
    def gaps(self) -> str:
        """What is missing, for a figure: "" or "4 of 40 runs are missing"."""
        return f"{len(self.missing)} of {self.expected} runs are missing" if self.missing else ""

    def note(self, groups: Iterable[pd.DataFrame], bars: str = "bars", more: str = "") -> str:
        """The note under a figure: profile, set-up, distributions, n, what bars are (if any), more, what is missing."""
        images = "5,000 images in training" if self.table.data.str.endswith("-embedded").all() else "full data"
        epochs = "/".join(f"{e:g}" for e in sorted(set(self.table.epochs)))
        distributions = [label(name) for name in sorted(set(self.table.distribution.dropna()))]
        entries = f"; entries: {', '.join(distributions)}" if distributions else ""
        groups = list(groups)
        said = f"Profile {self.profile}: {images}, {epochs} epochs{entries}; {counts(groups)}."
        if bars and max(map(len, groups)) > 1:
            said += f" {bars.capitalize()}: 95 % bootstrap intervals over seeds."
        return said + f" {more}" * bool(more) + (f"\nINCOMPLETE: {self.gaps}." if self.missing else "")

    @property
    def commits(self) -> list[str]:
        """Commits of the code that made the runs, 7 digits, with a + where files differed; "unknown" where none is."""
        made = zip(self.table.commit, self.table.dirty)
        known = {c[:7] + "+" * (d is True) if isinstance(c, str) else "unknown" for c, d in made}  # pandas has NaN for None
        for earlier in self.table.earlier_commits.dropna():
            known |= {c[:7] + "+" * c.endswith("+") for c in earlier.split()}
        return sorted(known)

    def where(self, **values: Any) -> pd.DataFrame:
        """The rows of `table` that have these values; a collection means any of them."""
        kept = self.table
        for name, value in values.items():
            kept = kept[kept[name].isin([value] if isinstance(value, str) or not isinstance(value, Iterable) else value)]
        return kept

    def write_evidence(self, results: str | Path, claim: str, found: Iterable[str], verdict: str = "", number: str = "",
                       paper: str = "") -> Path:  # fmt: skip
        """Write what the runs say about a question, for the index: results/tables/<sweep>-<profile>.json.

        Args:
            claim: the question, neutral: never the answer.
            found: the evidence, a line each.
            verdict: of rbd.suite.findings; number: the one behind it, with n and its interval; paper: its number, if known.
        """
        content = {
            "claim": claim, "verdict": verdict, "number": number, "paper": paper, "profile": self.profile,
            "evidence": [*found, *([self.gaps] if self.gaps else [])],
            "runs": len(self.table), "expected": self.expected, "command": command(self.name, self.profile),
            "records": sorted({p.parent.as_posix() for p in self.table.path}), "commits": self.commits,
        }  # fmt: skip
        return tables.write_evidence(results, f"{self.name}-{self.profile}", content)


# ---------------------------------------------------------------- runs


def sweep(results: str | Path, name: str | tuple[str, ...], profile: str, allow_missing: bool = False) -> Runs:
    """The runs that results/sweeps/<name>-<profile>.json lists, from any folder under results/runs.

    Args:
        name: of the sweep; of several sweeps, all their runs, and the first one's name.
        allow_missing: take what is there; without a list, all records of results/runs/<name>-<profile>.

    Raises:
        Damaged: a record or the list is damaged (every such file is named).
        Missing: runs are not there (without allow_missing). Nothing: none is.
        Inconsistent: stream versions differ, or a data set is there embedded and in full.
    """
    root, names = Path(results), (name,) if isinstance(name, str) else name
    lists = {n: _read_list(root, n, profile, allow_missing) for n in names}
    wanted = {i: c for runs in lists.values() for i, c in runs.items()}
    found, damaged = _find(root, f"{names[0]}-{profile}", wanted)
    if damaged:
        raise Damaged("\n".join(damaged))
    missing = tuple(_describe(i, c) for i, c in wanted.items() if i not in found)
    title, makes = f"{'+'.join(names)}, profile {profile}", " and ".join(f"`{command(n, profile)}`" for n in names)
    if missing and not allow_missing:
        raise Missing(f"{title}: {len(missing)} of {len(wanted)} runs are missing, {makes} makes them: {_join(missing)}")
    if not found:
        raise Nothing(f"{title}: not a single run is there, {makes} makes them")
    table = pd.DataFrame([_row(path, made) for path, made in found.values()])
    table["sweeps"] = [tuple(n for n in names if i in lists[n]) for i in table.id]
    points = [point for _, made in found.values() for point in _points(made)]
    _check_consistent(title, table)
    return Runs(names[0], profile, table, pd.DataFrame(points, columns=["id", *POINT, "seconds"]), len(wanted), missing)


def command(name: str, profile: str) -> str:
    """What makes the runs of a sweep."""
    return f"rbd sweep {name} --profile {profile}"


def _read_list(root: Path, name: str, profile: str, allow_missing: bool) -> dict[str, dict]:
    """id -> config of every run of the sweep; runs without a learning rate yet have no id, see _waiting."""
    path = root / "sweeps" / f"{name}-{profile}.json"
    if path.exists():
        content = _read_json(path)
        if (got := _get(path, content, "name", str)) != f"{name}-{profile}":
            raise Inconsistent(f"{path}: name: got {got!r}, allowed '{name}-{profile}'")
        wanted = {_get(path, c, "id", str): _get(path, c, "config", dict) for c in _get(path, content, "runs", list)}
        if wrong := [i for i, config in wanted.items() if _config(path, config).id != i]:
            raise Damaged(f"{path}: ids that are not those of their configurations: {_join(wrong)}")
        return wanted | _read_waiting(path, content)
    if not allow_missing:
        raise Missing(f"{path}: no such list of runs, `{command(name, profile)}` makes it")
    records = sorted((root / "runs" / f"{name}-{profile}").glob("[!.]*.json"))
    return {p.stem: {} for p in records}


def _read_waiting(path: Path, content: dict) -> dict[str, dict]:
    """Runs without a learning rate yet: name -> config without one; older lists have keys only."""
    if "waiting" not in content:
        return {f"{key}, no learning rate yet": {} for key in content.get("untuned", ())}
    configs = _get(path, content, "waiting", list)
    wishes = {_config(path, c).id: {k: v for k, v in c.items() if k != "lr"} for c in configs}
    return {f"no learning rate yet, {number}": config for number, config in enumerate(wishes.values(), 1)}


def _config(path: Path, content: Any) -> RunConfig:
    try:
        return RunConfig.from_dict(content)
    except ValueError as error:
        raise Damaged(f"{path}: {error}") from error


def _find(root: Path, full: str, wanted: Iterable[str]) -> tuple[dict[str, tuple[Path, Record]], list[str]]:
    """id -> (path, record) of those there, and a message for each damaged file; the sweep's own folder goes first."""
    paths: dict[str, list[Path]] = {}
    for path in sorted((root / "runs").glob("*/[!.]*.json"), key=lambda p: (p.parent.name != full, p)):
        paths.setdefault(path.stem, []).append(path)
    found: dict[str, tuple[Path, Record]] = {}
    damaged = []
    for wish in wanted:
        for path in paths.get(wish, ()):
            try:
                made = read(path)
            except Damaged as error:
                damaged.append(str(error))
                continue
            if made.outcome != "interrupted":
                found.setdefault(wish, (path.relative_to(root), made))
    return found, damaged


def read(path: Path) -> Record:
    """The record in a file. Raises Damaged naming the file and the cause."""
    try:
        return record.load(path)
    except (ValueError, OSError) as error:
        raise Damaged(str(error)) from error


def _row(path: Path, made: Record) -> dict[str, Any]:
    last = asdict(made.curve[-1]) if made.curve else {}
    cosines = [p.cosine for p in made.curve if p.cosine is not None]
    return {
        "id": path.stem, "path": path, "outcome": made.outcome, **asdict(made.config),
        "accuracy": record.final(made),  # after the last epoch, %
        "best": max((p.accuracy for p in made.curve), default=CHANCE),  # of all epochs, %
        "cosine": sum(cosines) / len(cosines) if cosines else math.nan,  # mean over the epochs
        "images": last.get("images", 0), "forward_passes": last.get("forward_passes", 0), "steps": last.get("step", 0),
        "seconds": made.seconds[-1] if made.seconds else math.nan,
        **{name: made.environment.get(name) for name in ENVIRONMENT},
    }  # fmt: skip


def _points(made: Record) -> Iterator[dict[str, Any]]:
    name = made.config.id
    return ({"id": name, **asdict(point), "seconds": s} for point, s in zip(made.curve, made.seconds))


def _check_consistent(full: str, table: pd.DataFrame) -> None:
    versions = {v: [_describe(i, c) for i, c in _configs(g)] for v, g in table.groupby("stream_version", dropna=False)}
    if len(versions) > 1:
        told = "; ".join(f"version {v}: {_join(runs)}" for v, runs in versions.items())
        raise Inconsistent(f"{full}: runs of different stream versions: {told}")
    for data in {d for d in table.data if f"{d}-embedded" in set(table.data)}:
        runs = [_describe(i, c) for i, c in _configs(table[table.data == data])]
        raise Inconsistent(f"{full}: mixed profiles, {data} is there embedded and in full: {_join(runs)}")


def cells(table: pd.DataFrame, *by: str, free: tuple[str, ...] = ()) -> dict[tuple, pd.DataFrame]:
    """The runs by the values of the fields `by`, in order of appearance; those of a cell differ in the seed alone.

    A field that a run does not have is None in the key.

    Raises:
        Inconsistent: runs of a cell differ in another field that is not in `free`, or share a seed.
    """
    found = {}
    for values, runs in table.groupby(list(by), sort=False, dropna=False):
        key = tuple(map(plain, values))
        for name in sorted(set(table.columns) - {*OUTCOME, *by, *free, "seed"}):
            if runs[name].nunique(dropna=False) > 1:
                told = [f"{name} {getattr(r, name)}: {r.id}" for r in runs.itertuples()]
                raise Inconsistent(f"{by} = {key}: runs differ in {name}: {_join(told)}")
        if not free and runs.seed.duplicated().any():
            raise Inconsistent(f"{by} = {key}: runs share a seed: {_join(runs.id)}")
        found[key] = runs
    return found


def pick(cells: Mapping[tuple, pd.DataFrame], *start: Any) -> pd.DataFrame:
    """The runs of all cells whose keys begin with `start`."""
    chosen = [cell for key, cell in cells.items() if key[: len(start)] == start]
    return pd.concat(chosen) if chosen else pd.DataFrame()


def plain(value: Any) -> Any:
    """None for NaN, 250 for 250.0: pandas has no integers beside gaps."""
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value


def counts(groups: Iterable[pd.DataFrame]) -> str:
    """The numbers of runs behind the means of a figure: "n = 1 seed", "n = 1–3 seeds"."""
    n = sorted({len(g) for g in groups})
    if len(n) > 1:
        return f"n = {n[0]}–{n[-1]} seeds"
    return f"n = {n[0]} seed{'s' * (n[0] > 1)}"


def curves(runs: Runs, ids: Iterable[str]) -> pd.DataFrame:
    """The rows of runs.curves of several runs, for the epochs that all of them have (one may have diverged)."""
    chosen = runs.curves[runs.curves.id.isin(list(ids))]
    return chosen[chosen.groupby("epoch").id.transform("size") == chosen.id.nunique()]


def step_seconds(curves: pd.DataFrame) -> pd.Series:
    """Wall seconds of a step by id: median over the epochs after the first, in which kernels compile.

    NaN where there is no second epoch. The seconds of an epoch hold its validation too.
    """
    epochs = curves.groupby("id")[["step", "seconds"]].diff()
    return (epochs.seconds / epochs.step).groupby(curves.id).median()


# ---------------------------------------------------------------- other files


def measurement(results: str | Path, name: str, profile: str) -> tuple[Any, str]:
    """The values in results/measurements/<name>-<profile>.json, and the commit of the code that measured them, 7 digits.

    Raises:
        Nothing: there is no such file. Damaged: it is not as it should be. Inconsistent: it is of another profile, or of
            another stream version than the measurements beside it.
    """
    path = Path(results) / "measurements" / f"{name}-{profile}.json"
    if not path.exists():
        raise Nothing(f"{path}: no such measurement, `{command(name, profile)}` makes it")
    content = _read_json(path)
    environment = _get(path, content, "environment", dict)
    if _get(path, content, "name", str) != f"{name}-{profile}":
        raise Inconsistent(f"{path}: name: got {content['name']!r}, allowed '{name}-{profile}'")
    if not content.get("values"):
        raise Damaged(f"{path}: values: got {content.get('values')!r}, allowed what was measured")
    beside = path.parent.glob("[!.]*.json")
    versions = {p.name: _get(p, _read_json(p), "environment", dict).get("stream_version") for p in beside}
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{name}: version {version}" for name, version in sorted(versions.items()))
        raise Inconsistent(f"{path.parent}: measurements of different stream versions: {told}")
    return content["values"], str(environment.get("commit") or "unknown")[:7] + "+" * bool(environment.get("dirty"))


def asv(results: str | Path) -> pd.DataFrame:
    """The results of asv (0.6) under results/asv: a row per machine, commit, benchmark and combination of parameters.

    Columns: machine, commit, date (ms), benchmark, value, low, high (quartiles of repeats, or value), unit, and every
    parameter by its name. Values of a benchmark's earlier version are left out; n/a and failed cells too. Of a commit that
    was measured in several environments, a benchmark has the values of the last one.

    Raises:
        Nothing: there are none. Damaged: a file is not as asv writes it.
    """
    root = Path(results) / "asv"
    paths = sorted(p for p in root.glob("*/[!.]*.json") if p.name != "machine.json")
    if not paths or not (root / "benchmarks.json").exists():
        raise Nothing(f"{root}: no results of asv, `tox -e bench` makes them")
    known = _read_object(root / "benchmarks.json", bare=True)
    table = pd.DataFrame([row for path in paths for row in _read_asv(path, known)])
    return _keep_last(table) if len(table) else table


def _keep_last(table: pd.DataFrame) -> pd.DataFrame:
    """Without what a commit's benchmark gave in earlier environments, such as with another torch: no cell is there twice."""
    ordered = table.sort_values("measured", kind="stable")
    last = ordered.groupby(["machine", "commit", "benchmark"]).file.transform("last")
    return ordered[ordered.file == last].sort_index().drop(columns=["file", "measured"])


def _read_asv(path: Path, known: dict) -> list[dict[str, Any]]:
    """The rows of a result file. Raises Damaged, also where something in it is of another type."""
    try:
        return list(_asv_rows(path, _read_object(path, bare=True), known))
    except (TypeError, AttributeError, OverflowError) as error:
        raise Damaged(f"{path}: not a result file of asv: {error!r}") from error


def _asv_rows(path: Path, content: dict, known: dict) -> Iterator[dict[str, Any]]:
    columns, results = _get(path, content, "result_columns", list), _get(path, content, "results", dict)
    for name, stored in results.items():
        cell = dict(zip(columns, stored))
        about = known.get(name)
        if not isinstance(about, dict) or cell.get("version") != about.get("version") or cell.get("result") is None:
            continue
        points = list(product(*(cell.get("params") or [])))
        low, high = (cell.get(f"stats_q_{q}") or cell["result"] for q in (25, 75))
        if len(points) != len(cell["result"]):
            raise Damaged(f"{path}: {name}: got {len(cell['result'])} results, allowed {len(points)}")
        for point, value, bottom, top in zip(points, cell["result"], low, high):
            if isinstance(value, (int, float)) and math.isfinite(value):
                yield {
                    "machine": path.parent.name, "commit": content.get("commit_hash", "")[:8],
                    "date": int(content.get("date", 0)), "benchmark": name, "unit": about.get("unit"),
                    "value": value, "low": bottom, "high": top, "file": path.name, "measured": cell.get("started_at") or 0,
                    **{p: _literal(text) for p, text in zip(about.get("param_names", ()), point)},
                }  # fmt: skip


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each machine and benchmark the rows of the commit that is the latest by its date."""
    latest = table.groupby(["machine", "benchmark"]).date.transform("max")
    return table[table.date == latest]


def describe_machine(results: str | Path, name: str) -> str:
    """A machine of asv in print: "vm (AMD EPYC, 2 cores)"; the name alone where asv's machine.json lacks these."""
    path = Path(results) / "asv" / name / "machine.json"
    known = _read_object(path) if path.exists() else {}
    return f"{name} ({known['cpu']}, {known['num_cpu']} cores)" if {"cpu", "num_cpu"} <= set(known) else name


# ---------------------------------------------------------------- JSON


def _read_json(path: Path, bare: bool = False) -> Any:
    """The content of a file; bare: NaN and Infinity are allowed, as asv writes them."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"a bare {constant}")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=None if bare else refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path}: damaged, file not touched: {error}") from error


def _read_object(path: Path, bare: bool = False) -> dict[str, Any]:
    """`_read_json` of a file that has names and values."""
    if not isinstance(content := _read_json(path, bare), dict):
        raise Damaged(f"{path}: got {str(content)[:80]!r}, allowed an object of JSON")
    return content


def _get(path: Path, content: Any, key: str, kind: type) -> Any:
    if not isinstance(content, dict) or type(content.get(key)) is not kind:
        got = content.get(key) if isinstance(content, dict) else content
        raise Damaged(f"{path}: {key}: got {str(got)[:80]!r}, allowed a {kind.__name__}")
    return content[key]


def _literal(text: str) -> Any:
    """A parameter as asv writes it, the repr of a value."""
    for parse in (json.loads, lambda t: float(t)):
        try:
            return parse(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _configs(table: pd.DataFrame) -> Iterator[tuple[str, dict]]:
    return ((r["id"], r) for r in table.to_dict("records"))


def _describe(name: str, config: Mapping[str, Any]) -> str:
    """A run in a few words."""
    words = [str(config[k]) for k in ("model", "data", "method", "variant") if isinstance(config.get(k), str)]
    words += [f"{k}={config[k]:g}" for k in ("workers", "dim", "lr", "seed") if _is_number(config.get(k))]
    return f"{name} ({' '.join(words)})" if words else name


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _join(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
