"""rbd.distributed: W processes are one process that does the same in turn, bit for bit; bytes; faults; DDP's hook; FSDP2.

Four processes are started once and do all that needs living workers (``battery``, W = 1 ... 4 of them at a time); what they
found is compared here with what this process computes alone. Faults have processes of their own.
"""

from __future__ import annotations

import copy
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rbd import FPD, RBD, Basis, distributed, kernels, optim
from rbd.distributed import OWN_BATCH, VARIANTS, Part, Workers, in_turn, share
from rbd.distribution import DISTRIBUTIONS, distribution
from rbd.optim import rbd_direction
from rbd.partition import Compartment, partition

MOST = 4  # workers
STEPS = 4
SMALL, LARGE = (6, 8, 3), (90, 128, 10)  # widths: D = 83, less than a chunk of any law, and 12,938, several of each


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(widths: tuple[int, int, int] = SMALL, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(*widths[:2]), nn.ReLU(), nn.Linear(*widths[1:])).to(dtype)


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().reshape(-1).double() for t in tensors])  # float32 to float64 is exact


@dataclass(frozen=True)
class Case:
    """What the workers train, and how."""

    variant: str
    options: tuple[tuple[str, object], ...] = ()
    groups: tuple[tuple[tuple[str, object], ...], ...] = ()  # options of a group for each layer, instead of one for all
    widths: tuple[int, int, int] = SMALL
    accumulate: int = 1  # backward passes to a step
    dtype: torch.dtype = torch.float32

    def optimizer(self, model: nn.Sequential, **more) -> RBD:
        named = list(model.named_parameters())
        if self.groups:
            layers = [named[:2], named[2:]]
            named = [{"params": layer, **dict(options)} for layer, options in zip(layers, self.groups)]
        return RBD(named, **{"lr": 0.5, "dim": 7, "seed": 5} | dict(self.options) | more)

    def backward(self, model: nn.Module, step: int, worker: int) -> None:
        """A worker's gradient at a step: own batches differ between workers, the others do not."""
        for turn in range(self.accumulate):
            seed = (step * self.accumulate + turn) * 10 + (worker if self.variant in OWN_BATCH else 0)
            x = normal(16, self.widths[0], seed=seed, dtype=self.dtype)
            (model(x).square().mean() / self.accumulate).backward()


def options(**given) -> tuple[tuple[str, object], ...]:
    return tuple(given.items())


CASES = {f"{variant} {name}": case for variant in VARIANTS for name, case in {
    "whole": Case(variant),  # d = 7: uneven for 2, 3 and 4
    "even split": Case(variant, options(dim=12, distribution="uniform")),
    "by layer": Case(variant, options(dim=10, partition="by_layer", distribution="rademacher", redraw=3)),
    "fixed, even:5": Case(variant, options(dim=13, partition="even:5", distribution="uniform", redraw=0)),
    "groups": Case(variant, groups=(options(dim=9, partition="by_tensor", seed=1), options(lr=0.1, dim=None,
                   partition="by_ratio:4", distribution="rademacher"))),  # fmt: skip
    "accumulated": Case(variant, accumulate=2),
    "few directions": Case(variant, options(dim=2)),  # fewer than workers
    "large": Case(variant, options(dim=21, distribution="rademacher"), widths=LARGE),
    "float64": Case(variant, options(distribution="rademacher"), dtype=torch.float64),
}.items()}  # fmt: skip


# ---------------------------------------------------------------- in the workers


def trained(case: Case, group: dist.ProcessGroup) -> list[Tensor]:
    """This worker's parameters after every step, (D,) each."""
    model = network(case.widths, case.dtype)
    optimizer, after = case.optimizer(model, variant=case.variant, process_group=group), []
    for step in range(STEPS):
        optimizer.zero_grad()
        case.backward(model, step, dist.get_rank(group))
        optimizer.step()
        after.append(flat(model.parameters()))
    return after


def ddp_trained(case: Case, group: dist.ProcessGroup) -> list[Tensor]:
    """The same with torch's DDP and SGD, its gradients summed in order."""
    model = network()
    replica = nn.parallel.DistributedDataParallel(model, process_group=group)
    replica.register_comm_hook(Workers("ddp", group), distributed.ordered_hook)
    optimizer, after = torch.optim.SGD(model.parameters(), 0.5), []
    for step in range(STEPS):
        optimizer.zero_grad()
        case.backward(replica, step, dist.get_rank(group))
        optimizer.step()
        after.append(flat(model.parameters()))
    return after


def hooked(make, group: dist.ProcessGroup, bucket_mb: float) -> list[Tensor]:
    """The parameters after every step of the user's own optimizer behind the hook that sends coordinates."""
    model, case = network(LARGE), Case("common", widths=LARGE)
    replica = nn.parallel.DistributedDataParallel(model, process_group=group, bucket_cap_mb=bucket_mb)
    state = distributed.CoordinatesState(model.parameters(), 21, "rademacher", 5, redraw=2, process_group=group)
    replica.register_comm_hook(state, distributed.coordinates_hook)
    optimizer, after = make(model.parameters()), []
    for step in range(STEPS):
        optimizer.zero_grad()
        case.backward(replica, step, dist.get_rank(group))
        optimizer.step()
        after.append(flat(model.parameters()))
    return after


