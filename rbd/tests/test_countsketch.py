"""The sparse distribution: its definition, its statistics at stated significance, and its kernels at critical shapes.

What it has in common with the dense distributions is tested beside them, in test_kernels.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from rbd import FPD, NES, RBD, Basis, kernels
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import distribution as distribution_of
from rbd.distribution import offsets, sketch
from rbd.philox import OFFSETS, SIGNS, philox4x32, words
from rbd.tests.conftest import DEVICES
from rbd.tests.test_kernels import FLOATS, INDEX, KEY, expand, integers, normal, one_hot, project, same_bits, slow, unscaled

COUNTSKETCH, UNSCALED = distribution_of("countsketch"), unscaled("countsketch")
SHAPES = [(d, D) for D in (1, 3, 127, 128, 129, 1000, 101_770) for d in sorted({1, 2, 7, 250, D - 1, D}) if 1 <= d <= D]
LIMITS = [(d, 9000) for d in (16, 17, 64, 65, 1024, 1025, 4096, 4097)]  # where the CPU kernels change their ways


def one(dim: int, size: int, row: int = 0, total: int | None = None) -> tuple[Compartment, ...]:
    return (Compartment(INDEX, 0, size, dim, row, total=total),)


def magnitudes(g: torch.Tensor, k: Compartment) -> torch.Tensor:
    """Sum of |phi_ij g_j| for every row."""
    rows, _ = sketch(np.arange(k.size), k.total, *KEY, INDEX)
    sums = np.bincount(rows, g.abs().double().numpy(), k.total) * COUNTSKETCH.scale(dim=k.total, size=k.size)
    return torch.from_numpy(sums[k.row : k.row + k.dim])


def basis(dim: int, size: int, **name: int) -> Basis:
    return Basis(dim, size, "countsketch", **name)


# definition


def test_definition_by_hand():
    """Column q d + k belongs to row (k + o_q) mod d; its sign is a bit of a word, o_q the upper half of word times d."""
    d, size, name = 37, 9001, (5, 6, 7, 8)  # seed, stream, step, compartment
    rows, signs = sketch(np.arange(size), d, *name)

    def word(first: int, p: int, chunk: int) -> int:
        w, b = divmod(p, 16)
        return int(philox4x32((first | 16 * chunk + b, 0, 7, 8), (5, 6))[w])

    for j in (0, 1, 36, 37, 2047, 2048, 4096 + 77, size - 1):
        q, k = divmod(j, d)
        assert rows[j] == (k + (word(0xC0000000, q % 64, q // 64) * d >> 32)) % d
        assert signs[j] == (-1) ** (word(0x80000000, j % 64, j // 2048) >> (j % 2048 // 64) & 1)


@pytest.mark.parametrize(("dim", "size"), [(d, D) for d, D in SHAPES if d * D <= 2_000_000])
def test_one_entry_in_a_column_and_rows_of_equal_support(dim, size):
    phi = basis(dim, size, seed=1).dense()
    assert ((phi != 0).sum(0) == 1).all()
    assert set((phi != 0).sum(1).tolist()) <= {size // dim, -(-size // dim)}
    assert set(phi.abs().unique().tolist()) <= {0.0, float(np.float32(math.sqrt(dim / size)))}
    gram = phi @ phi.T
    assert torch.equal(gram, torch.diag(gram.diagonal()))  # orthogonal, exactly: the supports are disjoint


def test_no_word_is_shared():
    """Blocks of dense rows, of signs and of offsets, for the longest vector and the most segments that a word can name."""
    most = 2**32
    dense = 16 * -(-most // distribution_of("normal").columns)
    assert dense <= 2**29 <= SIGNS
    assert SIGNS + 16 * (most // 2048) <= OFFSETS
    assert OFFSETS + 16 * (most // 64) <= 2**32  # d = 1; offsets of a single row are not drawn
    rows, chunks = np.arange(4), np.arange(300)
    made = [words(rows, chunks, *KEY, INDEX), *(words(rows[:1], chunks, *KEY, INDEX, first) for first in (SIGNS, OFFSETS))]
    assert len(np.unique(np.concatenate([m.ravel() for m in made]))) == sum(m.size for m in made)  # 115,200 words


def test_offsets_are_uniform():
    """Chi-square over all d values, 200 draws of each expected: 1e-4 < p < 1 - 1e-4; and of neighbours, together."""
    for d in (2, 7, 250):
        o = offsets(np.arange(200 * d), d, 1, 2, 3, 4)
        assert o.min() == 0
        assert o.max() == d - 1
        assert 1e-4 < scipy.stats.chisquare(np.bincount(o, minlength=d)).pvalue < 1 - 1e-4
    o = offsets(np.arange(20_001), 10, 1, 2, 3, 4)
    pairs = np.bincount(10 * o[:-1] + o[1:], minlength=100)
    assert 1e-4 < scipy.stats.chisquare(pairs).pvalue < 1 - 1e-4


def test_signs_are_balanced_and_uncorrelated():
    """Within 5 standard errors: the mean, neighbours, columns of the same row, and signs against offsets."""
    rows, signs = sketch(np.arange(2**18), 64, 1, 2, 3, 4)
    assert abs(signs.mean()) < 5 / math.sqrt(len(signs))
    for lag in (1, 16, 63, 64, 65, 128, 2048):
        assert abs((signs[lag:] * signs[:-lag]).mean()) < 5 / math.sqrt(len(signs) - lag), lag
    for row in range(64):
        assert abs(signs[rows == row].mean()) < 5 / math.sqrt((rows == row).sum())


@pytest.mark.parametrize("field", range(4))
def test_sketches_of_other_names_are_independent(field):
    """seed, stream, step, compartment: signs are uncorrelated, and rows agree as often as by chance (5 standard errors)."""
    d, n = 100, 2**16
    rows, signs = sketch(np.arange(n), d, 0, 0, 0, 0)
    for value in (1, 2**16, 2**31, 2**32 - 1):
        others, theirs = sketch(np.arange(n), d, *(value if i == field else 0 for i in range(4)))
        assert abs((signs * theirs).mean()) < 5 / math.sqrt(n)
        same = (rows[::d] == others[::d]).mean()  # one column of a segment tells its offset
        assert abs(same - 1 / d) < 5 * math.sqrt((1 / d) / len(rows[::d]))


def test_expectation_of_the_update():
    """Mean of (D/d) Φᵀ Φ g over 4,000 steps is g: the largest of 60 errors within 5 standard errors."""
    d, size, steps = 4, 60, 4000
    g = normal(size, 0)
    made = torch.stack([(b := basis(d, size, step=t)).expand(b.project(g)) * size / d for t in range(steps)]).double()
    error = (made.mean(0) - g).abs() / (made.std(0) / math.sqrt(steps))
    assert error.max() < 5


# products


@pytest.mark.parametrize(("dim", "size"), SHAPES + LIMITS)
def test_products_of_every_shape(backend, dim, size):
    """Integers to the bit; real numbers within their rounding, see below; all rows and a third of them."""
    long, some = slow(backend) and size > 10_000, max(1, dim // 3)
    if long and dim not in (250, size):
        pytest.skip("half a second a product in Triton's interpreter; d = 250 and d = D are not skipped, in float32")
    for dtype in FLOATS[: 1 if long else 2]:
        for k in (one(dim, size), one(some, size, dim - some, dim))[: 1 if long else 2]:
            g, c = integers(size, 1, 100, dtype), integers(k[0].dim, 2, 100, dtype)
            assert same_bits(project(backend, g, k, COUNTSKETCH), project("reference", g, k, COUNTSKETCH))
            assert same_bits(expand(backend, c, k, UNSCALED), expand("reference", c, k, UNSCALED))
            g, c = normal(size, 3, dtype), normal(k[0].dim, 4, dtype)
            # Sum, scale and product round by eps/2 each. Before that, a float32 sum, taken in float64, is exact to 1e-15.
            eps, exact = torch.finfo(dtype).eps, project("reference", g.double(), k, COUNTSKETCH)
            most = (1e-15 if dtype == torch.float32 else eps) * magnitudes(g, k[0]) + 1.5 * eps * exact.abs()
            assert ((project(backend, g, k, COUNTSKETCH).double() - exact).abs() <= most).all()
            u = expand(backend, c, k, COUNTSKETCH)
            assert same_bits(u, expand("reference", c, k, COUNTSKETCH))  # no sums: to the bit


@pytest.mark.parametrize("terms", ["equal", "uniform", "of 16 magnitudes"])
@pytest.mark.parametrize("dim", [1, 2, 7, 9, 17, 250, 1025])
def test_long_sums_of_float64_numbers(backend, dim, terms):
    """Of one sign, whose sums round most; equal ones round alike. On a CPU within 3 eps of the sum (2.1 was the most)."""
    size = 9000 if slow(backend) and dim < 250 else 101_770
    draw = np.random.default_rng(0)
    made = {"equal": np.full(size, 0.1), "uniform": draw.random(size), "of 16 magnitudes": 10 ** draw.uniform(-8, 8, size)}
    rows, signs = sketch(np.arange(size), dim, *KEY, INDEX)
    exact = torch.tensor([math.fsum(made[terms][rows == row]) for row in range(dim)], dtype=torch.float64)
    c = project(backend, torch.from_numpy(signs * made[terms]), one(dim, size), UNSCALED)
    assert ((c - exact).abs() <= (8 if slow(backend) else 3) * torch.finfo(torch.float64).eps * exact).all()


def test_float64_columns_that_are_not_finite(backend):
    """What additions lose is NaN then; it must not make NaN of an infinity."""
    for dim in (1, 5, 40, 2000):
        g = torch.ones(4000, dtype=torch.float64)
        g[[7, 3999]] = torch.tensor([math.inf, math.nan], dtype=torch.float64)
        with np.errstate(invalid="ignore"):  # of Triton's interpreter
            c = project(backend, g, one(dim, len(g)), UNSCALED)
        expected = project("reference", g, one(dim, len(g)), UNSCALED)
        torch.testing.assert_close(c, expected, rtol=0, atol=0, equal_nan=True)
        assert c.isinf().any() or dim == 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", [1, 16, 250, 1025, 5000])
def test_rows_alone_are_rows_of_the_whole(backend, dim, dtype):
    """To the bit, so workers that share out the rows find the coordinates of one that has them all."""
    size = 2000 if slow(backend) else 20_000
    dim = min(dim, size)
    g, whole = normal(size, 14, dtype), one(dim, size)
    c = project(backend, g, whole, COUNTSKETCH)
    for first, last in ((0, 1), (dim // 3, dim // 2 + 1), (dim - 1, dim)):
        k = one(last - first, size, first, dim)
        assert same_bits(project(backend, g, k, COUNTSKETCH), c[first:last])
        some = torch.zeros(dim, dtype=dtype)
        some[first:last] = c[first:last]
        assert same_bits(expand(backend, c[first:last], k, COUNTSKETCH), expand(backend, some, whole, COUNTSKETCH))


def test_more_rows_than_2_to_the_31(backend):
    """A shard of a basis of 3e9 rows: word times d, of which an offset is the upper half, is more than an int64 takes."""
    d, size, name = 3_000_000_000, 100, (1, 0, 0, 0)  # seed, stream, step, compartment
    offset = int(offsets(np.array([0]), d, *name)[0])
    assert offset << 32 >= 2**63
    k = Compartment(0, 0, size, size, offset, 0, d - size, d)
    spec, g = BasisSpec((k,), COUNTSKETCH, *name[:3]), normal(size, 1).to(DEVICES[backend])
    c = kernels.project(g, spec, backend=backend)
    assert torch.equal(c.abs(), g.abs())  # rows from the offset on, in order
    assert torch.equal(kernels.expand(c, spec, backend=backend), g)


@pytest.mark.parametrize("dim", [1, 5, 300, 40_000, 1_200_000])
def test_many_columns_are_shared_out(set_threads, dim):
    """More than a thread does alone: units of columns, parts of sums and blocks of rows; the same bits for all threads."""
    size, made = 1_200_000, []
    g, c, k = integers(size, 1, 10, torch.float32), normal(dim, 2), one(dim, size)
    for threads in (1, 2, 3):
        set_threads(threads)
        real = project("cpu", normal(size, 3), k, COUNTSKETCH), expand("cpu", c, k, COUNTSKETCH)
        made.append((project("cpu", g, k, UNSCALED), *real))
    assert all(same_bits(a, b) for others in made[1:] for a, b in zip(others, made[0]))
    assert same_bits(made[0][0], project("reference", g, k, UNSCALED))
    assert same_bits(made[0][2], expand("reference", c, k, COUNTSKETCH))


def test_numbers_that_are_not_finite_stay_in_their_row_and_column(backend):
    size = 1000
    for d in (3, 16, 70, 999):
        rows, _ = sketch(np.arange(size), d, *KEY, INDEX)
        for bad in (math.nan, math.inf):
            for place in (0, 499, 999):
                g = torch.where(one_hot(place, size) == 1, bad, 1.0)
                c = project(backend, g, one(d, size), COUNTSKETCH)
                assert (~c.isfinite()).nonzero().ravel().tolist() == [rows[place]]
            u = expand(backend, torch.where(one_hot(d // 2, d) == 1, bad, 1.0), one(d, size), COUNTSKETCH)
            assert np.array_equal(~u.isfinite().numpy(), rows == d // 2)


def test_the_total_goes_through_torch_compile(backend):
    k = (Compartment(INDEX, 0, 100, 3, 4, 0, 0, 20),)
    spec, g = BasisSpec(k, COUNTSKETCH, 1, 2, 3), normal(100, 5).to(DEVICES[backend])
    compiled = torch.compile(lambda x: kernels.project(x, spec, backend=backend), backend="aot_eager", fullgraph=True)
    assert same_bits(compiled(g), kernels.project(g, spec, backend=backend))


# d = D


@pytest.mark.parametrize("size", [1, 7, 129, 5000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_as_many_directions_as_parameters_are_the_identity(backend, size, dtype):
    """A signed cyclic shift and its inverse: u is g to the bit."""
    g, k = normal(size, 6, dtype), one(size, size)
    c = project(backend, g, k, COUNTSKETCH)
    assert same_bits(c.abs().sort().values, g.abs().sort().values)
    assert same_bits(expand(backend, c, k, COUNTSKETCH), g)


@pytest.mark.parametrize("optimizer", [RBD, FPD])
@pytest.mark.parametrize("form", ["whole", "by_layer"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_as_many_directions_as_parameters_are_sgd(optimizer, form, dtype):
    """Three steps of a small network, bit for bit."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3)).to(dtype))
    D = sum(p.numel() for p in models[0].parameters())
    ours = optimizer(models[0].named_parameters(), 0.1, dim=D, partition=form, distribution="countsketch")
    for opt, model in ((ours, models[0]), (torch.optim.SGD(models[1].parameters(), 0.1), models[1])):
        for step in range(3):
            opt.zero_grad()
            model(normal(8 * 20, step, dtype).view(8, 20)).square().sum().backward()
            opt.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))


