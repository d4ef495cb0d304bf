"""Record: what one run did and where, as one JSON file named by its config's id, <id>.json.

Records are written atomically. A file that does not read back as a valid record is named in an error and left
as it is, also by `save`: nothing here skips, repairs or overwrites it. Format 2 stores the curve as one list per
quantity, each on one line; format 1, one object per point, is still read.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from rbd import __version__
from rbd.suite import looks, store
from rbd.suite.config import RunConfig, check_keys

FORMAT = 2
OUTCOMES = ("finished", "diverged", "interrupted")
CHANCE = 10.0  # accuracy of a run that diverged, whatever it had reached, %; ten classes
SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no word for these
PACKAGE = Path(__file__).resolve().parents[1]  # all of rbd: a change of the kernels counts too


@dataclass(frozen=True)
class Point:
    """State after one epoch. Compare curves by `repr` where a loss may be NaN, which equals nothing."""

    epoch: int
    step: int  # optimizer steps so far
    images: int  # training images seen so far
    forward_passes: int  # network evaluations of a mini-batch so far
    loss: float  # mean training loss over the epoch; not finite where sgd diverged (others stop before such a point)
    accuracy: float  # validation accuracy, %
    cosine: float | None  # between update and gradient, mean of every 50th step; None where there is no gradient

    def __post_init__(self) -> None:
        for name in ("epoch", "step", "images", "forward_passes"):
            if type(value := getattr(self, name)) is not int or value < 0:
                raise ValueError(f"{name}: got {value!r}, allowed an integer >= 0")
        for name in ("loss", "accuracy", "cosine"):
            if (value := getattr(self, name)) is not None or name != "cosine":
                object.__setattr__(self, name, _number(name, value))
        if not 0 <= self.accuracy <= 100:
            raise ValueError(f"accuracy: got {self.accuracy!r}, allowed 0 ... 100 (%)")


@dataclass(frozen=True)
class Record:
    """One run. The curve of a config is reproducible bit for bit, the wall times are not, so they are kept apart.

    Raises ValueError naming the field, what was got and what is allowed.
    """

    config: RunConfig
    outcome: str  # one of OUTCOMES
    curve: tuple[Point, ...]  # one point per epoch
    seconds: tuple[float, ...]  # wall seconds since the start, at each point of the curve
    environment: dict[str, str | int | bool | None]  # see environment(); of a resumed run, earlier_commits and others

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", tuple(self.curve))
        object.__setattr__(self, "seconds", tuple(_number("seconds", s) for s in self.seconds))
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome: got {self.outcome!r}, allowed {', '.join(OUTCOMES)}")
        n = len(self.curve)
        if len(self.seconds) != n or not all(0 <= s < math.inf for s in self.seconds):
            raise ValueError(f"seconds: got {self.seconds}, allowed {n} finite numbers >= 0, one per point")
        self._check_epochs([point.epoch for point in self.curve])
        for name, value in self.environment.items():
            if type(value) not in (str, int, bool, type(None)):  # JSON keeps these types
                raise ValueError(f"environment: got {name} = {value!r}, allowed str, int, bool, None")

    def _check_epochs(self, epochs: list[int]) -> None:
        """Points in order; NES, whose step may take more than an epoch, has none after some epochs."""
        last = self.config.epochs
        if epochs != sorted(set(epochs)) or not all(1 <= epoch <= last for epoch in epochs):
            raise ValueError(f"curve: got epochs {epochs}, allowed 1 ... {last} in order, each once")
        if self.outcome == "finished" and epochs[-1:] != [last]:
            raise ValueError(f"curve: got {epochs[-1] if epochs else 0} epochs of a finished run, allowed {last}")


def encode(value: Any) -> Any:
    """A value for JSON: NumPy's and torch's become numbers and lists, NaN and infinity text, what JSON lacks its repr."""
    if isinstance(value, dict):
        return {str(key): encode(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if hasattr(value, "tolist"):
        return encode(value.tolist())
    if isinstance(value, float):
        return _encode(value)
    return value if isinstance(value, (str, int, type(None))) else repr(value)


def _number(name: str, value: Any) -> float:
    if type(value) is bool or not isinstance(value, (int, float)):
        raise ValueError(f"{name}: got {value!r}, allowed a number")
    return float(value)


def save(record: Record, directory: str | os.PathLike[str]) -> Path:
    """Write `record` to directory/<config.id>.json in place of an older one of the same config; return the path.

    Raises OSError naming the directory if that cannot be made or written, ValueError if a damaged file is in the way.
    """
    find(record.config, directory)  # raises where a damaged file is in the way
    points = [asdict(point) for point in record.curve]
    columns = {f.name: [_encode(point[f.name]) for point in points] for f in fields(Point)}
    text = _format({"format": FORMAT, **asdict(record), "curve": columns})
    return store.write(Path(directory) / f"{record.config.id}.json", text + "\n", "a record")


def summary(record: Record) -> str:
    """One line for a person: outcome, last validation accuracy, cosine, wall time."""
    if not record.curve:
        return f"{record.outcome} before the end of the first epoch"
    last, seconds = record.curve[-1], record.seconds[-1]
    cosine = "" if last.cosine is None else f", cosine of update and gradient {last.cosine:.4f}"
    epochs, accuracy = looks.count(last.epoch, "epoch"), looks.format_number(last.accuracy, 2)
    return f"{record.outcome} after {epochs}: {accuracy} % validation accuracy{cosine}, {seconds:.1f} s"


def final(record: Record) -> float:
    """Validation accuracy after the last epoch, %; a run that diverged counts as chance, whatever it had reached."""
    return record.curve[-1].accuracy if record.outcome == "finished" else CHANCE


def load(path: str | os.PathLike[str]) -> Record:
    """The record in the file `path`. Raises ValueError naming file and cause if it is no valid record."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise ValueError(f"{path}: a directory, where a record is expected") from None
    try:
        record = _decode(json.loads(data.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_refuse_duplicates))
        if path.name != f"{record.config.id}.json":
            raise ValueError(f"file name: got {path.name}, allowed {record.config.id}.json, the id of its config")
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: not a valid record, file not touched: {error}") from error
    return record


