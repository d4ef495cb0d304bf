"""RBD, FPD and NES: the update is the equation, the theory holds, and they are good torch optimizers."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from rbd import FPD, NES, RBD, Basis, kernels
from rbd.distribution import DISTRIBUTIONS
from rbd.optim import _as_loss, centred_ranks, rbd_direction
from rbd.partition import partition
from rbd.tests.conftest import INTERPRETED, on_a_gpu

NAMES = tuple(DISTRIBUTIONS)
FORMS = ("whole", "by_layer", "by_tensor", "even:5", "by_ratio:4")
EPS = torch.finfo(torch.float32).eps


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """D = 48 + 8 + 24 + 3 = 83."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def layout(model: nn.Module) -> tuple:
    return tuple((name, p.numel()) for name, p in model.named_parameters())


def loss(model: nn.Module, seed: int = 0) -> Tensor:
    dtype = next(model.parameters()).dtype
    return model(normal(16, 6, seed=seed, dtype=dtype)).square().mean()


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def gradients(model: nn.Module) -> Tensor:
    return flat(p.grad for p in model.parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        if isinstance(optimizer, NES):
            optimizer.step(lambda: loss(model, step))  # noqa: B023 (called at once)
        else:
            optimizer.zero_grad()
            loss(model, step).backward()
            optimizer.step()


def parameter(values: Tensor, grad: Tensor | None = None) -> nn.Parameter:
    p = nn.Parameter(values.clone(memory_format=torch.preserve_format))
    p.grad = grad
    return p


# the equation


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_direction_is_the_equation(name, form):
    """u = Φᵀ Φ g by dense matrices, compartment by compartment.

    Within 3 eps of the sum of magnitudes: entries of dense() carry two roundings of eps / 2 each, and there are two.
    """
    p = partition(form, layout(network()), 20)
    g = normal(83, dtype=torch.float64)
    u, c = rbd_direction(g, p, name, seed=1, stream=2, step=3)
    assert (u.shape, c.shape, u.dtype, c.dtype) == ((83,), (p.dim,), torch.float64, torch.float64)
    at = 0
    for k in p.compartments:
        phi = Basis(k.dim, k.stop - k.start, name, 1, 2, k.number, 3).dense().double()
        part = g[k.start : k.stop]
        assert ((c[at : at + k.dim] - phi @ part).abs() <= 3 * EPS * (phi.abs() @ part.abs())).all()
        most = phi.T.abs() @ (phi.abs() @ part.abs())
        assert ((u[k.start : k.stop] - phi.T @ (phi @ part)).abs() <= 3 * EPS * most).all()
        at += k.dim


def test_direction_has_the_dtype_of_the_kernels():
    p = partition("whole", (("w", 50),), 5)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        result = torch.float64 if dtype == torch.float64 else torch.float32
        assert [t.dtype for t in rbd_direction(normal(50, dtype=dtype), p)] == [result] * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("redraw", [0, 1, 3])
def test_steps_are_the_equation(form, redraw):
    """θ_{t+1} = θ_t - η Φᵀ Φ g with Φ of step t // redraw, to the bit, on real gradients of a network."""
    model, twin = network(), network()
    optimizer = RBD(model.named_parameters(), lr=0.5, dim=20, partition=form, seed=7, redraw=redraw)
    assert optimizer.partition() == partition(form, layout(model), 20)
    for step in range(7):
        train(model, optimizer, 1, first=step)
        twin.zero_grad()
        loss(twin, step).backward()
        u, _ = rbd_direction(gradients(twin), optimizer.partition(), seed=7, step=step // redraw if redraw else 0)
        with torch.no_grad():
            parts = u.split([p.numel() for p in twin.parameters()])
            for p, part in zip(twin.parameters(), parts):
                p.add_(part.view_as(p), alpha=-0.5)
        assert torch.equal(flat(model.parameters()), flat(twin.parameters())), step


def test_a_basis_is_kept_for_redraw_steps():
    """With one fixed gradient the update says which basis was used."""
    updates = []
    p = parameter(torch.zeros(40), normal(40))
    optimizer = RBD([p], lr=1.0, dim=4, redraw=3)
    for _ in range(7):
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        updates.append(p.detach().clone())
    same = [[torch.equal(a, b) for b in updates] for a in updates]
    assert same == [[i // 3 == j // 3 for j in range(7)] for i in range(7)]


@pytest.mark.parametrize("form", FORMS)
def test_fpd_is_rbd_that_never_redraws(form):
    models = network(), network()
    arguments = dict(lr=0.5, dim=20, partition=form, distribution="uniform", seed=3)
    train(models[0], FPD(models[0].named_parameters(), **arguments), 5)
    train(models[1], RBD(models[1].named_parameters(), **arguments, redraw=0), 5)
    assert torch.equal(flat(models[0].parameters()), flat(models[1].parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_distributions_differ(name):
    ends = []
    for seed in (0, 1, 2**32 - 1):
        model = network()
        train(model, RBD(model.parameters(), lr=0.5, dim=20, distribution=name, seed=seed), 2)
        ends.append(flat(model.parameters()))
    assert not any(torch.equal(a, b) for a, b in [(ends[0], ends[1]), (ends[0], ends[2]), (ends[1], ends[2])])


# theory


@pytest.mark.parametrize("name", NAMES)
def test_expected_direction_is_a_share_of_the_gradient(name):
    """E[Φᵀ Φ g] = (d / D) g, over 2000 draws, within 5 standard errors.

    One u_j has variance d (|g|^2 + (kurtosis - 2) g_j^2) / D^2.
    """
    size, dim, draws, kurtosis = 40, 4, 2000, {"normal": 3, "uniform": 1.8, "rademacher": 1, "countsketch": 1}[name]
    g, p = normal(size, dtype=torch.float64), partition("whole", (("w", size),), dim)
    mean = torch.stack([rbd_direction(g, p, name, step=t)[0] for t in range(draws)]).mean(0)
    error = (dim * (g @ g + (kurtosis - 2) * g**2) / draws).sqrt() / size
    assert ((mean - dim / size * g).abs() < 5 * error).all()


@pytest.mark.parametrize(("dim", "size"), [(25, 10_000), (250, 10_000), (100, 1000)])
def test_cosine_with_the_gradient(dim, size):
    """cos(g, Φᵀ Φ g) is about sqrt(d / D); sqrt(d / (D + d + 1)) to the next order, by E[(ΦᵀΦ)^2] of normal entries.

    |Φg|^2 varies by sqrt(2 / d) of itself and the cosine by half of that; 30 draws, 5 standard errors.
    """
    g, p = normal(size), partition("whole", (("w", size),), dim)
    cosines = [torch.cosine_similarity(g, rbd_direction(g, p, step=t)[0], dim=0) for t in range(30)]
    error = math.sqrt(2 / dim) / 2 / math.sqrt(30)
    assert torch.stack(cosines).mean() == pytest.approx(math.sqrt(dim / (size + dim + 1)), rel=5 * error)
    assert torch.stack(cosines).mean() == pytest.approx(math.sqrt(dim / size), rel=5 * error + dim / size)


def distance(optimizer_class: type, size: int, dim: int, lr: float, steps: int, **arguments) -> float:
    """|θ - a|^2 after descending |θ - a|^2 / 2 from |θ - a|^2 = 1, in float64."""
    goal = nn.functional.normalize(normal(size, seed=5, dtype=torch.float64), dim=0)
    p = parameter(torch.zeros(size, dtype=torch.float64))
    optimizer = optimizer_class([p], lr=lr, dim=dim, **arguments)
    for _ in range(steps):
        p.grad = p.detach() - goal
        optimizer.step()
    return float((p.detach() - goal).square().sum())


@pytest.mark.parametrize("name", NAMES)
def test_rbd_solves_a_quadratic_and_fpd_does_not(name):
    """With η = 1, D = 100, d = 20, E|θ - a|^2 shrinks by 1 - 2 d / D + d (D + d + 1) / D^2 = 0.842 a step.

    That is 1e-15 in 200 steps; 1e-10 leaves room for chance. A fixed basis reaches d of D directions: 80 % of the
    square remains (beta distribution, standard deviation 4 %, 5 of them).
    """
    assert distance(RBD, 100, 20, 1.0, 200, distribution=name) < 1e-10
    assert distance(FPD, 100, 20, 0.8, 2000, distribution=name) == pytest.approx(0.8, abs=0.2)


def test_all_directions_solve_it_too():
    """d = D = 50: a factor of 1 - 2 η + η^2 (2 D + 1) / D = 0.505 a step for η = 1 / 2."""
    assert distance(RBD, 50, 50, 0.5, 100) < 1e-15


def test_one_sign_in_one_dimension_is_gradient_descent():
    """D = d = 1 with signs: Φᵀ Φ = 1, so RBD is SGD to the bit."""
    p, q = parameter(torch.tensor([0.3]), torch.tensor([0.7])), parameter(torch.tensor([0.3]), torch.tensor([0.7]))
    rbd, sgd = RBD([p], lr=0.1, dim=1, distribution="rademacher"), torch.optim.SGD([q], lr=0.1)
    for _ in range(5):
        rbd.step(), sgd.step()
        assert torch.equal(p, q)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_fpd_never_leaves_its_plane(name, form):
    """θ - θ0 is a combination of the rows of one Φ: least squares leave 1e-6 of it (dense() rounds entries by 1e-7).

    RBD does leave it, by far.
    """
    for optimizer_class, stays in ((FPD, True), (RBD, False)):
        model = network(torch.float64)
        start = flat(model.parameters())
        optimizer = optimizer_class(model.named_parameters(), lr=0.5, dim=20, partition=form, distribution=name)
        train(model, optimizer, 20)
        moved = flat(model.parameters()) - start
        compartments = optimizer.partition().compartments
        planes = [Basis(k.dim, k.size, name, compartment=k.number).dense().double() for k in compartments]
        plane = torch.block_diag(*planes).T  # (D, d)
        rest = moved - plane @ torch.linalg.lstsq(plane, moved[:, None]).solution[:, 0]
        assert (rest.norm() < 1e-6 * moved.norm()) == stays
        assert moved.norm() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_network_learns(name):
    """Random data by heart: the loss of a small network halves and more in 60 steps."""
    model = network()
    optimizer = RBD(model.parameters(), lr=2.0, dim=20, distribution=name)
    before = loss(model).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    assert loss(model).item() < before / 2


# parameters of all kinds


def test_parameters_without_gradients_stay_and_count_as_zeros():
    a, b, c = parameter(normal(10), normal(10, seed=1)), parameter(normal(20)), parameter(normal(5), normal(5, seed=2))
    before = b.detach().clone()
    u, _ = rbd_direction(torch.cat([a.grad, torch.zeros(20), c.grad]), partition("whole", (("w", 35),), 4))
    expected = torch.cat([a.detach() - u[:10], b.detach(), c.detach() - u[30:]])
    RBD([a, b, c], lr=1.0, dim=4).step()
    torch.testing.assert_close(flat([a, b, c]), expected, rtol=EPS, atol=EPS)
    assert torch.equal(b, before)


def test_no_gradients_at_all():
    p = parameter(normal(10))
    optimizer = RBD([p], lr=1.0, dim=3)
    optimizer.step()
    assert torch.equal(p, normal(10))
    assert optimizer.param_groups[0]["step"] == 1


def test_frozen_parameters_stay_out_of_the_basis():
    """The same steps as without them: D counts what is trained; layers keep their names."""
    model, twin = network(), network()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    optimizer = RBD(model.named_parameters(), lr=0.5, dim=10, partition="by_layer")
    assert [(k.start, k.stop) for k in optimizer.partition().compartments] == [(0, 8), (8, 35)]
    train(model, optimizer, 3)
    kept = [(name, p) for name, p in twin.named_parameters() if name != "0.weight"]
    train(twin, RBD(kept, lr=0.5, dim=10, partition="by_layer"), 3)
    assert torch.equal(flat(model.parameters()), flat(twin.parameters()))
    assert torch.equal(model[0].weight, frozen)


@pytest.mark.parametrize("left", [0.0, 1.0, math.nan])
def test_parameters_that_are_frozen_later_stay(left):
    """Whatever gradient is left in them, as after ``zero_grad(set_to_none=False)``: as without one."""
    model, twin = network(), network()
    optimizers = [RBD(m.named_parameters(), lr=0.5, dim=20) for m in (model, twin)]
    for m, optimizer in zip((model, twin), optimizers):
        train(m, optimizer, 1)
        m[0].requires_grad_(False)
        for p in m[0].parameters():
            p.grad = torch.full_like(p, left) if m is model else None
        m[2].zero_grad()
        loss(m).backward()
        optimizer.step()
    before = network()
    train(before, RBD(before.parameters(), lr=0.5, dim=20), 1)
    assert torch.equal(flat(model.parameters()), flat(twin.parameters()))
    assert torch.equal(flat(model[0].parameters()), flat(before[0].parameters()))
    with pytest.raises(ValueError, match="^capturable=True needs a gradient in every parameter, and none of them frozen$"):
        frozen = RBD([p := parameter(normal(10), normal(10))], lr=0.5, dim=5, capturable=True)
        p.requires_grad_(False)
        frozen.step()


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    model[1].weight = model[0].weight
    for parameters in (model.parameters(), model.named_parameters()):
        optimizer = RBD(parameters, lr=0.1, dim=5)
        assert optimizer.partition().size == 25
    before = model[0].weight.detach().clone()
    model(normal(3, 5)).square().sum().backward()
    u, _ = rbd_direction(model[0].weight.grad.reshape(-1), optimizer.partition())
    optimizer.step()
    assert torch.equal(model[1].weight, before.add(u.view(5, 5), alpha=-0.1))


@pytest.mark.parametrize("dtypes", [
    (torch.float64, torch.float64), (torch.float32, torch.float64), (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32), (torch.bfloat16, torch.float64),
], ids=str)  # fmt: skip
def test_dtypes(dtypes):
    """All gradients in float64 if any is, else in float32; so is η u, added in the wider dtype and rounded once."""
    params = [parameter(normal(10, seed=k, dtype=t), normal(10, seed=9 + k, dtype=t)) for k, t in enumerate(dtypes)]
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    u, _ = rbd_direction(torch.cat([p.grad.to(wide) for p in params]), partition("whole", (("w", 20),), 4))
    expected = [(p.detach().to(part.dtype).add_(part, alpha=-0.5).to(p.dtype) if p.dtype.itemsize == 2 else
                 p.detach().add(part.to(p.dtype), alpha=-0.5)) for p, part in zip(params, u.split(10))]  # fmt: skip
    RBD(params, lr=0.5, dim=4).step()
    assert all(torch.equal(p, e) and p.dtype == t for p, e, t in zip(params, expected, dtypes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(("size", "grad", "lr", "dim"), [(100, 6e4, 1e-6, 100), (1000, 1e-5, 1000.0, 500)])
def test_updates_of_16_bits_are_rounded_once(size, grad, lr, dim, capturable, dtype):
    """Φᵀ Φ g may lie beyond a range of 16 bits, or among its last digits, where η times it does not."""
    p = parameter(torch.zeros(size, dtype=dtype), grad * normal(size).sign().to(dtype))
    u, _ = rbd_direction(p.grad, partition("whole", (("w", size),), dim))
    RBD([p], lr=lr, dim=dim, capturable=capturable).step()
    assert p.isfinite().all()
    eps, most = torch.finfo(dtype).eps, lr * float(u.abs().max())
    torch.testing.assert_close(p.detach(), (-lr * u).to(dtype), rtol=eps, atol=1e-6 * most)  # of sums that cancel


@pytest.mark.parametrize("capturable", [False, True])
def test_any_strides(capturable):
    """Values are numbered in logical order: transposed, channels-last, sliced, 0-dim parameters move as plain ones."""
    values = [normal(4, 6).t(), normal(5, 3, 2, 2).to(memory_format=torch.channels_last), normal(10, 4)[:, ::2],
              normal(1)[0], normal(3, 2)]  # fmt: skip
    plain = [parameter(v.contiguous()) for v in values]
    before = flat(plain)
    strided = [nn.Parameter(v) for v in values]
    assert [p.is_contiguous() for p in strided] == [False, False, False, True, True]
    for p, q in zip(strided, plain):
        q.grad = normal(*q.shape, seed=q.numel())
        p.grad = q.grad.to(memory_format=torch.channels_last) if p.dim() == 4 else q.grad.clone()
    for params in (strided, plain):
        optimizer = RBD(params, lr=0.5, dim=4, capturable=capturable)
        optimizer.step()
        optimizer.step()
    assert torch.equal(flat(strided), flat(plain))
    assert (flat(plain) != before).all()


# as torch optimizers are used


def test_parameter_groups():
    """Each with its own options; compartments are numbered on, so that no two groups share a basis."""
    sizes = (30, 20, 50)
    params = [parameter(normal(n, seed=n), normal(n, seed=n + 1)) for n in sizes]
    groups = [{"params": [params[0]], "lr": 0.5, "partition": "even:3"}, {"params": params[1], "dim": 2, "seed": 9},
              {"params": [params[2]], "distribution": "uniform", "redraw": 0}]  # fmt: skip
    optimizer = RBD(groups, lr=0.1, dim=6)
    assert [[k.number for k in optimizer.partition(i).compartments] for i in range(3)] == [[0, 1, 2], [3], [4]]
    assert [optimizer.partition(i).dim for i in range(3)] == [6, 2, 6]
    options = [(0.5, "rademacher", 0, False), (0.1, "rademacher", 9, False), (0.1, "uniform", 0, True)]
    expected = [p.detach().clone() for p in params]
    for step in range(3):
        for i, (lr, distribution, seed, fixed) in enumerate(options):
            u, _ = rbd_direction(params[i].grad, optimizer.partition(i), distribution, seed, 0, 0 if fixed else step)
            expected[i].add_(u, alpha=-lr)
        optimizer.step()
    assert all(torch.equal(p, e) for p, e in zip(params, expected))


def test_a_group_may_get_other_parameters_of_the_same_shapes():
    """Their gradients are read, not those of the parameters before."""
    model, other, twin = network(), network(), network()
    optimizer = RBD(model.parameters(), lr=0.5, dim=10)
    train(model, optimizer, 1)
    optimizer.param_groups[0]["params"] = list(other.parameters())
    train(other, optimizer, 2, 1)
    anew = RBD(twin.parameters(), lr=0.5, dim=10)
    anew.param_groups[0]["step"] = 1
    train(twin, anew, 2, 1)
    assert torch.equal(flat(other.parameters()), flat(twin.parameters()))


def test_a_first_step_in_inference_mode():
    """The vectors that it keeps may be written by later steps."""
    models = [network(), network()]
    for model, first in zip(models, (torch.inference_mode, torch.no_grad)):
        optimizer = RBD(model.parameters(), lr=0.5, dim=10)
        loss(model).backward()
        with first():
            optimizer.step()
        train(model, optimizer, 2, 1)
    assert torch.equal(*(flat(model.parameters()) for model in models))


@pytest.mark.parametrize("integer", [np.int64, np.uint32, np.uint64, torch.tensor])
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_integers_of_other_libraries(name, integer):
    """The same steps, and a state_dict that torch.load takes with weights_only."""
    models = [network(), network()]
    for model, of in zip(models, (int, integer)):
        optimizer = RBD(model.parameters(), lr=0.5, dim=of(10), distribution=name, seed=of(3), redraw=of(2))
        train(model, optimizer, 3)
        torch.save(optimizer.state_dict(), saved := io.BytesIO())
        saved.seek(0)
        assert torch.load(saved, weights_only=True) == optimizer.state_dict()
    assert torch.equal(*(flat(model.parameters()) for model in models))


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64])
def test_numbers_and_names_of_numpy_stay_out_of_the_state(number):
    """torch.load with weights_only refuses them; so of groups that are added, and of a state that was saved with them."""
    options = {"lr": number(2), "dim": 5, "distribution": np.str_("uniform")}
    made = [RBD(network().parameters(), **options, partition=np.str_("even:2")), FPD(network().parameters(), **options),
            NES(network().parameters(), **options, sigma=number(1)), RBD(network().parameters(), 0.5, 5)]  # fmt: skip
    made[0].add_param_group({"params": [parameter(normal(30), normal(30))], "lr": number(3)})
    state = made[3].state_dict()
    state["param_groups"][0]["lr"] = number(4)
    made[3].load_state_dict(state)
    assert [o.param_groups[-1]["lr"] for o in made] == [3, 2, 2, 4]
    for optimizer in made:
        torch.save(optimizer.state_dict(), saved := io.BytesIO())
        saved.seek(0)
        assert torch.load(saved, weights_only=True) == optimizer.state_dict()


def test_add_param_group():
    """A group that joins later counts its own steps from 0; a bad one leaves no trace."""
    a, b = parameter(normal(30), normal(30, seed=1)), parameter(normal(20), normal(20, seed=2))
    optimizer = RBD([a], lr=1.0, dim=3)
    optimizer.step()
    bad = {"dim": 21, "lr": -1, "distribution": "gauss", "partition": "by_layer", "seed": -1, "redraw": -1}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"^{name}: got|need names"):
            optimizer.add_param_group({"params": [b], name: value})
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [b], "dim": 2})
    before = b.detach().clone()
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [2, 1]
    u, _ = rbd_direction(b.grad, partition("whole", (("w", 20),), 2).renumber(1))
    assert torch.equal(b, before - u)


METHODS = {
    "rbd": lambda model, seed: RBD(model.named_parameters(), 0.5, 20, "by_layer", "uniform", seed, redraw=2),
    "fpd": lambda model, seed: FPD(model.parameters(), 0.5, 20, "even:3", "countsketch", seed),
    "nes": lambda model, seed: NES(model.parameters(), 0.1, 10, seed=seed),
}


@pytest.mark.parametrize("method", METHODS)
def test_resume_is_exact(method):
    """Through torch.save and a weights_only load, into an optimizer that was made with another seed."""
    model = network()
    optimizer = METHODS[method](model, 5)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    assert file.tell() < 10_000  # bytes; the basis alone would be more
    train(model, optimizer, 4, first=3)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["optimizer"]["state"] == {}
    assert saved["optimizer"]["param_groups"][0]["step"] == 3
    other = network()
    other.load_state_dict(saved["model"])
    resumed = METHODS[method](other, 6)
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, 4, first=3)
    assert torch.equal(flat(other.parameters()), flat(model.parameters()))
    assert resumed.state_dict() == optimizer.state_dict()


# states, as torch's distributed checkpoints take and give them

SAVED = METHODS | {"capturable": lambda model, seed: RBD(model.named_parameters(), 0.5, 20, seed=seed, capturable=True)}


def saved_on_the_way(method: str, steps: int, options: StateDictOptions) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Trained, with a state taken by torch's API before every step, and after zero_grad."""
    model = network()
    optimizer = SAVED[method](model, 5)
    for step in range(steps):
        optimizer.zero_grad()
        before = copy.deepcopy(optimizer.state_dict())
        get_optimizer_state_dict(model, optimizer, options=options)
        assert optimizer.state_dict() == before
        assert all(p.grad is None for p in model.parameters())
        train(model, optimizer, 1, first=step)
    return model, optimizer


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flat_keys", [False, True])
@pytest.mark.parametrize("method", SAVED)
def test_torchs_checkpoint_api_leaves_training_alone(method, flat_keys, tmp_path):
    """Saving on the way changes no bit; a file goes on to the same end, in an optimizer made with another seed."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat_keys)
    model, optimizer = saved_on_the_way(method, 3, options)
    twin = network()
    train(twin, SAVED[method](twin, 5), 3)
    assert torch.equal(flat(model.parameters()), flat(twin.parameters()))
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=tmp_path)
    other = network()
    other.load_state_dict(model.state_dict())
    resumed = SAVED[method](other, 6)
    state = {"optimizer": get_optimizer_state_dict(other, resumed, options=options)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, resumed, state["optimizer"], options=options)
    assert resumed.param_groups[0]["step"] == 3 and resumed.param_groups[0]["seed"] == 5
    train(model, optimizer, 3, first=3)
    train(other, resumed, 3, first=3)
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_of_rbd_0_1(tmp_path):
    """It has the same keys, so torch finds all of them; and the sum of the sizes where they are now."""
    model, other = network(), network()
    optimizer, resumed = SAVED["rbd"](model, 5), SAVED["rbd"](other, 6)
    train(model, optimizer, 3)
    other.load_state_dict(model.state_dict())
    old = get_optimizer_state_dict(model, optimizer)
    old["param_groups"][0]["size"] = 83
    dcp.save({"optimizer": old}, checkpoint_id=tmp_path)
    dcp.load(state := {"optimizer": get_optimizer_state_dict(other, resumed)}, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, resumed, state["optimizer"])
    for each in (model, optimizer), (other, resumed):
        train(*each, 2, first=3)
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


RATES = {"float": lambda lr: lr, "tensor": torch.tensor, "vector": lambda lr: torch.tensor([lr])}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_at_the_rate_0_changes_nothing(capturable, rate):
    """Whatever the gradient: so that a library may initialise an optimizer by such a step."""
    model, twin, of = network(), network(), RATES[rate]
    optimizer = RBD(model.parameters(), of(0.5), 20, capturable=capturable)
    before = flat(model.parameters()).clone()
    for lr in (0.0, 0.5):
        optimizer.param_groups[0]["lr"] = of(lr)
        train(model, optimizer, 1)
        assert int(optimizer.param_groups[0]["step"]) == (lr > 0)
        assert torch.equal(flat(model.parameters()), before) == (lr == 0)
    train(twin, RBD(twin.parameters(), of(0.5), 20, capturable=capturable), 1)
    assert torch.equal(flat(model.parameters()), flat(twin.parameters()))


@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_counts_for_all_groups_if_one_of_them_moves(capturable):
    groups = [{"params": [parameter(normal(10), normal(10))], "lr": lr} for lr in (0.0, torch.tensor(0.0), 0.5)]
    optimizer = RBD(groups, 1.0, 3, capturable=capturable)
    for group, lr, steps in ((2, torch.tensor(0.0), 0), (1, torch.tensor(0.5), 1), (1, 0.5, 2), (1, 0.0, 2)):
        optimizer.param_groups[group]["lr"] = lr
        optimizer.step()
        assert [int(g["step"]) for g in optimizer.param_groups] == [steps] * 3


def test_nes_at_the_rate_0():
    p = parameter(normal(30))
    optimizer = NES([p], lr=0.0, dim=12)
    assert optimizer.step(None) is None
    optimizer.step(lambda: bowl(p))
    assert torch.equal(p, normal(30)) and optimizer.param_groups[0]["step"] == 0


def named(**sizes: int) -> list[tuple[str, nn.Parameter]]:
    return [(name.replace("_", "."), parameter(normal(n), normal(n, seed=n))) for name, n in sizes.items()]


def by_layer(**sizes: int) -> RBD:
    return RBD(named(**sizes), 0.5, 20, "by_layer")


def test_a_state_of_other_parameters_is_refused():
    """Though there are as many of them, with as many values in all: name by name, and size by size."""
    state = by_layer(a_w=30, a_b=3, c_w=50).state_dict()
    optimizer = by_layer(c_w=50, a_w=30, a_b=3)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="^state_dict: parameter 0 of a group is a.w with 30 values, here c.w with 50;"):
        optimizer.load_state_dict(state)
    assert optimizer.state_dict() == before
    with pytest.raises(ValueError, match="parameter 0 of a group is a.w with 30 values, here b.w with 30"):
        by_layer(b_w=30, a_b=3, c_w=50).load_state_dict(state)
    unnamed = [RBD([parameter(normal(n)) for n in sizes], 0.5, 20) for sizes in ((30, 3, 50), (50, 30, 3))]
    with pytest.raises(ValueError, match="parameter 0 of a group is None with 30 values, here None with 50"):
        unnamed[1].load_state_dict(unnamed[0].state_dict())


def test_names_of_wrappers_are_no_other_names():
    """DDP, torch.compile, FSDP and activation checkpoints put words in front of names, or between them."""
    plain = by_layer(a_w=30, a_b=3, c_w=50)
    words = ("module.{}", "_orig_mod.{}", "_fsdp_wrapped_module.{}", "module._orig_mod._checkpoint_wrapped_module.{}")
    for form in words:
        wrapped = RBD([(form.format(name), p) for name, p in named(a_w=30, a_b=3, c_w=50)], 0.5, 20, "by_layer")
        plain.load_state_dict(wrapped.state_dict())
        wrapped.load_state_dict(plain.state_dict())
        assert wrapped.partition() == plain.partition()
    inside = [RBD(named(**{f"{word}_w": 30}), 0.5, 20) for word in ("a_module", "a")]  # a layer's own name
    with pytest.raises(ValueError, match=r"is a.module.w with 30 values, here a.w"):
        inside[1].load_state_dict(inside[0].state_dict())


def test_states_without_names_or_sizes():
    """Those of parameters without names fit any names; those of rbd 0.1 have the sum of the sizes only."""
    with_names, without = by_layer(a_w=30, a_b=3), RBD([parameter(normal(30)), parameter(normal(3))], 0.5, 20)
    for optimizer, other in ((with_names, without), (without, with_names)):
        state = other.state_dict()
        state["param_groups"][0] |= {"size": 33, "step": 7, "partition": "whole"}
        optimizer.load_state_dict(copy.deepcopy(state))
        assert optimizer.param_groups[0]["step"] == 7 and optimizer.state_dict()["param_groups"][0]["size"] == [30, 3]
        state["param_groups"][0]["size"] = 34
        with pytest.raises(ValueError, match="^state_dict has 34 parameters in a group, this optimizer 33$"):
            optimizer.load_state_dict(state)


def test_a_hook_may_adapt_a_state_before_it_is_looked_at():
    """Names, an option that it lacks, another version of the stream."""
    optimizer = by_layer(a_w=30, a_b=3)
    state = by_layer(old_w=30, old_b=3).state_dict()
    state["param_groups"][0] |= {"step": 4, "stream_version": 0}
    del state["param_groups"][0]["redraw"]

    def adapt(optimizer: RBD, state: dict) -> dict:
        (group,) = state["param_groups"]
        return state | {"param_groups": [group | {"param_names": ["a.w", "a.b"], "stream_version": 1, "redraw": 2}]}

    hook = optimizer.register_load_state_dict_pre_hook(adapt)
    optimizer.load_state_dict(state)
    assert (optimizer.param_groups[0]["step"], optimizer.param_groups[0]["redraw"]) == (4, 2)
    hook.remove()
    with pytest.raises(ValueError, match="stream_version 0"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("method", METHODS)
def test_copies_go_on_alike(method, copied):
    model = network()
    optimizer = METHODS[method](model, 5)
    train(model, optimizer, 2)
    other, twin = copied((model, optimizer))
    assert type(twin) is type(optimizer)
    train(model, optimizer, 2, first=2)
    assert not torch.equal(flat(other.parameters()), flat(model.parameters()))
    train(other, twin, 2, first=2)
    assert torch.equal(flat(other.parameters()), flat(model.parameters()))


@pytest.mark.parametrize("version", [0, 2**31, None])
def test_state_of_another_stream_is_refused(version):
    p = parameter(normal(10))
    optimizer = RBD([p], lr=1.0, dim=3)
    state = optimizer.state_dict()
    state["param_groups"][0]["stream_version"] = version
    with pytest.raises(ValueError, match=rf"^state_dict: got stream_version {version}, allowed 1"):
        optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"^state_dict: got stream_version None"):
        optimizer.load_state_dict(torch.optim.SGD([p], lr=1.0).state_dict())


def test_state_that_does_not_fit_is_refused():
    """Another size, another optimizer, another basis for FPD, or values that a group cannot have; nothing changes."""
    ten, fifty = [parameter(normal(10))], [parameter(normal(50))]
    for optimizer, other, message in (
        (RBD(ten, 1.0, dim=3), RBD(fifty, 1.0, dim=40), "^state_dict has 50 parameters in a group, this optimizer 10$"),
        (RBD(ten, 1.0, dim=3), NES(ten, 1.0, dim=4), "^state_dict has a group without partition, redraw"),
        (NES(ten, 1.0, dim=3), RBD(ten, 1.0, dim=4), "^state_dict has a group without sigma"),
        (FPD(ten, 1.0, dim=3), RBD(ten, 1.0, dim=4), "^redraw: got 1, allowed 0"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(other.state_dict())
        assert optimizer.param_groups[0]["dim"] == 3
    state = RBD(ten, 1.0, dim=3).state_dict()
    for name, bad in (("seed", -5), ("dim", 11), ("lr", -1.0)):
        damaged = {"state": {}, "param_groups": [state["param_groups"][0] | {name: bad}]}
        with pytest.raises(ValueError, match=rf"^{name}: got {bad}"):
            RBD(ten, 1.0, dim=3).load_state_dict(damaged)


@pytest.mark.parametrize("given", [torch.nn.Sequential(torch.nn.Linear(2, 2)), [1, 2]])
def test_params_that_are_no_tensors_are_named(given):
    with pytest.raises(TypeError, match=r"^params must be tensors, as of model.parameters\(\), but one is a (Linear|int)$"):
        RBD(given, lr=1.0, dim=1)


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
def test_learning_rate_schedule(lr):
    """StepLR halves η at every step: with a constant gradient and basis the updates are 1, 1/2, 1/4 of the first."""
    p = parameter(torch.zeros(20), normal(20))
    optimizer = FPD([p], lr=lr, dim=4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    u, _ = rbd_direction(p.grad, optimizer.partition())
    expected = torch.zeros(20)
    for step in range(4):
        optimizer.step()
        scheduler.step()
        expected.add_(u, alpha=-0.5 * 0.5**step)
        assert torch.equal(p, expected)


@pytest.mark.parametrize("lr", [0.37, torch.tensor(0.37)], ids=["float", "tensor"])
def test_a_schedule_may_end_below_0_by_a_rounding_error(lr):
    """As torch's own optimizers allow; what no rounding explains is refused."""
    p = parameter(torch.zeros(20), normal(20))
    optimizer = RBD([p], lr=lr, dim=4)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.3, end_factor=0.0, total_iters=3)
    rates = []
    for _ in range(5):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    assert -1e-7 < min(rates) < 0
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = -0.37 * 1e-5
    with pytest.raises(ValueError, match="^lr: got -3.7"):
        optimizer.step()


def test_one_cycle_schedule_leaves_the_step_count_alone():
    """A scheduler may write lr into the groups, and nothing else."""
    p = parameter(torch.zeros(20), normal(20))
    optimizer = RBD([p], lr=1.0, dim=4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["step"] == 3
    assert 0 < optimizer.param_groups[0]["lr"] < 1


def test_closure():
    """It is called once, with gradients on, and its loss is returned; the update is the same as without it."""
    model, twin, calls = network(), network(), []
    optimizer = RBD(model.parameters(), lr=0.5, dim=20)

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    expected = loss(model).detach()
    with torch.no_grad():
        returned = optimizer.step(closure)
    assert torch.equal(returned.detach(), expected)
    assert calls == [True]
    train(twin, RBD(twin.parameters(), lr=0.5, dim=20), 1)
    assert torch.equal(flat(model.parameters()), flat(twin.parameters()))
    assert optimizer.step() is None


def test_zero_grad():
    model = network()
    optimizer = RBD(model.parameters(), lr=0.5, dim=20)
    loss(model).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    loss(model).backward()
    optimizer.zero_grad(set_to_none=False)
    before = flat(model.parameters())
    optimizer.step()
    assert torch.equal(flat(model.parameters()), before)


def test_gradient_clipping():
    """clip_grad_norm_ before a step scales the update: Φᵀ Φ is linear (3 eps for as many roundings)."""
    model, twin = network(), network()
    for m in (model, twin):
        loss(m).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert norm > 1e-3
    start = flat(model.parameters()).double()
    u, _ = rbd_direction(gradients(twin).double(), partition("whole", layout(twin), 20))
    RBD(model.parameters(), lr=0.5, dim=20).step()
    moved = flat(model.parameters()).double() - start
    torch.testing.assert_close(moved, -0.5 * 1e-3 / float(norm) * u, rtol=1e-4, atol=float(start.abs().max()) * EPS)


def test_gradients_are_not_changed():
    model = network()
    loss(model).backward()
    before = gradients(model).clone()
    RBD(model.parameters(), lr=0.5, dim=20).step()
    assert torch.equal(gradients(model), before)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


GRADIENTS = {  # each changes what a backward pass has left
    "as they are": lambda params: None,
    "transposed": lambda params: [setattr(p, "grad", p.grad.t().contiguous().t()) for p in params if p.dim() == 2],
    "one missing": lambda params: setattr(params[1], "grad", None),
    "negated views": lambda params: setattr(params[0], "grad", torch._neg_view(params[0].grad)),
}


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float64,), (torch.bfloat16,), (torch.float32, torch.float64)])
@pytest.mark.parametrize("change", GRADIENTS.values(), ids=list(GRADIENTS))
def test_gradients_are_read_in_place(change, dtypes, monkeypatch):
    """To the bit the step that copies them first, also after a setting of the group has changed."""
    moved = []
    for prepare in (kernels.prepare, lambda *_: None):
        monkeypatch.setattr(kernels, "prepare", prepare)
        params = [nn.Parameter(normal(*s, seed=9, dtype=t)) for s, t in zip([(30, 20), (70,), (9, 7)], 3 * dtypes)]
        optimizer = RBD(params, lr=0.1, dim=40, distribution="countsketch", partition="even:2", redraw=2)
        for step in range(6):
            for i, p in enumerate(params):
                p.grad = normal(*p.shape, seed=10 * step + i, dtype=p.dtype)
            change(params)
            optimizer.param_groups[0] |= {2: {"seed": 5}, 3: {"dim": 100}, 4: {"partition": "whole"},
                                          5: {"distribution": "rademacher"}}.get(step, {})  # fmt: skip
            optimizer.step()
            moved.append([p.detach().clone() for p in params])
    for one, other in zip(moved[:6], moved[6:]):
        assert all(torch.equal(p, q) for p, q in zip(one, other))
    assert not torch.equal(moved[4][0], moved[5][0])