def test_nes_perturbs_along_rows_of_the_whole_basis():
    """d perturbations add up to one entry in every column: no coordinate is moved twice."""
    p, seen = torch.nn.Parameter(torch.zeros(50)), []
    NES([p], 0.1, dim=7, distribution="countsketch", sigma=0.5).step(lambda: seen.append(p.detach().clone()) or p.sum())
    phi = Basis(7, 50, "countsketch").dense()
    assert torch.allclose(torch.stack(seen), 0.5 * phi)


# a share of a larger basis


def test_rows_of_a_larger_basis():
    whole, share = basis(20, 100, seed=1), basis(3, 100, seed=1, row=4, total=20)
    assert torch.equal(share.dense(), whole.dense()[4:7])
    assert not torch.equal(basis(7, 100, seed=1).dense()[4:7], whole.dense()[4:7])  # of 7 rows: another basis
    assert torch.equal(share.project(normal(100, 1)), whole.project(normal(100, 1))[4:7])


@pytest.mark.parametrize(("given", "message"), [
    ({"total": 6}, r"^total: got 6, allowed 7 \(row \+ dim\) ... 100 \(the size\)$"),
    ({"total": 101}, r"^total: got 101, allowed 7 \(row \+ dim\) ... 100 \(the size\)$"),
    ({"row": 98}, r"^row: got 98, allowed 0 ... 97 \(size - dim\)$"),
])  # fmt: skip
def test_rows_that_no_basis_has(given, message):
    with pytest.raises(ValueError, match=message):
        basis(3, 100, **{"row": 4, **given})
