"""Subspace: its function and gradient against a dense basis, torch's machinery around it, files, and what it refuses."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import rbd
from rbd import FPD, Basis, Subspace, kernels
from rbd.distribution import DISTRIBUTIONS
from rbd.partition import partition as partition_of
from rbd.subspace import _RUNNING, _swap_of

DIM = 40
EXAMPLES = Path(rbd.__file__).parents[1] / "docs" / "examples"


class Net(nn.Module):
    """(N, 8) -> (N, 3); reentrant: of the checkpoint around its middle, None without one. D = 467."""

    def __init__(self, reentrant: bool | None = None, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.middle = nn.Linear(8, 16), nn.Sequential(nn.Linear(16, 16), nn.Tanh())
            self.last = nn.Linear(16, 3)
        self.reentrant = reentrant

    def inner(self, x):
        return self.middle(x) + nn.functional.linear(x, self.middle[0].weight).tanh()  # without its module's forward

    def forward(self, x):
        x = self.first(x).tanh()
        x = self.inner(x) if self.reentrant is None else checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return self.last(x)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(model: nn.Module | None = None, dim: int = DIM, **given) -> Subspace:
    """A Subspace with coordinates that are not zero."""
    sub = Subspace(Net() if model is None else model, dim, **given)
    with torch.no_grad():
        sub.coordinates.copy_(normal(dim, seed=7))
    return sub


def gradient(sub: nn.Module, x: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    coordinates.grad = None
    sub(x).square().sum().backward()
    return coordinates.grad


def is_put_back(sub: Subspace, start: list[torch.Tensor]) -> bool:
    params = list(sub.model.parameters())
    return all(isinstance(p, nn.Parameter) for p in params) and all(map(torch.equal, params, start))


X = normal(5, 8, seed=1)


# what it computes


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("partition", ["whole", "by_layer", "even:3"])
def test_function_and_gradient_are_those_of_a_stored_basis(name, partition):
    """Φ from the optimizers' own partitions, multiplied out by torch."""
    model = Net()
    sub = make(model, distribution=name, partition=partition, seed=3)
    start = [p.clone() for p in model.parameters()]
    layout = tuple((n, p.numel()) for n, p in model.named_parameters())
    u, c, at = [], sub.coordinates.detach().double().requires_grad_(), 0
    for k in partition_of(partition, layout, DIM).compartments:
        basis = Basis(k.dim, k.size, name, seed=3, compartment=k.number)
        u.append(c[at : at + k.dim] @ basis.dense().double())
        at += k.dim
    parts = torch.cat(u).split([p.numel() for p in start])
    theta = {n: p.double() + v.view(p.shape) for (n, _), p, v in zip(model.named_parameters(), start, parts)}
    out = torch.func.functional_call(copy.deepcopy(model).double(), theta, (X.double(),))
    out.square().sum().backward()
    torch.testing.assert_close(sub(X), out.float())
    torch.testing.assert_close(gradient(sub, X, sub.coordinates), c.grad.float())
    assert is_put_back(sub, start)


def test_zeros_are_the_model_itself():
    model = Net()
    before = model(X)
    sub = Subspace(model, DIM)
    assert torch.equal(sub(X), before) and not sub.coordinates.any()