def test_a_gradient_of_another_shape_is_refused_as_torch_refuses_it():
    """As it is left where a parameter's values are exchanged between backward pass and step."""
    for name in ("rademacher", "countsketch"):
        p = nn.Parameter(torch.zeros(3, 100))
        p.grad, optimizer = normal(3, 100, seed=1), RBD([p], lr=0.1, dim=20, distribution=name)
        p.data = torch.zeros(100, 3)
        with pytest.raises(RuntimeError, match="must match the size"):
            optimizer.step()


# what is refused


@pytest.mark.parametrize("form", ["whole", "by_layer"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_gradients_that_are_not_finite(name, bad, form):
    """The parameter is named; no parameter of any group moves, no step is counted; the next good gradient works."""
    model, extra = network(), parameter(normal(10), normal(10))
    groups = [{"params": [("extra", extra)], "dim": 2}, {"params": list(model.named_parameters())}]
    optimizer = RBD(groups, lr=0.5, dim=20, partition=form, distribution=name)
    loss(model).backward()
    model[2].bias.grad[1] = bad
    before = flat([extra, *model.parameters()])
    with pytest.raises(FloatingPointError, match=r"^gradient: got NaN or infinity in 2\.bias, allowed finite values$"):
        optimizer.step()
    assert torch.equal(flat([extra, *model.parameters()]), before)
    assert [group["step"] for group in optimizer.param_groups] == [0, 0]
    model[2].bias.grad[1] = 0
    optimizer.step()
    assert flat(model.parameters()).isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("seed", range(4))  # signs of the one entry that meets it
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_gradients_that_are_not_finite_in_one_direction(name, bad, seed):
    """With d = 1 the only coordinate is infinite, of either sign, rather than NaN."""
    p = parameter(normal(10), normal(10))
    p.grad[3] = bad
    with pytest.raises(FloatingPointError, match="^gradient: got NaN or infinity in parameter 0"):
        RBD([p], lr=0.5, dim=1, distribution=name, seed=seed).step()
    assert torch.equal(p, normal(10))


@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_unnamed_parameters_are_counted(name):
    params = [parameter(normal(5), normal(5)), parameter(normal(5), torch.full((5,), math.nan))]
    with pytest.raises(FloatingPointError, match="NaN or infinity in parameter 1, allowed"):
        RBD(params, lr=0.5, dim=2, distribution=name).step()


def test_gradients_whose_projections_overflow():
    p = parameter(normal(1000), torch.full((1000,), 3e38))
    with pytest.raises(FloatingPointError, match="finite values whose projections overflow"):
        RBD([p], lr=0.5, dim=20).step()
    assert torch.equal(p, normal(1000))


@pytest.mark.parametrize("seed", range(3))
def test_finite_coordinates_whose_sum_overflows(seed):
    """With d = D the step is SGD's."""
    big = torch.full((1000,), 1e37)
    params = [parameter(torch.zeros(1000), big) for _ in range(2)]
    RBD([{"params": [p]} for p in params], lr=0.5, dim=1000, distribution="countsketch", seed=seed).step()
    assert all(torch.equal(p, -0.5 * big) for p in params)


def test_finite_coordinates_whose_update_overflows():
    p = parameter(torch.zeros(2), torch.full((2,), 3e38))
    optimizer = RBD([p], lr=0.5, dim=2)
    with pytest.raises(FloatingPointError, match="finite values whose projections overflow"):
        optimizer._check_finite([(torch.tensor([math.inf, 0.0]), [torch.full((2,), 3e38)])])


def test_unnamed_parameters_of_several_groups_are_counted_by_group():
    params = [parameter(normal(5), normal(5)), parameter(normal(5), torch.full((5,), math.nan))]
    with pytest.raises(FloatingPointError, match="NaN or infinity in parameter 0 of group 1, allowed"):
        RBD([{"params": [p]} for p in params], lr=0.5, dim=2).step()


@pytest.mark.parametrize("make", [RBD, FPD])
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_steps_of_fake_parameters(name, make):
    """As estimators of memory do them: shapes without values."""
    with FakeTensorMode():
        model = torch.nn.Linear(10, 10)
        optimizer = make(model.parameters(), lr=0.1, dim=5, distribution=name)
        for _ in range(2):
            model(torch.randn(2, 10)).sum().backward()
            optimizer.step()
        assert isinstance(model.weight, FakeTensor) and optimizer.param_groups[0]["step"] == 2


@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_sparse_gradients(name):
    embedding = nn.Embedding(10, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match="^sparse gradients are not supported$"):
        RBD(embedding.parameters(), lr=0.5, dim=2, distribution=name).step()


BAD = [
    ({"lr": -0.1}, ValueError, r"lr: got -0.1, allowed 0 <= lr < infinity"),
    ({"lr": math.nan}, ValueError, "lr: got nan"),
    ({"lr": math.inf}, ValueError, "lr: got inf"),
    ({"lr": "0.1"}, ValueError, "lr: got '0.1'"),
    ({"lr": None}, ValueError, "lr: got None"),
    ({"lr": True}, ValueError, "lr: got True, allowed 0 <= lr < infinity, a number or a tensor of one"),
    ({"lr": torch.tensor([1.0, 2.0])}, ValueError, r"lr: got tensor\(\[1., 2.\]\), allowed 0 <= lr < infinity, a number or"),
    ({"dim": 0}, ValueError, r"dim: got 0, allowed 1 ... 83"),
    ({"dim": 84}, ValueError, r"dim: got 84, allowed 1 ... 83"),
    ({"dim": -3}, ValueError, r"dim: got -3, allowed"),
    ({"dim": 2.5}, TypeError, r"dim: got 2.5, allowed"),
    ({"dim": 2.0}, TypeError, r"dim: got 2.0, allowed"),
    ({"dim": True}, TypeError, r"dim: got True, allowed"),
    ({"dim": "20"}, TypeError, r"dim: got '20', allowed"),
    ({"distribution": "gauss"}, ValueError, "distribution: got 'gauss', allowed 'normal', 'uniform', 'rademacher'"),
    ({"dim": -1}, ValueError, "dim: got -1, allowed 1 ... 83"),
    ({"seed": -1}, ValueError, "seed: got -1, allowed 0 ... 4294967295"),
    ({"seed": 2**32}, ValueError, "seed: got 4294967296, allowed 0 ... 4294967295"),
    ({"seed": 1.5}, TypeError, "seed: got 1.5, allowed an integer"),
]  # fmt: skip
BAD_RBD = [
    ({"dim": None}, (TypeError, ValueError), "dim: got None, allowed"),
    ({"redraw": -1}, ValueError, "redraw: got -1, allowed 0 ... 4294967295"),
    ({"redraw": 0.5}, TypeError, "redraw: got 0.5, allowed an integer"),
    ({"partition": "layers"}, ValueError, "partition: got 'layers', allowed whole, by_layer"),
    ({"partition": "even:84"}, ValueError, r"partition: got even:84, allowed even:1 ... even:83"),
    ({"partition": "by_tensor", "dim": 3}, ValueError, r"dim: got 3, allowed 4 ... 83"),
    ({"partition": "by_layer"}, ValueError, r"partition: by_layer and by_ratio need names"),
    ({"partition": "by_ratio:10"}, ValueError, r"partition: by_layer and by_ratio need names"),
    ({"partition": None}, ValueError, "partition: got None, allowed whole"),
    ({"partition": ["whole"]}, ValueError, r"partition: got \['whole'\], allowed whole"),
]
BAD_NES = [
    ({"sigma": 0}, ValueError, "sigma: got 0, allowed 0 < sigma < infinity"),
    ({"sigma": -0.1}, ValueError, "sigma: got -0.1"),
    ({"sigma": math.nan}, ValueError, "sigma: got nan"),
    ({"sigma": math.inf}, ValueError, "sigma: got inf"),
    ({"sigma": "0.1"}, ValueError, "sigma: got '0.1'"),
    ({"sigma": True}, ValueError, "sigma: got True"),
    ({"dim": None}, (TypeError, ValueError), "dim: got None, allowed"),
]


CASES = [(RBD, *case) for case in BAD + BAD_RBD] + [(NES, *case) for case in BAD + BAD_NES]


@pytest.mark.timeout(10)  # a dim of 2.5 must not be shared out for ever
@pytest.mark.parametrize(("optimizer_class", "arguments", "error", "message"), CASES,
                         ids=[f"{case[0].__name__}-{case[1]}" for case in CASES])  # fmt: skip
def test_bad_arguments(optimizer_class, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        optimizer_class(network().parameters(), **{"lr": 0.1, "dim": 20, **arguments})


@pytest.mark.parametrize("optimizer_class", [RBD, FPD, NES])
def test_bad_parameters(optimizer_class):
    model = network().requires_grad_(False)
    with pytest.raises(ValueError, match="^a parameter group needs at least one parameter that requires a gradient$"):
        optimizer_class(model.parameters(), lr=0.1, dim=20)
    with pytest.raises(ValueError, match="empty parameter list"):
        optimizer_class([], lr=0.1, dim=20)
    with pytest.raises(TypeError, match=r"^params: got a parameter of torch.complex64, allowed real floating-point"):
        optimizer_class([nn.Parameter(torch.zeros(30, dtype=torch.complex64))], lr=0.1, dim=20)


@pytest.mark.parametrize("optimizer_class", [RBD, FPD, NES])
def test_parameters_that_no_step_could_move(optimizer_class):
    """They are refused when the group is added, and it is not."""
    optimizer = optimizer_class([parameter(normal(30))], lr=0.1, dim=20)
    here, there = parameter(normal(30)), nn.Parameter(torch.zeros(30, device="meta"))
    eight = [nn.Parameter(torch.zeros(30).to(dtype)) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)]
    for params, error, message in (
        ([here, there], ValueError, "^params: got parameters on cpu, meta, allowed one device in a group$"),
        (eight[:1], TypeError, "^params: got a parameter of torch.float8_e4m3fn, allowed real floating-point dtypes of"),
        (eight[1:], TypeError, "^params: got a parameter of torch.float8_e5m2, allowed"),
        ([here, nn.Parameter(torch.eye(5).to_sparse())], TypeError, "^params: got a parameter of layout torch.sparse_coo, "),
        ([nn.Parameter(torch.eye(5).to_sparse_csr())], TypeError, "^params: got a parameter of layout torch.sparse_csr"),
        ([here, nn.Parameter(torch.zeros(5, 1).expand(5, 6))], ValueError, "^params: got an expanded parameter, whose"),
    ):
        with pytest.raises(error, match=message):
            optimizer_class(params, lr=0.1, dim=20)
        if optimizer_class is not NES:
            with pytest.raises(error, match=message):
                optimizer.add_param_group({"params": params})
            assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("optimizer_class", [RBD, FPD, NES])
def test_groups_that_are_none(optimizer_class):
    optimizer = optimizer_class([parameter(normal(30))], lr=0.1, dim=20)
    with pytest.raises(TypeError, match="^param_group must be a dict, got a list$"):
        optimizer.add_param_group([parameter(normal(30))])
    with pytest.raises(ValueError, match='^a parameter group needs its parameters, under the key "params"$'):
        optimizer.add_param_group({"lr": 0.1})
    with pytest.raises(ValueError, match='^a parameter group needs its parameters, under the key "params"$'):
        optimizer_class([{"lr": 0.1}], lr=0.1, dim=20)


@pytest.mark.parametrize("bad", [-1, 1.5, torch.tensor(-1), None, "1", math.inf, math.nan, torch.tensor(math.nan),
                                 torch.ones(2)], ids=str)  # fmt: skip
def test_step_numbers_that_are_none(bad):
    """In a saved state, and in a group that is given."""
    optimizer = RBD([parameter(normal(30))], 1.0, dim=3)
    damaged = {"state": {}, "param_groups": [optimizer.state_dict()["param_groups"][0] | {"step": bad}]}
    with pytest.raises(ValueError, match=r"^step: got .*, allowed 0, 1, 2, \.\.\.$"):
        optimizer.load_state_dict(damaged)
    with pytest.raises(ValueError, match="^step: got"):
        RBD([{"params": [parameter(normal(30))], "step": bad}], 1.0, dim=3)
    assert optimizer.param_groups[0]["step"] == 0


def test_a_kept_state_does_not_count_on():
    p = parameter(normal(30), normal(30))
    optimizer = RBD([p], torch.tensor(1.0), dim=3, capturable=True)
    state = optimizer.state_dict()
    optimizer.step()
    optimizer.param_groups[0]["lr"].mul_(0.5)
    assert (int(state["param_groups"][0]["step"]), float(state["param_groups"][0]["lr"])) == (0, 1.0)


@pytest.mark.parametrize("name", ["seed", "stream", "step"])
def test_direction_refuses_numbers_that_are_no_words(name):
    """Cut to 32 bits they would name the bases of others."""
    for bad in (2**32, -1):
        with pytest.raises(ValueError, match=rf"^{name}: got {bad}, allowed 0 \.\.\. 4294967295$"):
            rbd_direction(normal(5), partition("whole", (("w", 5),), 2), **{name: bad})


def test_parameters_without_an_order():
    """torch refuses a set in a group, because its order differs between runs; so must RBD, whose bases follow it."""
    params = {parameter(normal(10)), parameter(normal(10))}
    for given in ([{"params": params}], params, frozenset(params)):
        for optimizer_class in (RBD, FPD, NES):
            with pytest.raises(TypeError, match="^params must come in ordered collections, not in a set"):
                optimizer_class(given, lr=0.1, dim=5)


@pytest.mark.parametrize("optimizer_class", [RBD, FPD, NES])
def test_options_of_other_optimizers(optimizer_class):
    """They would be ignored: an error names those that are not switched off; labels and schedulers' notes are fine."""
    params = lambda: [parameter(normal(10))]  # noqa: E731
    with pytest.raises(ValueError, match="^parameter group: got weight_decay, momentum, allowed params, lr, dim, .*seed"):
        optimizer_class([{"params": params(), "weight_decay": 0.01, "momentum": 0.9}], lr=0.1, dim=5)
    for value in (torch.ones(3), torch.zeros(3), np.zeros(3), torch.tensor(0.1)):
        with pytest.raises(ValueError, match="^parameter group: got weights, allowed params, lr, dim, .*seed"):
            optimizer_class([{"params": params(), "weights": value}], lr=0.1, dim=5)
    for value in (None, False, 0, 0.0, torch.tensor(0.0)):
        optimizer_class([{"params": params(), "weight_decay": value}], lr=0.1, dim=5)
    optimizer = optimizer_class(torch.optim.SGD(params(), lr=0.2).param_groups, lr=0.1, dim=5)  # all of SGD's are off
    assert optimizer.param_groups[0]["lr"] == 0.2
    if optimizer_class is not NES:
        with pytest.raises(ValueError, match="got betas, eps, allowed"):
            optimizer.add_param_group({"params": params(), "betas": (0.9, 0.99), "eps": 1e-8})
        optimizer.add_param_group({"params": params(), "name": "head", "initial_lr": 0.1})
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=5, cycle_momentum=False)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer_class(optimizer.param_groups, lr=0.1, dim=5)


def test_parameters_that_are_unfrozen_later():
    """They are not in the basis: a warning says so, once, unless they have been added."""
    model = network()
    model[0].requires_grad_(False)
    optimizers = [RBD(model.named_parameters(), 0.5, 10), NES(model.parameters(), 0.5, 10)]
    twin, of_twin = copy.deepcopy((model, optimizers[0]))
    model[0].weight.requires_grad_(True)
    for optimizer, name in zip(optimizers, ("0.weight", r"one of shape \(8, 6\)")):
        message = (rf"not move 1 of the parameters given \({name}\): they did not require a gradient when it was made, but "
                   r"do now; to train them, call optimizer.add_param_group\(\{'params': \.\.\.\}\)$")  # fmt: skip
        with pytest.warns(UserWarning, match=message) as told:
            train(model, optimizer, 1)
        assert [warning.filename for warning in told] == [__file__]  # at the user's line, not in rbd or torch
    twin[0].weight.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"not move 1 of the parameters given \(0.weight\)"):
        train(twin, of_twin, 1)
    model[0].bias.requires_grad_(True)
    optimizers.append(RBD(model[2].parameters(), 0.5, 10))
    optimizers[0]._frozen = (("0.bias", model[0].bias), ("0.weight", model[0].weight))
    optimizers[0].add_param_group({"params": list(model[0].named_parameters()), "dim": 10})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for optimizer in optimizers:
            train(model, optimizer, 1)


