"""What accuracy do the bytes of a step buy, for 4 workers: coordinates in a random basis, or compressed gradients?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from math import sqrt
from typing import Any

from rbd.suite.config import default_lr, find_size
from rbd.suite.experiment import SEEDS, Experiment

DATA = {"quick": "mnist-embedded", "paper": "mnist"}
IMAGES = {"quick": 5_000, "paper": 50_000}
EPOCHS, WORKERS, BATCH = 10, 4, 32
SEARCH = 100  # seed of the search for a rate
MOST = 12  # octaves that a search goes away from where it begins


@dataclass(frozen=True)
class Way:
    """How workers share a step.

    Attributes:
        name: ddp and bf16 send all gradients; powersgd a product of two thin matrices; topk the K largest entries of a
            worker's gradient, randomk K entries drawn for all workers; rbd d coordinates, in a basis for each tensor (the
            library's hook); kept d coordinates in one basis, and a worker adds to its next gradient what they do not hold,
            as it does in topk, randomk and powersgd.
        amount: the rank of powersgd, K of topk and randomk, d of rbd and kept.
        distribution: of rbd and kept.
    """

    name: str
    amount: int = 0
    distribution: str | None = None


WAYS = (Way("ddp"), Way("bf16"), Way("powersgd", 1), Way("powersgd", 4), Way("topk", 250), Way("topk", 2500),
        Way("randomk", 250), Way("randomk", 2500), Way("rbd", 250, "rademacher"), Way("rbd", 2500, "countsketch"),
        Way("rbd", 10_000, "countsketch"), Way("kept", 250, "rademacher"), Way("kept", 2500, "countsketch"),
        Way("kept", 10_000, "countsketch"))  # fmt: skip


def parts(profile: str) -> tuple[Way, ...]:
    return WAYS


def measure(way: Way, profile: str, data_dir=None) -> dict[str, Any]:
    """Of a way: the rates that were tried, the best one, its accuracies (%), and bytes that a worker sends a step.

    The FC net by plain SGD, each worker on batches of its own. Every way has the same images, and a rate of its own.

    Raises:
        OSError: the system does not count bytes.
    """
    from rbd.distributed import launch
    from rbd.suite import wire
    from rbd.suite.experiments.compression import Way, measure_way  # by their own names, which worker processes can import

    wire.count_bytes()  # raises before the training, not after it
    return launch(measure_way, WORKERS, Way(**asdict(way)), profile, data_dir)


def cost(profile: str) -> float:
    """Seconds: 15 ms a step, about eight runs for each way."""
    return len(WAYS) * 8 * EPOCHS * (IMAGES[profile] // BATCH // WORKERS) * 15e-3


def measure_way(way: Way, profile: str, data_dir) -> dict[str, Any]:
    """What `measure` returns; called by all workers at once."""
    from rbd.suite import datasets

    sets = datasets.load(DATA[profile], data_dir)
    tried = search(lambda lr: train(way, lr, SEARCH, sets).accuracy, guess_rate(way))
    lr = choose(tried)
    runs = [train(way, lr, seed, sets) for seed in SEEDS]
    return {"model": "fc", "data": sets.name, "workers": WORKERS, "epochs": EPOCHS, "way": way.name, "amount": way.amount,
            "distribution": way.distribution, "lr": lr, "tried": sorted(tried.items()),
            "accuracy": [run.accuracy for run in runs], "bytes": [run.bytes_per_step for run in runs]}  # fmt: skip


def guess_rate(way: Way) -> float:
    """SGD's rate, times √W for the mean of W batches, and √(D/d) for RBD, which sends a part of a gradient only."""
    lr = default_lr("fc", "mnist", "sgd") * sqrt(WORKERS)
    return lr * sqrt(find_size("fc", "mnist") / way.amount) if way.name == "rbd" else lr


def search(measure: Callable[[float], float], start: float) -> dict[float, float]:
    """Rate -> accuracy, an octave apart: half of `start` to twice it, and on while the best one is at an end."""
    tried = {start * 2.0**octave: measure(start * 2.0**octave) for octave in (-1, 0, 1)}
    while len(tried) <= MOST and (best := choose(tried)) in (ends := (min(tried), max(tried))):
        beyond = best / 2 if best == ends[0] else best * 2
        tried[beyond] = measure(beyond)
    return tried


def choose(tried: dict[float, float]) -> float:
    """The rate with the highest accuracy; in a tie, the smallest."""
    return max(sorted(tried), key=lambda lr: tried[lr])


# ---------------------------------------------------------------- one run


@dataclass(frozen=True)
class Run:
    accuracy: float  # %
    bytes_per_step: float  # that worker 0 sends, by the kernel's count, in the last epoch


