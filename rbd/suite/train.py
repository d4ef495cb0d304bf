"""train(RunConfig) -> Record: the whole loop on one screen, with checkpoints from which a run resumes bit for bit."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from rbd import distributed
from rbd.distributed import OWN_BATCH, Alone, Workers, digest
from rbd.kernels import team
from rbd.optim import FPD, NES, RBD
from rbd.philox import STREAM_VERSION
from rbd.subspace import Subspace
from rbd.suite import batches, checkpoint, datasets, heap, models, replay, wire
from rbd.suite.checkpoint import Keeper, Progress
from rbd.suite.config import DEFAULTS, RunConfig
from rbd.suite.record import Point, Record, environment
from rbd.suite.replay import Eager, Ready, reproducible, schedule

Turns = Generator[Ready, None, Record]  # pauses between chunks of steps, so that other runs can go on

MOST_THREADS = 1024  # more than any machine of ours has cores; torch keeps the number in 32 bits
SAMPLE = 50  # steps between two cosines of update and gradient: often enough for a mean, too rare to cost anything


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

    def stretches(self, done: int) -> Iterator[range]:
        """The numbers of the steps after `done`, cut where an epoch ends and the network is validated."""
        first = done + 1
        for step in range(first, self.steps + 1):
            if self.epoch(step) > self.epoch(step - 1):
                yield range(first, step + 1)
                first = step + 1

    def is_sampled(self, step: int) -> bool:
        """Whether the cosine of update and gradient is computed in a step."""
        every = min(SAMPLE, max(self.per_epoch // self.batches, 1))  # so that every epoch has one
        return step % every == 1 % every


def budget(config: RunConfig, images: int) -> Budget:
    """The budget of a run on a number of training images.

    Raises:
        ValueError: there are fewer images than in one batch, or too few epochs for one step.
    """
    d, per_epoch, workers = config.dim or 1, images // config.batch_size, config.workers or 1
    if per_epoch == 0:
        raise ValueError(f"batch_size: got {config.batch_size}, allowed 1 ... {images} (the training images)")
    if config.variant in OWN_BATCH and workers > config.epochs * per_epoch:
        raise ValueError(f"workers: got {workers}, allowed 1 ... {config.epochs * per_epoch} (the batches of all epochs)")
    taken = d if config.method == "nes" else workers if config.variant in OWN_BATCH else 1
    made = Budget(config.epochs, per_epoch, taken, d if "nes" in config.method else workers)
    if made.steps == 0:
        least = -(-d // per_epoch)
        raise ValueError(f"epochs: got {config.epochs}, allowed {least} and above: nes takes {d} batches a step")
    return made


def train(config: RunConfig, checkpoints: str | os.PathLike[str] | None = None,
          data_dir: str | os.PathLike[str] | None = None, device: str = "cpu", threads: int | None = None,
          bar: bool | None = False, timeout: float = distributed.TIMEOUT) -> Record:  # fmt: skip
    """Run a configuration, or go on from its checkpoint, until it finishes, diverges or is interrupted (Ctrl-C).

    With config.workers: in a process that torchrun started, as one of them; in any other, by starting that many processes
    here. Then Ctrl-C raises KeyboardInterrupt; checkpoints are worker 0's alone, and the others get their state from it.

    Args:
        config: what to run.
        checkpoints: directory for <config.id>.safetensors, written at the end of every epoch; None: no checkpoints.
        data_dir: root of the full data sets, see rbd.suite.datasets.data_dir.
        device: where tensors live, "cpu" or "cuda".
        threads: CPU threads for the run, divided among the workers that are started here; with torchrun, threads of this
            worker. None: as many as torch uses now, or each worker's share of the cores.
        bar: show a progress bar on stderr; None: only on a terminal.
        timeout: of exchanges between workers, seconds.

    Returns:
        The Record. Its curve is the same, bit for bit, however often the run was interrupted on one kind of machine.

    Raises:
        FileNotFoundError, ValueError: the data set is missing or damaged, or the checkpoint is; the configuration does
            not fit the data; the device or the number of threads is not available.
        OSError: a checkpoint cannot be written.
        RuntimeError: a worker died, did not answer in time, or differs from the others.
    """
    check_place(device, threads)
    if config.workers and not distributed.is_launched():
        each = max(1, threads // config.workers) if threads else None
        given = (config, checkpoints, data_dir, device, each, bar, timeout)
        return distributed.launch(train, config.workers, *given, timeout=timeout)
    threads = threads or torch.get_num_threads()
    group = distributed.join(config.workers, timeout, device) if config.workers else nullcontext()
    with settings(config, device, threads), heap.keep_memory() if device == "cpu" else nullcontext(), group:
        return _finish(begin(config, checkpoints, data_dir, device, threads, bar))


def _finish(turns: Turns) -> Record:
    """Go on with a run until it ends, or Ctrl-C does."""
    try:
        while True:
            is_ready = next(turns)
            while not is_ready():
                time.sleep(5e-5)
    except StopIteration as ended:
        return ended.value
    except KeyboardInterrupt:  # between two turns
        return interrupt(turns)


def interrupt(turns: Turns) -> Record:
    """The record of a paused run, as if Ctrl-C had interrupted it now."""
    try:
        turns.throw(KeyboardInterrupt)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("the run did not end")


def check_place(device: str, threads: int | None) -> None:
    """Raise ValueError if there is no such device, or threads is out of its range."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        there = "cpu, cuda" if torch.cuda.is_available() else "cpu (no GPU is available)"
        raise ValueError(f"device: got {device!r}, allowed {there}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads: got {threads}, allowed 1 ... {MOST_THREADS}")


