"""Basis: its name, its checks, its three views (project, expand, dense), and the geometry of its directions."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from rbd import Basis
from rbd.distribution import DISTRIBUTIONS

NAMES = tuple(DISTRIBUTIONS)
DENSE = tuple(name for name, law in DISTRIBUTIONS.items() if not law.sparse)
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
@pytest.mark.parametrize("bad", [1.5, 2.0, True, False, None, "3", [1], math.nan], ids=repr)
def test_fields_are_integers(field, bad):
    with pytest.raises(TypeError, match=rf"^{field}: got .*, allowed an integer from 0 to 4294967295$"):
        Basis(**{"dim": 2, "size": 10, field: bad})


@pytest.mark.parametrize("field", [*FIELDS, "dim", "size"])
@pytest.mark.parametrize("bad", [-1, 2**32, -(2**40), 2**64])
def test_fields_are_words(field, bad):
    with pytest.raises(ValueError, match=rf"^{field}: got {bad}, allowed 0 ... 4294967295$"):
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


def test_out_is_overwritten_and_returned():
    basis, g = Basis(3, 100), normal(100)
    c, u = torch.full((3,), math.nan), torch.full((100,), math.nan)
    assert basis.project(g, out=c) is c
    assert torch.equal(c, basis.project(g))
    assert basis.expand(c, out=u) is u
    assert torch.equal(u, basis.expand(c))


def test_shapes_are_checked():
    basis = Basis(3, 100)
    with pytest.raises(ValueError, match=r"^g: got shape \(3,\), allowed \(100,\)$"):
        basis.project(torch.zeros(3))
    with pytest.raises(ValueError, match=r"^c: got shape \(100,\), allowed \(3,\)$"):
        basis.expand(torch.zeros(100))
    with pytest.raises(ValueError, match=r"^out: got torch.float32 \(100,\) on cpu, allowed .* \(3,\) on cpu$"):
        basis.project(torch.zeros(100), out=torch.zeros(100))


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
