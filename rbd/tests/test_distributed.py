"""rbd.distributed: W processes are one process that does the same in turn, bit for bit; bytes; faults; DDP's hook; FSDP2.

Four processes are started once and do all that needs living workers (``battery``, W = 1 ... 4 of them at a time); what they
found is compared here with what this process computes alone. Faults have processes of their own.
"""

from __future__ import annotations

import copy
import inspect
import json
import multiprocessing.util
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import made_up
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

import rbd
from rbd import FPD, RBD, Basis, distributed, kernels, optim
from rbd.compartment import BasisSpec
from rbd.distributed import OWN_BATCH, VARIANTS, Alone, Part, Workers, in_turn, worker_rows
from rbd.distributed.exchange import gather_single
from rbd.distributed.launch import _work
from rbd.distribution import DISTRIBUTIONS
from rbd.optim import rbd_direction
from rbd.partition import Compartment, partition
from rbd.suite import job, store, wire
from rbd.suite.config import RunConfig
from rbd.suite.train import train

ROOT = Path(rbd.__file__).parents[1]
MOST = 4  # workers
STEPS = 4
SMALL, LARGE = (6, 8, 3), (90, 128, 10)  # widths: D = 83, less than a chunk of any distribution, and 12,938, several of each


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
    "countsketch": Case(variant, options(dim=13, partition="by_layer", distribution="countsketch", redraw=2)),
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


def behind_hook(model: nn.Module, group: dist.ProcessGroup, dim: int = 21, distribution: str = "rademacher",
                bucket_mb: float = 25, **options):  # fmt: skip
    """A model under DDP whose hook sends coordinates, and the hook's state."""
    replica = nn.parallel.DistributedDataParallel(model, process_group=group, bucket_cap_mb=bucket_mb)
    state = distributed.CoordinatesState(model.parameters(), dim, distribution, process_group=group, **options)
    replica.register_comm_hook(state, distributed.coordinates_hook)
    return replica, state


def hooked(make, group: dist.ProcessGroup, resume: int | None = None, **given) -> list[Tensor]:
    """The parameters after every step of the user's own optimizer behind the hook that sends coordinates."""
    model, case = network(LARGE), Case("common", widths=LARGE)
    replica, _ = behind_hook(model, group, seed=5, redraw=2, **given)
    optimizer, after = make(model.parameters()), []
    for step in range(STEPS):
        if step == resume:  # as after a restart
            replica, state = behind_hook(model, group, seed=5, redraw=2, **given)
            state.step = step
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
    """The workers' errors when worker 1 differs from the others."""
    odd, told = dist.get_rank(group) == 1, {}

    def one(name: str, widths=SMALL, before=lambda optimizer, model: None, **changes) -> None:
        model = network(widths)
        optimizer = RBD(model.parameters(), **{"lr": 0.5, "dim": 7, "process_group": group} | changes)
        before(optimizer, model)
        model(normal(4, widths[0])).sum().backward()
        told[name] = said(optimizer.step)

    def late(optimizer: RBD, model: nn.Module) -> None:
        """Parameters diverge after the first step; workers compare again at step 100."""
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
    state = partial(distributed.CoordinatesState, network().parameters(), 7, seed=int(odd), process_group=group)
    told["hook"] = said(state)

    def behind(name: str, steps: int, step: int = 0) -> None:
        model = network()
        replica, state = behind_hook(model, group)
        state.step = step
        for _ in range(steps):
            replica(normal(4, 6)).sum().backward()
        with torch.no_grad():
            model[0].weight[0, 0] += (odd and steps > 0) * 1e-6
        told[name] = said(replica(normal(4, 6)).sum().backward)

    behind("hook's step", 0, 3 if odd else 4)
    behind("hook's parameters", distributed.CHECK)  # which go apart after the first look
    return told


def poisoned(variant: str, group: dist.ProcessGroup) -> tuple[str, bool, int]:
    """Worker 1 has a NaN: each worker's error, whether parameters stayed, and the step."""
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
    elif variant == "hook":
        replica, _ = behind_hook(model, group, dim)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
    else:
        replica = model
        optimizer = RBD(model.parameters(), 0.1, dim, distribution="rademacher", variant=variant, process_group=group)
    for step in range(steps + 1):
        if step == 1:
            before = wire.count_bytes()
        optimizer.zero_grad()
        replica(normal(4, 90, seed=step)).sum().backward()
        optimizer.step()
    return (wire.count_bytes().sent - before.sent) / steps


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


SHARDED = {"whole": dict(partition="whole", dim=7),
           "even": dict(partition="even:40", dim=80, redraw=2, distribution="uniform"),
           "by layer": dict(partition="by_layer", dim=9, distribution="rademacher"),
           "countsketch": dict(partition="by_layer", dim=9, distribution="countsketch")}  # fmt: skip


def parts_of_two_dtypes(variant: str, worker: int) -> list[Part]:
    """A worker's gradients of three groups."""
    cut, made = partition("even:3", (("", 83),), 12), []
    for i, dtype in enumerate((torch.float32, torch.float64, torch.float32)):
        g = normal(83, seed=10 * i + worker * (variant in (*OWN_BATCH, "sharded")), dtype=dtype)
        made.append(Part(g, BasisSpec(cut.compartments, DISTRIBUTIONS["rademacher"], i, 0, 0)))
    return made


def shard(part: Part, worker: int, workers: int) -> tuple[Part, distributed.Columns]:
    """A worker's values of a group, and their columns."""
    ((start, stop),) = distributed.local_pieces([(83,)], worker, workers)
    return replace(part, g=part.g[start:stop]), distributed.columns(part.spec.compartments, ((start, stop),))


def directions_of_two_dtypes(variant: str, group: dist.ProcessGroup) -> list[Tensor]:
    workers = Workers(variant, group)
    parts = parts_of_two_dtypes(variant, workers.rank)
    if variant != "sharded":
        return [direction.u for direction in workers.directions(parts)]
    mine, columns = zip(*(shard(part, workers.rank, workers.size) for part in parts))
    return [direction.u for direction in distributed.sharded_directions(workers, mine, columns)]