OPTIMIZERS = {"sgd": partial(torch.optim.SGD, lr=0.5), "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
              "adam": partial(torch.optim.Adam, lr=0.01)}  # fmt: skip


def said(function, *args) -> str:
    """The message of the RuntimeError or FloatingPointError that a function raises."""
    try:
        function(*args)
    except (RuntimeError, FloatingPointError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def disagreeing(group: dist.ProcessGroup) -> dict[str, str]:
    """What workers are told when worker 1 is unlike the others."""
    odd, told = dist.get_rank(group) == 1, {}

    def one(name: str, widths=SMALL, before=lambda optimizer, model: None, **changes) -> None:
        model = network(widths)
        optimizer = RBD(model.parameters(), **{"lr": 0.5, "dim": 7, "process_group": group} | changes)
        before(optimizer, model)
        model(normal(4, widths[0])).sum().backward()
        told[name] = said(optimizer.step)

    def late(optimizer: RBD, model: nn.Module) -> None:
        """Parameters go apart after the first step, and nobody looks until step 100."""
        model(normal(4, 6)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            model[0].weight[0, 0] += odd * 1e-6
        optimizer.param_groups[0]["step"] = 100

    def other(optimizer: RBD, model: nn.Module) -> None:
        state = optimizer.state_dict()
        state["param_groups"][0]["step"] = 3 if odd else 4
        optimizer.load_state_dict(state)

    one("seed", seed=int(odd))
    one("lr", lr=0.25 if odd else 0.5)
    one("variant", variant="bases" if odd else "shares")
    one("model", widths=(6, 9, 3) if odd else SMALL)
    one("parameters", before=late)
    one("step", before=other)
    version = optim.STREAM_VERSION
    optim.STREAM_VERSION = version + odd
    one("stream", before=lambda optimizer, model: None)
    optim.STREAM_VERSION = version
    one("frozen", before=lambda optimizer, model: model[2].requires_grad_(not odd))
    return told


def poisoned(variant: str, group: dist.ProcessGroup) -> tuple[str, bool, int]:
    """Worker 1 has a NaN: what each is told, whether parameters stayed, and the step."""
    model = network()
    optimizer = RBD(model.named_parameters(), lr=0.5, dim=7, variant=variant, process_group=group)
    model(normal(4, 6)).sum().backward()
    if dist.get_rank(group) == 1:
        model[0].bias.grad[2] = torch.nan
    before = flat(model.parameters())
    return said(optimizer.step), torch.equal(before, flat(model.parameters())), optimizer.param_groups[0]["step"]


def bytes_a_step(variant: str, group: dist.ProcessGroup, dim: int = 1000, steps: int = 20) -> float:
    """Bytes that this worker sent in a step, after the step in which all compare themselves."""
    model = network(LARGE)
    optimizer: torch.optim.Optimizer
    if variant == "ddp":
        replica: nn.Module = nn.parallel.DistributedDataParallel(model, process_group=group)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
    else:
        replica = model
        optimizer = RBD(model.parameters(), 0.1, dim, distribution="rademacher", variant=variant, process_group=group)
    for step in range(steps + 1):
        if step == 1:
            before = distributed.wire()
        optimizer.zero_grad()
        replica(normal(4, 90, seed=step)).sum().backward()
        optimizer.step()
    return (distributed.wire().sent - before.sent) / steps


def resumed(group: dist.ProcessGroup, state: dict, weights: dict) -> Tensor:
    """Two more steps from a checkpoint that another number of workers has written."""
    model, case = network(), Case("shares")
    model.load_state_dict(weights)
    optimizer = case.optimizer(model, variant="shares", process_group=group)
    optimizer.load_state_dict(copy.deepcopy(state))
    for step in (2, 3):
        optimizer.zero_grad()
        case.backward(model, step, dist.get_rank(group))
        optimizer.step()
    return flat(model.parameters())


SHARDED = {"whole": dict(partition="whole", dim=7), "even": dict(partition="even:40", dim=80, redraw=2, distribution="uniform"),
           "by layer": dict(partition="by_layer", dim=9, distribution="rademacher")}  # fmt: skip


def sharded(given: dict, group: dist.ProcessGroup) -> list[Tensor]:
    """Parameters under FSDP2's fully_shard, gathered after every step for the comparison only."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group, "cpu")
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer, case, after = RBD(model.named_parameters(), lr=0.5, seed=5, **given), Case("ddp"), []
    for step in range(STEPS):
        optimizer.zero_grad()
        case.backward(model, step, dist.get_rank(group))
        gradients = flat(p.grad.full_tensor() for p in model.parameters())
        optimizer.step()
        after += [gradients, flat(p.full_tensor() for p in model.parameters())]
    return after


def battery(state: dict, weights: dict) -> dict:
    """Everything, on every number of workers; {(W, name): [what each worker found]}."""
    found: dict = {}
    for size in range(1, MOST + 1):
        group = dist.new_group(list(range(size)))
        if dist.get_rank() < size:
            mine = {name: trained(case, group) for name, case in CASES.items()}
            mine["ddp"] = ddp_trained(Case("ddp"), group)
            mine |= {f"hook {name}": hooked(make, group, 25) for name, make in OPTIMIZERS.items()}
            mine["hook small buckets"] = hooked(OPTIMIZERS["sgd"], group, 0.001)
            mine["resumed"] = resumed(group, state, weights)
            mine |= {f"sharded {name}": sharded(given, group) for name, given in SHARDED.items()}
            if size > 1:
                mine |= {f"bytes {variant}": bytes_a_step(variant, group) for variant in (*VARIANTS, "ddp")}
                mine |= {f"poison {variant}": poisoned(variant, group) for variant in VARIANTS}
                mine["disagreeing"] = disagreeing(group)
            box = [None] * size
            dist.all_gather_object(box, mine, group)
            found |= {(size, name): [each[name] for each in box] for name in mine}
        dist.barrier()
    return found


# ---------------------------------------------------------------- what they found


def checkpoint() -> tuple[dict, dict]:
    """Of two steps of one process without workers."""
    model, case = network(), Case("shares")
    optimizer = case.optimizer(model)
    for step in (0, 1):
        optimizer.zero_grad()
        case.backward(model, step, 0)
        optimizer.step()
    return optimizer.state_dict(), model.state_dict()


@pytest.fixture(scope="module")
def found() -> dict:
    return distributed.launch(battery, MOST, *checkpoint(), timeout=60)


@pytest.fixture(autouse=True)
def one_thread(set_threads) -> None:
    set_threads(1)  # as in the workers


def followed(case: Case, workers: int) -> list[Tensor]:
    """Parameters after every step of one process that does what W workers do, in turn."""
    model = network(case.widths, case.dtype)
    optimizer, after = case.optimizer(model), []
    for step in range(STEPS):
        parts = []
        for worker in range(workers):
            optimizer.zero_grad()
            case.backward(model, step, worker)
            parts.append([optimizer._part(index) for index in range(len(optimizer.param_groups))])
        with torch.no_grad():
            for group, alike in zip(optimizer.param_groups, zip(*parts)):
                u = in_turn(alike, case.variant)
                for p, v in zip(group["params"], u.split([p.numel() for p in group["params"]])):
                    p.add_(v.view_as(p), alpha=-group["lr"])
                group["step"] += 1
        after.append(flat(model.parameters()))
    return after


def equal(found: list[list[Tensor]], expected: list[Tensor]) -> None:
    """Every worker has the expected parameters, bit for bit, after every step."""
    for worker, after in enumerate(found):
        assert len(after) == len(expected)
        for step, (got, wanted) in enumerate(zip(after, expected)):
            assert torch.equal(got, wanted), f"worker {worker}, step {step}: {(got - wanted).abs().max()}"


@pytest.mark.parametrize("workers", range(1, MOST + 1))
@pytest.mark.parametrize("name", CASES)
def test_processes_equal_one_that_does_the_same_in_turn(found, name, workers):
    expected = followed(CASES[name], workers)
    equal(found[workers, name], expected)
    assert not torch.equal(expected[0], expected[1])  # it moves


@pytest.mark.parametrize("workers", range(1, MOST + 1))
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("shares")])
def test_shares_are_plain_rbd(found, name, workers):
    """However many share the directions: bit for bit what one process without workers computes."""
    case = CASES[name]
    model = network(case.widths, case.dtype)
    optimizer, after = case.optimizer(model), []
    for step in range(STEPS):
        optimizer.zero_grad()
        case.backward(model, step, 0)
        optimizer.step()
        after.append(flat(model.parameters()))
    equal(found[workers, name], after)


@pytest.mark.parametrize("workers", range(1, MOST + 1))
def test_ddp_in_order_is_the_mean_gradient(found, workers):
    """With DDP's own all-reduce the order of the sum would be gloo's."""
    model, case, after = network(), Case("ddp"), []
    for step in range(STEPS):
        gradients = []
        for worker in range(workers):
            model.zero_grad()
            case.backward(model, step, worker)
            gradients.append([p.grad.clone() for p in model.parameters()])
        with torch.no_grad():
            for p, terms in zip(model.parameters(), zip(*gradients)):
                p.add_(sum(terms[1:], terms[0]) / workers, alpha=-0.5)
        after.append(flat(model.parameters()))
    equal(found[workers, "ddp"], after)
