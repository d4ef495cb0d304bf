"""train(RunConfig) -> Record: the whole loop on one screen, with checkpoints from which it goes on bit for bit."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from secrets import token_hex

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from rbd import data, distributed, models
from rbd.config import DEFAULTS, RunConfig
from rbd.distributed import OWN_BATCH, Workers, digest
from rbd.kernels import cpu
from rbd.optim import FPD, NES, RBD
from rbd.philox import STREAM_VERSION
from rbd.record import Point, Record, environment

SAMPLE = 50  # steps between two cosines of update and gradient: often enough for a mean, too rare to cost anything


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


@dataclass(frozen=True)
class Budget:
    """What a run may use. Methods with the same epochs see the same number of images, nes to within d - 1 batches."""

    epochs: int
    per_epoch: int  # mini-batches in an epoch
    batches: int  # mini-batches a step takes: d for nes, whose perturbations have one each; W if each worker has its own
    passes: int  # network evaluations a step makes: d for nes and rbd-nes, W for W workers

    @property
    def steps(self) -> int:
        return self.epochs * self.per_epoch // self.batches

    def epoch(self, step: int) -> int:
        """Epochs behind a number of steps; the last step ends the last one."""
        return self.epochs if step == self.steps else step * self.batches // self.per_epoch

    def sampled(self, step: int) -> bool:
        """Whether the step's cosine of update and gradient is taken."""
        every = min(SAMPLE, max(self.per_epoch // self.batches, 1))  # so that no epoch is without
        return step % every == 1 % every


def budget(config: RunConfig, images: int) -> Budget:
    """The budget of a run on a number of training images.

    Raises:
        ValueError: a batch does not fit into the images, or not a single step into the epochs.
    """
    d, per_epoch, workers = config.dim or 1, images // config.batch_size, config.workers or 1
    if per_epoch == 0:
        raise ValueError(f"batch_size: got {config.batch_size}, allowed 1 ... {images} (the training images)")
    if config.variant in OWN_BATCH and workers > config.epochs * per_epoch:
        raise ValueError(f"workers: got {workers}, allowed 1 ... {config.epochs * per_epoch} (the batches of all epochs)")
    batches = d if config.method == "nes" else workers if config.variant in OWN_BATCH else 1
    made = Budget(config.epochs, per_epoch, batches, d if "nes" in config.method else workers)
    if made.steps == 0:
        least = -(-d // per_epoch)
        raise ValueError(f"epochs: got {config.epochs}, allowed {least} and above: nes takes {d} batches a step")
    return made


def train(config: RunConfig, checkpoints: str | os.PathLike[str] | None = None,
          data_dir: str | os.PathLike[str] | None = None, device: str = "cpu", threads: int | None = None,
          bar: bool | None = False, timeout: float = distributed.TIMEOUT) -> Record:  # fmt: skip
    """Run a configuration, or go on from its checkpoint, until it finishes, diverges or is interrupted (Ctrl-C).

    With config.workers: in a process that torchrun started, as one of them; in any other, by starting so many processes
    here. Then Ctrl-C raises KeyboardInterrupt; checkpoints are worker 0's alone, and the others get their state from it.

    Args:
        config: what to run.
        checkpoints: directory for <config.id>.safetensors, written at the end of every epoch; None: no checkpoints.
        data_dir: root of the full data sets, see rbd.data.data_dir.
        device: where tensors live, "cpu" or "cuda".
        threads: CPU threads for the run, shared out over the workers started here, or of this one of torchrun's; None: as
            many as torch uses now, or the workers' shares of the cores.
        bar: show a progress bar on stderr; None: only on a terminal.
        timeout: seconds that workers wait for each other.

    Returns:
        The Record. Its curve is the same, bit for bit, however often the run was interrupted on one kind of machine.

    Raises:
        FileNotFoundError, ValueError: the data set is missing or damaged, or the checkpoint is; the configuration does
            not fit the data; device or threads are not to be had.
        OSError: a checkpoint cannot be written.
        RuntimeError: a worker died, hung, or differs from the others.
    """
    _check_place(config, device, threads)
    if config.workers and not distributed.is_launched():
        each = max(1, threads // config.workers) if threads else None
        given = (config, checkpoints, data_dir, device, each, bar, timeout)
        return distributed.launch(train, config.workers, *given, timeout=timeout)
    threads = threads or torch.get_num_threads()
    group = distributed.join(config.workers, timeout, device) if config.workers else nullcontext()
    with _cores(config, threads), group:
        made = _train(config, checkpoints, data_dir, device, bar)
    return replace(made, environment=made.environment | {"threads": threads})


def _check_place(config: RunConfig, device: str, threads: int | None) -> None:
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        there = "cpu, cuda" if torch.cuda.is_available() else "cpu (no GPU is available)"
        raise ValueError(f"device: got {device!r}, allowed {there}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: got {threads}, allowed an integer >= 1")


@contextmanager
def _cores(config: RunConfig, threads: int) -> Iterator[None]:
    """Threads for the basis kernels, and for torch: one for the FC net, whose operations are too small to share.

    OpenMP's idle threads spin for milliseconds on cores that the kernels need.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if config.model == "fc" else threads)
    cpu.set_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cpu.set_threads(None)


def _train(config: RunConfig, checkpoints, data_dir, device: str, bar: bool | None) -> Record:
    where, sets = environment(device), data.load(config.data, data_dir)
    split, held_out = sets.train.to(device), sets.validation.to(device)
    allowed = budget(config, len(split))
    workers = Workers(config.variant) if config.workers and config.variant else None
    if workers:  # each was started by a command of its own
        workers.agree(asdict(config) | {"stream_version": STREAM_VERSION})
    rank, own_batch = workers.rank if workers else 0, config.variant in OWN_BATCH
    model = models.build(config.model, tuple(split.images.shape[1:]), config.seed).to(device)
    path = Path(checkpoints) / f"{config.id}.safetensors" if checkpoints else None
    optimizer, progress = _begun(path, config, model, workers)
    done, commits = progress.step, tuple(dict.fromkeys((*progress.commits, _commit(where))))
    network = _replica(model, workers) if workers and workers.variant == "ddp" else model

    outcome, losses, cosines, bytes_sent = "finished", [], [], []
    start = progress.step * allowed.batches + (rank if own_batch else 0)
    stream = _stream(split, config, start, allowed.per_epoch, allowed.batches if own_batch else 1)
    began = time.perf_counter() - (progress.seconds[-1] if progress.seconds else 0)
    sent = _sent(workers)
    try:
        for step in _shown(config, progress.step, allowed.steps, bar if rank == 0 else False):
            if progress.diverged:
                raise FloatingPointError
            if config.method in ("sgd", "rbd", "fpd") and allowed.sampled(step):
                loss, cosine = _observed_update(config, network, optimizer, stream)
                cosines.append(cosine)
            else:
                loss = _update(config, network, optimizer, stream)
            losses.append(loss)
            if (epoch := allowed.epoch(step)) > allowed.epoch(step - 1):
                bytes_sent.append(_sent(workers) - sent)
                shared = workers if own_batch else None
                point = Point(epoch, step, step * allowed.batches * config.batch_size, step * allowed.passes,
                              _mean(losses, shared), accuracy(model, held_out, workers),
                              _mean(cosines, shared) if cosines else None)  # fmt: skip
                seconds = (*progress.seconds, time.perf_counter() - began)
                progress, losses, cosines = Progress(step, (*progress.curve, point), seconds, commits), [], []
                if workers:
                    workers.agree({"step": step, "parameters": digest(model.parameters())})
                if epoch == config.switch:
                    optimizer = build_optimizer(config.at(epoch), model)
                if path and rank == 0:
                    save_checkpoint(path, config, model, optimizer, progress)
                sent = _sent(workers)
    except FloatingPointError:
        outcome = "diverged"
    except KeyboardInterrupt:
        if workers:
            raise  # the others may wait for this one for ever
        outcome = "interrupted"
    if progress.diverged:
        outcome = "diverged"
    if earlier := [c for c in progress.commits if c != _commit(where)]:
        where |= {"earlier_commits": " ".join(earlier)}  # of epochs before the run was taken up again
    if workers and bytes_sent:
        where |= {"bytes_per_step": _bytes_per_step(workers, bytes_sent, progress.step - done)}
    return Record(config, outcome, progress.curve, progress.seconds, where)


def _commit(environment: dict) -> str:
    """The commit, with a + where files differed; "unknown" outside a checkout."""
    return f"{environment['commit']}{'+' * bool(environment['dirty'])}" if environment["commit"] else "unknown"


def _begun(path: Path | None, config: RunConfig, model: nn.Module,
           workers: Workers | None) -> tuple[torch.optim.Optimizer, Progress]:  # fmt: skip
    """Where the checkpoint left off, or the start; worker 0 reads it and tells the others, who need not see the file."""
    optimizer, progress = build_optimizer(config.at(0), model), Progress()
    if path and path.exists() and (workers is None or workers.rank == 0):
        optimizer, progress = load_checkpoint(path, config, model)
    if workers:
        progress = workers.tell(progress)
        workers.copy(model.state_dict().values())
        optimizer.load_state_dict(workers.tell(optimizer.state_dict()))
    return optimizer, progress


def _replica(model: nn.Module, workers: Workers) -> nn.Module:
    """DDP, which means the gradients of all workers, in their order."""
    replica = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    replica.register_comm_hook(workers, distributed.ordered_hook)
    return replica


def _mean(values: list[Tensor], workers: Workers | None) -> float:
    """Over an epoch's steps, and over the workers where each has values of its own."""
    mean = torch.stack(values).double().mean()[None]  # (1,)
    return float(workers.mean(mean) if workers else mean)


def _sent(workers: Workers | None) -> float:
    """Bytes that this worker has put on the wire; NaN where the system does not tell."""
    try:
        return distributed.wire().sent if workers else math.nan
    except OSError:
        return math.nan


def _bytes_per_step(workers: Workers, sent: list[float], steps: int) -> int | None:
    """Mean over workers; validation and checkpoints stand between the measured steps and do not count."""
    mean = float(workers.mean(torch.tensor([sum(sent) / steps], dtype=torch.float64)))
    return round(mean) if math.isfinite(mean) else None


def _shown(config: RunConfig, done: int, steps: int, bar: bool | None) -> Iterator[int]:
    """The numbers of the steps to do, with a progress bar."""
    title = f"{config.model} {config.data} {config.method} seed {config.seed}"
    hidden = None if bar is None else not bar
    return iter(tqdm(range(done + 1, steps + 1), title, initial=done, total=steps, unit="step", disable=hidden, leave=False))


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer a configuration names: plain SGD, or one that moves in random bases."""
    named, methods = list(model.named_parameters()), {"rbd": RBD, "fpd": FPD, "nes": NES, "rbd-nes": NES}
    if config.method == "sgd":
        return torch.optim.SGD(named, config.lr)
    used = {name: getattr(config, name) for name in DEFAULTS[config.method]}
    if config.workers:
        used["variant"] = config.variant
    return methods[config.method](named, config.lr, seed=config.seed, **used)


def _update(config: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer, stream: Iterator) -> Tensor:
    """One step; returns the mean training loss it saw, ()."""
    if config.method == "nes":  # every perturbation has a mini-batch of its own
        return optimizer.step(lambda: _loss(model, *next(stream)))
    x, y = next(stream)
    if config.method == "rbd-nes":  # all perturbations share one
        return optimizer.step(lambda: _loss(model, x, y))
    optimizer.zero_grad()
    loss = _loss(model, x, y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _observed_update(config, model: nn.Module, optimizer, stream: Iterator) -> tuple[Tensor, Tensor]:
    """One step of a gradient method; returns its loss and the cosine of update and gradient."""
    start = _vector(model.parameters())
    loss = _update(config, model, optimizer, stream)
    u, g = start - _vector(model.parameters()), _vector(p.grad for p in model.parameters())
    return loss, torch.dot(u, g) / (u.norm() * g.norm())


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def _stream(split: data.Split, config: RunConfig, start: int, per_epoch: int,
            every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Training batches number start, start + every, ... epoch after epoch without end."""
    while True:
        epoch, first = divmod(start, per_epoch)
        yield from data.batches(split, config.batch_size, config.seed, epoch, first, every, config.augment)
        start += -(-(per_epoch - first) // every) * every  # the first one of the next epochs


def accuracy(model: nn.Module, split: data.Split, workers: Workers | None = None) -> float:
    """Share of right answers, %; workers share out the batches, and take batch norm's buffers from worker 0."""
    rank, size = (workers.rank, workers.size) if workers else (0, 1)
    if workers:
        workers.copy(model.buffers())
    model.eval()
    with torch.no_grad():
        parts = islice(data.evaluation(split), rank, None, size)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in parts)
    model.train()
    if workers:
        right = int(workers.sum(torch.tensor([right], dtype=torch.float64)))
    return 100 * right / len(split)


def _vector(tensors) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def save_checkpoint(path: Path, config: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer,
                    progress: Progress) -> None:  # fmt: skip
    """Write parameters as tensors and the rest as JSON in the header, whole or not at all (safetensors: no pickle)."""
    known = {"config": config.canonical(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    content = save(tensors, {name: json.dumps(value) for name, value in known.items()})
    temporary = path.with_name(f".{path.stem}.{token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot save a checkpoint: {error.strerror}", str(path.parent)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def load_checkpoint(path: Path, config: RunConfig, model: nn.Module) -> tuple[torch.optim.Optimizer, Progress]:
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
