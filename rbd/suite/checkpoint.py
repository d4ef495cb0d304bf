"""Where a run stands, kept in a file between epochs: parameters, optimizer and curve, from which it goes on bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as encode
from torch import nn
from torch.optim import Optimizer

from rbd.suite import store
from rbd.suite.config import RunConfig
from rbd.suite.record import Point


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps done, the curve and its wall seconds so far, the commits that made them."""

    step: int = 0
    curve: tuple[Point, ...] = ()
    seconds: tuple[float, ...] = ()
    commits: tuple[str, ...] = ()

    @property
    def diverged(self) -> bool:
        return bool(self.curve) and not math.isfinite(self.curve[-1].loss)


def save(path: Path, config: RunConfig, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write parameters as tensors and the rest as JSON in the header, whole or not at all (safetensors: no pickle).

    Raises:
        OSError: the file cannot be written (names the directory).
    """
    known = {"config": config.canonical(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    content = encode(tensors, {name: json.dumps(value) for name, value in known.items()})
    store.write(path, content, "a checkpoint")


def load(path: Path, config: RunConfig, model: nn.Module, build_optimizer: Callable[[RunConfig, nn.Module], Optimizer],
         ) -> tuple[Optimizer, Progress]:  # fmt: skip
    """Put the model where the checkpoint left it, with the optimizer of that time.

    Raises:
        ValueError: the file is damaged, or of another configuration or stream version; it is left as it is.
    """
    try:
        with safe_open(path, "pt") as file:
            known = {name: json.loads(text) for name, text in file.metadata().items()}
            if known["config"] != config.canonical():
                raise ValueError(f"made by {known['config']}")
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        stored = known["progress"]
        points = tuple(Point(**point) for point in stored["curve"])
        progress = Progress(stored["step"], points, tuple(stored["seconds"]), tuple(stored.get("commits", ())))
        optimizer = build_optimizer(config.at(points[-1].epoch), model)
        optimizer.load_state_dict(known["optimizer"])
        return optimizer, progress
    except (SafetensorError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: not a checkpoint of this run: {error}; remove it to start the run again") from error