@pytest.mark.parametrize("form", FORMS)
def test_parameters_without_values(form):
    """An empty parameter is allowed, as in torch's optimizers, and changes nothing."""
    named = [("a.w", parameter(normal(30), normal(30))), ("b.w", parameter(normal(0), normal(0))),
             ("c.w", parameter(normal(20), normal(20, seed=1)))]  # fmt: skip
    optimizer = RBD(named, lr=0.1, dim=20, partition=form)
    optimizer.step()
    assert not torch.equal(named[2][1], normal(20))
    assert named[1][1].shape == (0,)


@pytest.mark.parametrize("optimizer_class", [RBD, FPD, NES])
@pytest.mark.parametrize("distribution", ["rademacher", "countsketch"])
def test_settings_written_into_a_group_are_checked_by_the_next_step(optimizer_class, distribution):
    """Nothing is moved or counted; put right, it goes on."""
    p = parameter(normal(30), normal(30))
    optimizer = optimizer_class([p], lr=0.1, dim=5, distribution=distribution)
    (group,) = optimizer.param_groups
    step = partial(optimizer.step, lambda: 1.0)
    step()
    before = p.detach().clone()
    for name, value, message in (
        ("weight_decay", 0.1, "^parameter group: got weight_decay, allowed params, lr"),
        ("differentiable", True, "^parameter group: got differentiable, allowed params, lr"),
        ("seed", -1, "^seed: got -1, allowed 0 ... 4294967295$"),
        ("seed", 2**32 + 1, "^seed: got 4294967297, allowed"),
        ("dim", 31, "^dim: got 31, allowed 1 ... 30"),
        ("lr", math.nan, "^lr: got nan, allowed 0 <= lr < infinity"),
        ("lr", -1, "^lr: got -1, allowed"),
        ("lr", "fast", "^lr: got 'fast', allowed"),
        ("distribution", "gauss", "^distribution: got 'gauss'"),
        *[("sigma", 0.0, "^sigma: got 0.0, allowed 0 <"), ("redraw", 0, "^parameter group: got redraw")]
        * (optimizer_class is NES),
        *[("redraw", -1, "^redraw: got -1, allowed 0")] * (optimizer_class is not NES),
    ):
        kept = group.pop(name, None)
        with pytest.raises(ValueError, match=message):
            group[name] = value
            step()
        assert torch.equal(p, before) and group["step"] == 1
        del group[name]
        if kept is not None:
            group[name] = kept
    for wrong in (-3, 1.5, "2"):
        group["step"] = wrong
        with pytest.raises(ValueError, match="^step: got .*, allowed 0, 1, 2"):
            step()
    group |= {"step": 1, "weight_decay": 0.0, "lr": 1}  # an integer will do
    step()
    assert group["step"] == 2