def train(way: Way, lr: float, seed: int, sets) -> Run:
    """Plain SGD with DistributedDataParallel, whose communication hook is the way."""
    import torch.distributed as dist
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import SGD

    from rbd.suite import batches, models, wire
    from rbd.suite.train import accuracy

    model = models.build("fc", (1, 28, 28), seed)
    replica, optimizer = DistributedDataParallel(model), SGD(model.parameters(), lr)
    replica.register_comm_hook(*choose_hook(way, model, seed))
    steps = len(sets.train) // BATCH // WORKERS
    for epoch in range(EPOCHS):
        sent = wire.count_bytes().sent
        for x, y in islice(batches.batches(sets.train, BATCH, seed, epoch, dist.get_rank(), WORKERS), steps):
            optimizer.zero_grad()
            cross_entropy(replica(x), y).backward()
            optimizer.step()
        sent = wire.count_bytes().sent - sent
    return Run(accuracy(model, sets.validation), sent / steps)


def choose_hook(way: Way, model, seed: int) -> tuple[Any, Callable]:
    """The state and the hook for DistributedDataParallel: torch's own, the library's, or one of those below."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    from rbd.distributed import CoordinatesState, coordinates_hook

    if way.name == "rbd":
        return CoordinatesState(model.parameters(), way.amount, str(way.distribution), seed), coordinates_hook
    if way.name == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, way.amount, start_powerSGD_iter=2, random_seed=seed)
        return state, powerSGD_hook.powerSGD_hook
    if way.name in HOOKS:
        return Memory(way.amount, seed, way.distribution), HOOKS[way.name]
    return None, default_hooks.bf16_compress_hook if way.name == "bf16" else default_hooks.allreduce_hook


@dataclass
class Memory:
    """What a worker has not sent, and adds to its next gradient: error feedback, Stich et al. 2018 (arXiv 1809.07599)."""

    count: int  # K or d, values sent in a step
    seed: int
    distribution: str | None = None
    step: int = 0
    kept: Any = 0.0  # (D,)

    def take(self, g, at):
        """The entries of g at these places (K,); the others are kept. g (D,) has what was kept before."""
        sent, self.kept, self.step = g[at], g.index_fill(0, at, 0.0), self.step + 1
        return sent


def send_largest(memory: Memory, bucket):
    """u = (1/W) Σ_r C_r, where C_r has the K largest entries of worker r's gradient: their places and values are sent."""
    import torch

    from rbd.distributed.ddp_hook import fulfil
    from rbd.distributed.exchange import gather_single

    g = bucket.buffer().add_(memory.kept)  # (D,): the FC net fills a single bucket
    at = g.abs().topk(memory.count).indices  # (K,)
    mine = torch.cat([at.int(), memory.take(g, at).view(torch.int32)])  # (2 K,)
    everyone = mine.new_empty(WORKERS * len(mine))
    gather_single(everyone, mine, None)
    places, values = everyone.view(WORKERS, 2, -1).transpose(0, 1).flatten(1)  # (W K,) each
    return fulfil(g.zero_().index_add_(0, places, values.view(torch.float32) / WORKERS))


def send_random(memory: Memory, bucket):
    """u = (1/W) Σ_r C_r, where C_r has K entries of worker r's gradient, in places that all draw alike: values are sent."""
    import torch
    import torch.distributed as dist

    from rbd.distributed.ddp_hook import fulfil

    g = bucket.buffer().add_(memory.kept)  # (D,)
    draw = torch.Generator().manual_seed(memory.seed * 2**32 + memory.step)
    at = torch.randperm(len(g), generator=draw)[: memory.count]  # (K,)
    sent = memory.take(g, at)
    dist.all_reduce(sent)
    return fulfil(g.zero_().index_copy_(0, at, sent / WORKERS))


def send_coordinates(memory: Memory, bucket):
    """u = Φᵀ (1/W) Σ_r Φ h_r, where h_r is worker r's gradient with what it kept; it keeps h_r - Φᵀ Φ h_r."""
    import torch.distributed as dist

    from rbd import Basis
    from rbd.distributed.ddp_hook import fulfil

    h = bucket.buffer().add_(memory.kept)  # (D,)
    basis = Basis(memory.count, len(h), str(memory.distribution), memory.seed, step=memory.step)
    c = basis.project(h)  # (d,)
    memory.kept, memory.step = h - basis.expand(c), memory.step + 1
    dist.all_reduce(c)
    return fulfil(h.copy_(basis.expand(c / WORKERS)))


HOOKS = {"topk": send_largest, "randomk": send_random, "kept": send_coordinates}
EXPERIMENT = Experiment("compression", __doc__, measure=measure, parts=parts, cost=cost)
