"""The state of a run between epochs, in a file: parameters, optimizer and curve. A run resumes from it bit for bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode
from torch import Tensor, nn
from torch.optim import Optimizer

from rbd.philox import STREAM_VERSION
from rbd.suite import store
from rbd.suite.config import RunConfig
from rbd.suite.record import Point

T = TypeVar("T")
OF_OPTIMIZER = "optimizer"  # begins the names of its tensors; no network here has a part of that name


@dataclass(frozen=True)
class Progress:
    """How far a run is: optimizer steps done, the curve and its wall seconds so far.

    Attributes:
        commits, threads, devices: of the code, the numbers of CPU threads, and the names of the CPUs or GPUs, that made
            the curve; each once, in their order.
    """

    step: int = 0
    curve: tuple[Point, ...] = ()
    seconds: tuple[float, ...] = ()
    commits: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()

    def add(self, point: Point, seconds: float, commit: str, threads: int, device: str) -> Progress:
        """With one more point, made by that commit on that number of threads of that device."""
        return Progress(point.step, (*self.curve, point), (*self.seconds, seconds), _join(self.commits, commit),
                        _join(self.threads, threads), _join(self.devices, device))  # fmt: skip

    @property
    def diverged(self) -> bool:
        return bool(self.curve) and not math.isfinite(self.curve[-1].loss)


def _join(known: tuple[T, ...], value: T) -> tuple[T, ...]:
    """The values with one more, each once."""
    return tuple(dict.fromkeys((*known, value)))


@dataclass(frozen=True)
class State:
    """The content of a checkpoint, on the host: a run between two epochs."""

    tensors: dict[str, Tensor]
    texts: dict[str, str]

    @classmethod
    def of(cls, config: RunConfig, model: nn.Module, optimizer: Optimizer, progress: Progress) -> State:
        """Parameters, buffers and the optimizer's tensors, which later steps do not change, and the rest as JSON.

        Of a Subspace the parameters are the coordinates; θ0 follows from the seed.
        """
        state = optimizer.state_dict()
        known = {"config": config.canonical(), "optimizer": state | {"state": {}}, "progress": asdict(progress),
                 "stream_version": STREAM_VERSION}  # fmt: skip
        texts = {name: json.dumps(value, default=_plain) for name, value in known.items()}
        tensors = _name_tensors(model)
        for number, values in state["state"].items():  # of the parameter of that number
            tensors |= {f"{OF_OPTIMIZER}.{number}.{name}": value for name, value in values.items()}
        kept = {name: x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, x in tensors.items()}
        return cls(kept, texts)

    def write(self, path: Path) -> None:
        """Write it atomically (safetensors: no pickle). Raises OSError naming the directory if it cannot be written."""
        checksum = compute_checksum(self.tensors, self.texts)
        store.write(path, encode(self.tensors, self.texts | {"checksum": checksum}), "a checkpoint")


class Keeper:
    """Keeps a run's checkpoint: writes it at the end of every epoch or, where epochs are short, from time to time in a
    thread.

    At the end of its block it writes the last one.

    Args:
        path: None: nothing is kept.
        pause: seconds between two checkpoints, at least; 0: each is there before the next step.
    """

    def __init__(self, path: Path | None, config: RunConfig, pause: float) -> None:
        self.path, self.config, self.pause = path, config, pause
        self.kept: State | None = None  # not written yet
        self.thread, self.writing, self.last = ThreadPoolExecutor(1), Future[None](), time.monotonic()
        self.writing.set_result(None)

    def take(self, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
        """The end of an epoch. Raises OSError if a checkpoint, this one or an earlier, could not be written."""
        if self.path is None:
            return
        self.kept = State.of(self.config, model, optimizer, progress)
        if not self.pause:
            self._flush()
        elif time.monotonic() - self.last >= self.pause and self.writing.done():
            self.writing.result()  # raises what the thread has raised
            self.writing, self.last = self.thread.submit(self.kept.write, self.path), time.monotonic()
            self.kept = None

    def _flush(self) -> None:
        if self.kept and self.path:
            kept, self.kept = self.kept, None
            kept.write(self.path)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()  # waits for it
        self._flush()
        self.writing.result()


def _plain(value: Any) -> int | float:
    """A number in device memory, such as a capturable optimizer's step, as JSON has it; the optimizer takes that back."""
    if isinstance(value, Tensor):
        return value.item()
    raise TypeError(f"the optimizer's state has a {type(value).__name__}, allowed numbers, text, lists and dictionaries")


def _name_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def compute_checksum(tensors: dict[str, Tensor], texts: dict[str, str]) -> str:
    """32 hex digits of names, dtypes, shapes and bits of the tensors, and of the texts (BLAKE2b)."""
    total = blake2b(repr(sorted(texts.items())).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON values of a file whose checksum is right; files of rbd 0.1 have none."""
    with safe_open(path, "pt") as file:
        texts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checksum = texts.pop("checksum", None)
    if unknown := texts.keys() - {"config", "optimizer", "progress", "stream_version"}:
        raise ValueError(f"it has the unknown entries {', '.join(sorted(unknown))}")
    if checksum is not None and checksum != compute_checksum(tensors, texts):
        raise ValueError("its checksum is wrong, so some of its bits have changed")
    return tensors, {name: json.loads(text) for name, text in texts.items()}


def load(path: Path, config: RunConfig, model: nn.Module, build_optimizer: Callable[[RunConfig, nn.Module], Optimizer],
         ) -> tuple[Optimizer, Progress]:  # fmt: skip
    """Put the model where the checkpoint left it, with the optimizer of that time.

    Raises:
        ValueError: the file is damaged, or of another configuration or stream version; it is left as it is.
    """
    try:
        tensors, known = _read(path)
        if known["config"] != config.canonical():
            raise ValueError(f"made by {known['config']}")
        if (version := known.get("stream_version", 1)) != STREAM_VERSION:  # older files do not say
            raise ValueError(f"got stream_version {version}, allowed {STREAM_VERSION} (other bases)")
        state = _take_state(tensors)
        _fill(model, tensors)
        stored = known["progress"]
        points = tuple(Point(**point) for point in stored["curve"])
        past = (tuple(stored.get(name, ())) for name in ("commits", "threads", "devices"))  # older files lack some
        progress = Progress(stored["step"], points, tuple(stored["seconds"]), *past)
        optimizer = build_optimizer(config.at(points[-1].epoch), model)
        optimizer.load_state_dict(known["optimizer"] | {"state": state})
        return optimizer, progress
    except (SafetensorError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this run: {error}; remove it to start the run again") from error


def _take_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's tensors, by number of parameter and name; they are taken out."""
    state: dict[int, dict[str, Tensor]] = {}
    for full in [full for full in tensors if full.startswith(f"{OF_OPTIMIZER}.")]:
        _, number, name = full.split(".")
        state.setdefault(int(number), {})[name] = tensors.pop(full)
    return state


def _fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors into the parameters and buffers of their names. Raises ValueError if a name or a shape is another one."""
    own = _name_tensors(model)
    differing = [name for name in own.keys() | tensors.keys() if _shape(own.get(name)) != _shape(tensors.get(name))]
    if differing:
        raise ValueError(f"it does not fit the network in {', '.join(sorted(differing))}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