@pytest.mark.parametrize(("optimizer_class", "option"), [(RBD, {"differentiable": True}), (NES, {"redraw": 0}),
                                                         (NES, {"partition": None})])  # fmt: skip
def test_options_that_would_be_ignored_or_obeyed_by_chance(optimizer_class, option):
    with pytest.raises(ValueError, match=f"^parameter group: got {next(iter(option))}, allowed params"):
        optimizer_class([{"params": [parameter(normal(30))], **option}], lr=0.1, dim=5)


# NES


@pytest.mark.parametrize("make", [RBD, FPD, NES])
def test_a_lazy_parameter_is_refused(make):
    with pytest.raises(ValueError, match="^params: got a parameter of a lazy module that has no shape yet: run the model"):
        make(torch.nn.LazyLinear(3).parameters(), lr=0.1, dim=3)


@pytest.mark.parametrize("partition", ["whole", "by_layer", "by_tensor", "even:1", "by_ratio:3"])
def test_a_group_without_values_is_refused(partition):
    with pytest.raises(ValueError, match="^params: got no values, allowed at least one in a parameter group$"):
        RBD([("a.w", parameter(torch.ones(0)))], lr=0.1, dim=None if ":3" in partition else 1, partition=partition)


def test_a_state_after_a_parameter_was_given_other_data_fits_the_new_one():
    p, q = parameter(torch.ones(10)), parameter(torch.ones(6))
    optimizer, other = RBD([p], lr=0.1, dim=3), RBD([q], lr=0.1, dim=3)
    p.data = torch.ones(6)
    for _ in range(2):
        p.grad = torch.arange(6.0)
        optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    p.grad, q.data, q.grad = torch.arange(6.0), p.data.clone(), torch.arange(6.0)
    optimizer.step(), other.step()
    assert torch.equal(p, q)
    with pytest.raises(ValueError, match="state_dict has 6 parameters in a group, this optimizer 10"):
        RBD([parameter(torch.ones(10))], lr=0.1, dim=3).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("hook", [lambda _, state: {"optimizer": state}, lambda _, state: None])
