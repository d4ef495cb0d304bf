"""A measurement of an experiment: measured once, part by part, and kept as a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from rbd.suite import cost, record, store
from rbd.suite.experiment import Experiment


def measure(wanted: Experiment, profile: str, results: Path, data_dir: str | os.PathLike[str] | None = None,
            dry: bool = False) -> str:  # fmt: skip
    """Measure, unless the file is there or the run is dry; write values, question and environment; say what was done.

    Raises:
        ValueError: the file of the parts measured so far is damaged, or as the experiment raises.
        OSError: the directory cannot be written, or as the experiment raises.
    """
    name = f"{wanted.name}-{profile}"
    path = store.measurement_path(name, results)
    if path.exists():
        return f"{path}: measured before; remove the file to measure again"
    if dry:
        return f"{path}: to be measured"
    store.check_writable(path.parent)
    with store.lock(store.lock_path(name, results), f"{path}: another process is measuring it", wait=0):
        seconds = wanted.estimate(profile)
        about = "" if seconds is None else f", about {cost.format_duration(seconds)}"
        print(f"{name}: measuring{about}", flush=True)
        began, kept = perf_counter(), path.with_suffix(".parts")
        values = find_values(wanted, profile, data_dir, kept)
        content = {"name": name, "question": wanted.question, "values": values, "environment": record.environment()}
        store.write(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", "a measurement")
        kept.unlink(missing_ok=True)
    return f"{path}: measured in {cost.format_duration(perf_counter() - began)}"


def find_values(wanted: Experiment, profile: str, data_dir: str | os.PathLike[str] | None, kept: Path) -> Any:
    """What the experiment measures; with parts, their rows: those in the file `kept` are taken, the others added to it."""
    assert wanted.measure
    if not wanted.parts:
        return record.encode(wanted.call(wanted.measure, profile, data_dir))
    parts, rows = wanted.call(lambda: list(wanted.parts(profile))), read_rows(kept)  # type: ignore[misc]
    with tqdm(parts, wanted.name, unit="part", leave=False, disable=None) as shown:
        for part in shown:
            if repr(part) not in rows:
                rows[repr(part)] = record.encode(wanted.call(wanted.measure, part, profile, data_dir))
                store.write(kept, json.dumps(rows, indent=1, allow_nan=False) + "\n", "a part of a measurement")
    return [rows[repr(part)] for part in parts]


def read_rows(path: Path) -> dict[str, Any]:
    """repr of a part -> its row, for the parts that were measured before an interruption."""
    try:
        rows = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it to measure all parts again") from error
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: got {type(rows).__name__}, expected rows; remove it to measure all parts again")
    return rows
