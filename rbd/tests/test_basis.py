"""Basis: its name, its checks, its three views (project, expand, dense), and the geometry of its directions."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad as fwAD
from torch.fx.experimental.proxy_tensor import make_fx

from rbd import Basis, kernels
from rbd.distribution import DISTRIBUTIONS
from rbd.kernels.compiled import flatten

NAMES = tuple(DISTRIBUTIONS)
DENSE = tuple(name for name, distribution in DISTRIBUTIONS.items() if not distribution.sparse)
FIELDS = ("seed", "stream", "compartment", "step", "row")
EPS = torch.finfo(torch.float32).eps


def normal(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# a frozen name


def test_a_basis_is_a_value():
    basis = Basis(3, 10, "uniform", seed=1, stream=2, compartment=3, step=4, row=5)
    assert basis == Basis(3, 10, "uniform", 1, 2, 3, 4, 5)
    assert hash(basis) == hash(replace(basis))
    assert pickle.loads(pickle.dumps(basis)) == basis
    assert basis != replace(basis, step=5)
    assert Basis(3, 10) == Basis(3, 10, "rademacher", seed=0, stream=0, compartment=0, step=0, row=0)
    with pytest.raises(FrozenInstanceError):
        basis.seed = 7


@pytest.mark.parametrize("integer", [np.int64, np.uint64, np.uint32, np.uint8, torch.tensor], ids=lambda t: t.__name__)
def test_integers_of_other_libraries_are_the_same_basis(integer):
    """Anything with __index__ is an integer, kept as a plain one: words must not be computed in its own type."""
    plain = Basis(2, 10, seed=5, stream=6, step=7)
    basis = Basis(2, 10, seed=integer(5), stream=integer(6), step=integer(7))
    assert basis == plain
    assert torch.equal(basis.dense(), plain.dense())
    assert torch.equal(basis.project(torch.ones(10)), plain.project(torch.ones(10)))


@pytest.mark.parametrize("field", [*FIELDS, "dim", "size"])
@pytest.mark.parametrize("bad", [1.5, 2.0, True, False, None, "3", [1], math.nan, torch.tensor(2.0)], ids=repr)
def test_fields_are_integers(field, bad):
    with pytest.raises(TypeError, match=rf"^{field}: got .*, allowed an integer( from 0 to 4294967295)?$"):
        Basis(**{"dim": 2, "size": 10, field: bad})


@pytest.mark.parametrize("field", [*FIELDS, "dim", "size"])
@pytest.mark.parametrize("bad", [-1, 2**32, -(2**40), 2**64])
def test_fields_are_words(field, bad):
    allowed = {"dim": r"1 ... 10 \(the size\)", "size": "1 ... 4294967295"}.get(field, "0 ... 4294967295")
    with pytest.raises(ValueError, match=rf"^{field}: got {bad}, allowed {allowed}$"):
        Basis(**{"dim": 2, "size": 10, field: bad})


@pytest.mark.parametrize(("dim", "size"), [(0, 10), (11, 10), (2**32 - 1, 10)])
def test_dim_is_at_most_size(dim, size):
    with pytest.raises(ValueError, match=rf"^dim: got {dim}, allowed 1 ... {size} \(the size\)$"):
        Basis(dim, size)


def test_size_is_named_before_dim():
    with pytest.raises(ValueError, match=r"^size: got 0, allowed 1 ... 4294967295$"):
        Basis(1, 0)


def test_rows_are_words_too():
    """The last of dim rows from row on must have a number below 2**32."""
    Basis(2, 10, row=2**32 - 2)
    with pytest.raises(ValueError, match=r"^row: got 4294967295, allowed 0 ... 4294967294"):
        Basis(2, 10, row=2**32 - 1)


@pytest.mark.parametrize("bad", ["gauss", "", None, 1])
def test_distribution_is_known(bad):
    with pytest.raises(ValueError, match=r"^distribution: got .*, allowed 'normal', .*'rademacher', 'countsketch'$"):
        Basis(2, 10, bad)


# three views of one matrix


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dim", "size"), [(1, 1), (3, 3), (7, 129), (20, 3000)])
def test_dense_is_what_project_and_expand_use(name, dim, size):
    """Columns and rows to the bit (one product, rounded once); sums within eps times the sum of magnitudes.

    2 eps more of every entry: dense() holds entries in float32, rounded by eps / 2 at the scale and at the product.
    """
    row = 0 if name == "countsketch" else 7  # of which a sketch of dim rows has none
    basis = Basis(dim, size, name, seed=3, stream=4, compartment=5, step=6, row=row)
    dense = basis.dense()
    assert dense.shape == (dim, size)
    assert dense.dtype == torch.float32
    for i in {0, dim // 2, dim - 1}:
        assert torch.equal(basis.expand(torch.eye(dim)[i]), dense[i])
    for j in {0, size // 2, size - 1}:
        assert torch.equal(basis.project(torch.nn.functional.one_hot(torch.tensor(j), size).float()), dense[:, j])
    g, c, phi = normal(size), normal(dim), dense.double()
    most = phi.abs() @ g.double().abs()
    assert ((basis.project(g) - phi @ g.double()).abs() <= 3 * EPS * most).all()
    most = phi.T.abs() @ c.double().abs()
    assert ((basis.expand(c) - phi.T @ c.double()).abs() <= 3 * EPS * most).all()


@pytest.mark.parametrize("name", NAMES)
def test_adjoint(name):
    """<Φg, c> = <g, Φᵀc> in float64, within eps times the sum of all magnitudes."""
    basis, g, c = Basis(20, 5000, name), normal(5000, 1, torch.float64), normal(20, 2, torch.float64)
    most = c.abs() @ basis.dense().double().abs() @ g.abs()
    assert abs(basis.project(g) @ c - g @ basis.expand(c)) <= torch.finfo(torch.float64).eps * most


def test_dtypes():
    """float64 for float64, float32 for all others, bfloat16 as if it had been widened first."""
    basis = Basis(3, 100)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        g = normal(100, 0, dtype)
        assert basis.project(g).dtype == torch.float32
        assert torch.equal(basis.project(g), basis.project(g.float()))
        assert basis.expand(normal(3, 0, dtype)).dtype == torch.float32
    assert basis.project(normal(100, 0, torch.float64)).dtype == torch.float64
    assert basis.expand(normal(3, 0, torch.float64)).dtype == torch.float64


FORMS = {
    "contiguous": lambda x: x,
    "every second value": lambda x: x.repeat_interleave(2)[::2],
    "negated view": lambda x: torch._neg_view(-x),
    "of a parameter": lambda x: torch.nn.Parameter(x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_products_are_those_of_the_kernels(name, form, dtype):
    """To the bit, however a vector lies in memory; steps have bases of their own."""
    for step in (0, 7):
        basis = Basis(20, 300, name, seed=3, step=step, row=2, total=30)
        g, c = normal(300, 1, dtype), normal(20, 2, dtype)
        with torch.no_grad():
            products = [(basis.project(form(g)), kernels.project(g, basis._spec(), backend="cpu")),
                        (basis.expand(form(c)), kernels.expand(c, basis._spec(), backend="cpu"))]  # fmt: skip
            for product, x, (_, wanted) in zip((basis.project, basis.expand), (g, c), products):
                out = torch.full_like(wanted, math.nan)
                assert product(form(x), out) is out and torch.equal(out, wanted)
                room = torch.cat([x.to(wanted.dtype), torch.zeros(400, dtype=wanted.dtype)])  # out begins in the argument
                assert torch.equal(product(room[: len(x)], room[5 : 5 + len(wanted)]), wanted)
        for found, wanted in products:
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    for wrong in (normal(301, 1, dtype), normal(300, 1, dtype)[:, None]):
        with pytest.raises(ValueError, match="shape"):
            basis.project(wrong)


def test_out_is_overwritten_and_returned():
    basis, g = Basis(3, 100), normal(100)
    c, u = torch.full((3,), math.nan), torch.full((100,), math.nan)
    assert basis.project(g, out=c) is c
    assert torch.equal(c, basis.project(g))
    assert basis.expand(c, out=u) is u
    assert torch.equal(u, basis.expand(c))


@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_shapes_are_checked(name):
    basis = Basis(3, 100, name)
    with pytest.raises(ValueError, match=r"^g: got shape \(3,\), allowed \(100,\)$"):
        basis.project(torch.zeros(3))
    with pytest.raises(ValueError, match=r"^c: got shape \(100,\), allowed \(3,\)$"):
        basis.expand(torch.zeros(100))
    with pytest.raises(ValueError, match=r"^out: got torch.float32 \(100,\) on cpu, allowed .* \(3,\) on cpu$"):
        basis.project(torch.zeros(100), out=torch.zeros(100))


@pytest.mark.parametrize(("x", "out", "error", "message"), [
    (torch.zeros(10, dtype=torch.int64), None, TypeError, "[gc]: got torch.int64, allowed a real floating-point tensor"),
    (torch.zeros(10, dtype=torch.complex64), None, TypeError, "[gc]: got torch.complex64, allowed a real floating-point"),
    ([0.0] * 10, None, TypeError, "[gc]: got list, allowed a real floating-point tensor"),
    (torch.ones(10).to_sparse(), None, TypeError, "[gc]: got layout torch.sparse_coo, allowed torch.strided"),
    (torch.zeros(10, device="meta"), None, RuntimeError, "device: no kernels for 'meta', allowed .*'cpu'"),
    (torch.zeros(10), torch.zeros(10, dtype=torch.float64), ValueError, "out: got torch.float64 .* torch.float32"),
    (torch.zeros(10, dtype=torch.float64), torch.zeros(10), ValueError, "out: got torch.float32 .* torch.float64"),
    (torch.zeros(10), torch.zeros(20)[::2], ValueError, "out: got .* allowed contiguous torch.float32"),
    (torch.zeros(10), torch.zeros(10, device="meta"), ValueError, "out: got .* on meta, allowed .* on cpu"),
    (torch.zeros(10), [0.0] * 10, TypeError, "out: got list, allowed a torch.float32 tensor"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_what_cannot_be_multiplied(name, x, out, error, message):
    """The errors of the kernels, in both directions, of which a sketch's are called in another way."""
    basis = Basis(10, 10, name)
    for product in (basis.project, basis.expand):
        with pytest.raises(error, match=f"^{message}"):
            product(x, out)