def test_a_hook_may_return_another_state(hook):
    optimizer = RBD([parameter(torch.ones(6))], lr=0.1, dim=3)
    plain = optimizer.state_dict()
    optimizer.register_state_dict_post_hook(hook)
    assert optimizer.state_dict() in (plain, {"optimizer": plain})


def test_centred_ranks_by_hand():
    ranks = lambda *losses: centred_ranks(torch.tensor(losses)).tolist()  # noqa: E731
    assert ranks(3.0, 1.0, 2.0) == [0.5, -0.5, 0.0]
    assert ranks(5.0, 7.0) == [-0.5, 0.5]
    assert ranks(1.0, 0.0, 4.0, 2.0, 3.0) == [-0.25, -0.5, 0.5, 0.0, 0.25]
    assert ranks(2.0, 1.0, 2.0) == [0.0, -0.5, 0.5]  # of equals the first comes first
    assert ranks(0.0, math.inf, -math.inf, 1.0, math.inf) == [-0.25, 0.25, -0.5, 0.0, 0.5]
    assert sum(ranks(*range(100))) == pytest.approx(0, abs=1e-5)


def bowl(p: Tensor) -> Tensor:
    """A quadratic whose axes differ."""
    return ((p - normal(len(p), seed=3)) ** 2 * torch.linspace(1, 2, len(p), dtype=p.dtype)).sum()