def sharded(case: Case, group: dist.ProcessGroup) -> list[Tensor]:
    """Parameters under FSDP2's fully_shard, gathered after every step for the comparison only."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group, "cpu")
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer, after = case.optimizer(model), []
    for step in range(STEPS):
        optimizer.zero_grad()
        case.backward(model, step, dist.get_rank(group))
        gradients = flat(p.grad.full_tensor() for p in model.parameters())
        optimizer.step()
        after += [gradients, flat(p.full_tensor() for p in model.parameters())]
    return after


def fully_sharded(model: nn.Sequential) -> nn.Sequential:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def trained_with_scaler(variant: str, unscale: bool, scaled: bool = True) -> tuple[list[Tensor], int, list[float]]:
    """With an overflow on worker 1 at step 2 of 5: parameters after every step, steps counted, and the scales."""
    is_sharded = variant == "sharded"
    model, case = network(), Case("common" if is_sharded else variant)
    model = fully_sharded(model) if is_sharded else model
    optimizer = case.optimizer(model, **({} if is_sharded else {"variant": variant}))
    scaler, after, scales = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled), [], []
    for step in range(5):
        worker, own = dist.get_rank(), case.variant in OWN_BATCH
        odd = step == 2 and (worker == 1 or not own)
        if step == 2 and not scaled:  # what all of them should do
            after.append(after[-1])
            continue
        optimizer.zero_grad()
        x = normal(16, 6, seed=10 * step + worker * own)
        loss = model(x).square().mean() * (torch.inf if odd else 1.0)
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        after.append(flat(p.full_tensor() if is_sharded else p for p in model.parameters()))
        scales.append(scaler.get_scale())
    return after, optimizer.param_groups[0]["step"], scales


def hooked_with_scaler() -> tuple[list[float], list[bool]]:
    """Behind DDP's hook, with an overflow on worker 1 at step 1 of 3: the scales, and whether the optimizer moved then."""
    model = network()
    replica, _ = behind_hook(model, dist.group.WORLD)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler, scales, moved = torch.amp.GradScaler("cpu", init_scale=1024.0), [], []
    for step in range(3):
        before = flat(model.parameters())
        optimizer.zero_grad()
        odd = step == 1 and dist.get_rank() == 1
        scaler.scale(replica(normal(16, 6, seed=step)).square().mean() * (torch.inf if odd else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        moved.append(not torch.equal(flat(model.parameters()), before))
    return scales, moved


def saved_and_loaded(variant: str, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The ends of training: saved on the way by torch's API; not saved; and gone on from the file, on other seeds."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    case = Case("common" if variant == "sharded" else variant)

    def made(seed: int) -> tuple[nn.Sequential, RBD]:
        model = fully_sharded(network()) if variant == "sharded" else network()
        return model, case.optimizer(model, seed=seed, **({} if variant == "sharded" else {"variant": variant}))

    def go(model: nn.Sequential, optimizer: RBD, steps: range, save: bool = False) -> Tensor:
        for step in steps:
            if save:
                optimizer.zero_grad()
                weights, state = get_state_dict(model, optimizer)
                dcp.save({"weights": weights, "optimizer": state}, checkpoint_id=folder / f"{variant}-{step}")
            optimizer.zero_grad()
            case.backward(model, step, dist.get_rank())
            optimizer.step()
        return flat(p.full_tensor() if variant == "sharded" else p for p in model.parameters())

    ends = go(*made(5), range(4), save=True), go(*made(5), range(4))
    model, optimizer = made(6)
    weights, state = get_state_dict(model, optimizer)
    dcp.load(file := {"weights": weights, "optimizer": state}, checkpoint_id=folder / f"{variant}-2")
    set_state_dict(model, optimizer, model_state_dict=file["weights"], optim_state_dict=file["optimizer"])
    return *ends, go(model, optimizer, range(2, 4))


def saved_by_one() -> int:
    """Worker 0 alone asks torch's API for the state, which then must not wait for the other."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = network()
    optimizer = RBD(model.parameters(), 0.5, 7, variant="common")
    if dist.get_rank() == 0:
        get_optimizer_state_dict(model, optimizer)
    dist.barrier()
    return optimizer.param_groups[0]["step"]


def halves(variant: str) -> tuple[Tensor, Tensor]:
    """A float16 model's parameters after a step with u among the last digits of 16 bits, and what they should be."""
    model = network(dtype=torch.float16)
    before = [p.detach().float() for p in model.parameters()]
    sharded = variant == "sharded"
    model = fully_sharded(model) if sharded else model
    optimizer = RBD(model.parameters(), 1000.0, 7, **({} if sharded else {"variant": variant}))
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-5)
    g = torch.full((83,), 1e-5, dtype=torch.float16).float()
    parts = [Part(g, BasisSpec(partition("whole", (("", 83),), 7).compartments, DISTRIBUTIONS["rademacher"], 0, 0, 0))] * 2
    u = in_turn(parts, "common" if sharded else variant)
    optimizer.step()
    wanted = torch.cat([old.flatten() for old in before]).add_(u, alpha=-1000.0).half().double()
    return flat(p.full_tensor() if sharded else p for p in model.parameters()), wanted


def pair(folder: Path) -> dict:
    """What needs two workers that have all of the default group; {name: [what each found]}."""
    mine: dict = {}
    for variant in (*VARIANTS, "sharded"):
        for unscale in (False, True):
            mine["scaler", variant, unscale] = trained_with_scaler(variant, unscale)
        mine["no scaler", variant] = trained_with_scaler(variant, False, scaled=False)
        mine["saved", variant] = saved_and_loaded(variant, folder)
        mine["halves", variant] = halves(variant)
    mine["saved by one"] = saved_by_one()
    mine["hook"] = hooked_with_scaler()
    box: list = [None] * 2
    dist.all_gather_object(box, mine)
    return {name: [each[name] for each in box] for name in mine}


def run(variant: str) -> RunConfig:
    """10 batches of 500 images an epoch: 10 steps, or 2 where each of 4 workers has its own."""
    fields = {"method": "sgd"} if variant == "ddp" else {"dim": 30, "distribution": "rademacher", "lr": 4.0}
    return RunConfig(**{"epochs": 2, "batch_size": 500, "workers": MOST, "variant": variant} | fields)


UNLIKE = {"seed": 1, "model": "cnn", "dim": 31, "epochs": 3}  # what worker 1 may have been told instead


def battery(state: dict, weights: dict, folder: Path) -> dict:
    """Everything, on every number of workers; {(W, name): [what each worker found]}."""
    found: dict = {}
    for size in range(1, MOST + 1):
        group = dist.new_group(list(range(size)))
        if dist.get_rank() < size:
            mine = {name: trained(case, group) for name, case in CASES.items()}
            mine["ddp"] = ddp_trained(Case("ddp"), group)
            mine |= {f"hook {name}": hooked(make, group) for name, make in OPTIMIZERS.items()}
            mine["hook small buckets"] = hooked(OPTIMIZERS["sgd"], group, bucket_mb=0.001)
            mine["hook resumed"] = hooked(OPTIMIZERS["sgd"], group, resume=3)  # in the middle of a basis
            mine["hook countsketch"] = hooked(OPTIMIZERS["sgd"], group, distribution="countsketch")
            mine["resumed"] = resumed(group, state, weights)
            mine |= {f"sharded {name}": sharded(Case("ddp", options(**given), accumulate=2), group)
                     for name, given in SHARDED.items()}  # fmt: skip
            mine |= {f"dtypes {variant}": directions_of_two_dtypes(variant, group) for variant in (*VARIANTS, "sharded")}
            mine["sharded groups"] = sharded(replace(CASES["common groups"], variant="ddp"), group)
            if size > 1:
                mine |= {f"bytes {variant}": bytes_a_step(variant, group) for variant in (*VARIANTS, "ddp", "hook")}
                mine |= {f"poison {variant}": poisoned(variant, group) for variant in VARIANTS}
                mine["disagreeing"] = disagreeing(group)
            box = [None] * size
            dist.all_gather_object(box, mine, group)
            found |= {(size, name): [each[name] for each in box] for name in mine}
        dist.barrier()
    for variant in (*VARIANTS, "ddp"):
        box = [None] * MOST
        dist.all_gather_object(box, train(run(variant), folder))
        found["run", variant] = box
    for name, odd in UNLIKE.items():
        box = [None] * MOST
        mine = replace(run("common"), **{name: odd}) if dist.get_rank() == 1 else run("common")
        dist.all_gather_object(box, said(train, mine))
        found["unlike", name] = box
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
def found(tmp_path_factory) -> dict:
    return distributed.launch(battery, MOST, *checkpoint(), tmp_path_factory.mktemp("checkpoints"), timeout=240)


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
@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_of_two_dtypes_are_summed_each_in_its_own(found, variant, workers):
    parts = [parts_of_two_dtypes(variant, worker) for worker in range(workers)]
    for got in found[workers, f"dtypes {variant}"]:
        for u, of_workers in zip(got, zip(*parts)):
            expected = in_turn(of_workers, variant)
            assert u.dtype == expected.dtype and torch.equal(u, expected)


@pytest.mark.parametrize("workers", range(1, MOST + 1))
def test_sharded_groups_of_two_dtypes_are_summed_each_in_its_own(found, workers):
    parts = [parts_of_two_dtypes("sharded", worker) for worker in range(workers)]
    for i, group in enumerate(zip(*parts)):
        shards = [shard(part, worker, workers) for worker, part in enumerate(group)]
        c = distributed.ordered_sum(distributed.project_columns(*each) for each in shards)
        for got, each in zip(found[workers, "dtypes sharded"], shards):
            assert torch.equal(got[i], distributed.expand_columns(*each, c))


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


def test_what_users_own_optimizers_do_behind_the_hook(found):
    """Plain SGD behind it is RBD by tensors, whatever DDP's buckets; others move as one process that is told it."""
    case = Case("common", options(dim=21, partition="by_tensor", distribution="rademacher", redraw=2), widths=LARGE)
    sketched = replace(case, options=case.options + options(distribution="countsketch"))
    for workers in range(1, MOST + 1):
        equal(found[workers, "hook countsketch"], followed(sketched, workers))
        equal(found[workers, "hook sgd"], followed(case, workers))
        equal(found[workers, "hook small buckets"], followed(case, workers))
        equal(found[workers, "hook resumed"], followed(case, workers))
        for name in ("momentum", "adam"):
            equal(found[workers, f"hook {name}"], followed_behind_hook(OPTIMIZERS[name], case, workers))


def followed_behind_hook(make, case: Case, workers: int) -> list[Tensor]:
    model = network(LARGE)
    bases, own, after = case.optimizer(model), make(model.parameters()), []
    for step in range(STEPS):
        parts = []
        for worker in range(workers):
            bases.zero_grad()
            case.backward(model, step, worker)
            parts.append(bases._part(0))
        u = in_turn(parts, "common")
        for p, v in zip(model.parameters(), u.split([p.numel() for p in model.parameters()])):
            p.grad = v.view_as(p)
        own.step()
        bases.param_groups[0]["step"] += 1
        after.append(flat(model.parameters()))
    return after


@pytest.fixture(scope="module")
def found_by_two(tmp_path_factory) -> dict:
    return distributed.launch(pair, 2, tmp_path_factory.mktemp("saved"), timeout=120)


@pytest.mark.parametrize("variant", [*VARIANTS, "sharded"])
def test_an_overflow_on_one_worker_skips_the_step_of_all(found_by_two, variant):
    """Under torch's GradScaler, unscaled by the user or not: the same end as without a scaler and that step."""
    for worker, (expected, steps, _) in enumerate(found_by_two["no scaler", variant]):
        assert steps == 4 and not torch.equal(expected[1], expected[3])
        for unscale in (False, True):
            after, counted, scales = found_by_two["scaler", variant, unscale][worker]
            assert counted == 4
            assert all(map(torch.equal, after, expected)) and len(after) == len(expected)  # a scale is a power of two
            assert scales[1] == 1024 and min(scales) == (1024 if variant in OWN_BATCH and worker == 0 else 512)


def test_an_overflow_behind_the_hook_is_everybodys(found_by_two):
    assert found_by_two["hook"] == [([1024.0, 512.0, 512.0], [True, False, True])] * 2


@pytest.mark.parametrize("variant", [*VARIANTS, "sharded"])
def test_workers_save_by_torchs_checkpoint_api(found_by_two, variant):
    for saved, plain, resumed in found_by_two["saved", variant]:
        assert torch.equal(saved, plain) and torch.equal(resumed, plain)


def test_one_worker_may_save_alone(found_by_two):
    assert found_by_two["saved by one"] == [0, 0]


@pytest.mark.parametrize("variant", [*VARIANTS, "sharded"])
def test_updates_of_16_bits_are_rounded_once(found_by_two, variant):
    for got, wanted in found_by_two["halves", variant]:
        torch.testing.assert_close(got, wanted, rtol=torch.finfo(torch.float16).eps, atol=0)  # sums of parts in turn


def projected(g: Tensor, has: Tensor, k: Compartment, spec: BasisSpec) -> Tensor:
    """A worker's summand of one compartment's coordinates, from every run of values that it has."""
    c = g.new_zeros(k.dim)
    places = (k.start + has[k.start : k.stop].nonzero()[:, 0]).tolist()
    for _, run in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        first, *others = [place for _, place in run]
        stop = first + 1 + len(others)
        part = replace(k, start=0, stop=stop - first, before=first - k.start, after=k.stop - stop)
        c += kernels.project(g[first:stop], replace(spec, compartments=(part,)))
    return c


@pytest.mark.parametrize("workers", range(1, MOST + 1))
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_parameters(found, name, workers):
    """FSDP2: as one process that projects each worker's columns, run by run, sums in order, and expands once."""
    given = SHARDED[name]
    model = network()
    twin = RBD(model.named_parameters(), lr=0.5, seed=5, **given)
    shapes = [tuple(p.shape) for p in model.parameters()]
    expected = []
    for step in range(STEPS):
        gradient = found[workers, f"sharded {name}"][0][2 * step]
        g, terms = gradient.float(), []
        spec = twin._spec(0)
        for worker in range(workers):
            has = torch.zeros(len(g), dtype=torch.bool)
            for start, stop in distributed.local_pieces(shapes, worker, workers):
                has[start:stop] = True
            terms.append(torch.cat([projected(g, has, k, spec) for k in spec.compartments]))
        u = kernels.expand(distributed.ordered_sum(terms), spec)
        with torch.no_grad():
            for p, v in zip(model.parameters(), u.split([p.numel() for p in model.parameters()])):
                p.add_(v.view_as(p), alpha=-0.5)
        twin.param_groups[0]["step"] += 1
        expected += [gradient, flat(model.parameters())]
    equal(found[workers, f"sharded {name}"], expected)


@pytest.mark.parametrize("workers", range(1, MOST + 1))
def test_sharded_parameter_groups(found, workers):
    """Each with its own partition, distribution, seed and rate: as plain RBD from the same gradients, but for rounding."""
    model, (mine, *others) = network(), found[workers, "sharded groups"]
    equal(others, mine)
    twin, start = CASES["common groups"].optimizer(model), flat(model.parameters())
    for gradient, after in zip(mine[::2], mine[1::2]):
        for p, g in zip(model.parameters(), gradient.float().split([p.numel() for p in model.parameters()])):
            p.grad = g.view_as(p)
        twin.step()
        torch.testing.assert_close(after, flat(model.parameters()), rtol=1e-5, atol=1e-6)
        assert (after - start).abs().max() > 1e-3


@pytest.mark.parametrize("workers", range(1, MOST + 1))
def test_checkpoint_is_read_by_any_number_of_workers(found, workers):
    """One process without workers wrote it, and goes on to the same end as they do."""
    model, case = network(), Case("shares")
    optimizer = case.optimizer(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        case.backward(model, step, 0)
        optimizer.step()
    assert all(torch.equal(got, flat(model.parameters())) for got in found[workers, "resumed"])


@pytest.mark.parametrize("workers", range(2, MOST + 1))
def test_bytes_on_the_wire(found, workers):
    """d = 1000, D = 12,938: the values of the table at 4 bytes each, and at most 400 bytes of gloo's for a message."""
    d, size, w = 1000, 12_938, workers
    values = {"common": 2 * d * (w - 1) / w, "bases": d * (w - 1), "directions": d * (w - 1),
              "shares": -(-d // w) * (w - 1), "ddp": 2 * size * (w - 1) / w, "hook": d * (w - 1)}  # fmt: skip
    for variant, count in values.items():
        messages = 2 * (w - 1) * (4 if variant == "ddp" else 1)
        for sent in found[workers, f"bytes {variant}"]:
            assert 4 * count <= sent <= 4 * count + 400 * messages, variant


@pytest.mark.parametrize("workers", range(2, MOST + 1))
def test_all_are_told_who_differs(found, workers):
    others = ", ".join(str(r) for r in range(workers) if r != 1)
    got = {"seed": ("0", "1"), "lr": ("0.5", "0.25"), "variant": ("'shares'", "'bases'"), "step": ("4", "3"),
           "stream": ("1", "2"), "model": ("83", "93"), "frozen": ("True", "False"),
           "hook": ("0", "1"), "parameters": (".*", ".*"), "hook's step": ("4", "3"),
           "hook's parameters": (".*", ".*")}  # fmt: skip
    names = {"hook": "seed", "stream": "stream_version", "model": "size", "frozen": r"has_gradient\[2\]",
             "hook's step": "step", "hook's parameters": "parameters"}  # fmt: skip
    for told in found[workers, "disagreeing"]:
        assert told.keys() == got.keys()
        for name, (usual, odd) in got.items():
            message = f"workers differ in {names.get(name, name)}: {usual} on worker {others}, {odd} on worker 1"
            assert re.search(f"RuntimeError: {message}", told[name]), told[name]


@pytest.mark.parametrize("workers", range(2, MOST + 1))
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_nan_of_one_worker_stops_all(found, variant, workers):
    for worker, (message, same, step) in enumerate(found[workers, f"poison {variant}"]):
        whose = "in 0.bias" if worker == 1 else "from another worker" if variant == "common" else "from worker 1"
        assert message == f"FloatingPointError: gradient: got NaN or infinity {whose}, allowed finite values"
        assert same and step == 0


# ---------------------------------------------------------------- the suite's own runs


@pytest.mark.parametrize("variant", (*VARIANTS, "ddp"))
def test_runs(found, variant):
    """All workers return the same curve; images and evaluations are counted over all of them."""
    records = found["run", variant]
    assert all(repr(r.curve) == repr(records[0].curve) and r.config == run(variant) for r in records)
    steps = (3, 5) if variant in OWN_BATCH else (10, 20)  # 4 batches a step: the first step at or beyond the 10th batch
    batches = MOST if variant in OWN_BATCH else 1
    assert [(p.step, p.images, p.forward_passes) for p in records[0].curve] == [
        (n, n * batches * 500, n * MOST) for n in steps]  # fmt: skip
    assert records[0].outcome == "finished" and records[0].environment["bytes_per_step"] > 0


@pytest.mark.parametrize("name", UNLIKE)
def test_runs_of_different_commands_are_refused(found, name):
    """Also where worker 0's state would overwrite the others', or their tensors be of other sizes."""
    for told in found["unlike", name]:
        usual, odd = getattr(run("common"), name), UNLIKE[name]
        message = f"workers differ in {name}: {usual!r} on worker 0, 2, 3, {odd!r} on worker 1"
        assert told == f"RuntimeError: {message}"


def test_a_run_with_shares_has_the_curve_of_one_process(found):
    alone = train(replace(run("shares"), workers=None, variant=None), threads=1).curve
    assert tuple(replace(p, forward_passes=MOST * p.forward_passes) for p in alone) == found["run", "shares"][0].curve


def test_threads_of_a_run_are_shared_out(monkeypatch):
    """A sweep gives a run both cores of two: W workers must not take twice W."""
    monkeypatch.setattr(distributed, "launch", lambda function, workers, *given, timeout: given[4])
    threads = {w: [train(replace(run("common"), workers=w), threads=n) for n in (2, 8, None)] for w in (1, 2, 4)}
    assert threads == {1: [2, 8, None], 2: [1, 4, None], 4: [1, 2, None]}


def test_wrong_number_of_workers(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="^workers: got 2, allowed 3, as many as were started$"), distributed.join(2):
        pass


@pytest.mark.parametrize(("workers", "device", "error", "message"), [
    (1, "cuda:0", ValueError, "^device: got 'cuda:0', allowed 'cpu' or 'cuda'$"),
    (1, torch.device("cuda"), ValueError, "^device: got device.*, allowed 'cpu' or 'cuda'$"),
    ("1", "cpu", TypeError, "^workers: got '1', allowed an integer$"),
])  # fmt: skip
def test_join_refuses_what_it_does_not_know(workers, device, error, message):
    """Of a device other than the string "cuda" it had made a group for CPUs."""
    with pytest.raises(error, match=message), distributed.join(workers, device=device):
        pass


@pytest.mark.parametrize(("changes", "message"), [
    ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: got 'abc' in the environment, allowed an integer >= 1, as torchrun sets it"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE: got '0' in the environment, allowed an integer >= 1, as torchrun sets it"),
    ({"RANK": ""}, "RANK: got '' in the environment, allowed an integer 0 ... 1, as torchrun sets it"),
    ({"RANK": "2"}, "RANK: got '2' in the environment, allowed an integer 0 ... 1, as torchrun sets it"),
])  # fmt: skip
def test_a_place_among_the_workers_that_is_none(changes, message, monkeypatch):
    """torch says "invalid literal for int()", and waits for a worker beyond the last one."""
    for name, value in ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"} | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"), distributed.join(2):
        pass
    if "WORLD_SIZE" in changes:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            job.count_torchrun()


@pytest.fixture
def alone_under_torchrun(monkeypatch):
    """As the third of four workers of a machine with one GPU sees it, but with nobody to wait for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    store = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 1)]))
    for name, value in (("LOCAL_RANK", "2"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)


def test_workers_on_the_cpu_leave_gpus_alone(alone_under_torchrun):
    """More workers than GPUs is no harm to them."""
    with distributed.join(1):
        assert dist.get_backend() == "gloo"
    message = "^device: got 'cuda' for 4 workers and 1 GPUs, allowed a GPU for each, or 'cpu'$"
    with pytest.raises(ValueError, match=message), distributed.join(1, device="cuda"):
        pass


def test_workers_on_gpus_have_a_place_on_their_machine(monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    message = "^device: got 'cuda', which needs LOCAL_RANK and LOCAL_WORLD_SIZE in the environment, as torchrun sets them$"
    with pytest.raises(ValueError, match=message), distributed.join(1, device="cuda"):
        pass


# ---------------------------------------------------------------- faults


def suffering(path: Path, hook: bool) -> None:
    """Worker 2 is stopped in the third step of one group, worker 3 killed in the third step of another."""
    from datetime import timedelta

    groups = {2: [0, 1, 2], 3: [0, 1, 3]}
    limits = {2: timedelta(seconds=3), 3: timedelta(seconds=60)}
    made = {odd: dist.new_group(who, timeout=limits[odd]) for odd, who in groups.items()}
    for odd, how in ((2, signal.SIGSTOP), (3, signal.SIGKILL)):
        if dist.get_rank() in groups[odd]:
            model, case = network(), Case("common")
            replica: nn.Module = behind_hook(model, made[odd])[0] if hook else model
            optimizer = torch.optim.SGD(model.parameters(), 0.1) if hook else case.optimizer(model, process_group=made[odd])
            try:
                for step in range(5):
                    optimizer.zero_grad()
                    if step == 2 and dist.get_rank() == odd:
                        os.kill(os.getpid(), how)
                    began = time.monotonic()
                    case.backward(replica, step, 0)
                    optimizer.step()
            except RuntimeError as error:
                told = {"step": step, "seconds": time.monotonic() - began, "message": str(error)}
                (path / f"{odd}-{dist.get_rank()}").write_text(json.dumps(told))


def test_a_kernel_that_does_not_count_bytes(monkeypatch):
    """TCP_INFO had 192 bytes before Linux 4.19, and has them in gVisor."""
    monkeypatch.setattr(wire, "_tcp_info", lambda fd: bytes(192))
    with pytest.raises(OSError, match="TCP_INFO of this kernel has no numbers of bytes"):
        wire.count_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("hook", [False, True])
def test_dead_and_hung_workers(tmp_path, hook):
    """Real processes, stopped and killed: all the others raise, within the group's timeout or at once."""
    store = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    started = mp.get_context("spawn")
    processes = [started.Process(target=_work, args=(r, suffering, 4, store.port, 60, tmp_path, (
        tmp_path, hook))) for r in range(4)]  # fmt: skip
    for process in processes:
        process.start()
    try:
        wanted, end = {f"{odd}-{r}" for odd in (2, 3) for r in (0, 1)}, time.monotonic() + 90
        while not wanted <= {file.name for file in tmp_path.iterdir()} and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.2)
        told = {name: json.loads((tmp_path / name).read_text()) for name in wanted}
    finally:
        for process in processes:
            process.kill()
            process.join()
    for name, each in told.items():
        assert each["step"] == 2
        assert re.search(r"worker [01] of 3: exchange failed: \S.*\. If the cause is a lost connection or a timeout, "
                         r"another worker died or hung", each["message"])  # fmt: skip
        assert each["seconds"] < (20 if name.startswith("3") else 3 + 20)  # seconds: at once, or the timeout; busy machine


KILLED = """
import os, signal, sys
from pathlib import Path
import rbd.suite.train as loop
from rbd.suite.config import RunConfig
config = RunConfig(epochs=4, batch_size=500, dim=20, distribution="rademacher", lr=4.0, workers=2, variant="bases")
calls, real = [], loop._update
def update(*args):
    calls.append(1)
    if len(calls) == 13 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)  # in the third of four epochs of 5 steps
    return real(*args)
loop._update = update
made = loop.train(config, Path(sys.argv[1]) / "disturbed", timeout=20)
again = len(calls)
loop._update = real
undisturbed = loop.train(config, Path(sys.argv[1]) / "undisturbed", timeout=20)
if os.environ["RANK"] == "0":
    same = repr(made.curve) == repr(undisturbed.curve)
    print("calls", again, "restarts", os.environ["TORCHELASTIC_RESTART_COUNT"], "equal", same)
"""


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_torchrun_restarts_a_killed_worker_from_the_checkpoint(tmp_path):
    """The end is that of a run without the fault, bit for bit: curve and parameters."""
    (tmp_path / "script.py").write_text(KILLED)
    done = torchrun("--max-restarts", "1", "script.py", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "calls 10 restarts 1 equal True" in done.stdout  # it went on from the end of epoch 2
    files = [next((tmp_path / name).glob("*.safetensors")) for name in ("disturbed", "undisturbed")]
    first, second = map(load_file, files)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_command_under_torchrun(tmp_path):
    """As README.md has it: one record, written once. Another process at the run is told at once, by all workers."""
    line = ["-m", "rbd", "train", "--variant", "shares", "--dim", "20", "--distribution", "rademacher", "--epochs", "1",
            "--batch-size", "500"]  # fmt: skip
    done = torchrun(*line, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.count("finished after 1 epoch:") == 1, done.stdout + done.stderr
    (made,) = made_up.load_all(tmp_path / "results" / "runs" / "train")
    assert (made.config.workers, made.config.variant, made.outcome) == (2, "shares", "finished")
    assert not list((tmp_path / "results" / "checkpoints").iterdir())
    with store.claim(replace(made.config, seed=1), tmp_path / "results"):
        done = torchrun(*line, "--seed", "1", cwd=tmp_path)
    assert done.returncode and done.stderr.count("another process is doing this run") == 2, done.stderr


def failing() -> None:
    """The last worker fails, and ends after worker 0, which has lost it."""
    if dist.get_rank() == dist.get_world_size() - 1:
        multiprocessing.util.Finalize(None, time.sleep, (5,), exitpriority=100)
        raise ValueError("no such thing")
    dist.barrier()


@pytest.mark.parametrize("workers", [1, 2])
def test_launch_shows_what_failed_first(workers):
    with pytest.raises(RuntimeError, match=f"(?s)^worker {workers - 1} of {workers} failed: .*ValueError: no such thing"):
        distributed.launch(failing, workers)


def leave(code: int | None) -> str:
    if code is not None:
        sys.exit(code)
    dist.destroy_process_group()
    return "result"


def test_a_function_that_ends_its_worker_or_its_group():
    with pytest.raises(RuntimeError, match="^worker 0 of 1 ended without a result"):
        distributed.launch(leave, 1, 0)
    assert distributed.launch(leave, 1, None) == "result"


def test_launched_workers_obey_omp_num_threads(monkeypatch):
    """Each took its part of all cores of the machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert distributed.launch(torch.get_num_threads, 1) == 1


@pytest.mark.parametrize(("workers", "error"), [
    (0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError), (100_000, ValueError),
])  # fmt: skip
def test_launch_needs_workers(workers, error, monkeypatch):
    """And no more than the machine bears: 100,000 took all of its memory."""
    monkeypatch.setattr("torch.multiprocessing.start_processes", None)
    with pytest.raises(error, match=r"^workers: got .*, allowed (1 ... \d+ on this machine \(16 a core\)|an integer)$"):
        distributed.launch(leave, workers, None)


# ---------------------------------------------------------------- the equations


def dense(part: Part, variant: str, worker: int, workers: int) -> list[tuple[slice, Tensor]]:
    """Worker r's rows of Φ for each compartment, as float64 matrices beside the columns they have."""
    k: Compartment
    spec, made, stream = part.spec, [], worker if variant in ("bases", "directions") else 0
    for k in worker_rows(spec.compartments, worker, workers) if variant == "shares" else spec.compartments:
        phi = Basis(k.dim, k.size, spec.distribution.name, spec.seed, stream, k.number, spec.step, k.row, k.total).dense()
        made.append((slice(k.start, k.stop), phi.double()))
    return made


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("form", ["whole", "by_layer", "even:5"])
@pytest.mark.parametrize("name", ["uniform", "countsketch"])
def test_in_turn_is_the_table(name, variant, workers, form):
    """By dense matrices in float64, whose float32 entries carry rounding of 1e-7."""
    layout = tuple((name, p.numel()) for name, p in network().named_parameters())
    cut = partition(form, layout, 12).compartments
    g = [normal(83, seed=r if variant in OWN_BATCH else 0, dtype=torch.float64) for r in range(workers)]
    parts = [Part(g_r, BasisSpec(cut, DISTRIBUTIONS[name], 3, 0, 9)) for g_r in g]
    expected = torch.zeros(83, dtype=torch.float64)
    for r, part in enumerate(parts):
        for columns, phi in dense(part, variant, r, workers):
            share_of_mean = workers if variant == "common" else 1
            expected[columns] += phi.T @ (phi @ part.g[columns]) / share_of_mean
    torch.testing.assert_close(in_turn(parts, variant), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["normal", "countsketch"])
def test_one_worker_is_plain_rbd(name, variant):
    cut = partition("even:5", (("", 83),), 12)
    g = normal(83)
    u = in_turn([Part(g, BasisSpec(cut.compartments, DISTRIBUTIONS[name], 3, 0, 9))], variant)
    assert torch.equal(u, rbd_direction(g, cut, name, 3, 0, 9)[0])


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 30])
def test_shares_are_all_rows_once(workers):
    """And even to one row, over compartments of any size."""
    cut = partition("by_tensor", (("a", 50), ("b", 3), ("c", 30)), 17).compartments
    shares = [worker_rows(cut, r, workers) for r in range(workers)]
    rows = [(k.number, k.row + i) for mine in shares for k in mine for i in range(k.dim)]
    assert rows == [(k.number, i) for k in cut for i in range(k.dim)]
    counts = [sum(k.dim for k in mine) for mine in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_workers_with_own_bases_never_replay_each_other(name):
    """The released code adds seed, step and worker up, so that worker w at step t replays worker 0 at step t + w."""
    made = {(seed, step, worker): Basis(2, 300, name, seed=seed, step=step, stream=worker).dense().numpy().tobytes()
            for seed in range(3) for step in range(3) for worker in range(3)}  # fmt: skip
    assert len(set(made.values())) == 27


# ---------------------------------------------------------------- arguments


def test_without_a_process_group():
    model = network()
    with pytest.raises(RuntimeError, match="^torch.distributed is not initialised: call .*init_process_group"):
        RBD(model.parameters(), 0.1, 7, variant="common")
    with pytest.raises(RuntimeError, match="^torch.distributed is not initialised"):
        FPD(model.parameters(), 0.1, 7, variant="shares")
    with pytest.raises(ValueError, match="^variant: got 'gossip', allowed 'common', 'bases', 'directions', 'shares'$"):
        RBD(model.parameters(), 0.1, 7, variant="gossip")
    assert RBD(model.parameters(), 0.1, 7)._workers is None


def test_the_old_name_of_join_warns(alone_under_torchrun):
    with pytest.warns(DeprecationWarning, match="rbd.distributed.joined is deprecated, use rbd.distributed.join"):
        joined = distributed.joined(1)
    with joined:
        assert dist.get_world_size() == 1


def test_a_process_alone_has_what_workers_have():
    """So that a loop needs no branches: the same names and arguments, and nothing changes what it is given."""
    alone, x = Alone(), normal(5)
    assert (alone.rank, alone.size, alone.variant) == (0, 1, None)
    assert alone.sum(x) is x and alone.mean(x) is x and alone.tell(x) is x and alone.gather(x, [5])() == [x]
    assert alone.copy([x]) is None and alone.agree({"seed": 0}) is None
    for name in ("sum", "mean", "tell", "copy", "agree", "gather"):
        assert inspect.signature(getattr(Alone, name)) == inspect.signature(getattr(Workers, name))


@pytest.fixture
def three_that_say(monkeypatch):
    """A function of the facts of three workers: what they then raise."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)

    def agree(*facts: object) -> str:
        told = [{"shapes": each} for each in facts]
        monkeypatch.setattr(dist, "all_gather_object", lambda everyone, mine, group: everyone.__setitem__(slice(None), told))
        return said(Workers("common").agree, told[0])

    return agree


def test_of_lists_the_first_place_that_differs_is_told(three_that_say):
    shapes = [(512, 10)] * 1000
    assert three_that_say(shapes, shapes, list(shapes)) == "nothing"
    other = [*shapes[:17], (512, 100), *shapes[18:-1], (1,)]
    told = three_that_say(shapes, other, shapes)
    assert told == "RuntimeError: workers differ in shapes[17]: (512, 10) on worker 0, 2, (512, 100) on worker 1"
    told = three_that_say((1, 2), (1,), (1, 2, 3))
    assert told == "RuntimeError: workers differ in shapes[1]: 2 on worker 0, 2, nothing on worker 1"
    told = three_that_say([1], None, [1])
    assert told == "RuntimeError: workers differ in shapes: [1] on worker 0, 2, None on worker 1"


def test_an_exchange_that_fails_says_why(three_that_say):
    def fail() -> None:
        raise RuntimeError("Tensors must be contiguous.\nException raised from here")

    assert said(Workers("common").attempt, fail) == (
        "RuntimeError: worker 0 of 3: exchange failed: Tensors must be contiguous. If the cause is a lost connection or a "
        "timeout, another worker died or hung")  # fmt: skip


def test_the_hook_refuses_a_set_and_keeps_plain_integers(alone_under_torchrun):
    params = [nn.Parameter(normal(n)) for n in (30, 5)]
    with distributed.join(1):
        with pytest.raises(TypeError, match="^params must come in ordered collections, not in a set"):
            distributed.CoordinatesState(set(params), 7)
        told, agree = [], Workers.agree
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workers, "agree", lambda self, facts: told.append(facts) or agree(self, facts))
            distributed.CoordinatesState(params, np.int64(7), seed=np.int64(3), redraw=np.uint8(2))
        assert [type(told[0][name]) for name in ("dim", "seed", "redraw")] == [int] * 3


def test_the_hook_names_what_its_state_lacks(monkeypatch):
    """A parameter that was not given, or was frozen then; and what is no parameter."""
    store = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 1)]))
    with distributed.join(1):
        for freeze, given in ((False, lambda model: [model[0].weight]), (True, lambda model: model.parameters())):
            model = network()
            model[2].weight.requires_grad_(not freeze)
            state = distributed.CoordinatesState(given(model), 7)
            model.requires_grad_(True)
            replica = nn.parallel.DistributedDataParallel(model)
            replica.register_comm_hook(state, distributed.coordinates_hook)
            with pytest.raises(ValueError, match=r"^a parameter of shape \(.*\) is not in the CoordinatesState: give it"):
                replica(normal(4, 6)).sum().backward()
        with pytest.raises(TypeError, match=r"^params must be tensors, as of model.parameters\(\), but one is a tuple$"):
            distributed.CoordinatesState(network().named_parameters(), 7)


@pytest.fixture
def alone(monkeypatch):
    """``join`` makes this process a group of one."""
    store = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 1)]))


def test_a_bucket_of_empty_tensors_behind_the_hook(alone):
    """An empty parameter of another dtype has a bucket of its own: the hook raised IndexError."""
    with distributed.join(1):
        model = network()
        model.register_parameter("device", nn.Parameter(torch.empty(0, dtype=torch.bfloat16)))
        replica = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        state = distributed.CoordinatesState(model.parameters(), 7)
        replica.register_comm_hook(state, distributed.coordinates_hook)
        replica(normal(4, 6)).sum().backward()
        plain = network()
        plain(normal(4, 6)).sum().backward()
        for k, p, g in zip(state.compartments.values(), state.params, plain.parameters()):
            basis = Basis(k.dim, p.numel(), compartment=k.number)
            assert torch.equal(p.grad.flatten(), basis.expand(basis.project(g.grad.flatten())))
        assert state.step == 1


def test_a_state_needs_parameters(alone):
    used = network().parameters()
    list(used)
    with distributed.join(1):
        for params in (used, network().requires_grad_(False).parameters(), [nn.Parameter(torch.empty(0))]):
            with pytest.raises(ValueError, match="^params: got no values that require a gradient"):
                distributed.CoordinatesState(params, 7)


def test_variants_of_workers(alone):
    with distributed.join(1):
        for right in (*VARIANTS, "sharded", "ddp"):
            assert Workers(right).variant == right
        with pytest.raises(ValueError, match="^variant: got 'comon', allowed 'common', 'bases', "):
            Workers("comon")


def test_a_block_may_leave_the_group_itself(alone):
    with distributed.join(1):
        dist.destroy_process_group()


def test_gathering_by_either_name(monkeypatch, alone_under_torchrun):
    """torch 2.11 lacks all_gather_single; the other name warns where both are, and is not used."""
    with distributed.join(1), warnings.catch_warnings():
        warnings.simplefilter("error")
        for lacking in (False, True):
            if lacking and hasattr(dist, "all_gather_single"):
                monkeypatch.setattr(dist, "all_gather_into_tensor", dist.all_gather_single)
                monkeypatch.delattr(dist, "all_gather_single")
            gather_single(got := torch.zeros(3), normal(3), None)
            assert torch.equal(got, normal(3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("original", [False, True])
def test_parameters_of_fsdp1_are_refused(alone, original):
    """Each worker would train its shard as if it were the whole, in a basis of its own."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    message = "a parameter of FullyShardedDataParallel, .* use fully_shard"
    with distributed.join(1):
        model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=original)
        for optimizer in (RBD, FPD, rbd.NES):
            with pytest.raises(TypeError, match=f"^params: got {message}"):
                optimizer(model.parameters(), 0.1, 7)
        with pytest.raises(TypeError, match=f"^model: .* is {message}"):
            rbd.Subspace(model, 7)


def test_local_pieces_are_torchs_chunks():
    shapes = [(7, 3), (2,), (1, 5), (0, 4)]
    values = torch.arange(21 + 2 + 5)
    for workers in (1, 2, 3, 4, 9):
        for worker in range(workers):
            expected, at = [], 0
            for shape in shapes:
                count = torch.Size(shape).numel()
                chunks = values[at : at + count].view(shape).chunk(workers)
                expected.append(chunks[worker].flatten() if worker < len(chunks) else values[:0])
                at += count
            pieces = distributed.local_pieces(shapes, worker, workers)
            assert all(torch.equal(values[a:b], e) for (a, b), e in zip(pieces, expected))