# which entries


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_larger_basis(name):
    """A share of rows is those rows of the whole; the number of rows changes nothing."""
    whole, g = Basis(20, 3000, name, seed=1), normal(3000)
    for row, dim in ((0, 1), (5, 1), (19, 1), (3, 10), (0, 19)):
        share = Basis(dim, 3000, name, seed=1, row=row, total=20)
        assert torch.equal(share.dense(), whole.dense()[row : row + dim])
        assert torch.equal(share.project(g), whole.project(g)[row : row + dim])


@pytest.mark.parametrize("name", NAMES)
def test_longer_directions_begin_with_the_shorter_ones(name):
    """Up to the scale: a sign for signs, 1e-6 for the rest (three roundings in float32)."""
    short, long = Basis(3, 1000, name).dense(), Basis(3, 5000, name).dense()
    torch.testing.assert_close(long[:, :1000], short / math.sqrt(5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", DENSE)
def test_every_field_names_another_basis(name):
    """Also where two fields trade values: nothing is added up."""
    base = Basis(2, 64, name, seed=1, stream=2, compartment=3, step=4, row=6)
    others = [replace(base, **{field: value}) for field in FIELDS for value in (0, 100, 2**31, 2**32 - 2)]
    values = [getattr(base, field) for field in FIELDS]
    for i, j in np.ndindex(5, 5):
        if i < j:
            others.append(replace(base, **{FIELDS[i]: values[j], FIELDS[j]: values[i]}))
    signs = {basis.dense().sign().numpy().tobytes() for basis in [base, *others]}
    assert len(signs) == len(others) + 1  # 128 signs each: an accident has a chance of 2**-118


# geometry


@pytest.mark.parametrize("name", NAMES)
def test_directions_have_unit_expected_norm(name):
    """Squared norms have mean 1 and variance (kurtosis - 1) / D; 200 of them, 5 standard errors. Signs: 1 exactly."""
    size, kurtosis = 10_000, {"normal": 3, "uniform": 1.8, "rademacher": 1, "countsketch": 1}[name]
    squares = Basis(200, size, name).dense().double().square().sum(1)
    spread = math.sqrt((kurtosis - 1) / size)
    assert abs(squares.mean() - 1) <= 5 * spread / math.sqrt(200) + EPS
    assert ((squares - 1).abs() <= 5 * spread + EPS).all()


@pytest.mark.parametrize("name", DENSE)
def test_two_directions_are_nearly_orthogonal(name):
    """E|cos| = sqrt(2 / (pi D)) = 0.798 / sqrt(D) (arXiv 2011.04720), over 19,900 pairs within 5 standard errors.

    |cos| sqrt(D) is half normal in the limit, with standard deviation sqrt(1 - 2 / pi); for D = 4096 its mean is off
    by 1 / (4 D) of itself, which is nothing.
    """
    phi = torch.nn.functional.normalize(Basis(200, 4096, name, seed=1).dense().double(), dim=1)
    cosines = (phi @ phi.T)[torch.triu(torch.ones(200, 200, dtype=torch.bool), 1)].abs() * math.sqrt(4096)
    assert abs(cosines.mean() - 0.79788) < 5 * math.sqrt(1 - 2 / math.pi) / math.sqrt(len(cosines))


@pytest.mark.parametrize("name", NAMES)
def test_a_projection_keeps_lengths(name):
    """E|Φg|^2 = (d / D) |g|^2; d = 250 coordinates give a relative standard deviation of sqrt(2 / 250); 5 of them."""
    g = normal(20_000, 5, torch.float64)
    ratio = Basis(250, 20_000, name).project(g).square().sum() / g.square().sum()
    assert ratio == pytest.approx(250 / 20_000, rel=5 * math.sqrt(2 / 250))


# derivatives, and perturbations in place


@pytest.mark.parametrize("name", NAMES)
def test_products_are_each_others_derivatives(name):
    basis = Basis(4, 150, name, seed=1)
    g, c = normal(150, 1, torch.float64).requires_grad_(), normal(4, 2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(basis.project, g, fast_mode=True)
    assert torch.autograd.gradcheck(basis.expand, c)
    assert torch.autograd.gradgradcheck(lambda c: basis.expand(c).square(), c)
    assert torch.autograd.gradgradcheck(lambda g: basis.project(g).square(), g, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_gradients_have_the_dtype_of_what_they_belong_to(dtype):
    basis = Basis(5, 90, "countsketch")
    g, c = normal(90, 1, dtype).requires_grad_(), normal(5, 2, dtype).requires_grad_()
    basis.project(g).sum().backward()
    basis.expand(c).sum().backward()
    assert g.grad.dtype == c.grad.dtype == dtype
    assert torch.equal(g.grad, basis.expand(torch.ones(5, dtype=dtype)).to(dtype))
    assert torch.equal(c.grad, basis.project(torch.ones(90, dtype=dtype)).to(dtype))


def test_two_uses_of_a_vector_add_up():
    basis, other, c = Basis(5, 90), Basis(5, 90, seed=1), normal(5).requires_grad_()
    (basis.expand(c) + other.expand(c)).sum().backward()
    torch.testing.assert_close(c.grad, basis.project(torch.ones(90)) + other.project(torch.ones(90)))


def test_no_graph_where_none_is_asked_for():
    basis, g = Basis(5, 90), normal(90).requires_grad_()
    assert basis.project(g.detach()).grad_fn is None
    with torch.no_grad():
        assert basis.project(g).grad_fn is None
        basis.project(g, out=torch.empty(5))
    with pytest.raises(RuntimeError, match="^out= does not support automatic differentiation"):
        basis.project(g, out=torch.empty(5))


def test_derivatives_compile():
    basis, c = Basis(5, 90), normal(5).requires_grad_()
    torch.compile(lambda c: basis.expand(c).square().sum(), backend="aot_eager", fullgraph=True)(c).backward()
    torch.testing.assert_close(c.grad, 2 * basis.project(basis.expand(c.detach())))


def cut(x: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    return [part.clone() for part in x.split(sizes)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_add_is_equal_however_the_vector_is_cut_and_shared_out(name, dtype):
    basis, base, c = Basis(7, 3000, name, seed=5), normal(3000, 1, dtype), normal(7)
    whole = base.clone()
    basis.add_([whole], c, alpha=0.5)
    exact = (base.double() + 0.5 * basis.expand(c.double())).to(dtype)
    torch.testing.assert_close(whole, exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    for sizes in ([1, 2999], [1000, 1000, 1000], [17, 64, 2048, 0, 871]):
        parts = cut(base, sizes)
        basis.add_(parts, c, alpha=0.5)
        assert torch.equal(torch.cat(parts), whole)
        parts, at = cut(base, sizes), 0
        for part in parts:  # each at another worker
            if len(part):
                basis.add_([part], c, alpha=0.5, first=at)
            at += len(part)
        assert torch.equal(torch.cat(parts), whole)


def test_add_takes_parameters_of_several_dtypes_and_strides():
    basis, c = Basis(7, 24, "countsketch"), normal(7, 1, torch.bfloat16)
    params = [normal(12).view(3, 4).t(), torch.nn.Parameter(normal(12, 1, torch.bfloat16))]
    moved = [p.detach().clone() for p in params]
    basis.add_(moved, c, alpha=0.1)
    u = basis.expand(0.1 * c.float())
    assert torch.equal(moved[0], params[0] + u[:12].view(4, 3)) and torch.equal(moved[1], (params[1] + u[12:]).bfloat16())
    basis.add_(params, c, alpha=0.1)  # one that requires a gradient too
    assert all(map(torch.equal, params, moved)) and params[1].grad_fn is None


def test_restoring_by_the_base_weights_is_exact_where_subtracting_drifts():
    basis, base, c = Basis(1, 3000, seed=2), normal(3000, 0, torch.bfloat16), torch.ones(1)
    theta = base.clone()
    for _ in range(10):
        basis.add_([theta], c, alpha=0.3)
        basis.add_([theta], c, alpha=-0.3)
    assert not torch.equal(theta, base)
    first = base.clone()
    basis.add_([first], c, alpha=0.3)
    for _ in range(10):
        theta.copy_(base)
        basis.add_([theta], c, alpha=0.3)
        assert torch.equal(theta, first)
    theta.copy_(base)
    assert torch.equal(theta, base)


def test_tensors_of_equal_shape_get_different_directions():
    params = [torch.zeros(64), torch.zeros(64)]
    Basis(1, 128).add_(params, torch.ones(1))
    assert not torch.equal(*params)


def test_additions_reach_the_casts_of_autocast():
    """It keeps what it cast of a parameter: MeZO's second evaluation would see the first one's."""
    p, x = torch.nn.Parameter(torch.ones(3, 4)), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        before = torch.nn.functional.linear(x, p)
        Basis(2, 12).add_(p, torch.ones(2), 10.0)
        assert not torch.equal(torch.nn.functional.linear(x, p), before)


def test_a_single_tensor_is_one_parameter(monkeypatch):
    told, add = [], kernels.add
    monkeypatch.setattr(kernels, "add", lambda c, spec, params: told.append(len(params)) or add(c, spec, params))
    alone, listed, c = torch.zeros(8, 16), torch.zeros(8, 16), torch.ones(4)
    Basis(4, 128).add_(alone, c)
    Basis(4, 128).add_([listed], c)
    Basis(4, 128).add_(iter([listed]), c, -1.0)
    assert told == [1, 1, 1] and torch.equal(alone, Basis(4, 128).expand(c).view(8, 16)) and not listed.any()


@pytest.mark.parametrize(("alpha", "got"), [("2", "'2'"), (None, "None"), (True, "True"), (torch.ones(2), r"shape \(2,\)"),
                                            (1j, "1j")])  # fmt: skip
def test_alpha_is_a_number(alpha, got):
    p = torch.zeros(10)
    with pytest.raises(TypeError, match=f"^alpha: got {got}, allowed a real number or a tensor of one$"):
        Basis(2, 10).add_(p, torch.ones(2), alpha=alpha)
    assert not p.any()
    for right in (2, np.float32(2), Fraction(2), torch.tensor(2.0), torch.full((1, 1), 2.0, dtype=torch.float64)):
        Basis(2, 10).add_(p.zero_(), torch.ones(2), right)
        assert torch.equal(p, Basis(2, 10).expand(torch.full((2,), 2.0)))


@pytest.mark.parametrize(("params", "more", "error", "message"), [
    (torch.zeros(3, 3), {}, ValueError, r"^params: got 9 values, allowed 10$"),
    ([torch.zeros(9)], {}, ValueError, r"^params: got 9 values, allowed 10$"),
    ([torch.zeros(9)], {"first": 2}, ValueError, r"^params: got 9 values from 2 on, allowed 1 ... 8$"),
    ([torch.zeros(10, dtype=torch.int64)], {}, TypeError, r"^params: got Tensor torch.int64, allowed real floating-point"),
    ([torch.zeros(5)] * 2, {}, ValueError, "^params: got a tensor that is in the list twice, allowed each once$"),
    ({torch.zeros(5), torch.zeros(5)}, {}, TypeError, "^params must come in ordered collections, not in a set"),
    ([[0.0] * 10], {}, TypeError, r"^params: got list, allowed real floating-point tensors"),
    (None, {}, TypeError, r"^params: got NoneType, allowed real floating-point tensors"),
])  # fmt: skip
def test_what_cannot_be_perturbed(params, more, error, message):
    with pytest.raises(error, match=message):
        Basis(2, 10).add_(params, torch.ones(2), **more)


# transforms, forward-mode derivatives, and what is refused


FAMILIES = ("rademacher", "countsketch")  # of kernels


@pytest.mark.parametrize("name", FAMILIES)
def test_transforms_of_torch_func(name):
    basis, g, c = Basis(4, 60, name, seed=1), normal(60, 1), normal(4, 2)
    phi, rows = basis.dense(), torch.stack([normal(60, seed) for seed in range(3)])
    wanted = torch.stack([basis.project(row) for row in rows])
    assert torch.equal(torch.func.vmap(basis.project)(rows), wanted)
    assert torch.equal(torch.func.vmap(basis.project, in_dims=1, out_dims=1)(rows.T), wanted.T)
    value, tangent = torch.func.jvp(basis.project, (g,), (rows[0],))
    assert torch.equal(value, basis.project(g)) and torch.equal(tangent, wanted[0])
    for jacobian in (torch.func.jacfwd, torch.func.jacrev):
        assert torch.equal(jacobian(basis.project)(g), phi) and torch.equal(jacobian(basis.expand)(c), phi.T)
    assert torch.equal(torch.func.grad(lambda c: basis.expand(c) @ g)(c), basis.project(g))
    gram = torch.func.hessian(lambda c: basis.expand(c).square().sum())(c)  # forward over reverse
    torch.testing.assert_close(gram, 2 * phi @ phi.T)
    per_sample = torch.func.vmap(torch.func.grad(lambda c, g: basis.expand(c) @ g), in_dims=(None, 0))(c, rows)
    assert torch.equal(per_sample, wanted)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_forward_mode_under_compile(backend):
    """Operators without a derivative in forward mode drop tangents: these were zeros."""
    basis, g, c = Basis(4, 60, seed=1), normal(60, 1), normal(4, 2)
    for product, x, matrix in ((basis.project, g, basis.dense()), (basis.expand, c, basis.dense().T)):
        jvp = torch.compile(lambda x, v, f=product: torch.func.jvp(f, (x,), (v,)), backend=backend)
        value, tangent = jvp(x, 2 * x)
        assert torch.equal(value, product(x)) and torch.equal(tangent, product(2 * x))
        jacobian = torch.compile(lambda x, f=product: torch.func.jacfwd(f)(x), backend=backend)(x)
        assert torch.equal(jacobian, matrix)


def test_operators_carry_tangents():
    basis, g, v = Basis(4, 60), normal(60, 1).requires_grad_(), normal(60, 3)
    with fwAD.dual_level():
        made = fwAD.unpack_dual(torch.ops.rbd.project(fwAD.make_dual(g, v), *operands(basis)))
        assert torch.equal(made.primal, basis.project(g)) and torch.equal(made.tangent, basis.project(v))
        assert torch.equal(torch.autograd.grad(made.primal.sum(), g)[0], basis.expand(torch.ones(4)))


def operands(basis: Basis) -> tuple:
    """Of the operators, after the vector."""
    return flatten(basis._spec().compartments), basis.distribution, basis.seed, basis.stream, basis.step, None, None, None


@pytest.mark.parametrize("name", FAMILIES)
def test_vmap_of_no_rows(name):
    basis = Basis(4, 60, name)
    assert torch.func.vmap(basis.project)(torch.ones(0, 60)).shape == (0, 4)
    assert torch.func.vmap(basis.expand)(torch.ones(0, 4)).shape == (0, 60)
    assert torch.func.vmap(lambda g: torch.ops.rbd.project(g, *operands(basis)))(torch.ones(0, 60)).shape == (0, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_of_many_outputs_at_once(name):
    """vectorize=True and is_grads_batched=True, whose tensors torch.func does not know."""
    basis, c = Basis(4, 60, name, seed=1), normal(4, 2)
    phi, jacobian = basis.dense(), torch.autograd.functional.jacobian
    for strategy in ("reverse-mode", "forward-mode"):
        assert torch.equal(jacobian(basis.project, normal(60), vectorize=True, strategy=strategy), phi)
        assert torch.equal(jacobian(basis.expand, c, vectorize=True, strategy=strategy), phi.T)
    hessian = torch.autograd.functional.hessian(lambda c: basis.expand(c).square().sum(), c, vectorize=True)
    torch.testing.assert_close(hessian, 2 * phi @ phi.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_forward_mode(name, dtype):
    """The tangent of a product is the product of the tangent, with and without a gradient."""
    basis, g, c, v = Basis(4, 60, name), normal(60, 1, dtype), normal(4, 2, dtype), normal(60, 3, dtype)
    for x in (g, g.clone().requires_grad_()):
        with fwAD.dual_level():
            assert fwAD.unpack_dual(basis.project(g)).tangent is None
            for product in (basis.project, lambda x: kernels.differentiable_project(x, basis._spec())):
                made = fwAD.unpack_dual(product(fwAD.make_dual(x, v)))
                assert torch.equal(made.primal, basis.project(g)) and torch.equal(made.tangent, basis.project(v))
            made = fwAD.unpack_dual(basis.expand(fwAD.make_dual(c, v[:4])))
            assert torch.equal(made.primal, basis.expand(c)) and torch.equal(made.tangent, basis.expand(v[:4]))
    c = c.double().requires_grad_()
    assert torch.autograd.gradcheck(basis.expand, c, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda c: basis.expand(c).square(), c, check_fwd_over_rev=True)


def test_what_derivatives_do_not_support():
    basis, g, c = Basis(4, 60), normal(60), normal(4)
    with fwAD.dual_level(), pytest.raises(RuntimeError, match="^out= does not support automatic differentiation"):
        basis.project(fwAD.make_dual(g, g), out=torch.zeros(4))
    with pytest.raises(RuntimeError, match="^out= does not support .* a transform of torch.func is under way"):
        torch.func.vmap(lambda g: basis.project(g, out=torch.zeros(4)))(torch.ones(2, 60))
    with pytest.raises(NotImplementedError, match="^transforms of torch.func .* do not support additions"):
        torch.func.vmap(lambda p: basis.add_([p], c))(torch.ones(2, 60))


@pytest.mark.parametrize("name", FAMILIES)
def test_tangents_are_never_dropped_or_left_behind(name):
    """add_ dropped that of c and left that of params as it was, and a product left that of out."""
    basis, g, c, p = Basis(4, 60, name), normal(60), normal(4), torch.zeros(60)
    with fwAD.dual_level():
        dual_c, dual_p = fwAD.make_dual(c, c), fwAD.make_dual(p, g)
        alpha = fwAD.make_dual(torch.tensor(1.0), torch.tensor(1.0))
        for args in ((p, dual_c), (dual_p, c), (p, c, alpha)):
            with pytest.raises(NotImplementedError, match="forward-mode derivatives do not support additions"):
                basis.add_(*args)
        for product, x, out in ((basis.project, g, fwAD.make_dual(torch.zeros(4), c)), (basis.expand, c, dual_p)):
            with pytest.raises(RuntimeError, match="^out= does not support automatic differentiation"):
                product(x, out=out)
        assert not p.any()
        basis.add_(p, c)  # nothing here has a tangent
    assert torch.equal(p, basis.expand(c))


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_without_an_address(name):
    """Each of these ended the process, or gave what happened to be in memory."""
    basis, g, c = Basis(4, 60, name), normal(60), normal(4)
    with pytest.raises(RuntimeError, match="^params: got zeros without memory"):
        basis.add_([torch._efficientzerotensor((60,))], c)
    fake = FakeTensorMode().from_tensor(torch.zeros(60))
    with pytest.raises(Exception, match="convert all Tensors to FakeTensors"):
        basis.add_([fake], c)
    assert isinstance(basis.project(fake), FakeTensor)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(basis.expand(c), FakeTensor) and isinstance(basis.project(g), FakeTensor)
    assert torch.equal(make_fx(lambda g: basis.project(g))(torch.zeros(60))(g), basis.project(g))


@pytest.mark.parametrize("name", FAMILIES)
def test_out_that_must_not_be_changed(name):
    basis, g = Basis(4, 60, name), normal(60)
    out, w = torch.zeros(4), torch.ones(4, requires_grad=True)
    y = (w * out).sum()
    basis.project(g, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with torch.inference_mode():
        inference = torch.zeros(4)
    for bad in (inference, torch.zeros(4, requires_grad=True), torch._neg_view(torch.zeros(4))):
        with pytest.raises((RuntimeError, ValueError), match="^out: got a"):
            basis.project(g, out=bad)
        assert not bad.any()


@pytest.mark.parametrize("out", [torch.zeros(3, 4), torch.zeros(1), torch.zeros(4).double(), torch.zeros(8)[::2]])
def test_out_that_does_not_fit_is_refused_in_compiled_code(out):
    """A copy would broadcast or convert."""
    basis, g = Basis(4, 60), normal(60)
    with pytest.raises(ValueError, match=r"^out: got .*, allowed contiguous torch\.float32 \(4,\) on cpu"):
        torch.compile(lambda g, out: basis.project(g, out=out), backend="eager")(g, out)
    assert not out.any()
    right = torch.zeros(4)
    torch.compile(lambda g, out: basis.project(g, out=out), backend="eager", fullgraph=True)(g, right)
    assert torch.equal(right, basis.project(g))


@pytest.mark.parametrize("c", [torch.ones(4, dtype=torch.complex64), torch.ones(4, dtype=torch.int64), [1.0] * 4],
                         ids=["complex", "integers", "list"])  # fmt: skip
def test_coordinates_are_real_numbers(c):
    params = [torch.zeros(60)]
    with pytest.raises(TypeError, match="^c: got .*, allowed a real floating-point tensor$"):
        Basis(4, 60).add_(params, c)
    assert not params[0].any()


def test_compiles_without_a_warning(recwarn):
    """Dynamo warns of caches that it looks through."""
    basis, g, c = Basis(4, 60, "countsketch"), normal(60), normal(4)

    def work(g: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        basis.add_([p], c)
        basis.add_([p[:30]], c, first=30)
        return basis.project(g)

    p = torch.zeros(60)
    assert torch.equal(torch.compile(work, backend="eager")(g, p), basis.project(g))
    assert torch.equal(p, torch.cat([basis.expand(c)[:30] + basis.expand(c)[30:], basis.expand(c)[30:]]))
    assert not [w for w in recwarn if "cache" in str(w.message)]


def test_a_step_that_counts_up_in_compiled_code():
    """Each number was compiled anew, until torch's limit of eight."""
    count = CompileCounter()
    compiled = torch.compile(lambda g, step: Basis(4, 60, step=step).project(g), backend=count, fullgraph=True)
    for step in range(1, 12):
        assert torch.equal(compiled(normal(60), step), Basis(4, 60, step=step).project(normal(60)))
    assert count.frame_count <= 2


@pytest.mark.parametrize("name", FAMILIES)
def test_dense_in_compiled_code(name):
    basis, g = Basis(4, 60, name), normal(60)
    assert torch.equal(torch.compile(lambda g: basis.dense() @ g, backend="eager")(g), basis.dense() @ g)


def test_only_the_fields_are_pickled():
    """As in pickles of earlier versions, which are read; a copy multiplies as the original."""
    basis, g = Basis(3, 10, "uniform", seed=1), normal(10)
    assert basis.__reduce_ex__(2)[2] == {field.name: getattr(basis, field.name) for field in fields(basis)}
    earlier = Basis.__new__(Basis)
    earlier.__setstate__(dict(basis.__reduce_ex__(2)[2]))
    for twin in (earlier, pickle.loads(pickle.dumps(basis)), copy.copy(basis), copy.deepcopy(basis), replace(basis)):
        assert twin == basis and hash(twin) == hash(basis) and repr(twin) == repr(basis)
        assert torch.equal(twin.project(g), basis.project(g))
    assert not torch.equal(replace(basis, seed=2).project(g), basis.project(g))