def find(config: RunConfig, directory: str | os.PathLike[str]) -> Record | None:
    """The record of `config` in `directory`, None if there is none. Raises as `load` does."""
    try:
        return load(Path(directory) / f"{config.id}.json")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _encode(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _format(value: Any, indent: str = "") -> str:
    """JSON with sorted keys, a line per key; a list is on one line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    lines = (f"{inner}{json.dumps(key)}: {_format(value[key], inner)}" for key in sorted(value))
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _decode(d: Any) -> Record:
    check_keys("record", d, ["format", *(f.name for f in fields(Record))])
    if type(d["format"]) is not int or d["format"] not in (1, FORMAT):
        raise ValueError(f"format: got {d['format']!r}, allowed 1 or {FORMAT}")
    for name, kind in (("curve", list if d["format"] == 1 else dict), ("seconds", list), ("environment", dict)):
        if type(d[name]) is not kind:
            raise ValueError(f"{name}: got {d[name]!r}, allowed a {kind.__name__}")
    config = RunConfig.from_dict(d["config"])
    if asdict(config) != RunConfig.complete(d["config"]):
        raise ValueError(f"config: got {d['config']!r}, allowed only its resolved form {config.canonical()}")
    points = d["curve"] if d["format"] == 1 else _split(d["curve"])
    return Record(config, d["outcome"], tuple(map(_decode_point, points)), tuple(d["seconds"]), d["environment"])


def _split(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Lists by quantity -> an object per point."""
    check_keys("curve", columns, [f.name for f in fields(Point)])
    if wrong := next((name for name, column in columns.items() if type(column) is not list), None):
        raise ValueError(f"curve: {wrong}: got {columns[wrong]!r}, allowed a list")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"curve: got lists of lengths {lengths}, allowed equal ones")
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _decode_point(d: Any) -> Point:
    check_keys("point", d, [f.name for f in fields(Point)])
    values: dict[str, Any] = {name: SPECIAL.get(v, v) if isinstance(v, str) else v for name, v in d.items()}
    return Point(**values)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(repr(n) for n in names if names.count(n) > 1)} twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"got a bare {constant}, allowed 'nan', 'inf', '-inf' as text")


def environment(device: str = "cpu") -> dict[str, str | int | bool | None]:
    """Where a run happens: versions, the code's commit, and the machine; None for what cannot be known."""
    import torch

    from rbd.philox import STREAM_VERSION

    cpu, packages = _cpu_name(), ("numpy", "numba")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build, such as +cpu, which the installed metadata leave out
        **{name: next((found.version for found in distributions(name=name)), None) for name in packages},
        "rbd": __version__,
        "stream_version": STREAM_VERSION,
        **_checkout(PACKAGE),
        "platform": platform.platform(),
        "cpu": cpu,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": cpu,
        **(_gpu(device) if torch.device(device).type == "cuda" else {}),
    }


def _gpu(device: str) -> dict[str, str | bool]:
    """A GPU's name, and the settings of torch that decide its bits."""
    import torch

    tf32 = torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32
    return {"device": torch.cuda.get_device_name(device), "tf32": tf32,
            "deterministic": torch.are_deterministic_algorithms_enabled()}  # fmt: skip


def _cpu_name() -> str:
    with suppress(OSError):  # only Linux has the file, and not on every processor the line
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _checkout(package: Path) -> dict[str, str | bool | None]:
    """Commit of the checkout that tracks `package`, and whether files under `package` differ; outside one what is stated."""
    commit = _git(package, "ls-files", "--error-unmatch", "__init__.py") and _git(package, "rev-parse", "HEAD")
    if not commit:
        return {"commit": next(iter(stated_commit(package.parent)), None), "dirty": None}
    changes = _git(package, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def stated_commit(folder: Path) -> list[str]:
    """Hash and time, as `git log -1 --format='%H %ct'` prints them, that RBD_COMMIT or else the file COMMIT there has.

    For a copy without .git, as on a rented machine. Empty where nothing is stated.

    Raises:
        ValueError: what is stated has another form.
    """
    path = folder / "COMMIT"
    text = os.environ.get("RBD_COMMIT") or (path.read_text("utf-8") if path.is_file() else "")
    if text.strip() and not re.fullmatch(r"[0-9a-f]{40} \d+", text.strip()):
        raise ValueError(f"RBD_COMMIT or {path}: got {text.strip()!r}, allowed what `git log -1 --format='%H %ct'` prints")
    return text.split()


def _git(folder: Path, *arguments: str) -> str | None:
    # within a hook GIT_DIR names another repository; optional locks would disturb a git that runs beside us
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