@pytest.mark.parametrize("name", NAMES)
def test_nes_is_its_formula(name):
    """θ - η / (σ d) Φᵀ c, c the centred ranks of the losses at θ + σ φ_i, by dense matrices.

    The losses differ by more than their rounding, so the ranks agree; u within 1e-5: its 12 terms and roundings.
    """
    p = parameter(normal(30))
    optimizer = NES([p], lr=0.1, dim=12, distribution=name, seed=4, sigma=0.05)
    for step in range(3):
        phi, start = Basis(12, 30, name, seed=4, step=step).dense(), p.detach().clone()
        losses = torch.stack([bowl(start + 0.05 * row) for row in phi])
        ordered = losses.sort().values.diff()
        assert ordered.min() > 10 * EPS * losses.max()
        returned = optimizer.step(lambda: bowl(p))
        expected = start - 0.1 / (0.05 * 12) * phi.T @ centred_ranks(losses)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)
        assert returned == pytest.approx(float(losses.mean()), rel=1e-5)


def test_nes_calls_the_closure_dim_times_without_gradients():
    p, calls = parameter(normal(30)), []

    def closure() -> Tensor:
        calls.append((torch.is_grad_enabled(), p.detach().clone()))
        return bowl(p)

    NES([p], lr=0.1, dim=12, sigma=0.01).step(closure)
    assert [enabled for enabled, _ in calls] == [False] * 12
    lengths = [float((q - normal(30)).norm()) for _, q in calls]
    assert all(0.3 * 0.01 < length < 2 * 0.01 for length in lengths)  # σ times about 1
    assert len({q.numpy().tobytes() for _, q in calls}) == 12


def test_nes_moves_a_parameter_by_a_hundredth_unless_told_otherwise():
    """So a perturbation is 0.01 √D long, D being that of all parameters. The state_dict has it, and old ones keep theirs."""
    p, q = parameter(normal(30)), parameter(normal(70))
    optimizer, moved = NES([p, q], lr=0.1, dim=12), []
    optimizer.step(lambda: moved.append((q - normal(70)).abs().max().item()) or bowl(p))
    assert optimizer.state_dict()["param_groups"][0]["sigma"] == pytest.approx(0.1)
    assert moved == pytest.approx([0.01] * 12, rel=1e-4)  # signs: every entry
    frozen = parameter(normal(5)).requires_grad_(False)
    assert NES([p, frozen], lr=0.1, dim=3).param_groups[0]["sigma"] == 0.01 * math.sqrt(30)
    optimizer.load_state_dict(NES([p, q], lr=0.1, dim=12, sigma=0.03).state_dict())
    assert optimizer.param_groups[0]["sigma"] == 0.03