@contextmanager
def settings(config: RunConfig, device: str, threads: int) -> Iterator[None]:
    """Threads for the basis kernels, and for torch: one for the FC nets, whose operations are too small to share.

    OpenMP's idle threads spin for milliseconds on cores that the kernels need. On a GPU also replay.reproducible.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if config.model in models.DENSE else threads)
    team.set_threads(threads)
    try:
        with reproducible(device):
            yield
    finally:
        torch.set_num_threads(before)
        team.set_threads(None)


@dataclass(frozen=True)
class _Run:
    """What a run works with from its first step to its last; of these only the model and the runner change.

    Attributes:
        here: the environment, part of the record.
        threads: of the CPU.
        path: of the checkpoint; None: there is none, or another worker writes it.
        runner: does the steps, as calls or as CUDA graphs.
    """

    config: RunConfig
    here: dict
    threads: int
    sets: datasets.Dataset
    budget: Budget
    workers: Workers | Alone
    model: nn.Module
    path: Path | None
    runner: Eager

    @property
    def device(self) -> str:
        return str(self.here["device"])

    @property
    def commit(self) -> str:
        """With a + where files differed; "unknown" outside a checkout."""
        return f"{self.here['commit']}{'+' * bool(self.here['dirty'])}" if self.here["commit"] else "unknown"

    def build(self, config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(config, model, queues=self.runner.queues)


def begin(config: RunConfig, checkpoints, data_dir, device: str, threads: int, bar: bool | None = False,
          lanes: int | None = None) -> Turns:  # fmt: skip
    """`train` as a generator that pauses between chunks of steps; lanes: how many runs take turns, if several do."""
    run = _set_up(config, checkpoints, data_dir, device, threads, lanes)
    with run.runner.device():
        optimizer, progress = _resume(run)
        stream = _supply(run, progress.step)
    network = _replicate(run.model, run.workers) if config.variant == "ddp" else run.model
    keeper, done, sent, outcome = Keeper(run.path, config, run.runner.pause), progress.step, 0.0, "finished"
    began = time.perf_counter() - (progress.seconds[-1] if progress.seconds else 0)
    try:
        with keeper, _show(run, done, bar) as shown:
            for steps in run.budget.stretches(done):
                if progress.diverged:
                    raise FloatingPointError
                made = yield from _train_epoch(run, network, optimizer, stream, steps, shown)
                progress = progress.add(made.point, time.perf_counter() - began, run.commit, threads, run.device)
                sent += made.sent
                optimizer = _keep(run, keeper, optimizer, progress)
    except FloatingPointError:
        outcome = "diverged"
    except KeyboardInterrupt:
        if config.workers:
            raise  # or the other workers might wait for this one without end
        outcome = "interrupted"
    per_step = sent / (progress.step - done) if progress.step > done else None
    return _conclude(run, progress, "diverged" if progress.diverged else outcome, per_step)


def _set_up(config: RunConfig, checkpoints, data_dir, device: str, threads: int, lanes: int | None) -> _Run:
    """All that a run needs, and whether its workers were given the same."""
    here, sets = environment(device) | ({"lanes": lanes} if lanes else {}), _load(config.data, data_dir, device)
    allowed = budget(config, len(sets.train))
    workers = Workers(config.variant) if config.variant else Alone()
    workers.agree(asdict(config) | {"stream_version": STREAM_VERSION})  # torchrun's workers may have been given others
    model = build_network(config, tuple(sets.train.images.shape[1:]), device)
    full = not config.data.endswith("-embedded")  # the records of the embedded sets were made without channels-last
    if device == "cpu" and full and config.model not in models.DENSE:
        model.register_forward_pre_hook(_put_channels_last)
    path = Path(checkpoints) / f"{config.id}.safetensors" if checkpoints and workers.rank == 0 else None
    runner = replay.choose(device, bool(config.workers) or config.method.startswith("subspace"))
    return _Run(config, here, threads, sets, allowed, workers, model, path, runner)


@dataclass(frozen=True)
class _Epoch:
    """What an epoch of steps gave: the point of the curve, and the bytes that this worker sent in its steps."""

    point: Point
    sent: float


def _train_epoch(run: _Run, network: nn.Module, optimizer: torch.optim.Optimizer, stream: Iterator, steps: range,
                 shown: tqdm) -> Generator[Ready, None, _Epoch]:  # fmt: skip
    """Do the steps of an epoch, and validate."""
    before = _count_sent(run.workers)
    losses, cosines = yield from _descend(run, network, optimizer, stream, steps, shown)
    sent = _count_sent(run.workers) - before
    right, finite = run.runner.run("validate", partial(_validate, run.model, run.sets.validation, run.workers))
    loss, cosine, right, finite = yield from run.runner.read(losses, cosines, [right], [finite])
    point = _measure(run, steps[-1], loss, cosine, right)
    if run.runner.queues:
        _look_back(optimizer, point, bool(finite))
    return _Epoch(point, sent)


def _keep(run: _Run, keeper: Keeper, optimizer: torch.optim.Optimizer, progress: Progress) -> torch.optim.Optimizer:
    """Compare the workers and write the checkpoint after an epoch; returns the optimizer of the next one."""
    if run.workers.size > 1:
        run.workers.agree({"step": progress.step, "parameters": digest(run.model.parameters())})
    epoch = progress.curve[-1].epoch
    with run.runner.device():
        if epoch == run.config.switch:
            optimizer = run.build(run.config.at(epoch), run.model)
            run.runner.forget()
        keeper.take(run.model, optimizer, progress)
    return optimizer


def _conclude(run: _Run, progress: Progress, outcome: str, bytes_per_step: float | None) -> Record:
    """The record; bytes_per_step: that this worker sent, NaN where the system does not count them, None without a step."""
    here = run.here | {"threads": run.threads, **_describe_past(progress, run.commit, run.threads, run.device)}
    if run.config.workers and bytes_per_step is not None:
        here |= {"bytes_per_step": _mean_bytes(run.workers, bytes_per_step)}
    return Record(run.config, outcome, progress.curve, progress.seconds, here)


def _load(name: str, data_dir, device: str) -> datasets.Dataset:
    """A data set on a device; on a GPU, runs share it."""
    return datasets.load(name, data_dir) if device == "cpu" else _load_once(name, data_dir, device)


@lru_cache(maxsize=4)
def _load_once(name: str, data_dir, device: str) -> datasets.Dataset:
    found = datasets.load(name, data_dir)
    return datasets.Dataset(name, found.train.to(device), found.validation.to(device))


def _supply(run: _Run, done: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The training batches after a number of steps."""
    config, allowed = run.config, run.budget
    if run.runner.queues:
        most = (allowed.per_epoch // allowed.batches + 1) * allowed.batches  # of an epoch
        return batches.Table(run.sets.train, config.batch_size, config.seed, config.augment, most)
    own_batch = config.variant in OWN_BATCH
    start, every = done * allowed.batches + run.workers.rank * own_batch, allowed.batches if own_batch else 1
    return _stream(run.sets.train, config, start, allowed.per_epoch, every)


def _put_channels_last(model: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """The images in memory as (B, H, W, C), which CPU convolutions are a quarter to a third faster on; same shape."""
    (x,) = inputs  # (B, C, H, W)
    return x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)  # for C = 1 too


def _describe_past(progress: Progress, commit: str, threads: int, device: str) -> dict[str, str]:
    """Other commits, thread counts and devices of the epochs before the run was resumed, if there are any."""
    made = (("commits", " ", progress.commits, commit), ("threads", " ", progress.threads, threads),
            ("devices", "; ", progress.devices, device))  # whose names have spaces  # fmt: skip
    others = {f"earlier_{name}": mark.join(str(v) for v in known if v != now) for name, mark, known, now in made}
    return {name: text for name, text in others.items() if text}


def _resume(run: _Run) -> tuple[torch.optim.Optimizer, Progress]:
    """The state of the checkpoint, or the start; worker 0 reads the file and sends it to the others, which need not see
    it."""
    optimizer, progress = run.build(run.config.at(0), run.model), Progress()
    if run.path and run.path.exists():
        optimizer, progress = checkpoint.load(run.path, run.config, run.model, run.build)
    if run.workers.size > 1:
        progress = run.workers.tell(progress)
        run.workers.copy(run.model.state_dict().values())
        optimizer.load_state_dict(run.workers.tell(optimizer.state_dict()))
    return optimizer, progress


def _descend(run: _Run, network: nn.Module, optimizer: torch.optim.Optimizer, stream: Iterator, steps: range, shown: tqdm,
             ) -> Generator[Ready, None, tuple[list[Tensor], list[Tensor]]]:  # fmt: skip
    """Do some steps; returns their losses, and the cosines of update and gradient of those that are sampled."""
    config, allowed, runner = run.config, run.budget, run.runner
    if isinstance(stream, batches.Table):
        with runner.device():
            stream.fill((steps[0] - 1) * allowed.batches, len(steps) * allowed.batches)
    given, losses, cosines = (config, network, optimizer, stream), [], []
    has_gradient, longest = config.method in ("sgd", "rbd", "fpd"), 1 if "nes" in config.method else replay.LONGEST
    for chunk in schedule(steps, lambda step: has_gradient and allowed.is_sampled(step), longest):
        if chunk.is_sampled:
            loss, cosine = runner.run("compare", lambda: _update_and_compare(*given))
            cosines.append(cosine)
        elif isinstance(optimizer, NES) and isinstance(stream, batches.Table):
            loss = yield from _evolve(config, network, optimizer, stream, runner)
        else:
            (loss,) = runner.run("update", lambda: (_update(*given),), len(chunk.steps))
        losses.append(loss)
        shown.update(len(chunk.steps))
        yield runner.is_ready
    return losses, cosines


def _evolve(config: RunConfig, network: nn.Module, optimizer: NES, table: batches.Table, runner: Eager,
            ) -> Generator[Ready, None, Tensor]:  # fmt: skip
    """A step of nes or rbd-nes in pieces, whose evaluations are done in chunks; returns its mean loss, (1,)."""
    shares = config.method == "rbd-nes"  # all perturbations see one mini-batch

    def finish() -> tuple[Tensor]:
        if shares:
            table.skip()
        return (optimizer.finish(),)

    def begin() -> tuple[()]:
        optimizer.begin()
        return ()

    runner.run("begin", begin)
    for chunk in schedule(range(config.dim or 0), lambda row: False):
        runner.run("evaluate", lambda: (optimizer.evaluate(
            lambda: _loss(network, *(table.peek() if shares else next(table)))),), len(chunk.steps))  # fmt: skip
        yield runner.is_ready
    (loss,) = runner.run("update", finish)
    return loss


def _measure(run: _Run, step: int, losses: Tensor, cosines: Tensor, right: Tensor) -> Point:
    """The point of the curve after a step, with the means over the steps since the last one."""
    config, allowed = run.config, run.budget
    among = run.workers if config.variant in OWN_BATCH else Alone()  # workers whose losses differ
    share = _compute_share(right, len(run.sets.validation), run.workers)
    return Point(
        allowed.epoch(step), step, step * allowed.batches * config.batch_size, step * allowed.passes,
        _mean(losses, among), share, _mean(cosines, among) if len(cosines) else None,
    )  # fmt: skip


def _look_back(optimizer: torch.optim.Optimizer, point: Point, finite: bool) -> None:
    """Raise what a step of RBD, FPD or NES raises, after an epoch whose steps read nothing from the device."""
    if not isinstance(optimizer, torch.optim.SGD) and (math.isnan(point.loss) or not finite):
        raise FloatingPointError


def _replicate(model: nn.Module, workers: Workers | Alone) -> nn.Module:
    """DDP, which averages the gradients of all workers, summed in their order."""
    replica = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    replica.register_comm_hook(workers, distributed.ordered_hook)
    return replica


def _mean(values: Tensor, among: Workers | Alone) -> float:
    """Mean over an epoch's steps, and over the workers where each has values of its own."""
    return float(among.mean(values.double().mean()[None]))  # (1,)


def _count_sent(workers: Workers | Alone) -> float:
    """Bytes that this worker has sent; NaN where the system does not count them."""
    try:
        return wire.count_bytes().sent if workers.size > 1 else 0.0
    except OSError:
        return math.nan


def _mean_bytes(workers: Workers | Alone, per_step: float) -> int | None:
    """Mean over workers; validation and checkpoints stand between the measured steps and do not count."""
    mean = float(workers.mean(torch.tensor([per_step], dtype=torch.float64)))
    return round(mean) if math.isfinite(mean) else None


def _show(run: _Run, done: int, bar: bool | None) -> tqdm:
    """A progress bar of steps, of worker 0."""
    config, hidden = run.config, True if run.workers.rank else None if bar is None else not bar
    title = f"{config.model} {config.data} {config.method} seed {config.seed}"
    return tqdm(desc=title, initial=done, total=run.budget.steps, unit="step", disable=hidden, leave=False)


def build_network(config: RunConfig, shape: tuple[int, int, int], device: str) -> nn.Module:
    """The network of a configuration; with a method of a subspace, its parameters are the coordinates."""
    model = models.build(config.model, shape, config.seed).to(device)
    if not config.method.startswith("subspace"):
        return model
    return Subspace(model, seed=config.seed, **{name: getattr(config, name) for name in DEFAULTS[config.method]})


def build_optimizer(config: RunConfig, model: nn.Module, queues: bool = False) -> torch.optim.Optimizer:
    """The optimizer a configuration names: torch's SGD or Adam, or one in random bases; queues: without device reads."""
    named, methods = list(model.named_parameters()), {"rbd": RBD, "fpd": FPD, "nes": NES, "rbd-nes": NES}
    if config.method in ("sgd", "subspace-sgd"):
        return torch.optim.SGD(named, config.lr)
    if config.method == "subspace-adam":
        return torch.optim.Adam(named, config.lr)
    used = {name: getattr(config, name) for name in DEFAULTS[config.method]}
    if config.workers:
        used["variant"] = config.variant
    if queues:
        used["capturable"] = True
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


def _update_and_compare(config, model: nn.Module, optimizer, stream: Iterator) -> tuple[Tensor, Tensor]:
    """One step of a gradient method; returns its loss and the cosine of update and gradient."""
    start = _vector(model.parameters())
    loss = _update(config, model, optimizer, stream)
    u, g = start - _vector(model.parameters()), _vector(p.grad for p in model.parameters())
    return loss, torch.dot(u, g) / (u.norm() * g.norm())


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def _stream(split: datasets.Split, config: RunConfig, start: int, per_epoch: int,
            every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Training batches number start, start + every, ... epoch after epoch without end."""
    while True:
        epoch, first = divmod(start, per_epoch)
        yield from batches.batches(split, config.batch_size, config.seed, epoch, first, every, config.augment)
        start += -(-(per_epoch - first) // every) * every  # the first one of the next epochs


def accuracy(model: nn.Module, split: datasets.Split, workers: Workers | Alone = Alone()) -> float:  # noqa: B008
    """Correct predictions, %; workers divide the batches among them, and use worker 0's buffers of batch norm."""
    return _compute_share(_count_right(model, split, workers), len(split), workers)


def _compute_share(right: Tensor, images: int, workers: Workers | Alone) -> float:
    """Correct predictions of all workers, % of the images."""
    return 100 * int(workers.sum(right.reshape(1).double())) / images


def _count_right(model: nn.Module, split: datasets.Split, workers: Workers | Alone) -> Tensor:
    """How many of this worker's share of the images, ()."""
    workers.copy(model.buffers())
    model.eval()
    with torch.no_grad():
        parts = islice(batches.evaluation(split), workers.rank, None, workers.size)
        right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
        for x, y in parts:
            right += (model(x).argmax(1) == y).sum()
    model.train()
    return right


def _validate(model: nn.Module, split: datasets.Split, workers: Workers | Alone) -> tuple[Tensor, Tensor]:
    """Number of correct predictions, and whether all parameters are finite."""
    finite = torch.stack([p.detach().isfinite().all() for p in model.parameters()]).all()
    return _count_right(model, split, workers), finite


def _vector(tensors) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])
