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
        environment = record.environment()
        values = find_values(wanted, profile, data_dir, kept, environment)
        content = {"name": name, "question": wanted.question, "environment": environment, **values}
        store.write(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", "a measurement")
        kept.unlink(missing_ok=True)
    return f"{path}: measured in {cost.format_duration(perf_counter() - began)}"


def find_values(wanted: Experiment, profile: str, data_dir: str | os.PathLike[str] | None, kept: Path,
                environment: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    """values, what the experiment measures: with parts, their rows; and earlier_environments, where some have others.

    Rows in the file `kept` are taken from there, each with the environment that measured it, and new ones are added to it.
    """
    assert wanted.measure
    if not wanted.parts:
        return {"values": record.encode(wanted.call(wanted.measure, profile, data_dir))}
    parts, rows = wanted.call(lambda: list(wanted.parts(profile))), read_rows(kept)  # type: ignore[misc]
    with tqdm(parts, wanted.name, unit="part", leave=False, disable=None) as shown:
        for part in shown:
            if repr(part) not in rows:
                row = record.encode(wanted.call(wanted.measure, part, profile, data_dir))
                rows[repr(part)] = {"row": row, "environment": environment}
                store.write(kept, json.dumps(rows, indent=1, allow_nan=False) + "\n", "a part of a measurement")
    used = [rows[repr(part)] for part in parts]
    earlier: list[dict[str, Any]] = []
    for row in used:
        if row["environment"] not in (environment, *earlier):
            earlier.append(row["environment"])
    return {"values": [row["row"] for row in used]} | ({"earlier_environments": earlier} if earlier else {})


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """repr of a part -> its row and environment, for the parts that were measured before an interruption."""
    try:
        rows = json.loads(path.read_bytes()) if path.exists() else {}
        if not all(row.keys() == {"row", "environment"} for row in rows.values()):
            raise ValueError("a part needs row and environment")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no parts of a measurement ({error}); remove it to measure all of them again") from error
    return rows