def test_nes_takes_numbers_for_losses():
    p, q = parameter(normal(30)), parameter(normal(30))
    NES([p], lr=0.1, dim=12).step(lambda: bowl(p))
    NES([q], lr=0.1, dim=12).step(lambda: bowl(q).item())
    assert torch.equal(p, q)


@pytest.mark.parametrize("of", [lambda x: x.reshape(1), lambda x: x.reshape(1, 1), lambda x: x.numpy(), np.float32,
                                lambda x: x.double()])  # fmt: skip
def test_nes_takes_losses_of_any_shape_of_one_value(of):
    p, q = parameter(normal(30)), parameter(normal(30))
    returned = NES([p], lr=0.1, dim=12).step(lambda: bowl(p))
    assert torch.equal(NES([q], lr=0.1, dim=12).step(lambda: of(bowl(q).detach())), returned)
    assert torch.equal(p, q) and returned.shape == ()


@pytest.mark.parametrize("of", [lambda x: x, Fraction, Decimal, lambda x: round(x * 2**20) * 10**20])
def test_nes_takes_any_real_number(of):
    """Of any size: the last are integers beyond 64 bits. All in float64, as the losses are kept."""
    p, q = parameter(normal(30)), parameter(normal(30))
    NES([p], lr=0.1, dim=12).step(lambda: float(bowl(p)))
    NES([q], lr=0.1, dim=12).step(lambda: of(float(bowl(q))))
    assert torch.equal(p, q)


@pytest.mark.parametrize(("bad", "got"), [(None, "None"), ("1", "'1'"), ([1.0], r"\[1.0\]"), (1j, "1j"),
                                          (torch.zeros(3), r"torch.float32 of shape \(3,\)"), (torch.zeros(0), ".*"),
                                          (torch.tensor(1j), r"torch.complex64 of shape \(\)")])  # fmt: skip
def test_nes_refuses_a_loss_at_the_first_evaluation(bad, got):
    p, calls = parameter(normal(30)), []
    with pytest.raises(TypeError, match=f"^closure: got {got} for the loss, allowed a real number or a tensor of one$"):
        NES([p], lr=0.1, dim=12).step(lambda: calls.append(1) or bad)
    assert len(calls) == 1 and torch.equal(p, normal(30))


def test_losses_are_where_the_parameters_are():
    """A number has no device, and a model may return its loss on another one."""
    for value in (1.5, np.float32(1.5), torch.tensor([1.5])):
        assert _as_loss(value, torch.device("meta")).device.type == "meta"