def test_sgd_in_it_is_fpd():
    """The same bases in the same order, and the same steps, within rounding."""
    x, y = normal(32, 8), torch.arange(32) % 3
    sub, model = Subspace(Net(), DIM, seed=5, partition="by_layer"), Net()
    ours = torch.optim.SGD(sub.parameters(), lr=0.3)
    theirs = FPD(model.named_parameters(), 0.3, DIM, "by_layer", "countsketch", seed=5)
    for _ in range(5):
        for optimizer, f in ((ours, sub), (theirs, model)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(f(x), y).backward()
            optimizer.step()
    for p, q in zip(sub.merge().parameters(), model.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_several_uses_in_one_graph_add_up_and_double_backward_works():
    sub = make()
    one = gradient(sub, X, sub.coordinates)
    sub.coordinates.grad = None
    (sub(X).square().sum() + sub(X).square().sum()).backward()
    torch.testing.assert_close(sub.coordinates.grad, 2 * one)
    sub.double()

    def f(c):
        return torch.func.functional_call(sub, {"coordinates": c}, (X.double(),)).square().mean()

    assert torch.autograd.gradgradcheck(f, sub.coordinates.detach().clone().requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_gradients_of_many_outputs_at_once(name):
    sub = make(distribution=name)
    out, c = sub(X).sum(0), sub.coordinates
    wanted = [torch.autograd.grad(out[i], c, retain_graph=True)[0] for i in range(3)]
    (got,) = torch.autograd.grad(out, c, torch.eye(3), is_grads_batched=True)
    torch.testing.assert_close(got, torch.stack(wanted))


def test_tied_weights_are_moved_once():
    model = Net()
    model.middle.append(nn.Linear(16, 16))
    model.middle[2].weight = model.middle[0].weight
    sub = make(model)
    assert sub._spec.size == 467 + 16
    seen = []
    handle = model.middle[2].register_forward_pre_hook(lambda m, _: seen.append(m.weight is model.middle[0].weight))
    sub(X).sum().backward()
    handle.remove()
    assert seen == [True] and model.middle[2].weight is model.middle[0].weight


def test_a_choice_of_parameters_by_names_and_patterns():
    sub = make(Net(), 10, params=["last.*", "first.bias"])
    assert sub._spec.size == 3 * 16 + 3 + 16
    theta = make(Net(), 10, params="last.*").merge()
    assert [torch.equal(p, q) for p, q in zip(theta.parameters(), Net().parameters())] == [True] * 4 + [False] * 2
    assert not any(p.requires_grad for p in theta.parameters())


# torch around it


def test_it_has_the_coordinates_alone():
    sub = Subspace(Net(), DIM)
    assert [name for name, _ in sub.named_parameters()] == ["coordinates"]
    outer = nn.Sequential(sub, nn.Linear(3, 2))
    assert sum(p.numel() for p in outer.parameters() if p.requires_grad) == DIM + 8


@pytest.mark.parametrize("make_optimizer", [
    lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=1e-4),
    lambda p: torch.optim.Adam(p, lr=0.1),
    lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
])  # fmt: skip
def test_optimizers_and_schedulers_lower_the_loss(make_optimizer):
    sub, x, y = Subspace(Net(), DIM), normal(64, 8), torch.arange(64) % 3
    optimizer = make_optimizer(sub.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)

    def loss():
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(sub(x), y)
        value.backward()
        return value

    first = loss().item()
    for _ in range(20):
        optimizer.step(loss)
        schedule.step()
    assert loss().item() < 0.95 * first
    held = sum(v.numel() for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    assert held <= 2 * DIM + 1 or isinstance(optimizer, torch.optim.LBFGS)  # Adam has a step number too


def test_gradscaler_and_autocast():
    sub, scaler = make(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(sub.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        out = sub(X)
    assert out.dtype == torch.bfloat16
    scaler.scale(out.float().square().sum()).backward()
    scaled = sub.coordinates.grad.clone()
    scaler.step(optimizer)
    torch.testing.assert_close(scaled / 1024, sub.coordinates.grad)
    assert sub.coordinates.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_summed_in_float32(dtype):
    model = Net().to(dtype)
    sub = make(model)
    assert sub.coordinates.dtype == torch.float32
    u = Basis(DIM, 467, "countsketch").expand(sub.coordinates.detach())
    start = torch.cat([p.reshape(-1) for p in model.parameters()])
    theta = torch.cat([p.reshape(-1) for p in copy.deepcopy(sub).merge().parameters()])
    assert torch.equal(theta, (start.float() + u).to(dtype))
    assert gradient(sub, X.to(dtype), sub.coordinates).dtype == torch.float32


def test_mixed_dtypes_and_channels_last():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    plain, x, found = copy.deepcopy(model), normal(2, 3, 6, 6), []
    sub = make(model.to(memory_format=torch.channels_last))
    handle = model[0].register_forward_pre_hook(lambda m, _: found.append(m.weight))
    out = sub(x)
    handle.remove()
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, make(plain).merge()(x))
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).double())
    start, sub = [p.clone() for p in mixed.parameters()], make(mixed, 10)
    assert sub.coordinates.dtype == torch.float64
    u = Basis(10, 30, "countsketch").expand(sub.coordinates.detach()).split([16, 4, 8, 2])
    for p, v, moved in zip(start, u, sub.merge().parameters()):
        assert torch.equal(moved, (p.double() + v.view(p.shape)).to(p.dtype))


def test_buffers_and_modes_are_the_models():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    sub = make(model, 10)
    assert not sub.training
    sub.train()
    assert model[2].training
    sub(X)
    assert model[1].num_batches_tracked == 1 and model[1].running_mean.any()
    sub.eval()
    assert not model.training and torch.equal(sub(X), sub(X))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_inside_the_model_see_the_moved_parameters(reentrant):
    plain, sub = make(Net()), make(Net(reentrant))
    start = [p.clone() for p in sub.model.parameters()]
    torch.testing.assert_close(gradient(sub, X, sub.coordinates), gradient(plain, X, plain.coordinates))
    assert is_put_back(sub, start)
    with torch.no_grad():
        sub.coordinates.mul_(2)
        plain.coordinates.mul_(2)
    (sub(X).sum() + sub(-X).sum()).backward()  # two passes with one θ
    sub.coordinates.grad = None
    torch.testing.assert_close(gradient(sub, X, sub.coordinates), gradient(plain, X, plain.coordinates))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_see_the_moved_parameters_where_only_the_input_needs_a_gradient(reentrant):
    """As where an adapter that is not trained gives gradients to a prompt, or to the model before it."""
    grads = []
    for sub in (make(Net()), make(Net(reentrant))):
        start, x = [p.clone() for p in sub.model.parameters()], X.clone().requires_grad_()
        sub.requires_grad_(False)
        sub(x).square().sum().backward()
        grads.append(x.grad)
        assert is_put_back(sub, start) and sub.coordinates.grad is None
    assert torch.equal(*grads)


@dataclass
class Out:
    loss: torch.Tensor


@dataclass(slots=True)
class Slotted:
    loss: torch.Tensor


class Named(dict):
    """A dictionary that torch's pytrees do not know."""


WRAPPED = {
    "dataclass": (Out, lambda out: out.loss),
    "slots": (Slotted, lambda out: out.loss),
    "namespace": (lambda t: SimpleNamespace(deep=[SimpleNamespace(loss=t)]), lambda out: out.deep[0].loss),
    "in a dict": (lambda t: {"n": 1, "of": Out(t)}, lambda out: out["of"].loss),
    "beside a tensor": (lambda t: (t.detach(), Out(t)), lambda out: out[1].loss),
    "mapping": (lambda t: Named(loss=t), lambda out: out["loss"]),
    "distribution": (lambda t: torch.distributions.Normal(t, 1.0), lambda out: out.loc),
    "packed": (lambda t: nn.utils.rnn.pack_sequence([t.reshape(1)]), lambda out: out.data),
}


class Wraps(nn.Module):
    def __init__(self, of, reentrant):
        super().__init__()
        self.inner, self.of, self.reentrant = Net(seed=2), of, reentrant

    def forward(self, x):
        middle, x = self.inner.middle, self.inner.first(x).tanh()
        return self.of(self.inner.last(checkpoint(middle, x, use_reentrant=self.reentrant)).square().sum())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("wrap", "loss"), WRAPPED.values(), ids=list(WRAPPED))
def test_checkpoints_see_the_moved_parameters_whatever_holds_the_output(wrap, loss, reentrant):
    plain, sub = make(Wraps(lambda t: t, reentrant)), make(Wraps(wrap, reentrant))
    start = [p.clone() for p in sub.model.parameters()]
    plain(X).backward()
    loss(sub(X)).sum().backward()
    assert torch.equal(sub.coordinates.grad, plain.coordinates.grad) and is_put_back(sub, start)


def test_outputs_that_hide_their_tensors_are_refused():
    """If nothing else needs a gradient; without gradients they may be returned."""
    for of in (lambda t: t.grad_fn, lambda t: {"of": [t.grad_fn], "n": t.detach()}):
        sub = make(Wraps(of, False))
        start = [p.clone() for p in sub.model.parameters()]
        with pytest.raises(TypeError, match="^the model returns SumBackward0, in which a Subspace finds no tensor with a"):
            sub(X)
        assert is_put_back(sub, start)
    with torch.no_grad():
        make(Wraps(lambda t: object(), False))(X)
    for of in (lambda t: None, lambda t: t.item(), lambda t: SimpleNamespace(best=t.detach(), name="a"), lambda t: [],
               lambda t: {"loss": t, "of": object()}):  # fmt: skip
        make(Wraps(of, False))(X)
    loop = SimpleNamespace()
    loop.itself = loop
    make(Wraps(lambda t: (t, loop), False))(X)


class Two(nn.Module):
    """Returns the output of its encoder, and what a function of the module and of that output gives."""

    def __init__(self, also):
        super().__init__()
        self.enc, self.dec, self.act, self.also = nn.Linear(8, 8), nn.Linear(8, 3), nn.Tanh(), also

    def forward(self, x):
        h = self.enc(x)
        return h, self.also(self, h)

    def decode(self, h):
        return self.dec(h)

    def stream(self, h):
        yield h
        yield self.dec(h)

    async def wait(self, h):
        return self.dec(h)

    async def wait_for_more(self, h):
        yield self.dec(h)


def begin(stream):
    next(stream)
    return stream


LATER = {
    "generator": lambda m, h: m.stream(h),
    "generator that has begun": lambda m, h: begin(m.stream(h)),
    "generator expression": lambda m, h: (layer(h) for layer in [m.dec]),
    "coroutine": lambda m, h: m.wait(h),
    "asynchronous generator": lambda m, h: m.wait_for_more(h),
    "map": lambda m, h: map(m.dec, [h]),
    "zip": lambda m, h: zip("ab", m.stream(h)),
    "module": lambda m, h: m.dec,
    "list of modules": lambda m, h: [m.act, {"dec": m.dec}],
    "set of modules": lambda m, h: {m.dec},
    "view of modules": lambda m, h: m._modules.values(),
    "new module": lambda m, h: nn.Sequential(m.act, m.dec),
    "method": lambda m, h: m.decode,
    "method of a container": lambda m, h: m._modules.get,
    "closure": lambda m, h: lambda: m.dec(h),
    "default": lambda m, h: lambda dec=m.dec: dec(h),
    "partial": lambda m, h: partial(m.decode, h),
    "partial of a function": lambda m, h: partial(Two.decode, m, h),
    "cache": lambda m, h: cache(m.decode),
    "parameters": lambda m, h: m.parameters(),
    "attribute": lambda m, h: SimpleNamespace(h=h, of=[m.dec]),
    "slot": lambda m, h: Slotted(m.decode),
}
AT_ONCE = {
    "list": lambda m, h: list(m.stream(h)),
    "distribution": lambda m, h: torch.distributions.Normal(m.dec(h), 1.0),
    "iterator": lambda m, h: iter([m.dec(h)]),
    "zip": lambda m, h: zip("ab", m.stream(h).__next__().unbind()),
    "generator of tensors": lambda m, h: (t for t in [m.dec(h)]),
    "closure over tensors": lambda m, h: lambda: h,
    "method of a tensor": lambda m, h: h.sum().backward,
    "module without parameters": lambda m, h: m.act,
    "loss": lambda m, h: nn.MSELoss(),
    "class": lambda m, h: nn.Linear,
    "function": lambda m, h: nn.functional.max_pool2d,
    "operator": lambda m, h: torch.relu,
    "member of an enum": lambda m, h: Colour.RED,
    "torch": lambda m, h: torch,
    "logger": lambda m, h: SimpleNamespace(log=LOGGER),
    "error": lambda m, h: caught(m),
    "plain values": lambda m, h: {"a": 1, "b": None, "c": h.shape, "d": h.dtype, "e": {1}, "f": np.ones(2), "g": range(2)},
}


class Colour(Enum):
    RED = 1


LOGGER = getLogger(__name__)


def caught(m):
    try:
        m.dec(None)
    except TypeError as error:  # whose traceback leads to the module
        return error


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("also", LATER.values(), ids=list(LATER))
def test_what_would_run_a_module_after_the_pass_is_refused(also, grad):
    """It would run with θ0."""
    sub = make(Two(also))
    start = [p.clone() for p in sub.model.parameters()]
    with torch.set_grad_enabled(grad), pytest.raises(TypeError, match=r"^the model returns something \(\w+\) that can"):
        sub(X)
    assert is_put_back(sub, start) and _swap_of(sub.model).active is None


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("also", AT_ONCE.values(), ids=list(AT_ONCE))
def test_what_runs_no_module_later_may_be_returned(also, grad, monkeypatch):
    sub = make(Two(also))
    monkeypatch.setattr(LOGGER, "of", sub.model, raising=False)
    with torch.set_grad_enabled(grad):
        assert torch.equal(sub(X)[0], copy.deepcopy(sub).merge()(X)[0])


def test_a_module_that_is_not_moved_may_be_returned():
    sub = make(Two(lambda m, h: (m.dec(h), m.enc, partial(m.enc, h))), 10, params="dec.*")
    _, (_, enc, run) = sub(X)
    assert enc is sub.model.enc and torch.equal(run(), enc(enc(X)))
    with pytest.raises(TypeError, match=r"^the model returns something \(Two\) that can run its module Two after"):
        make(Two(lambda m, h: m), 10, params="dec.*")(X)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*Dynamo:UserWarning")
@pytest.mark.parametrize("name", ["generator", "map", "module", "method", "closure", "partial"])
def test_compile_does_not_run_a_module_later(name, fresh_dynamo):
    sub = make(Two(LATER[name]))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(sub, backend="eager", fullgraph=True)(X)
    try:  # dynamo may run a generator to its end, inside the pass
        _, stream = torch.compile(sub, backend="eager")(X)
    except TypeError as error:
        assert str(error).startswith("the model returns")
    else:
        merged = copy.deepcopy(sub).merge()
        torch.testing.assert_close(list(stream)[-1], merged.dec(merged.enc(X)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_all_of_it(reentrant):
    sub, x = make(), X.clone().requires_grad_()
    wanted = gradient(sub, X, sub.coordinates).clone()
    got = gradient(lambda x: checkpoint(sub, x, use_reentrant=reentrant), x, sub.coordinates)
    assert torch.equal(got, wanted) and isinstance(sub.model.first.weight, nn.Parameter)


def test_two_parameters_in_one_backward_pass_with_checkpoints_fail_loudly():
    """Nobody knows which θ a checkpoint would need; without checkpoints nothing is asked."""
    for reentrant in (None, False):
        model = Net(reentrant)
        start = [p.clone() for p in model.parameters()]
        one, other = make(model), make(model, seed=1)
        loss = (one(X) * other(X)).sum()
        if reentrant is None:
            loss.backward()
        else:
            with pytest.raises(RuntimeError, match="meta"):
                loss.backward()
            one(X)  # whatever a failed pass left is put back
        assert is_put_back(one, start)


@pytest.mark.parametrize("how", ["one after another", "in place"])
def test_other_coordinates_are_another_theta(how):
    """Also where one tensor of them is gone before the next is made, and where they are not trained."""
    sub, x = make(Net(False)).requires_grad_(how != "in place"), X.clone().requires_grad_()
    if how == "in place":
        loss = sub(x).sum()
        with torch.no_grad():
            sub.coordinates.mul_(2)
        loss = loss * sub(x).sum()
    else:
        losses = (torch.func.functional_call(sub, {"coordinates": k * sub.coordinates}, (x,)).sum() for k in (1, 2, 3))
        loss = sum(losses)
    with pytest.raises(RuntimeError, match="meta"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [None, False])
def test_two_models_that_share_a_module_in_one_backward_pass(reentrant):
    """Fails as loudly as two Subspaces of one model, if there is a checkpoint."""
    shared, loose = Net(reentrant), Net(reentrant, seed=3)
    start = [p.clone() for p in shared.parameters()]
    one, other = make(nn.Sequential(shared, nn.Linear(3, 2))), make(nn.Sequential(shared, nn.Linear(3, 4)), seed=1)
    wanted = [gradient(sub, X, sub.coordinates).clone() for sub in (one, other)]
    one.coordinates.grad = other.coordinates.grad = None
    loss = one(X).square().sum() + other(X).square().sum()
    if reentrant is None:
        loss.backward()
        for sub, grad in zip((one, other), wanted):
            torch.testing.assert_close(sub.coordinates.grad, grad)
    else:
        with pytest.raises(RuntimeError, match="meta"):
            loss.backward()
    assert all(torch.equal(p, q) for p, q in zip(shared.parameters(), start)) and not _RUNNING
    apart = make(loose)  # whose modules are its own
    (one(X).square().sum() + apart(X).square().sum()).backward()


@pytest.mark.parametrize("reentrant", [None, False])
def test_two_models_may_share_modules_that_nobody_moves(reentrant):
    """An activation, and a body whose parameters are in neither Subspace."""
    body, act = Net(reentrant), nn.Tanh()
    one, other = (make(nn.Sequential(body, act, nn.Linear(3, n)), seed=n, params="2.*", dim=5) for n in (2, 4))
    wanted = [gradient(sub, X, sub.coordinates).clone() for sub in (one, other)]
    one.coordinates.grad = other.coordinates.grad = None
    (one(X).square().sum() + other(X).square().sum()).backward()
    for sub, grad in zip((one, other), wanted):
        torch.testing.assert_close(sub.coordinates.grad, grad)


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise KeyboardInterrupt


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_an_error_in_a_backward_pass_puts_the_weights_back(reentrant):
    sub = make(Net(reentrant))
    model, state, wanted = sub.model, copy.deepcopy(sub.model.state_dict()), sub(X)
    base = model(X)
    x = X.clone().requires_grad_()
    with pytest.raises(KeyboardInterrupt):
        sub(Breaks.apply(x)).sum().backward()
    assert isinstance(model.first.weight, nn.Parameter) and torch.equal(model(X), base) and not _RUNNING
    assert all(torch.equal(v, state[name]) for name, v in model.state_dict().items())
    assert torch.equal(copy.deepcopy(model)(X), base) and torch.equal(sub(X), wanted)


def test_compile():
    sub = make()
    compiled = torch.compile(sub, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), sub(X))
    wanted = gradient(sub, X, sub.coordinates)
    torch.testing.assert_close(gradient(compiled, X, sub.coordinates), wanted)
    inside = make(torch.compile(Net(), backend="eager"))
    torch.testing.assert_close(inside(X), sub(X))


def test_compile_moves_a_parameter_once_wherever_it_is():
    """In a module that is registered twice, and in two modules."""
    block, tied = nn.Linear(8, 8), nn.Linear(8, 8)
    tied.weight = block.weight
    model = nn.Sequential(block, nn.Tanh(), block, nn.Tanh(), tied)
    sub, weight = make(model, 5), block.weight
    wanted = sub(X)
    compiled = torch.compile(sub, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(compiled(X), wanted)
        assert block.weight is weight and tied.weight is weight
    torch.testing.assert_close(gradient(compiled, X, sub.coordinates), gradient(sub, X, sub.coordinates))


def test_export():
    """As limits.md says: strict from torch 2.14 on, or of the merged model."""
    sub = make(nn.Linear(8, 3), 5)
    wanted = sub(X)
    if torch.__version__ >= (2, 14):
        torch.testing.assert_close(torch.export.export(sub, (X,), strict=True).module()(X), wanted)
    torch.testing.assert_close(torch.export.export(sub.merge(), (X,)).module()(X), wanted)


def test_recurrent_networks():
    """Which keep a list of their weights beside the parameters."""
    lstm, x = nn.LSTM(8, 4), normal(3, 2, 8)
    sub, merged = make(lstm), make(copy.deepcopy(lstm)).merge()
    out, _ = sub(x)
    torch.testing.assert_close(out, merged(x)[0])
    assert gradient(lambda x: sub(x)[0], x, sub.coordinates).any()
    assert lstm._flat_weights[0] is lstm.weight_ih_l0


def test_unused_parameters_and_sparse_gradients():
    model = nn.ModuleDict({"table": nn.Embedding(20, 4, sparse=True), "idle": nn.Linear(3, 3)})
    model.forward = lambda i: model["table"](i)
    sub = make(model, 10)
    i = torch.tensor([1, 1, 5])
    sub(i).sum().backward()
    g = torch.zeros(92)
    g[4:8], g[20:24] = 2, 1
    torch.testing.assert_close(sub.coordinates.grad, Basis(10, 92, "countsketch").project(g))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("use", [
    lambda sub: torch.func.vmap(sub)(X),
    lambda sub: torch.func.grad(lambda c: torch.func.functional_call(sub, {"coordinates": c}, (X,)).sum())(torch.zeros(DIM)),
    lambda sub: torch.jit.trace(sub, (X,)),
    lambda sub: torch.jit.trace(nn.Sequential(sub), (X,)),
], ids=["vmap", "grad", "trace", "trace of a part"])  # fmt: skip
def test_transforms_and_traces_are_refused(use):
    """torch's own errors name autograd.Function's setup_context and unordered_map::at."""
    sub = make()
    start = [p.clone() for p in sub.model.parameters()]
    with pytest.raises(NotImplementedError, match="^a Subspace supports neither the transforms of torch.func nor"):
        use(sub)
    assert is_put_back(sub, start)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    sub = make()
    wanted = sub(X)
    with mode():
        out = sub(X)
        made = make()
    assert torch.equal(out, wanted) and not out.requires_grad
    assert gradient(made, X, made.coordinates).any()  # one that was made there can be trained


def test_threads_take_turns():
    model, results = Net(), {}
    subs = [make(model, seed=seed) for seed in range(4)]
    with torch.no_grad():
        wanted = [sub(X) for sub in subs]

        def work(i):
            results[i] = [torch.equal(subs[i](X), wanted[i]) for _ in range(50)]

        threads = [threading.Thread(target=torch.no_grad()(work), args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(all(of) for of in results.values()) and len(results) == 4


MEANWHILE = {
    "state_dict": lambda sub, path: sub.state_dict(),
    "check": lambda sub, path: sub.check(),
    "save": lambda sub, path: sub.save(path),
    "to": lambda sub, path: sub.to("cpu"),
    "evaluate": lambda sub, path: torch.no_grad()(sub)(X),
    "train": lambda sub, path: train_on(sub),
}


@torch.enable_grad()
def train_on(sub):
    before, x = sub.coordinates.grad, X.clone().requires_grad_()
    assert gradient(sub, x, sub.coordinates).any()
    sub.coordinates.grad = before


def once(call):
    """A hook that calls once, however often it is called itself."""
    calls = [call]

    def hook(*_):
        if calls:
            calls.pop()()

    return hook


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.parametrize("meanwhile", MEANWHILE.values(), ids=list(MEANWHILE))
def test_a_hook_of_a_forward_pass_leaves_it_alone(meanwhile, tmp_path):
    sub = make()
    wanted = gradient(sub, X, sub.coordinates).clone()
    start, out, done = [p.clone() for p in sub.model.parameters()], sub(X), []
    sub.model.first.register_forward_hook(once(lambda: done.append(meanwhile(sub, tmp_path / "a"))))
    assert torch.equal(sub(X), out) and len(done) == 1
    sub.model.first.register_forward_hook(once(lambda: done.append(meanwhile(sub, tmp_path / "a"))))
    assert torch.equal(gradient(sub, X, sub.coordinates), wanted) and len(done) == 2
    assert is_put_back(sub, start)


def test_another_subspace_in_a_hook_of_a_forward_pass():
    sub = make()
    other, out = make(sub.model, seed=5), sub(X)
    wanted, found = other(X), []
    sub.model.first.register_forward_hook(once(lambda: found.append(other(X))))
    assert torch.equal(sub(X), out) and torch.equal(found[0], wanted)


def test_merge_in_a_hook_of_a_forward_pass():
    sub = make()
    out = sub(X)
    sub.model.first.register_forward_hook(once(sub.merge))
    for _ in range(2):
        assert torch.equal(sub(X), out)
    assert isinstance(sub.model.first.weight, nn.Parameter) and not sub.coordinates.any()


@pytest.mark.parametrize("of", [lambda sub: sub.state_dict(), lambda sub: sub.check()])
def test_a_thread_that_saves_leaves_passes_alone(of):
    sub, stop, errors = make(Net(True)), threading.Event(), []
    wanted, grad = sub(X), gradient(sub, X, sub.coordinates).clone()

    def save():
        try:
            while not stop.is_set():
                of(sub)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    try:
        same = [torch.equal(sub(X), wanted) and torch.equal(gradient(sub, X, sub.coordinates), grad) for _ in range(100)]
    finally:
        stop.set()
        thread.join()
    assert all(same) and not errors


class Twice(nn.Module):
    """Two checkpoints, and a hook between them that a backward pass calls after the rerun of the second."""

    def __init__(self, reentrant, hook):
        super().__init__()
        self.net, self.head, self.reentrant, self.hook = Net(seed=3), nn.Linear(3, 8), reentrant, hook

    def forward(self, x):
        x = checkpoint(self.net, x, use_reentrant=self.reentrant)
        if x.requires_grad:
            x.register_hook(self.hook)
        return checkpoint(self.head, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("run", [in_a_thread, lambda call: call()], ids=["thread", "hook"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", MEANWHILE)
def test_a_hook_of_a_backward_pass_leaves_it_alone(name, reentrant, run, tmp_path):
    """Also in another thread, while the pass waits."""
    hooks = [lambda: None]
    sub = make(Twice(reentrant, lambda grad: hooks[-1]()))
    x, start, done = X.clone().requires_grad_(), [p.clone() for p in sub.model.parameters()], []
    wanted = gradient(sub, x, sub.coordinates).clone()
    hooks.append(once(lambda: run(lambda: done.append(MEANWHILE[name](sub, tmp_path / "a")))))
    assert torch.equal(gradient(sub, x, sub.coordinates), wanted) and len(done) == 1
    assert is_put_back(sub, start) and not _RUNNING and not _swap_of(sub.model).levels


def test_an_error_in_the_model_puts_the_weights_back():
    sub = make()
    start = [p.clone() for p in sub.model.parameters()]
    with pytest.raises(RuntimeError):
        sub(normal(5, 9))
    assert is_put_back(sub, start)


def test_nan_and_infinity_arrive():
    sub = make()
    assert gradient(sub, X * torch.nan, sub.coordinates).isnan().all()
    with torch.no_grad():
        sub.coordinates.fill_(torch.nan)
    assert sub(X).isnan().all()


def test_it_goes_away_with_its_model():
    sub = make()
    sub(X).sum().backward()
    gone = weakref.ref(sub.model)
    del sub
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sub: pickle.loads(pickle.dumps(sub))])
def test_copies(copied):
    sub = make()
    sub(X)
    other = copied(sub)
    assert torch.equal(other(X), sub(X)) and other.model is not sub.model
    with torch.no_grad():
        other.coordinates.zero_()
    assert not torch.equal(other(X), sub(X))


def test_to_half_keeps_the_coordinates_in_float32():
    sub = make()
    before = sub.coordinates.detach().clone()
    sub.half()
    assert torch.equal(sub.coordinates, before) and sub.model.first.weight.dtype == torch.float16
    sub.check()
    assert sub.double().coordinates.dtype == torch.float64


@pytest.mark.parametrize("over_meta", [False, True])
def test_weights_are_loaded_after_to_empty(over_meta):
    sub = make()
    out, weights, state = sub(X), copy.deepcopy(sub.model.state_dict()), copy.deepcopy(sub.state_dict())
    if over_meta:
        sub.to("meta")
    sub.to_empty(device="cpu")
    with torch.no_grad():
        for p in (*sub.model.parameters(), sub.coordinates):
            p.fill_(3)
    with pytest.raises(RuntimeError, match=r"^the model's weights θ0 have changed .*: restore the weights, or make"):
        sub.load_state_dict(state)
    sub.model.load_state_dict(weights)
    sub.load_state_dict(state)
    sub._compared = False  # as in a process that has run nothing yet
    assert torch.equal(sub(X), out)
    sub.check()


def test_on_the_meta_device_it_says_what_is_wrong():
    for run_before in (False, True):
        sub = make()
        if run_before:
            sub(X)
        sub.to("meta")
        with pytest.raises(RuntimeError, match="^device: no kernels for 'meta', allowed 'cpu', 'cuda'$"):
            sub(X.to("meta"))
        with pytest.raises(RuntimeError, match="^the model's weights θ0 have changed .*: restore the weights"):
            sub.state_dict()
    sub = make()
    sub.model.to("meta")
    with pytest.raises(RuntimeError, match="^the model's weights θ0 have changed .*: restore the weights"):
        sub.check()


def test_coordinates_keep_their_dtype_whatever_is_loaded():
    """Their values too, with assign=True, which takes tensors as they are."""
    sub, nested = make(), nn.ModuleDict({"sub": make()})
    for assign in (False, True):
        for module, prefix in ((sub, ""), (nested, "sub.")):
            state = module.state_dict()
            half = state | {f"{prefix}coordinates": state[f"{prefix}coordinates"].half()}
            module.load_state_dict(half, assign=assign)
            loaded = module.get_parameter(f"{prefix}coordinates")
            assert loaded.dtype == torch.float32 and half[f"{prefix}coordinates"].dtype == torch.float16
            assert torch.equal(loaded, half[f"{prefix}coordinates"].float()) and loaded.requires_grad


@pytest.mark.parametrize("given", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"avg_fn": get_ema_avg_fn(0.9)}],
                         ids=["mean", "ema", "ema, one by one"])  # fmt: skip
def test_averages_of_buffers_know_their_weights(given):
    """Also where another worker's are noticed."""
    sub = make()
    averaged = AveragedModel(sub, use_buffers=True, **given)
    for _ in range(5):
        averaged.update_parameters(sub)
    torch.testing.assert_close(averaged(X), sub(X))
    averaged = AveragedModel(make(), use_buffers=True, **given)
    averaged.module._of_first[3] += 1
    with pytest.raises(RuntimeError, match="^the weights θ0 differ from those of worker 0"):
        averaged(X)


def test_a_pickle_of_an_earlier_version_is_read():
    """Its buffer has the checksum as two integers of 32 bits."""
    sub = make()
    sub._of_first = torch.tensor([int(sub._checksum[:8], 16), int(sub._checksum[8:], 16)])
    assert torch.equal(pickle.loads(pickle.dumps(sub))(X), make()(X))


# files, and whose coordinates they are


def test_a_state_dict_is_a_few_numbers():
    sub = make(dim=np.int64(DIM), seed=np.uint8(0), partition=np.str_("whole"))  # of which plain values are kept
    state = sub.state_dict()
    assert list(state) == ["coordinates", "_extra_state"]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = Subspace(Net(), DIM)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(X), sub(X))
    outer = nn.ModuleDict({"sub": sub, "head": nn.Linear(3, 2)})
    assert list(outer.state_dict()) == ["sub.coordinates", "sub._extra_state", "head.weight", "head.bias"]
    assert not any(outer.load_state_dict(outer.state_dict()))


@pytest.mark.parametrize(("given", "message"), [
    ({"seed": 1}, r"^coordinates of another basis: seed: got 0, allowed 1$"),
    ({"distribution": "normal"}, r"^coordinates of another basis: distribution: got countsketch, allowed normal$"),
    ({"partition": "by_layer"}, r"^coordinates of another basis: partition: got whole, allowed by_layer$"),
    ({"dim": 41}, r"^coordinates of another basis: dim: got 40, allowed 41$"),
    ({"params": ["first.*", "middle.*"]}, r"^coordinates of another basis: size: got 467, allowed 416$"),
    ({"model": Net(seed=1)}, r"^coordinates of another model weights θ0 or params: checksum: got \w{16}, allowed \w{16}$"),
])  # fmt: skip
def test_coordinates_of_another_basis_or_model_are_refused(given, message):
    other = make(**given)
    before = other.coordinates.detach().clone()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(make().state_dict())
    assert torch.equal(other.coordinates, before)


def test_files_are_safetensors_of_4_d_bytes(tmp_path):
    sub, path = make(dim=200), tmp_path / "adapter.safetensors"
    sub.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter.safetensors"]
    assert 4 * 200 < path.stat().st_size < 4 * 200 + 500
    other = Subspace.load(path, Net())
    assert torch.equal(other(X), sub(X)) and torch.equal(other.coordinates, sub.coordinates)
    safetensors = pytest.importorskip("safetensors.torch")
    assert torch.equal(safetensors.load_file(path)["coordinates"], sub.coordinates)
    chosen = make(Net().double(), 10, params=["last.*"], partition="by_layer", seed=2)
    chosen.save(path)
    assert torch.equal(Subspace.load(path, Net().double()).coordinates, chosen.coordinates)


def test_files_for_other_weights_and_other_files_are_refused(tmp_path):
    path = tmp_path / "a"
    make().save(path)
    with pytest.raises(ValueError, match="^coordinates of another model weights"):
        Subspace.load(path, Net(seed=1))
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-4], whole + b"1234", b"\xff" * 100, b"\x02" + bytes(7) + b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a: not a file of Subspace.save, or a damaged one$"):
            Subspace.load(path, Net())
    with pytest.raises(FileNotFoundError):
        Subspace.load(tmp_path / "none", Net())


def test_a_model_whose_file_is_refused_stays_as_it_was(tmp_path):
    make().save(tmp_path / "a")
    model = Net(seed=1)
    model.first.bias.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="^coordinates of another model weights"):
        Subspace.load(tmp_path / "a", model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before and sum(before.values()) > 1


def test_a_file_that_cannot_be_written_leaves_no_other(tmp_path, monkeypatch):
    sub, path = make(), tmp_path / "a"
    sub.save(path)
    before = path.read_bytes()
    sub.coordinates.data += 1

    def fail(*_: object) -> None:
        raise OSError("no room")

    for owner, name in ((os, "replace"), (Path, "write_bytes")):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="^no room$"):
            patch.setattr(owner, name, fail)
            sub.save(path)
        assert [p.name for p in tmp_path.iterdir()] == ["a"] and path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        sub.save(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder"]


def test_a_hundred_adapters_of_one_model_share_it():
    model = Net()
    subs = [make(model, seed=seed) for seed in range(100)]
    assert all(sub.model is model for sub in subs)
    assert sum(p.numel() for sub in subs for p in sub.parameters()) == 100 * DIM
    assert not torch.equal(subs[0](X), subs[1](X))


def test_merge():
    sub = make()
    before = sub(X)
    model = sub.merge()
    assert torch.equal(model(X), before) and torch.equal(sub(X), before) and not sub.coordinates.any()
    sub.check()


def test_weights_that_changed_are_noticed(tmp_path):
    sub = make()
    with torch.no_grad():
        sub.model.first.weight[0, 0] += 1
    for call in (sub.check, sub.state_dict, sub.merge, lambda: sub.save(tmp_path / "a")):
        with pytest.raises(RuntimeError, match="^the model's weights θ0 have changed since the Subspace was made"):
            call()
    sub = make()
    sub.model.half()  # without the Subspace
    with pytest.raises(RuntimeError, match="^the model's weights θ0 have changed"):
        sub.save(tmp_path / "a")


def test_replaced_parameters_are_found_or_refused():
    sub = make()
    sub.model.last = nn.Linear(16, 3)
    sub(X).sum().backward()
    with pytest.raises(RuntimeError, match="θ0 have changed"):
        sub.check()
    sub.model.last = nn.Linear(16, 4)
    with pytest.raises(RuntimeError, match=r"^last.weight: got \(4, 16\) on cpu, allowed \(3, 16\) on cpu: the model was"):
        sub(X)
    for other in (nn.Identity(), nn.Linear(16, 3, bias=False)):
        sub.model.last = other
        with pytest.raises(RuntimeError, match=r"^last.\w+: got nothing, allowed \(3,"):
            sub(X)


def test_an_input_that_is_returned_gets_no_hook():
    x = X.clone().requires_grad_()
    make(nn.Sequential(nn.Linear(8, 2)), 2)(x)
    sub = make(nn.ModuleDict({"unused": nn.Linear(2, 2)}), 2)
    sub.model.forward = lambda x: x
    assert sub(x) is x and not x._backward_hooks


# what it refuses


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.weight, self.what = nn.Parameter(torch.ones(3, 3)), what

    def forward(self, x):
        return {"out": x @ self.weight, "more": [self.what(self.weight)]}


def test_a_module_that_returns_parameters():
    for what in (lambda w: w, lambda w: w.t(), lambda w: w[0].detach()):
        with pytest.raises(ValueError, match=r"^the model returns a parameter, or a view of one, .* return a clone\(\)"):
            make(Returns(what), 2)(torch.ones(1, 3))
    out = make(Returns(lambda w: w.clone()), 2)(torch.ones(1, 3))
    assert out["more"][0].requires_grad


def _lazy():
    return nn.Sequential(nn.LazyLinear(3))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Parameter(torch.ones(20))
        self.sparse = nn.Parameter(torch.eye(3).to_sparse_csr())


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(("model", "given", "error", "message"), [
    (nn.ReLU, {}, ValueError, r"^model: got no floating-point parameters, a Subspace needs at least one$"),
    (Net, {"dim": 468}, ValueError, r"^dim: got 468, allowed 1 ... 467"),
    (Net, {"dim": 0}, ValueError, r"^dim: got 0, allowed 1 ... 467"),
    (Net, {"dim": 2.0}, TypeError, r"^dim: got 2.0, allowed an integer"),
    (Net, {"dim": None}, ValueError, r"^dim: got None"),
    (Net, {"seed": -1}, ValueError, r"^seed: got -1, allowed 0 ... 4294967295$"),
    (Net, {"distribution": "gauss"}, ValueError, r"^distribution: got 'gauss', allowed"),
    (Net, {"partition": "layers"}, ValueError, r"^partition: got 'layers', allowed"),
    (Net, {"params": ["last.*", "head"]}, ValueError, r"^params: no parameter of the model is named 'head'$"),
    (Net, {"dim": -1}, ValueError, r"^dim: got -1, allowed 1 ... 467"),
    (Net, {"partition": ["whole"]}, ValueError, r"^partition: got \['whole'\], allowed whole, by_layer"),
    (Net, {"params": []}, ValueError, r"^params: got no names, allowed at least one, or None for all"),
    (Net, {"params": [1]}, TypeError, r"^params: got 1, allowed names of parameters or patterns"),
    (Net, {"params": 5}, TypeError, r"^params: got 5, allowed names of parameters or patterns"),
    (Net, {"params": [torch.ones(3)]}, TypeError, r"^params: got Tensor, allowed names of parameters or patterns"),
    (lambda: Net().parameters(), {}, TypeError, r"^model: got generator, allowed a torch.nn.Module$"),
    (lambda: Subspace(Net(), 3), {}, TypeError, r"^model: there is a Subspace in it already"),
    (lambda: nn.Sequential(Subspace(Net(), 3)), {}, TypeError, r"^model: there is a Subspace in it already"),
    (lambda: Net().to("meta"), {}, ValueError, r"^model: first.weight has no values yet"),
    (_lazy, {}, ValueError, r"^model: 0.weight has no values yet"),
    (Sparse, {"params": "dense"}, TypeError, r"^model: sparse has the layout torch.sparse_csr: give the model dense param"),
    (Complex, {"dim": 1}, TypeError, r"^params: got weight \(torch.complex64\), allowed real floating-point parameters$"),
    (Whole, {"dim": 1, "params": ["codes", "scale"]}, TypeError, r"^params: got codes \(torch.int8\), allowed real"),
])  # fmt: skip
def test_bad_input(model, given, error, message):
    with pytest.raises(error, match=message):
        Subspace(model(), **{"dim": 10, **given})


class Opaque(torch.Tensor):
    """A wrapper subclass, as of a quantization library."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values):
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return function(*(x.values if isinstance(x, cls) else x for x in args), **(kwargs or {}))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("to_jit", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 3))])
def test_parameters_in_a_scripted_part_are_refused_unless_others_are_chosen(to_jit):
    model = nn.Sequential(to_jit(nn.Sequential(nn.Linear(3, 3))), nn.ReLU(), nn.Linear(3, 3))
    for given in ({}, {"params": ["0.*.bias", "2.*"]}):
        with pytest.raises(TypeError, match=r"^model: 0.0.(weight|bias) is in a torch.jit module, whose "):
            Subspace(model, 3, **given)
    assert all(p.requires_grad for p in model.parameters())
    sub = make(model, 3, params="2.*")
    out = sub(torch.ones(2, 3))
    assert torch.equal(sub(torch.ones(2, 3)), out) and gradient(sub, torch.ones(2, 3), sub.coordinates).any()
    assert torch.equal(sub.merge()(torch.ones(2, 3)), out)


@pytest.mark.parametrize("params", [None, "first.*"])
def test_a_model_that_is_refused_stays_as_it_was(params):
    """Also where only other parameters are moved: all are in the checksum."""
    model = Net()
    model.last._parameters["weight"] = Opaque(torch.ones(3, 16))
    with pytest.raises(TypeError, match=r"^model: last.weight is a Opaque, a subclass of Tensor without plain values"):
        Subspace(model, 10, params=params)
    assert all(p.requires_grad for name, p in model.named_parameters() if name != "last.weight")


def test_nothing_is_frozen_before_everything_else_is_done(monkeypatch):
    model = Net()
    monkeypatch.setattr(Subspace, "_sum_up", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Subspace(model, 10)
    assert all(p.requires_grad for p in model.parameters())


def test_parameters_of_8_bits_are_refused_unless_others_are_chosen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].to(torch.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"^params: got 0.weight \(torch.float8_\w*\), 0.bias .*: choose others by params$"):
        Subspace(model, 2)
    assert Subspace(model, 2, params="1.*")._spec.size == 10


def test_integer_parameters_stay_where_they_are():
    assert Subspace(Whole(), 2)._spec.size == 3


def test_by_ratio_gives_the_dimension():
    assert len(Subspace(Net(), None, partition="by_ratio:10").coordinates) == 15 + 28 + 10


def test_models_on_other_devices_are_refused_when_they_run():
    sub = make()
    sub.model.to("meta")
    with pytest.raises(RuntimeError, match=r"^first.weight: got \(16, 8\) on meta, allowed \(16, 8\) on cpu"):
        sub(X)


# many processes

WORKER = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from rbd import Subspace
def main(rank, world, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo")
    def say(*words):
        with open(os.path.join(sys.argv[1], f"{rank}.txt"), "a") as file:
            print(*words, file=file)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
    sub = Subspace(model, 20)
    wrapped = nn.parallel.DistributedDataParallel(sub)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
    bytes_sent = []
    def hook(state, bucket):
        bytes_sent.append(bucket.buffer().numel())
        return dist.all_reduce(bucket.buffer().div_(world), async_op=True).get_future().then(lambda f: f.value()[0])
    wrapped.register_comm_hook(None, hook)
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad(); wrapped(x).square().sum().backward(); optimizer.step()
    everyone = [torch.empty(20) for _ in range(world)]
    dist.all_gather(everyone, sub.coordinates.detach())
    say(rank, bytes_sent, torch.equal(*everyone), bool(sub.coordinates.any()), sorted(wrapped.state_dict()))
    torch.manual_seed(rank)
    other = nn.parallel.DistributedDataParallel(Subspace(nn.Linear(8, 3), 5))
    try:
        other(x)
        say(rank, "ran")
    except RuntimeError as error:
        say(rank, str(error).split(":")[0])
    try:
        Subspace(nn.parallel.DistributedDataParallel(nn.Linear(8, 3)), 5)
    except TypeError as error:
        say(rank, error)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    plain, sub = Subspace(net(), 20), Subspace(net(), 20)
    for s in (plain, sub):
        s.coordinates.data.fill_(0.3)
    plain(x).square().sum().backward()
    dist.all_reduce(plain.coordinates.grad)
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(sub, mesh=mesh)
    same = torch.equal(sub(x), plain(x))
    sub(x).square().sum().backward()
    close = torch.allclose(sub.coordinates.grad.full_tensor(), plain.coordinates.grad / world)
    torch.optim.Adam(sub.parameters()).step()
    sub.reshard()
    path = os.path.join(sys.argv[1], f"adapter{rank}")
    sub.save(path)
    dist.barrier()
    whole, loaded = sub.coordinates.full_tensor(), Subspace.load(os.path.join(sys.argv[1], "adapter0"), net())
    say(rank, "sharded", same, close, torch.equal(loaded.coordinates, whole), os.path.exists(path))
    inner, outer = Subspace(net(), 20), net()
    fully_shard(inner.model[0], mesh=mesh)
    fully_shard(outer, mesh=mesh)
    for call in (lambda: inner(x), lambda: Subspace(outer, 20), sub.merge):
        try:
            call()
        except (RuntimeError, TypeError) as error:
            say(rank, error)
    dist.barrier()
    dist.destroy_process_group()
if __name__ == "__main__":
    import socket, torch.multiprocessing as mp
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    mp.spawn(main, (2, port), nprocs=2)
"""


def test_many_workers(fresh_python, tmp_path):
    """DistributedDataParallel sends coordinates only, and notices other weights; fully_shard works on the whole."""
    fresh_python(WORKER, str(tmp_path))
    lines = [line for rank in "01" for line in (tmp_path / f"{rank}.txt").read_text().splitlines()]
    assert len(lines) == 14
    for rank in "01":
        same = "[20, 20, 20] True True ['module._extra_state', 'module.coordinates']"
        assert f"{rank} {same}" in lines
        assert f"{rank} sharded True True True {rank == '0'}" in lines  # worker 0 alone writes
        assert any(line.startswith(f"{rank} 0.weight: got (16, 8) on cpu, sharded, allowed") for line in lines)
        assert f"{rank} model: 0.weight is sharded: make the Subspace first, and give it to fully_shard as a whole" in lines
        assert any(line.startswith(f"{rank} merge is not supported under fully_shard") for line in lines)
        assert f"{rank} model: wrap the Subspace in DistributedDataParallel, not the other way round" in lines
    assert "0 ran" in lines
    assert "1 the weights θ0 differ from those of worker 0" in lines


# memory


def test_nothing_of_the_size_of_the_basis_is_made():
    """The tensors that a pass makes beyond the model's own: θ, and the gradients as one vector."""
    sub = Subspace(nn.Linear(1000, 100, bias=False), 1000)
    assert sub._spec.size == 100_000
    x = normal(2, 1000)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sub(x).sum().backward()
    allocated = [e.cpu_memory_usage for e in profile.events() if e.name in ("aten::empty", "aten::empty_like", "aten::cat")]
    assert max(allocated) <= 4 * 100_000


# the examples of the docs


@pytest.mark.parametrize("name", ["mezo", "finetune"])
def test_examples(name):
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that wait for each other are slow where others run too
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=250,
                          cwd=EXAMPLES.parents[1], env=one)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_kernels_moved_checks_the_number_of_values():
    sub = make()
    with pytest.raises(ValueError, match=r"^params: got 3 values, allowed 467$"):
        kernels.shift(sub.coordinates, sub._spec, [torch.zeros(3)])
    assert _swap_of(sub.model).active is None