@pytest.fixture
def set_default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """torch.set_default_dtype, undone after the test."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("capturable", [False, True])
def test_nes_is_the_same_whatever_the_default_dtype(capturable, set_default_dtype):
    ended = []
    for dtype in (torch.float32, torch.float64, torch.float16):
        set_default_dtype(dtype)
        p = parameter(normal(30))
        optimizer = NES([p], lr=0.1, dim=12, capturable=capturable)
        means = [optimizer.step(lambda: bowl(p).item()) for _ in range(2)]  # noqa: B023 (called at once)
        assert means[0].dtype == torch.float32
        ended.append((p.detach(), *means))
    assert all(torch.equal(x, y) for other in ended[1:] for x, y in zip(ended[0], other))


@pytest.mark.parametrize("capturable", [False, True])
def test_rbd_moves_the_casts_of_autocast_too(capturable):
    """So several steps may be in one block."""
    models = [network() for _ in range(2)]
    optimizers = [RBD(m.parameters(), lr=1.0, dim=20, capturable=capturable) for m in models]
    for blocks, model, optimizer in zip((1, 3), models, optimizers):
        for _ in range(blocks):
            with torch.autocast("cpu", torch.bfloat16):
                for _ in range(3 // blocks):
                    optimizer.step(lambda m=model: (m.zero_grad(), (value := loss(m)).backward(), value)[-1])
    assert torch.equal(*(flat(m.parameters()) for m in models))


@pytest.mark.parametrize("of", [lambda loss: loss, float], ids=["tensor", "number"])
@pytest.mark.parametrize("capturable", [False, True])
def test_nes_tells_losses_apart_that_are_equal_in_float32(of, capturable):
    """Which fall with the row here, so ranks by position would be the other way round."""
    p = parameter(normal(30, dtype=torch.float64))
    losses = 100 - 1e-9 * torch.arange(12, dtype=torch.float64)
    values = iter(losses)
    NES([p], lr=0.1, dim=12, sigma=0.05, capturable=capturable).step(lambda: of(next(values)))
    u = Basis(12, 30).dense().double().T @ centred_ranks(losses) / (0.05 * 12)
    torch.testing.assert_close(p.detach(), normal(30, dtype=torch.float64) - 0.1 * u, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("capturable", [False, True])
def test_nes_moves_the_casts_of_autocast_too(capturable):
    """Autocast keeps what it cast in its block: every evaluation, and a pass after the step, needs a cast of its own."""
    model, x, seen = network(), normal(4, 6), []
    optimizer = NES(model.parameters(), lr=10.0, dim=5, sigma=1.0, capturable=capturable)

    def closure() -> Tensor:
        seen.append(model(x).float().square().mean())
        return seen[-1]

    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        optimizer.begin()
        for _ in range(5):
            optimizer.evaluate(closure)
        assert len({*map(float, seen)}) == 5 and torch.equal(model(x), before)
        optimizer.finish()
        after = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), after) and not torch.equal(after, before)


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 4, (torch.float64,) * 4, (torch.float32, torch.float64) * 2], ids=str)
def test_nes_moves_parameters_as_one_by_one(dtypes):
    """All of them in one call, to the bit: strided ones, and sizes that leave a tail of a vector."""
    values = [normal(7, 13, dtype=dtypes[0]).t(), normal(33, seed=1, dtype=dtypes[1]), normal(1, dtype=dtypes[2])[0],
              normal(257, 3, dtype=dtypes[3])[:, ::2]]  # fmt: skip
    params, start = [nn.Parameter(v.clone()) for v in values], [v.clone() for v in values]
    u = normal(sum(v.numel() for v in values), seed=2, dtype=max(dtypes, key=lambda t: t.itemsize))
    for alpha in (0.01, -0.3):
        with torch.no_grad():
            torch._foreach_copy_(params, start)
            NES._move(params, u, alpha)
        for p, old, v in zip(params, start, u.split([v.numel() for v in values])):
            expected = torch.empty_like(p.detach()).copy_(old).add_(v.view(p.shape).to(p.dtype), alpha=alpha)
            assert torch.equal(p, expected)


def test_nes_can_leave_batch_statistics_alone():
    """As its docstring says: on copies of the buffers they stay; else they move in each of the d evaluations."""
    model, x = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), normal(16, 6)
    optimizer, before = NES(model.parameters(), lr=0.1, dim=5), copy.deepcopy(dict(model.named_buffers()))

    def closure() -> Tensor:
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        return torch.func.functional_call(model, buffers, (x,)).square().mean()

    weight = model[0].weight.detach().clone()
    optimizer.step(closure)
    assert not torch.equal(model[0].weight, weight)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    optimizer.step(lambda: model(x).square().mean())
    assert model[1].num_batches_tracked == 5
    assert "functional_call" in NES.__doc__ and "BatchNorm" in NES.__doc__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_nes_restores_the_parameters(dtype):
    """To the bit, when the closure raises in the middle, and before a NaN is reported; no step is counted."""
    params = [parameter(normal(4, 6, dtype=dtype).t()), parameter(normal(7, dtype=dtype))]
    optimizer, before, calls = NES(params, lr=0.1, dim=12), flat(params), []

    def stop() -> float:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(stop)
    assert torch.equal(flat(params), before)
    values = iter([math.nan, 1.0, math.nan] + [2.0] * 9)
    with pytest.raises(FloatingPointError, match="^closure: got NaN in 2 of 12 losses$"):
        optimizer.step(lambda: next(values))
    assert torch.equal(flat(params), before)
    assert optimizer.param_groups[0]["step"] == 0


def test_nes_may_meet_infinite_losses():
    """They rank last (or first); the update stays finite."""
    p = parameter(normal(30))
    values = iter([math.inf, 1.0, -math.inf] + [2.0] * 9)
    NES([p], lr=0.1, dim=12).step(lambda: next(values))
    assert p.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_nes_decreases_a_quadratic(name):
    """From 30 evaluations a step: the loss falls by more than nine tenths in 100 steps."""
    p = parameter(normal(30))
    optimizer = NES([p], lr=0.4, dim=30, distribution=name, sigma=0.1)
    before = bowl(p).item()
    for _ in range(100):
        optimizer.step(lambda: bowl(p))
    assert bowl(p).item() < before / 10


def test_a_state_may_be_loaded_twice():
    optimizer = RBD([parameter(normal(30))], lr=0.1, dim=12)
    state = optimizer.state_dict()
    for _ in range(2):
        optimizer.load_state_dict(state)


def test_nes_needs_a_closure():
    optimizer = NES([parameter(normal(30))], lr=0.1, dim=12)
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()
    with pytest.raises(TypeError, match="^NES.step needs a closure that returns the loss$"):
        optimizer.step(None)


def test_nes_has_one_group():
    groups = [{"params": [parameter(normal(30))]}, {"params": [parameter(normal(30))]}]
    with pytest.raises(ValueError, match="^NES supports one parameter group, got 2$"):
        NES(groups, lr=0.1, dim=12)
    optimizer = NES(groups[:1], lr=0.1, dim=12)
    with pytest.raises(ValueError, match="^NES supports one parameter group, got 2$"):
        optimizer.add_param_group(groups[1])
    assert len(optimizer.param_groups) == 1


# capturable: steps counted in device memory

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("redraw", [0, 1, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_capturable_is_the_same_update(name, form, redraw, device):
    """To rounding: -η multiplies the coordinates there, and the direction otherwise. 5 steps of 2 roundings each."""
    models = [network(torch.float64).to(device) for _ in range(2)]
    for model, capturable in zip(models, (False, True)):
        optimizer = RBD(model.named_parameters(), lr=0.3, dim=20, partition=form, distribution=name, redraw=redraw,
                        capturable=capturable)  # fmt: skip
        for step in range(5):
            optimizer.zero_grad()
            model(normal(16, 6, seed=step, dtype=torch.float64).to(device)).square().mean().backward()
            optimizer.step()
        assert int(optimizer.param_groups[0]["step"]) == 5
    plain, capturable = (flat(model.parameters()) for model in models)
    torch.testing.assert_close(plain, capturable, rtol=1e-13, atol=1e-13)


def test_capturable_state_goes_on_without_it_and_back():
    state, steps = None, 0
    model = network(torch.float64)
    for capturable in (True, False, True):
        optimizer = RBD(model.parameters(), lr=0.3, dim=20, capturable=capturable)
        if state:
            optimizer.load_state_dict(state)
        train(model, optimizer, 2, steps)
        state, steps = copy.deepcopy(optimizer.state_dict()), steps + 2
        assert isinstance(optimizer.param_groups[0]["step"], Tensor) == capturable
    other = network(torch.float64)
    train(other, RBD(other.parameters(), lr=0.3, dim=20), 6)
    torch.testing.assert_close(flat(model.parameters()), flat(other.parameters()), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("piece", ["evaluate", "finish"])
def test_pieces_of_a_step_before_it_begins(piece):
    optimizer = NES([nn.Parameter(torch.zeros(3))], lr=0.1, dim=2)
    with pytest.raises(RuntimeError, match="call begin first"):
        getattr(optimizer, piece)(*[lambda: 0.0] * (piece == "evaluate"))


def test_a_step_in_pieces_needs_each_row_once():
    """Fewer or more evaluations, and a second finish, raise and move nothing; then the step goes on."""
    p, q = parameter(normal(30)), parameter(normal(30))
    optimizer, closure = NES([p], lr=0.1, dim=5), lambda: bowl(p)
    optimizer.begin()
    optimizer.evaluate(closure)
    assert torch.equal(p, q)
    with pytest.raises(RuntimeError, match="^1 of 5 rows of this step have been evaluated: call evaluate for each$"):
        optimizer.finish()
    for _ in range(4):
        optimizer.evaluate(closure)
    with pytest.raises(RuntimeError, match="^all 5 rows of this step have been evaluated: call finish$"):
        optimizer.evaluate(closure)
    optimizer.finish()
    NES([q], lr=0.1, dim=5).step(lambda: bowl(q))
    assert torch.equal(p, q) and optimizer.param_groups[0]["step"] == 1
    for piece in (optimizer.finish, lambda: optimizer.evaluate(closure)):
        with pytest.raises(RuntimeError, match="call begin first"):
            piece()
    assert torch.equal(p, q) and optimizer.param_groups[0]["step"] == 1


@pytest.mark.parametrize("capturable", [False, True])
def test_an_evaluation_leaves_the_parameters_where_they_were(capturable):
    """Also one that raises; so a step may be begun again in the middle of another."""
    p = parameter(normal(30))
    optimizer = NES([p], lr=0.1, dim=5, capturable=capturable)
    optimizer.begin()
    optimizer.evaluate(lambda: bowl(p))
    with pytest.raises(ZeroDivisionError):
        optimizer.evaluate(lambda: 1 / 0)
    assert torch.equal(p, normal(30))
    optimizer.begin()
    values = iter([math.nan, 1.0, 2.0, 3.0, 4.0])
    for _ in range(5):
        optimizer.evaluate(lambda: next(values))
    if not capturable:
        with pytest.raises(FloatingPointError, match="^closure: got NaN in 1 of 5 losses$"):
            optimizer.finish()
        assert torch.equal(p, normal(30))


def test_nes_leaves_parameters_alone_that_are_frozen_later():
    params = [parameter(normal(20)), parameter(normal(10, seed=1))]
    optimizer, seen = NES(params, lr=0.1, dim=5), []
    params[0].requires_grad_(False)
    optimizer.step(lambda: seen.append(params[0].clone()) or bowl(params[1]))
    assert all(torch.equal(p, normal(20)) for p in (params[0], *seen)) and not torch.equal(params[1], normal(10, seed=1))
    params[1].requires_grad_(False)
    with pytest.raises(RuntimeError, match="^NES has nothing to move: every parameter was frozen after it was made$"):
        optimizer.step(lambda: bowl(params[1]))


@pytest.mark.parametrize("name", ["uniform", "countsketch"])
def test_capturable_nes_is_the_same_update(name):
    """As a step, and in pieces, whose evaluations find the number of their row in device memory."""
    start = normal(30)
    params = [parameter(start.clone()) for _ in range(3)]
    plain, whole, cut = (NES([p], lr=0.1, dim=12, distribution=name, seed=4, sigma=0.05, capturable=k > 0)
                         for k, p in enumerate(params))  # fmt: skip
    for step in range(3):
        means = [plain.step(lambda: bowl(params[0])), whole.step(lambda: bowl(params[1]))]
        cut.begin()
        row = cut._trial.row
        losses = [cut.evaluate(lambda: bowl(params[2])) for _ in range(12)]
        assert isinstance(row, Tensor) and row is cut._trial.row and int(row) == 12 and len({*map(float, losses)}) == 12
        means.append(cut.finish())
        assert all(torch.equal(p, params[0]) for p in params) and means[0] == means[1] == means[2]
        assert int(cut.param_groups[0]["step"]) == step + 1 and not torch.equal(params[0], start)
    with pytest.raises(RuntimeError, match="broken"):
        whole.step(lambda: (_ for _ in ()).throw(RuntimeError("broken")))
    assert torch.equal(params[1], params[0])


def test_capturable_takes_a_rate_in_device_memory():
    models = [network() for _ in range(2)]
    for model, lr in zip(models, (0.25, torch.tensor(0.25))):
        train(model, FPD(model.parameters(), lr=lr, dim=20, capturable=True), 3)
    assert torch.equal(*(flat(model.parameters()) for model in models))


def test_capturable_needs_all_gradients():
    optimizer = RBD([parameter(torch.ones(3), torch.ones(3)), parameter(torch.ones(2))], lr=1.0, dim=2, capturable=True)
    with pytest.raises(ValueError, match="^capturable=True needs a gradient in every parameter, and none of them frozen$"):
        optimizer.step()


@pytest.mark.parametrize(("grad", "error"), [(None, ValueError), (torch.ones(3).to_sparse(), TypeError)])
def test_capturable_moves_no_group_if_one_has_no_gradient_to_use(grad, error):
    params = [parameter(torch.ones(3), torch.ones(3)), parameter(torch.ones(3), grad)]
    optimizer = RBD([{"params": [p]} for p in params], lr=1.0, dim=2, capturable=True)
    with pytest.raises(error):
        optimizer.step()
    assert torch.equal(flat(params), torch.ones(6)) and int(optimizer.param_groups[0]["step"]) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_capturable_optimizers_have_counters_of_their_own(name, monkeypatch):
    """One each, from its first step on: with a set for every captured call, graphs would soon have to clear their own."""
    monkeypatch.setattr(kernels, "_OF_DEVICE", {"cpu": "gpu"} if INTERPRETED else kernels._OF_DEVICE)
    counters, seen = kernels.load("gpu")._Counters, []
    real = counters.of_call
    monkeypatch.setattr(counters, "of_call", lambda self, device: seen.append(real(self, device)) or seen[-1])
    optimizers, device = [], "cpu" if INTERPRETED else "cuda"
    for _ in range(2):
        p = nn.Parameter(normal(5000).to(device))
        p.grad = normal(5000).to(device)
        optimizers.append(RBD([p], lr=0.1, dim=3, distribution=name, capturable=True))
    for optimizer in (*optimizers, *optimizers):
        optimizer.step()
    first, second, third, fourth = (x.data_ptr() for x in seen)
    assert (first, second) == (third, fourth) and first != second and len(seen[0]) > 0


@on_a_gpu
@pytest.mark.parametrize("name", NAMES)
def test_training_in_a_cuda_graph(name):
    """Forward, backward and step captured once and replayed: bit for bit as without a graph."""
    made = []
    for captured in (False, True):
        model, x = network().cuda(), normal(16, 6).cuda()
        optimizer = RBD(model.parameters(), lr=0.3, dim=20, distribution=name, capturable=True)

        def one(model=model, x=x, optimizer=optimizer):
            optimizer.zero_grad(set_to_none=False)
            model(x).square().mean().backward()
            optimizer.step()

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):  # gradients, tables and compiled kernels, before the graph
            for _ in range(3):
                one()
        torch.cuda.current_stream().wait_stream(side)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                one()
        for _ in range(5):
            graph.replay() if captured else one()
        made.append(flat(model.parameters()))
    assert torch.equal(*made)


# torch.compile, and a library that wraps optimizers

COMPILED = """
import sys
import torch
from torch import nn
from rbd import FPD, NES, RBD

def train(make, compiled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = make(model.named_parameters())

    def forward(x):
        return model(x).square().mean()

    def step(x):
        if isinstance(optimizer, NES):
            return optimizer.step(lambda: forward(x))
        optimizer.zero_grad()
        loss = forward(x)
        loss.backward()
        optimizer.step()
        return loss

    run = torch.compile(step, backend="aot_eager") if compiled else step
    for _ in range(3):
        run(torch.randn(16, 6))
    return torch.cat([p.detach().flatten() for p in model.parameters()]), optimizer.param_groups[0]["step"]

for make in (lambda params: RBD(params, 0.5, 20, "by_layer", redraw=2), lambda params: FPD(params, 0.5, 20, capturable=True),
             lambda params: RBD(params, 0.5, 20, distribution="countsketch"), lambda params: NES(params, 0.1, 20)):
    (a, n), (b, m) = train(make, False), train(make, True)
    assert torch.equal(a, b) and int(n) == int(m) == 3
"""


def test_a_compiled_step_of_training(fresh_python, tmp_path):
    """Forward, backward and step in one compiled function: the same bits, and not a word but torch's about its profiler."""
    listen = f"import sys\nsys.stderr = open({str(tmp_path / 'said')!r}, 'w')\n"
    fresh_python(listen + COMPILED)
    assert [line for line in (tmp_path / "said").read_text().splitlines() if "Profiler record function" not in line] == []


def test_accelerate():
    """Accumulation, clipping, a schedule that begins at 0, and its state_dict, as without accelerate."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed (dependency group test)")
    ends, states = [], []
    for wrapped in (False, True):
        model = network()
        optimizer: torch.optim.Optimizer = RBD(model.named_parameters(), 0.5, 20)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 2, 1))
        if wrapped:
            accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
            model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        for batch in range(8):
            with accelerator.accumulate(model) if wrapped else contextlib.nullcontext():
                value = loss(model, batch)
                accelerator.backward(value) if wrapped else (value / 2).backward()
                if wrapped:
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.01)
                    optimizer.step(), scheduler.step(), optimizer.zero_grad()
                elif batch % 2:
                    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                    optimizer.step(), scheduler.step(), optimizer.zero_grad()
        ends.append(flat(model.parameters()))
        states.append(optimizer.state_dict())
    assert torch.equal(*ends) and states[0] == states[1] and states[0]["param_groups"][0]["step"] == 3
