"""Every backend against the reference: words, entries and integer sums to the bit, real sums within their rounding.

BACKENDS in conftest.py lists what runs here; all tensors are put where that backend computes.
"""

from __future__ import annotations

import math
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

import rbd
from rbd import kernels
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import DISTRIBUTIONS, Distribution, sketch
from rbd.distribution import distribution as distribution_of
from rbd.kernels import memory, reference, team
from rbd.philox import words
from rbd.tests.conftest import DEVICES, INTERPRETED, on_a_gpu

NAMES = tuple(DISTRIBUTIONS)
DENSE = tuple(name for name, distribution in DISTRIBUTIONS.items() if not distribution.sparse)
FAMILIES = ("rademacher", "countsketch")  # of kernels
SIZES = (1, 3, 127, 128, 129, 1000, 101_770)  # around registers, words and chunks; the paper's smallest network
SHAPES = [(dim, size) for size in SIZES for dim in (1, 2, 7, 250) if dim <= size]
FLOATS = (torch.float32, torch.float64)
KEY = (0xFFFFFFFF, 0x80000000, 0xDEADBEEF)  # seed, stream, step: all with the sign bit of 32
INDEX = 0xC0FFEE00  # of a compartment, likewise


@dataclass(frozen=True)
class Unscaled(Distribution):
    """Levels as they are, so that sums of integers are integers in both directions."""

    def scale(self, *, dim: int, size: int) -> float:
        return 1.0


def unscaled(name: str) -> Unscaled:
    return Unscaled(**vars(distribution_of(name)))


def one(dim: int, size: int, row: int = 0, index: int = INDEX, total: int | None = None) -> tuple:
    """The only compartment of a basis."""
    return (Compartment(index, 0, size, dim, row, total=total),)


def project(backend: str, g: torch.Tensor, compartments: tuple, distribution: Distribution,
            name: tuple = KEY) -> torch.Tensor:  # fmt: skip
    """project into a buffer full of NaN, of which none may be left that the sums do not make."""
    out = torch.full((sum(k.dim for k in compartments),), math.nan, dtype=_dtype(g), device=DEVICES[backend])
    assert kernels.project(g.to(out.device), BasisSpec(compartments, distribution, *name), out=out, backend=backend) is out
    return out.cpu()


def expand(backend: str, c: torch.Tensor, compartments: tuple, distribution: Distribution,
           name: tuple = KEY) -> torch.Tensor:  # fmt: skip
    out = torch.full((compartments[-1].stop,), math.nan, dtype=_dtype(c), device=DEVICES[backend])
    assert kernels.expand(c.to(out.device), BasisSpec(compartments, distribution, *name), out=out, backend=backend) is out
    return out.cpu()


def _dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def slow(backend: str) -> bool:
    """Triton's interpreter takes a thousand times longer than a GPU: fewer and smaller cases of the same tests there."""
    return backend == "gpu" and INTERPRETED


def some(backend: str, values: Sequence, count: int = 3) -> Sequence:
    """All values, or a few from the first to the last."""
    return values if not slow(backend) else [values[i * (len(values) - 1) // (count - 1)] for i in range(count)]


def thread_counts(backend: str, *counts: int) -> tuple[int, ...]:
    return counts if backend == "cpu" else counts[:1]


@pytest.fixture
def bearable(backend, name, request) -> None:
    given = request.node.callspec.params
    if slow(backend) and given["size"] > 10_000 and (name, given.get("dim")) not in (("uniform", 7), ("countsketch", None)):
        pytest.skip("minutes in Triton's interpreter; uniform, d = 7, and countsketch's entries are not skipped")


def normal(count: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(count: int, seed: int, most: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(-most, most + 1, (count,), generator=torch.Generator().manual_seed(seed)).to(dtype)


def one_hot(place: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(place), count).to(dtype)


def levels(name: str, dim: int, size: int) -> np.ndarray:
    """Levels of a basis with up to 250 rows, by definition: (dim, size) float32."""
    if name == "countsketch":
        rows, signs = sketch(np.arange(size), dim, *KEY, INDEX)
        return np.where(rows == np.arange(dim)[:, None], signs, np.float32(0))
    return dense_levels(name, size)[:dim]


@lru_cache(maxsize=1)
def dense_levels(name: str, size: int) -> np.ndarray:
    """Of the first 250 rows: (min(250, size), size) float32."""
    made = words(np.arange(min(250, size)), np.arange(-(-size // distribution_of(name).columns)), *KEY, INDEX)
    return distribution_of(name).entries(made).reshape(len(made), -1)[:, :size]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the last bit (of finite numbers; 0 and -0 count as equal)."""
    return a.dtype == b.dtype and torch.equal(a, b)


# words


def words_of_signs(u: torch.Tensor) -> np.ndarray:
    """The words whose bits are the signs of whole chunks: (2048 n,) -> (n, 64) uint32."""
    bits = (u.numpy() < 0).reshape(-1, 32, 64).astype(np.uint64)  # chunk, bit, word
    return (bits << np.arange(32, dtype=np.uint64)[:, None]).sum(1).astype(np.uint32)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_words_through_expand(backend, dtype):
    """Every word of three chunks and of rows up to the last, from the signs of one row at a time."""
    for row in (0, 1, 2**31, 2**32 - 4):
        for r in some(backend, range(4), 2):
            u = expand(backend, one_hot(r, 4, dtype), one(4, 3 * 2048, row), unscaled("rademacher"))
            made = words(np.array([row + r]), np.arange(3), *KEY, INDEX)[0]
            np.testing.assert_array_equal(words_of_signs(u), made)


def test_words_through_project(backend):
    """With g = 2**bit on the 32 columns of word p, c = 2**32 - 1 - 2 word for all rows at once (exact in float64)."""
    rows, chunks, first = 130, 2, 2**32 - 130  # more rows than a unit of the CPU kernels has
    made = words(first + np.arange(rows), np.arange(chunks), *KEY, INDEX)
    for chunk, p in some(backend, list(np.ndindex(chunks, 64)), 8):
        g = torch.zeros(chunks, 32, 64, dtype=torch.float64)
        g[chunk, :, p] = 2.0 ** torch.arange(32)
        c = project(backend, g.ravel(), one(rows, g.numel(), first), unscaled("rademacher"))
        np.testing.assert_array_equal((2**32 - 1 - c.numpy()) / 2, made[:, chunk, p])


def test_words_through_project_in_float32(backend):
    """The same in the kernels for float32, half a word at a time, so that 24 bits hold the sum."""
    rows, half = 37, 2.0 ** torch.arange(16)
    made = words(np.arange(rows), np.array([0]), *KEY, INDEX)[:, 0]
    for p, upper in some(backend, list(np.ndindex(64, 2)), 8):
        g = torch.zeros(32, 64)
        g[16 * upper : 16 * upper + 16, p] = half
        c = project(backend, g.ravel(), one(rows, 2048), unscaled("rademacher"))
        np.testing.assert_array_equal((2**16 - 1 - c.numpy()) / 2, made[:, p] >> (16 * upper) & 0xFFFF)


def test_words_of_the_cpu_kernels_are_the_known_answers(vectors):
    """The counters of the vectors lie beyond the columns of any basis, so the generator is called by itself."""
    numba = pytest.importorskip("numba")
    from rbd.kernels.cpu import _philox
    from rbd.kernels.simd import lane_numbers, pointer, splat_u64, store

    @numba.njit
    def blocks(block, row, step, compartment, seed, stream, out):
        w0, w1, w2, w3 = _philox(splat_u64(block) + lane_numbers(), splat_u64(row), step, compartment, seed, stream)
        at = pointer(out)
        store(at, 0, w0), store(at, 16, w1), store(at, 32, w2), store(at, 48, w3)

    for *name, a, b, c, d in vectors:
        out = np.empty(64, np.uint32)
        blocks(*name, out)
        assert out[::16].tolist() == [a, b, c, d]


PERMUTED = """
import sys
import numba
import numpy as np
from rbd.kernels.simd import bits_of, load, permute, pointer, store

@numba.njit
def pick(table, words, out):
    store(pointer(out), 0, permute(load(pointer(table), 0), bits_of(load(pointer(words), 0))))

for dtype in ("f4", "f8"):
    table, out = np.linspace(-1, 1, 16).astype(dtype), np.empty(16, dtype)
    for seed in range(20):
        words = np.random.default_rng(seed).integers(0, 2**32, 16, np.uint32)
        pick(table, words.view("f4"), out)
        assert (out == table[words % 16]).all(), (dtype, out, table, words)
code = "".join(pick.inspect_asm().values())
print(*(name for name in ("vpermps", "vpermd", "zmm") if name in code))
"""
FEATURES = {"+avx512f": "avx512f", "+avx2": "avx2", "+sse2": "sse2",
            "+avx2,+avx512f,-avx512f": "avx2", "+avx512f,-avx2": "sse2"}  # fmt: skip  # asked of LLVM: what is left


@pytest.mark.parametrize("features", FEATURES)
def test_permute_on_other_machines(features, fresh_python):
    """Compiled as for AVX-512, for AVX2, or for neither: three ways of one function."""
    best = FEATURES[features]
    if not pytest.importorskip("llvmlite.binding").get_host_cpu_features().get(best):
        pytest.skip(f"this machine lacks {best}, and would end the process")
    used = fresh_python(PERMUTED, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES=features)
    assert ("zmm" in used) == (best == "avx512f")
    assert ("vperm" in used) == (best != "sse2")


@pytest.mark.parametrize("place", range(4))
def test_extremes_of_every_field(backend, place):
    """seed, stream, step, compartment: a word of 32 bits in every kernel, whatever its sign bit."""
    for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        *name, index = [value if i == place else i + 1 for i in range(4)]
        k = one(2, 2048, index=index)
        u = expand(backend, one_hot(1, 2), k, unscaled("rademacher"), name)
        np.testing.assert_array_equal(words_of_signs(u), words(np.array([1]), np.array([0]), *name, index)[0])
        for distribution in DISTRIBUTIONS.values():
            g = normal(2048, 0)
            c = [project(b, g, k, distribution, name) for b in ("reference", backend)]
            torch.testing.assert_close(*c, rtol=0, atol=1e-5)  # |c| is about 1; other entries would give another c


# entries


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_every_level_of_every_distribution(backend, name, dtype):
    """1.3 million entries show all 65,536 normal levels (one is missed with a chance of 65,536 exp(-20) = 1.4e-4)."""
    distribution, size, dim = unscaled(name), 2**12 if slow(backend) else 2**16, 20
    made = reference.rows(one(dim, size)[0], BasisSpec((), distribution, *KEY), 0, dim)
    rows = [expand(backend, one_hot(i, dim, dtype), one(dim, size), distribution) for i in range(dim)]
    assert same_bits(torch.stack(rows), torch.from_numpy(made).to(dtype))
    if name != "normal" or not slow(backend):
        assert set(np.unique(torch.stack(rows).numpy())) == set(distribution.levels.tolist())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_entries_of_every_size(backend, bearable, name, size):
    """Rows by expand, scaled: level times scale, rounded once, as in the reference; the last row of 250 or fewer."""
    distribution, dim = distribution_of(name), min(7 if slow(backend) else 250, size)
    for dtype in FLOATS:
        row = expand(backend, one_hot(dim - 1, dim, dtype), one(dim, size), distribution)
        last = torch.from_numpy(reference.rows(one(dim, size)[0], BasisSpec((), distribution, *KEY), dim - 1, dim)[0])
        assert same_bits(row, last.to(dtype) * distribution.scale(dim=dim, size=size))


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_every_kind(backend, name):
    """Columns by project: the first, the last, and those at borders of registers, words, chunks and segments."""
    distribution, size, dim = distribution_of(name), 5_000 if slow(backend) else 40_000, 130
    made = torch.from_numpy(reference.rows(one(dim, size)[0], BasisSpec((), distribution, *KEY), 0, dim))
    columns = (0, 1, 15, 16, 63, 64, 127, 128, 255, 256, 2047, 2048, 16383, 16384, 32767, 32768, size - 1)
    for column in some(backend, [j for j in columns if j < size]):
        for dtype in FLOATS:
            c = project(backend, one_hot(column, size, dtype), one(dim, size), distribution)
            assert same_bits(c, made[:, column].to(dtype) * distribution.scale(dim=dim, size=size)), column


# integer sums, to the bit


@pytest.mark.parametrize(("dim", "size"), SHAPES)
@pytest.mark.parametrize("name", ["rademacher", "uniform", "countsketch"])
def test_integers_to_the_bit(backend, bearable, set_threads, name, dim, size):
    """No sum leaves the integers below 2**24, which float32 holds exactly, so any order gives the same bits."""
    distribution, k = distribution_of(name), one(dim, size)
    for dtype in FLOATS:
        g = integers(size, 1, 1 if name == "uniform" else 100, dtype)
        c = integers(dim, 2, 200, dtype)
        assert (np.abs(levels(name, dim, size)) @ g.abs().float().numpy()).max(initial=0) < 2**24
        assert distribution.levels.max() * c.abs().sum() < 2**24
        set_threads(1)
        coordinates = project("reference", g, k, distribution)
        vector = expand("reference", c, k, unscaled(name))
        for threads in thread_counts(backend, 1, 2, 3):
            set_threads(threads)
            assert same_bits(project(backend, g, k, distribution), coordinates)
            assert same_bits(expand(backend, c, k, unscaled(name)), vector)


# real sums, within their rounding


def bounds(name: str, dim: int, size: int, g: torch.Tensor, c: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Sum of |phi_ij g_j| for every i and of |phi_ij c_i| for every j, each with what rounding adds after the sum.

    3/2 of the result (times eps): the sum, the scale and their product are each rounded, by eps / 2 at most.
    """
    phi, scale = levels(name, dim, size).astype(np.float64), distribution_of(name).scale(dim=dim, size=size)
    g, c = g.double().numpy(), c.double().numpy()
    rows = scale * (np.abs(phi) @ np.abs(g) + 1.5 * np.abs(phi @ g))
    return rows, scale * (np.abs(phi.T) @ np.abs(c) + 1.5 * np.abs(phi.T @ c))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dim", "size"), SHAPES)
def test_real_numbers_within_rounding(backend, bearable, name, dim, size):
    """Against the reference in float64: eps sum |phi_ij g_j| for project, whose sums run over 64 lanes.

    expand adds d terms one after another. Their rounding errors, of eps / 2 each, add up as a random walk does, to
    sqrt(d) eps / 2 of the sum of magnitudes (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
    """
    distribution, k = distribution_of(name), one(dim, size)
    for dtype in FLOATS:
        g, c, eps = normal(size, 3, dtype), normal(dim, 4, dtype), torch.finfo(dtype).eps
        rows, columns = bounds(name, dim, size, g, c)
        error = project(backend, g, k, distribution).double() - project("reference", g.double(), k, distribution)
        assert (error.abs().numpy() <= eps * rows).all()
        error = expand(backend, c, k, distribution).double() - expand("reference", c.double(), k, distribution)
        assert (error.abs().numpy() <= eps * max(1, math.sqrt(dim) / 2) * columns).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["spread", "peak"])
def test_uneven_numbers_within_rounding(backend, name, kind):
    """Magnitudes over eight decades, or one that outweighs the others: every later addition rounds at its size.

    256 terms are added one after another in a lane of project, d in expand; sqrt(256) eps is twice the random walk.
    """
    dim, size = (7, 5_000) if slow(backend) else (250, 20_000)
    g, c = normal(size, 5), normal(dim, 6)
    if kind == "spread":
        g, c = g * 10 ** (8 * torch.rand(size)), c * 10 ** (8 * torch.rand(dim))
    else:
        g[0], c[0] = 1e6, 1e6
    rows, columns = bounds(name, dim, size, g, c)
    eps, distribution, k = 16 * torch.finfo(torch.float32).eps, distribution_of(name), one(dim, size)
    error = project(backend, g, k, distribution).double() - project("reference", g.double(), k, distribution)
    assert (error.abs().numpy() <= eps * rows).all()
    error = expand(backend, c, k, distribution).double() - expand("reference", c.double(), k, distribution)
    assert (error.abs().numpy() <= eps * columns).all()


def test_reference_is_the_definition():
    """Levels times g, multiplied out here as well; in float64, where both sides round."""
    for name in NAMES:
        for size in (1, 3, 129, 1000, 5000):
            dim = min(size, 250)
            g, c, k = normal(size, 7, torch.float64), normal(dim, 8, torch.float64), one(dim, size)
            rows, columns = bounds(name, dim, size, g, c)
            phi = levels(name, dim, size).astype(np.float64) * distribution_of(name).scale(dim=dim, size=size)
            eps = torch.finfo(torch.float64).eps
            c_, u_ = project("reference", g, k, distribution_of(name)), expand("reference", c, k, distribution_of(name))
            assert (np.abs(c_.numpy() - phi @ g.numpy()) <= 2 * eps * rows).all()
            assert (np.abs(u_.numpy() - phi.T @ c.numpy()) <= 2 * eps * columns).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_its_upcast(backend, name, dtype):
    g, c, k, distribution = normal(1000, 9, dtype), normal(7, 10, dtype), one(7, 1000), distribution_of(name)
    assert same_bits(project(backend, g, k, distribution), project(backend, g.float(), k, distribution))
    assert same_bits(expand(backend, c, k, distribution), expand(backend, c.float(), k, distribution))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_adjoint(backend, name, dtype):
    """<Φg, c> = <g, Φᵀc> within eps times the sum of all |phi_ij g_j c_i|."""
    for dim, size in ((1, 1), (2, 129), (7, 1000), (250, 2_000 if slow(backend) else 20_000)):
        g, c, k, distribution = normal(size, 11, dtype), normal(dim, 12, dtype), one(dim, size), distribution_of(name)
        left = project(backend, g, k, distribution).double() @ c.double()
        right = g.double() @ expand(backend, c, k, distribution).double()
        most = bounds(name, dim, size, g, c)[0] @ c.abs().double().numpy()
        assert abs(left - right) <= torch.finfo(dtype).eps * most


@pytest.mark.parametrize("name", DENSE)
def test_numbers_that_are_not_finite_reach_every_coordinate(backend, name):
    """No level is 0, so one of them in g is seen in all of c; none appears where there was none."""
    k, distribution = one(20, 3000), distribution_of(name)
    for bad in (math.nan, math.inf, -math.inf):
        for place in some(backend, (0, 1500, 2999), 2):
            g = normal(3000, 13)
            g[place] = bad
            assert not project(backend, g, k, distribution).isfinite().any()
    assert project(backend, normal(3000, 13), k, distribution).isfinite().all()
    assert not expand(backend, torch.tensor([1.0, math.nan]), one(2, 3000), distribution).isfinite().any()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_not_finite_stay_in_their_compartment(backend, name):
    """Even in the first of three short ones that share a buffer."""
    three = Compartment(0, 0, 50, 3), Compartment(1, 50, 90, 2), Compartment(2, 90, 300, 4)
    distribution = distribution_of(name)
    for first, last in ((0, 50), (50, 90), (90, 300)):
        g = normal(300, 22)
        g[first:last] = math.nan
        c = project(backend, g, three, distribution)
        inside = [k.start == first for k in three for _ in range(k.dim)]
        assert c.isnan().tolist() == inside
        u = expand(backend, c, three, distribution)
        assert u.isnan().tolist() == [first <= i < last for i in range(300)]


# shares of a basis


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_depend_on_their_number(backend, name, dtype):
    """Rows i ... j of 250 alone are rows i ... j of all of them, to the bit; in expand too, one at a time."""
    distribution, size = distribution_of(name), 1000 if slow(backend) else 5000
    g, k = normal(size, 14, dtype), one(250, size)
    whole = project(backend, g, k, distribution)
    for first, last in some(backend, ((0, 1), (0, 7), (17, 18), (100, 200), (127, 129), (249, 250))):
        rows = one(last - first, size, row=first, total=250)
        assert same_bits(project(backend, g, rows, distribution), whole[first:last])
        share = expand(backend, one_hot(0, last - first, dtype), rows, distribution)
        assert same_bits(share, expand(backend, one_hot(first, 250, dtype), k, distribution))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["uniform", "countsketch"])
def test_one_plan_serves_all_rows(backend, name):
    """NES names its rows one by one; a plan for each would push the others out of the cache."""
    distribution, total = distribution_of(name), 997 if name == "countsketch" else None
    module = kernels.load(backend, distribution.sparse)
    for row in (0, 3, 996 if total else 2**32 - 1):
        expand(backend, torch.ones(1), one(1, 997, row, total=total), distribution)
        if row == 0:
            before = module._expand_plan.cache_info()
    after = module._expand_plan.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 2)


class OfWindows:
    """NumPy as it was on Windows before version 2: Python's integers become 32 bits long where no dtype is named."""

    def __getattr__(self, name: str):
        return getattr(np, name)

    def array(self, values, dtype=None):
        return self._shorten(np.array(values, dtype), dtype)

    def cumsum(self, values, dtype=None):
        return self._shorten(np.cumsum(values, dtype=dtype), dtype)

    def _shorten(self, made: np.ndarray, dtype) -> np.ndarray:
        return made.astype(np.int32) if dtype is None and made.dtype == np.int64 else made


@pytest.mark.parametrize(("name", "sizes"), [("rademacher", (101_770,)), ("countsketch", (2**30,) * 3)])
def test_plans_have_64_bits_where_integers_have_32(name, sizes, monkeypatch):
    """Places in 3 · 2**30 values do not fit 32 bits, and a table of another dtype is another signature of a kernel."""
    distribution, k = distribution_of(name), one(2, sum(sizes), total=2)
    module, cut = kernels.load("cpu", distribution.sparse), [sizes] if distribution.sparse else []
    monkeypatch.setattr(module, "np", OfWindows())
    plans = [module._project_plan.__wrapped__(k, distribution), module._expand_plan.__wrapped__(k, distribution, *cut)]
    integers = [a for plan in plans for a in vars(plan).values() if isinstance(a, np.ndarray) and a.dtype.kind == "i"]
    assert len(integers) >= 3 and {a.dtype for a in integers} == {np.dtype(np.int64)}


def test_segments_of_the_gpu_do_not_depend_on_the_number_of_rows():
    """A row's bits come from how its columns are cut, so `shares` of a basis add up alike for any number of workers."""
    from rbd.kernels import gpu

    for distribution in map(distribution_of, DENSE):
        plans = [gpu._project_plan(one(dim, 101_770), distribution, torch.device("cpu")) for dim in (1, 125, 250)]
        assert len({int(plan.table[0, 7]) for plan in plans}) == 1  # chunks of a segment


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_columns_do_not_depend_on_what_is_there_of_the_others(backend, name, dtype):
    """Parts of a compartment in one vector, in any order: coordinates add up to the whole's, columns are the whole's own."""
    distribution, size, dim, row = unscaled(name), 1000 if slow(backend) else 20_000, 19, 7
    (whole,) = one(dim, size, row)
    cuts = [0, 1, 127, 128, 300, 777, *((4096, 8192, 12_289, 15_000) if size > 1000 else ()), size]
    pieces = list(zip(cuts, cuts[1:]))[::-1]
    parts, at = [], 0
    for low, high in pieces:
        parts.append(Compartment(INDEX, at, at + high - low, dim, row, low, size - high))
        at += high - low
    g = integers(size, 40, 100, dtype) if name != "normal" else normal(size, 40, dtype)
    c = normal(dim, 41, dtype)
    summands = project(backend, torch.cat([g[low:high] for low, high in pieces]), tuple(parts), distribution).view(-1, dim)
    expected = project("reference", g, (whole,), distribution)
    close = {torch.float32: 2e-6, torch.float64: 1e-14}[dtype] * float(g.abs().sum()) if name == "normal" else 0
    torch.testing.assert_close(summands.sum(0), expected, rtol=0, atol=close)
    columns = expand(backend, c.repeat(len(parts)), tuple(parts), distribution)
    u = expand(backend, c, (whole,), distribution)
    assert same_bits(columns, torch.cat([u[low:high] for low, high in pieces]))


def test_a_part_of_a_compartment_is_scaled_as_the_whole(backend):
    distribution, part = distribution_of("uniform"), (Compartment(INDEX, 0, 10, 2, 0, 30, 60),)
    ones = torch.ones(10)
    assert same_bits(project(backend, ones, part, distribution), project("reference", ones, part, distribution))
    whole = project("reference", torch.cat([torch.zeros(30), ones, torch.zeros(60)]), one(2, 100), distribution)
    torch.testing.assert_close(project(backend, ones, part, distribution), whole)


def several(long: int = 17_000) -> tuple:
    """Compartments of awkward lengths, starts, indices and rows."""
    sizes, dims = (5, 127, 1, 2048, 300, long, 64, 4097), (2, 7, 1, 130, 16, 50, 64, 3)
    stops = np.cumsum(sizes).tolist()
    rows, indices = (0, 9, 0, 1, 2**31, 0, 3, 250), (3, 1, 4, 0, 2**32 - 1, 7, 2, 6)
    return tuple(Compartment(i, stop - n, stop, d, r) for i, n, stop, d, r in zip(indices, sizes, stops, dims, rows))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_compartments_together_are_each_alone(backend, set_threads, name, dtype):
    """Also cut differently among threads, and moved to the start of a vector: positions count inside a compartment."""
    if slow(backend) and dtype == torch.float64 and name != "normal":
        pytest.skip("minutes in Triton's interpreter; normal entries are not skipped")
    together, distribution = several(600 if slow(backend) else 17_000), distribution_of(name)
    g, c = normal(together[-1].stop, 15, dtype), normal(sum(k.dim for k in together), 16, dtype)
    for threads in thread_counts(backend, 1, 2, 3):
        set_threads(threads)
        coordinates, vector, at = project(backend, g, together, distribution), expand(backend, c, together, distribution), 0
        for k in together:
            alone = one(k.dim, k.size, k.row, k.number)
            assert same_bits(coordinates[at : at + k.dim], project(backend, g[k.start : k.stop], alone, distribution))
            assert same_bits(vector[k.start : k.stop], expand(backend, c[at : at + k.dim], alone, distribution))
            at += k.dim


def test_many_compartments(backend):
    """500 of length 1 ... 40 with a direction each, against the reference, with integers."""
    count = 12 if slow(backend) else 500
    sizes = torch.randint(1, 41, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    stops = np.cumsum(sizes).tolist()
    many = tuple(Compartment(i, stop - n, stop, 1) for i, (n, stop) in enumerate(zip(sizes, stops)))
    g, c = integers(stops[-1], 1, 100, torch.float32), integers(count, 2, 100, torch.float32)
    for name in ("rademacher", "uniform", "countsketch"):
        distribution = unscaled(name)
        assert same_bits(project(backend, g, many, distribution), project("reference", g, many, distribution))
        assert same_bits(expand(backend, c, many, distribution), expand("reference", c, many, distribution))


# threads and processes


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_threads_gives_the_same_bits(set_threads, name, dtype):
    backend, distribution, k = "cpu", distribution_of(name), one(250, 101_770)
    g, c, made = normal(101_770, 17, dtype), normal(250, 18, dtype), []
    for threads in (1, 2, 3, 7, 2):
        set_threads(threads)
        made.append((project(backend, g, k, distribution), expand(backend, c, k, distribution)))
    assert all(same_bits(p, made[0][0]) and same_bits(e, made[0][1]) for p, e in made)


def test_calls_from_four_threads_at_once(backend, set_threads):
    """Each with another basis, while a fifth multiplies matrices with torch; all as when done one by one."""
    if slow(backend):
        pytest.skip("Triton's interpreter has one program counter")
    set_threads(2)
    matrix, busy, products = normal(300 * 300, 19).view(300, 300), threading.Event(), []
    jobs = [(name, step, 60_000 + step) for step in range(4) for name in NAMES]

    def work(job) -> tuple[torch.Tensor, torch.Tensor]:
        name, step, size = job
        k, distribution = one(20, size), distribution_of(name)
        c = kernels.project(normal(size, step).to(DEVICES[backend]), BasisSpec(k, distribution, 1, 2, step), backend=backend)
        return c, kernels.expand(c, BasisSpec(k, distribution, 1, 2, step), backend=backend)

    def multiply() -> None:
        while not busy.is_set():
            products.append(matrix @ matrix)

    serial = [work(job) for job in jobs]
    alone = matrix @ matrix
    other = threading.Thread(target=multiply)
    other.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(work, 3 * jobs))
    finally:
        busy.set()
        other.join()
    assert all(same_bits(a, b) for one_, two in zip(together, 3 * serial) for a, b in zip(one_, two))
    assert products
    assert all(torch.equal(p, alone) for p in products)


PROCESS = """
import os, sys, multiprocessing, threading
import torch
from rbd import kernels
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import DISTRIBUTIONS

backend = sys.argv[1]
g = torch.linspace(-1, 1, 100_000)

def work(threads):
    torch.set_num_threads(threads)
    made = []
    for distribution in DISTRIBUTIONS.values():
        spec = BasisSpec((Compartment(0, 0, 100_000, 20),), distribution, 1, 2, 3)
        c = kernels.project(g, spec, backend=backend)
        u = kernels.expand(c, spec, backend=backend)
        made += [c.numpy().tobytes(), u.numpy().tobytes()]  # torch's own threads would hang in a forked child
    return made
"""

FORK = PROCESS + """
if __name__ == "__main__":
    before = work(2)  # starts the threads that a child does not inherit
    child = os.fork()
    if child == 0:
        os._exit(0 if work(2) == before else 1)
    killer = threading.Timer(60, os.kill, (child, 9))  # a child that hangs is a failure, not a wait
    killer.start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killer.cancel()
    assert status == 0, status
    assert work(2) == before  # the parent's threads still work
    print("equal")
"""

SPAWN = PROCESS + """
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply_async(work, (2,))
        assert theirs.get(120) == work(1)
    print("equal")
"""


ENDING = """
import atexit, threading
import torch
from rbd import RBD

torch.set_num_threads(2)
p = torch.nn.Parameter(torch.zeros(300_000))
optimizer = RBD([p], lr=1.0, dim=8)  # enough for two threads

def step(where):
    p.grad = torch.ones(300_000)
    optimizer.step()
    print(where, flush=True)

class Leaving:
    def __del__(self):
        step("del")

def outlive():
    threading.main_thread().join()
    step("later")
    held.clear()

if __name__ == "__main__":
    held = [Leaving()]
    atexit.register(step, "atexit")
    threading.Thread(target=outlive).start()
    helper = threading.Thread(target=step, args=("daemon",), daemon=True)
    helper.start()
    helper.join()
"""


def test_steps_while_the_process_ends(fresh_python):
    """In a daemon thread, in one that outlives the main thread, in the __del__ that this calls, and in atexit."""
    assert fresh_python(ENDING).split() == ["daemon", "later", "del", "atexit"]


@pytest.mark.parametrize("name", NAMES)
def test_without_more_threads_one_does_it_all(name, monkeypatch, set_threads):
    """A system, or a container, that refuses to start one: at the first, and when one is there already."""
    set_threads(3)
    monkeypatch.setattr(team, "_openmp", lambda: None)  # whose threads torch has started, or has failed to
    size = 1_200_000 if name == "countsketch" else 101_770
    g, k, distribution = normal(size, 23), one(250, size), distribution_of(name)
    expected = project("cpu", g, k, distribution)

    start, started = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(start(thread))

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for most in (0, 1):
        monkeypatch.setattr(team, "_idle", [])
        monkeypatch.setattr(team, "_started", 0)
        assert all(same_bits(project("cpu", g, k, distribution), expected) for _ in range(5))
        assert len(started) == most


@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="this system has no fork")
def test_after_fork(fresh_python):
    assert fresh_python(FORK, "cpu") == "equal\n"


def test_in_a_spawned_worker(fresh_python):
    assert fresh_python(SPAWN, "cpu") == "equal\n"


# memory

PEAK = """
import resource, sys
import torch
from rbd import RBD, kernels
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import distribution as distribution_of
backend, few, many, size = sys.argv[1], *map(int, sys.argv[2:])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def use(dim):
    g = torch.ones(size)
    for name in ("normal", "rademacher", "countsketch"):
        spec = BasisSpec((Compartment(0, 0, size, dim),), distribution_of(name), 0, 0, 0)
        kernels.expand(kernels.project(g, spec, backend=backend), spec, backend=backend)
        if backend == "cpu":
            p = torch.nn.Parameter(torch.zeros(size))
            p.grad = g
            RBD([p], lr=1.0, dim=dim, distribution=name).step()

use(few)
before = peak()
use(many)
print(before, peak())
"""


def test_memory_does_not_grow_with_dim(fresh_python):
    """d = 10, then d = 10,000 at D = 200,000 in one process: the peak may grow by 1 %, a stored basis is 8 GB."""
    pytest.importorskip("resource")
    before, after = map(int, fresh_python(PEAK, "cpu", "10", "10000", "200000").split())
    assert after <= 1.01 * before


def test_memory_of_the_reference_does_not_grow_with_dim(fresh_python):
    """It works in tiles of 2**20 entries: from d = 50 to 600 at D = 40,000 it may grow by 5 %; stored, 88 MB (20 %)."""
    pytest.importorskip("resource")
    before, after = map(int, fresh_python(PEAK, "reference", "50", "600", "40000").split())
    assert after <= 1.05 * before


PEAK_OF_STEPS = """
import resource
import torch
from rbd import RBD
size, few, many = 10**7, 10, 10_000  # vectors of 40 MB, which malloc gives back to the system at once

def peak(optimizer):
    optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def sketched(p, dim):
    return RBD([p], lr=1.0, dim=dim, distribution="countsketch")

for dim in (few, many, 20_000):  # loads the kernels
    p = torch.nn.Parameter(torch.zeros(20_000))
    p.grad = torch.ones(20_000)
    sketched(p, dim).step()
p = torch.nn.Parameter(torch.zeros(size))
p.grad = torch.ones(size)
print(peak(torch.optim.SGD([p], lr=1.0)), *(peak(sketched(p, dim)) for dim in (few, many, size)))
"""


def test_memory_of_a_step_with_countsketch(fresh_python):
    """From d = 10 to 10,000 it may grow by 1 %; it is at most SGD's + 3 D floats, also where d = D and c has D floats."""
    pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    sgd, few, many, most = (unit * int(word) for word in fresh_python(PEAK_OF_STEPS).split())
    assert many <= 1.01 * few
    assert most <= sgd + 3 * 4 * 10**7


# compiled code kept between processes

COMPILED = """
import torch
from rbd import Basis
from rbd.kernels import cpu
basis = Basis(2, 100, "rademacher")
g = torch.arange(100.0)
dispatchers = [cpu._project_signs, cpu._add_parts]
close = torch.allclose(basis.project(g), basis.dense() @ g, atol=1e-4)
print(close, *(sum(getattr(d.stats, kind).values()) for kind in ("cache_hits", "cache_misses") for d in dispatchers))
"""


@pytest.fixture(scope="module")
def compiled(fresh_python, tmp_path_factory) -> tuple[Callable[[], str], Path, str]:
    """A copy of the package with a cache of its own: how to run the script, its philox.py, the first run's words."""
    root = tmp_path_factory.mktemp("copy")
    copytree(Path(rbd.__file__).parent, root / "rbd", ignore=ignore_patterns("__pycache__", "embedded", "tests"))

    def run() -> str:
        return fresh_python(COMPILED, root=root, NUMBA_CACHE_DIR=str(root / "cache"))

    return run, root / "rbd" / "philox.py", run()


def test_second_process_compiles_nothing(compiled):
    run, _, first = compiled
    assert first == "True 0 0 1 1\n"  # hits, hits, misses, misses
    assert run() == "True 1 1 0 0\n"


def test_compiled_code_is_not_older_than_the_generator(compiled):
    """A changed philox.py beside an old cache: kernels and reference must still make the same words."""
    run, philox, _ = compiled
    philox.write_text(philox.read_text().replace("0x9E3779B9", "0x9E3779B7"))
    assert run().startswith("True")


# bad input


@pytest.mark.parametrize("direction", [kernels.project, kernels.expand], ids=["project", "expand"])
@pytest.mark.parametrize("spec", [BasisSpec(one(10, 10), distribution_of(name), *KEY) for name in ("normal", "countsketch")],
                         ids=["normal", "countsketch"])  # fmt: skip
class TestBadInput:
    """g for project, c for expand, both (10,), in a basis of ten directions in R^10."""

    @pytest.mark.parametrize("shape", [(9,), (11,), (1, 10), (10, 1), (), (0,)], ids=str)
    def test_shape(self, direction, spec, shape):
        with pytest.raises(ValueError, match=rf"^[gc]: got shape {_escaped(shape)}, allowed \(10,\)$"):
            direction(torch.zeros(shape), spec)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64], ids=str)
    def test_dtype(self, direction, spec, dtype):
        with pytest.raises(TypeError, match=rf"^[gc]: got {dtype}, allowed a real floating-point tensor$"):
            direction(torch.zeros(10, dtype=dtype), spec)

    @pytest.mark.parametrize("given", [[0.0] * 10, np.zeros(10), None, 1.0], ids=["list", "array", "None", "float"])
    def test_type(self, direction, spec, given):
        with pytest.raises(TypeError, match=rf"^[gc]: got {type(given).__name__}, allowed a real floating-point"):
            direction(given, spec)

    def test_layout(self, direction, spec):
        with pytest.raises(TypeError, match=r"^[gc]: got layout torch.sparse_coo, allowed torch.strided$"):
            direction(torch.ones(10).to_sparse(), spec)

    def test_device(self, direction, spec):
        with pytest.raises(RuntimeError, match=r"^device: no kernels for 'meta', allowed .*'cpu'"):
            direction(torch.zeros(10, device="meta"), spec)
        with pytest.raises(RuntimeError, match=r"^device: backend 'reference' works on 'cpu', got a tensor on 'meta'$"):
            direction(torch.zeros(10, device="meta"), spec, backend="reference")

    @pytest.mark.parametrize("out", [
        torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.int32), torch.zeros(9), torch.zeros(1, 10),
        torch.zeros(20)[::2], torch.zeros(10, device="meta"), [0.0] * 10, np.zeros(10, np.float32),
    ], ids=["float64", "int32", "short", "matrix", "strided", "meta", "list", "array"])  # fmt: skip
    def test_out(self, direction, spec, out):
        with pytest.raises((TypeError, ValueError), match=r"^out: got .*allowed .*torch.float32"):
            direction(torch.zeros(10), spec, out=out)

    def test_out_of_double(self, direction, spec):
        with pytest.raises(ValueError, match=r"^out: got torch.float32 \(10,\) on cpu, allowed .* torch.float64"):
            direction(torch.zeros(10, dtype=torch.float64), spec, out=torch.zeros(10))

    @pytest.mark.parametrize("name", ["tpu", "", "CPU"])
    def test_backend(self, direction, spec, name):
        with pytest.raises(ValueError, match=rf"^backend: got '{name}', allowed 'reference', 'cpu'"):
            direction(torch.zeros(10), spec, backend=name)


def _escaped(shape: tuple) -> str:
    return str(shape).replace("(", r"\(").replace(")", r"\)")


def test_input_may_be_strided_or_part_of_a_graph(backend):
    """Contiguous copies are made where needed; nothing is recorded for autograd; the input is not changed."""
    distribution, k = distribution_of("normal"), one(7, 1000)
    g = normal(2000, 20)[::2]
    kept = g.clone()
    expected = project(backend, g.contiguous(), k, distribution)
    assert same_bits(project(backend, g, k, distribution), expected)
    parameter = torch.nn.Parameter(g.clone())
    made = kernels.project(2 * parameter.to(DEVICES[backend]), BasisSpec(k, distribution, *KEY), backend=backend)
    assert not made.requires_grad
    assert same_bits(made.cpu(), 2 * expected)  # a power of two: exact
    assert torch.equal(g, kept)
    assert same_bits(project(backend, torch.complex(g, g).conj().imag, k, distribution), -expected)  # a lazy negation


def test_out_may_be_the_input(backend):
    size = 100 if slow(backend) else 1000
    distribution, k, g = distribution_of("normal"), one(size, size), normal(size, 21).to(DEVICES[backend])
    for direction in (kernels.project, kernels.expand):
        expected = direction(g, BasisSpec(k, distribution, *KEY), backend=backend)
        x = g.clone()
        direction(x, BasisSpec(k, distribution, *KEY), out=x, backend=backend)
        assert same_bits(x, expected)


@pytest.mark.parametrize("backend", ["reference", "cpu", "gpu"])
@pytest.mark.parametrize("name", FAMILIES)
def test_memory_in_common_is_not_read_after_it_has_been_written(backend, name):
    """Results of the first compartment were read as input of the second, or of another unit of a sketch of many rows."""
    dims, device = ((40, 60) if name == "rademacher" or slow(backend) else (4500, 100)), DEVICES[backend]
    sizes = [2 * d for d in dims]
    k = Compartment(0, 0, sizes[0], dims[0]), Compartment(1, sizes[0], sum(sizes), dims[1])
    spec, d = BasisSpec(k, distribution_of(name), *KEY), sum(dims)
    values = normal(sum(sizes), 21).to(device)

    def twins() -> list[torch.Tensor]:
        """Two tensors of one memory; on the CPU with two storages, which do not begin at one address."""
        if values.is_cuda:
            return [made := values.clone(), made[1 : d + 1]]
        made = values.numpy().copy()
        return [torch.from_numpy(made), torch.from_numpy(made[1 : d + 1])]

    whole, part = twins()
    wanted = kernels.project(values, spec, backend=backend)
    assert same_bits(kernels.project(whole, spec, out=part, backend=backend), wanted)
    whole, part = twins()
    wanted = kernels.expand(part.clone(), spec, backend=backend)
    assert same_bits(kernels.expand(part, spec, out=whole, backend=backend), wanted)
    whole, part = twins()
    kernels.add(part, spec, [whole], backend=backend)
    assert same_bits(whole, values + wanted)


# straight into parameters


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_add_on_another_device_than_the_default_one(name, backend):
    """Temporaries are made where the parameters are."""
    basis, c = BasisSpec((Compartment(5, 0, 100, 3),), distribution_of(name), *KEY), normal(3, 1)
    made = [torch.zeros(100, dtype=torch.bfloat16), torch.zeros(100, dtype=torch.bfloat16)]
    kernels.add(c, basis, made[:1], backend=backend)
    with torch.device("meta"):
        kernels.add(c, basis, made[1:], backend=backend)
    assert torch.equal(*made)


@pytest.mark.parametrize(("dtype", "of_c"), [
    (torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32),
    (torch.float64, torch.float32), (torch.float32, torch.float64),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_add_is_expand_then_addition(backend, name, dtype, of_c):
    """Onto tensors that cross compartments and tiles, of any shape; the padding between them is left alone."""
    distribution, k = distribution_of(name), (Compartment(5, 0, 700, 3), Compartment(0, 700, 1000, 7, 2))
    c = normal(10, 24, of_c)
    shapes = ((13, 50), (1,), (4, 2, 3), (325,))
    buffer = torch.cat([torch.cat([normal(math.prod(s), 25), torch.full((3,), math.nan)]) for s in shapes]).to(dtype)
    buffer = buffer.to(DEVICES[backend])
    pieces = buffer.split([n for s in shapes for n in (math.prod(s), 3)])
    params = [piece.view(s) for piece, s in zip(pieces[::2], shapes)]
    before, version = [p.clone().cpu() for p in params], params[0]._version
    kernels.add(c.to(buffer.device), BasisSpec(k, distribution, *KEY), params, backend=backend)
    assert params[0]._version > version  # so that autograd notices
    u = expand(backend, c, k, distribution).split([p.numel() for p in params])
    for p, old, v in zip(params, before, u):
        wide = torch.promote_types(v.dtype, dtype)
        expected = (old.to(wide) + v.view_as(old).to(wide)).to(dtype)
        ulp = 2**-7 if slow(backend) and dtype == torch.bfloat16 else 0  # the interpreter cuts bits off, a GPU rounds
        torch.testing.assert_close(p.cpu(), expected, rtol=ulp, atol=0)
    assert all(gap.isnan().all() for gap in pieces[1::2])


@pytest.mark.parametrize("of_c", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["rademacher", "countsketch"])
def test_add_onto_any_strides_and_dtypes(backend, name, of_c):
    """Values are numbered in logical order: channels-last, transposed and sliced tensors, some wider than others."""
    distribution, device = distribution_of(name), DEVICES[backend]
    k = Compartment(5, 0, 60, 3), Compartment(0, 60, 116, 7, 2)
    plain = [normal(60, 1).view(5, 3, 2, 2), normal(24, 2).view(6, 4), normal(20, 3).double(), normal(12, 4).bfloat16()]
    strided = [plain[0].to(device, copy=True, memory_format=torch.channels_last), plain[1].to(device).t().contiguous().t(),
               plain[2].repeat_interleave(2).to(device)[::2], plain[3].to(device, copy=True)]  # fmt: skip
    assert [p.is_contiguous() for p in strided] == [False, False, False, True]
    c, version = normal(10, 24, of_c), strided[0]._version
    kernels.add(c.to(device), BasisSpec(k, distribution, *KEY), strided, backend=backend)
    assert strided[0]._version > version
    for p, old, v in zip(strided, plain, expand(backend, c, k, distribution).split([p.numel() for p in plain])):
        wide = torch.promote_types(old.dtype, v.dtype)
        assert torch.equal(p.cpu(), (old.to(wide) + v.view_as(old).to(wide)).to(old.dtype))


class TestBadParams:
    SPEC = BasisSpec(one(2, 10), distribution_of("normal"), *KEY)

    def test_values(self):
        with pytest.raises(ValueError, match=r"^params: got 9 values, allowed 10$"):
            kernels.add(torch.zeros(2), self.SPEC, [torch.zeros(9)], backend="cpu")

    @pytest.mark.parametrize("params", [
        [torch.zeros(5), torch.zeros(5, dtype=torch.int32)], [torch.zeros(10, device="meta")], [torch.zeros(10).to_sparse()],
        [torch.zeros(10).to_mkldnn()], [torch.zeros(10, dtype=torch.float8_e4m3fn)], [None],
    ], ids=["integers", "device", "sparse", "mkldnn", "8 bits", "none"])  # fmt: skip
    def test_tensors(self, params):
        with pytest.raises(TypeError, match="^params: got .*, allowed strided .* tensors of 16 to 64 bits on cpu$"):
            kernels.add(torch.zeros(2), self.SPEC, params)


# torch.compile


def test_compiled_without_a_break_and_without_tracing_again(backend):
    """The step counts up, as in training: two traces (a number, then any number), whatever its value."""
    distribution, k, count = distribution_of("uniform"), one(20, 1000), CompileCounterWithBackend("aot_eager")

    def direction(g: torch.Tensor, step: int) -> torch.Tensor:
        c = kernels.project(g, BasisSpec(k, distribution, 1, 2, step), backend=backend)
        return kernels.expand(c / 2, BasisSpec(k, distribution, 1, 2, step), backend=backend)

    g = normal(1000, 23).to(DEVICES[backend])
    compiled = torch.compile(direction, backend=count, fullgraph=True)
    made = [compiled(g, step) for step in (3, 2**31, 2**31 + 1, 2**32 - 1)]
    assert count.frame_count <= 2
    for u, step in zip(made, (3, 2**31, 2**31 + 1, 2**32 - 1)):
        c = kernels.project(g, BasisSpec(k, distribution, 1, 2, step), backend=backend)
        assert same_bits(u, kernels.expand(c / 2, BasisSpec(k, distribution, 1, 2, step), backend=backend))


# on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_step_in_device_memory(name):
    """Read when the kernel runs, so that a CUDA graph can count it up."""
    distribution, k, g = distribution_of(name), one(7, 1000), normal(1000, 26).to(DEVICES["gpu"])
    for step in (0, 7, 2**32 - 1):
        counter = torch.tensor(step, device=g.device)
        counted = BasisSpec(k, distribution, 1, 2, counter)
        c, u = kernels.project(g, counted, backend="gpu"), kernels.expand(g[:7], counted, backend="gpu")
        assert same_bits(c, kernels.project(g, BasisSpec(k, distribution, 1, 2, step), backend="gpu"))
        assert same_bits(u, kernels.expand(g[:7], BasisSpec(k, distribution, 1, 2, step), backend="gpu"))


@pytest.mark.parametrize("name", NAMES)
def test_first_row_in_device_memory(backend, name):
    """A graph replayed for row after row: each as if it had been named, also in a plan of later rows, and in ``add``."""
    distribution, size, device = distribution_of(name), 500, DEVICES[backend]
    g, one_ = normal(size, 26).to(device), torch.ones(1, device=device)
    counter = torch.zeros((), dtype=torch.int64, device=device)
    for row, first in ((0, 1), (5, 0)):
        counter += row
        named = BasisSpec(one(1, size, row + first, total=7), distribution, 1, 2, 3)
        counted = BasisSpec(one(1, size, first, total=7), distribution, 1, 2, 3, counter)
        assert same_bits(*(kernels.expand(one_, spec, backend=backend) for spec in (named, counted)))
        assert same_bits(*(kernels.project(g, spec, backend=backend) for spec in (named, counted)))
    added = [torch.zeros(size, device=device) for _ in range(2)]
    kernels.add(one_, named, added[:1], backend=backend)
    kernels.add(one_, counted, added[1:], backend=backend)
    assert same_bits(*added)
    if backend == "cpu":  # the operators choose the backend by the device
        leaf = one_.clone().requires_grad_()
        u = kernels.differentiable_expand(leaf, counted)
        (grad,) = torch.autograd.grad(u, leaf, g)
        assert same_bits(u.detach(), kernels.expand(one_, named)) and same_bits(grad, kernels.project(g, named))


@pytest.fixture
def planned(monkeypatch) -> Iterator[Callable[[int], None]]:
    """Plan project anew, with at most so many programs, and rows as on a GPU."""
    gpu = kernels.load("gpu")
    monkeypatch.setattr(gpu, "_ROWS", {"normal": 8, "uniform": 16, "rademacher": 16})

    def most(programs: int) -> None:
        monkeypatch.setattr(gpu, "PROGRAMS", programs)
        gpu._project_plan.cache_clear()

    yield most
    gpu._project_plan.cache_clear()


def plan_of(k: tuple, distribution: Distribution):
    return kernels.load("gpu")._project_plan(k, distribution, torch.device(DEVICES["gpu"]))


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "size"), [("normal", 4_600), ("uniform", 9_700), ("rademacher", 20_000)])
def test_any_share_of_segments_gives_the_same_bits(planned, name, size):
    """9 or 10 segments, one, two, four or all to a program, which leaves its counters as it found them; and cut columns."""
    distribution, g, made = distribution_of(name), normal(size, 50), []
    k = (Compartment(INDEX, 0, size - 9, 18 if name == "uniform" else 3, 0, 5, 4), Compartment(0, size - 9, size, 2))
    for programs, share in ((10**6, 1), (7, 2), (4, 4), (1, 64)):
        planned(programs)
        made += [project("gpu", g, k, distribution) for _ in range(2 if share == 2 else 1)]
        plan = plan_of(k, distribution)
        if name != "uniform":
            assert int(plan.table[0, kernels.load("gpu")._PROJECT.value.segments]) == share
        assert not any(counters.any() for counters in plan.counters.of_stream.values())
    assert all(same_bits(c, made[0]) for c in made)
    torch.testing.assert_close(made[0], project("reference", g, k, distribution), rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_calls_that_find_no_free_counters_make_their_own(planned):
    planned(10**6)
    distribution, k, g = distribution_of("rademacher"), one(3, 5000), normal(5000, 51)
    expected, counters = project("gpu", g, k, distribution), plan_of(k, distribution).counters
    device = counters.free[0].device
    assert counters.of_call(device) is counters.of_call(device)
    assert len(counters.free) + len(counters.of_stream) == kernels.load("gpu").COUNTER_SETS
    assert len({x.data_ptr() for x in (*counters.free, *counters.of_stream.values())}) == kernels.load("gpu").COUNTER_SETS
    counters.of_stream.clear(), counters.free.clear()
    assert same_bits(project("gpu", g, k, distribution), expected)
    assert not counters.of_stream


@pytest.mark.gpu
def test_calls_of_an_owner_share_counters(planned):
    """Also in a graph: an optimizer's need no set of their own, nor one that a graph has to clear."""

    class Owner:
        pass

    planned(10**6)
    distribution, k, g = distribution_of("rademacher"), one(3, 5000), normal(5000, 51).to(DEVICES["gpu"])
    expected, counters, owners = project("gpu", g, k, distribution), plan_of(k, distribution).counters, [Owner(), Owner()]
    for owner in (*owners, *owners):
        token = kernels.load("gpu").OWNER.set(owner)
        try:
            assert counters.of_call(g.device) is counters.of_call(g.device) is counters.of_owner[owner]
            assert same_bits(project("gpu", g, k, distribution), expected)
        finally:
            kernels.load("gpu").OWNER.reset(token)
    sets = [*counters.free, *counters.of_stream.values(), *counters.of_owner.values()]
    assert len({x.data_ptr() for x in sets}) == len(sets) == kernels.load("gpu").COUNTER_SETS + 2
    assert not any(x.any() for x in sets) and all(x.data_ptr() % 16 == 0 for x in sets)
    del owner, owners
    assert not counters.of_owner  # they end with their owners


@pytest.mark.parametrize("groups", range(1, 20))
def test_all_sets_of_counters_are_aligned_alike(groups):
    """To 16 bytes: Triton would load another kernel for an address that is not, which a capture forbids."""
    counters = kernels.load("gpu")._Counters.of(groups, torch.device("cpu"))
    assert {x.data_ptr() % 16 for x in counters.free} == {0} and all(len(x) >= groups for x in counters.free)


def test_programs_and_partial_sums_of_the_gpu(planned):
    """Some hundreds of programs where rows and segments allow it; partial sums of 128 KiB at most, none at d = 10,000."""
    planned(kernels.load("gpu").PROGRAMS)
    for name, programs in (("normal", 800), ("uniform", 800), ("rademacher", 800)):
        assert len(plan_of(one(250, 101_770), distribution_of(name)).owners) == programs
    for name, programs in (("normal", 1250), ("uniform", 625), ("rademacher", 625)):
        for size in (101_770, 10**6, 10**8):
            plan = plan_of(one(10_000, size), distribution_of(name))
            assert (len(plan.owners), plan.partials) == (programs, 0)
            plans = (plan_of(one(d, size), distribution_of(name)) for d in (1, 10, 250, 1000, 4000, 8192))
            assert max(plan.partials for plan in plans) <= 2**14


@on_a_gpu
@pytest.mark.parametrize("name", NAMES)
def test_cuda_graph_counts_up(name):
    """A graph captured once draws a new basis at every replay."""
    distribution, k, g = distribution_of(name), one(250, 101_770), normal(101_770, 27).cuda()
    counter, c = torch.zeros((), dtype=torch.int64, device="cuda"), torch.empty(250, device="cuda")
    kernels.project(g, BasisSpec(k, distribution, 1, 2, counter), out=c)  # compiles, and makes the tables
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels.project(g, BasisSpec(k, distribution, 1, 2, counter), out=c)
        counter += 1
    for step in range(3):
        graph.replay()
        assert same_bits(c, kernels.project(g, BasisSpec(k, distribution, 1, 2, step)))


@on_a_gpu
def test_memory_of_the_gpu_does_not_grow_with_dim():
    """d = 10, then d = 10,000 at D = 10**7: 1 % at most; stored, 373 GiB. Coordinates and tables take some 0.1 MB."""
    g, peaks = torch.ones(10**7, device="cuda"), []
    for dim in (10, 10, 10_000):
        torch.cuda.reset_peak_memory_stats()
        for name in NAMES:
            spec = BasisSpec(one(dim, 10**7), distribution_of(name), 0, 0, 0)
            kernels.expand(kernels.project(g, spec), spec)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[2] <= 1.01 * peaks[1]


@on_a_gpu
def test_current_stream_and_device():
    """Work queued on a side stream is seen by nobody else until it is waited for."""
    distribution, k, g = distribution_of("normal"), one(250, 101_770), normal(101_770, 28).cuda()
    expected = kernels.project(g, BasisSpec(k, distribution, 1, 2, 3))  # compiles, and makes the tables
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(10**9)  # cycles
        c = kernels.project(g, BasisSpec(k, distribution, 1, 2, 3))
        done = side.record_event()
    assert not done.query()
    done.synchronize()
    assert same_bits(c, expected)


@on_a_gpu
@pytest.mark.parametrize("name", NAMES)
def test_calls_and_graphs_beside_each_other_share_no_counters(name):
    """One plan on two streams at once, eager and in a graph of each: 200 rounds, all as when done alone."""
    distribution, k, g = distribution_of(name), one(250, 101_770), normal(101_770, 52).cuda()
    expected = kernels.project(g, BasisSpec(k, distribution, 1, 2, 3))
    torch.testing.assert_close(expected.cpu(), project("reference", g.cpu(), k, distribution, (1, 2, 3)), rtol=0, atol=1e-4)
    streams, graphs, made = [torch.cuda.Stream() for _ in range(2)], [], [torch.empty_like(expected) for _ in range(2)]
    for out in made:
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            kernels.project(g, BasisSpec(k, distribution, 1, 2, 3), out=out)
    torch.cuda.synchronize()
    for _ in range(200):
        eager = []
        for stream, graph, out in zip(streams, graphs, made):
            with torch.cuda.stream(stream):
                out.fill_(math.nan)
                graph.replay()
                eager.append(kernels.project(g, BasisSpec(k, distribution, 1, 2, 3)))
        torch.cuda.synchronize()
        assert all(same_bits(c, expected) for c in (*made, *eager))


# for a GPU that is not there

COMPILE = """
import re, subprocess, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from rbd.distribution import DISTRIBUTIONS
from rbd.kernels import countsketch_gpu, gpu

def cubin(kernel, warps, constants, registers=None, **types):
    signature = types | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    options = {"num_warps": warps, "maxnreg": registers}
    made = compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        used = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    (stack,) = re.findall(r"STACK:(\\d+)", used.stdout + used.stderr)
    assert stack == "0", (kernel.__name__, constants, used.stdout)  # nothing is spilled to memory

words = dict(seed="i32", stream="i32", row0="i32", octaves="*fp32", owners="*i32", table="*i64", scales="*fp64")
for name, distribution in DISTRIBUTIONS.items():
    if distribution.sparse:
        continue
    tile = gpu._tile(distribution)
    for step, g in (("i32", "*fp32"), ("*i64", "*bf16")):
        sums = dict(partial="*fp64", counters="*i32", out="*fp32")
        tall, registers = {"R": gpu._ROWS[name], "N": gpu.SEGMENTS}, gpu._REGISTERS[name][0]
        words["row0"] = step  # a number, or in device memory
        cubin(gpu._project, gpu._WARPS[name], tile | tall, registers, **words, **sums, step=step, g=g)
        more = {"P": gpu._PARTS[name], "L": gpu.TILE_LANES, "ADD": g == "*bf16"}
        types = dict(c="*fp32", out=g, addresses="*i64")
        cubin(gpu._expand, gpu.TILE_LANES // 32, tile | more, **words, **types, step=step)
    if name == "normal":  # of float64, the one that is nearest to its limit of registers
        wide = dict(partial="*fp64", counters="*i32", out="*fp64", step="*i64", g="*fp64")
        cubin(gpu._project, gpu._WARPS[name], tile | tall, gpu._REGISTERS[name][1], **words, **wide)

made = dict(owners="*i32", table="*i64", words="*i32")
for step, g in (("i32", "*fp32"), ("*i64", "*bf16")):
    blocks = {"N": countsketch_gpu.BATCH * 16}
    cubin(countsketch_gpu._make_words, 4, blocks, **made, seed="i32", stream="i32", step=step)
    types = made | dict(scales="*fp64", row0=step)
    for tall in countsketch_gpu.TALL[:: 1 if g == "*fp32" else 3]:
        tile = {"R": tall, "S": countsketch_gpu.TILE // tall}
        cubin(countsketch_gpu._project, 4, tile, **types, g=g, partial="*fp64", counters="*i32", out="*fp32")
    cubin(countsketch_gpu._expand, 4, {"ADD": g == "*bf16"}, **types, c="*fp32", out=g, addresses="*i64")
print("compiled")
"""


def test_gpu_kernels_compile_for_hopper(fresh_python):
    """To machine code without spills, by Triton and ptxas, which need no GPU: the interpreter accepts what they do not."""
    pytest.importorskip("triton")
    assert fresh_python(COMPILE, TRITON_INTERPRET="0").endswith("compiled\n")


# tensors without an address, and whoever follows torch's operations


class Wrapped(torch.Tensor):
    """Two tensors in the place of one, as wrappers in torch's own tests are: no values at an address of its own."""

    @staticmethod
    def __new__(cls, a: torch.Tensor, b: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(cls, a.shape, dtype=a.dtype, device=a.device)

    def __init__(self, a: torch.Tensor, b: torch.Tensor):
        self.both = a, b

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def at(i: int, x):
            return tree_map(lambda v: v.both[i] if isinstance(v, Wrapped) else v, x)

        made = [func(*at(i, args), **at(i, kwargs or {})) for i in range(2)]
        if func.__name__.split(".")[0].endswith("_"):  # in place
            return args[0]
        return tree_map(lambda a, b: cls(a, b) if isinstance(a, torch.Tensor) else a, *made)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_private_names_of_torch_are_there_and_tell_who_follows():
    """Without them, kernels would again read from no address: the process ends."""
    assert not memory.is_watched()
    with FakeTensorMode():
        assert memory.is_watched()
    seen = []
    torch.func.vmap(lambda x: seen.append(memory.is_watched()) or x)(torch.ones(2, 3))
    for options in ({}, {"pre_dispatch": True}, {"tracing_mode": "fake"}):
        make_fx(lambda x: seen.append(memory.is_watched()) or x + 1, **options)(torch.ones(3))
    torch.jit.trace(lambda x: seen.append(memory.is_watched()) or x + 1, (torch.ones(3),), check_trace=False)
    assert len(seen) == 5 and all(seen) and not memory.is_watched()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_traces_hold_the_product(name):
    """Not only the memory for its result."""
    spec, g, c = BasisSpec(one(10, 1000), distribution_of(name), *KEY), normal(1000, 1), normal(10, 2)
    for product, x in ((kernels.project, g), (kernels.expand, c)):
        call, zeros = partial(product, spec=spec), torch.zeros_like(x)
        for traced in (make_fx(lambda x: call(x))(zeros), make_fx(lambda x: call(x), pre_dispatch=True)(zeros),  # noqa: B023
                       torch.jit.trace(lambda x: call(x), (zeros,))):  # noqa: B023  # fmt: skip
            assert same_bits(traced(x), call(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_fake_tensors_give_fake_results(name):
    """As estimators of memory make them; mixed with real ones in torch's own way."""
    spec, g, c = BasisSpec(one(10, 1000), distribution_of(name), *KEY), normal(1000, 1), normal(10, 2)
    mode = FakeTensorMode()
    fakes = {length: mode.from_tensor(torch.zeros(length)) for length in (10, 1000)}
    assert isinstance(made := kernels.project(fakes[1000], spec), FakeTensor) and made.shape == (10,)
    assert isinstance(made := kernels.expand(fakes[10], spec), FakeTensor) and made.shape == (1000,)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(kernels.expand(c, spec), FakeTensor) and isinstance(kernels.project(g, spec), FakeTensor)
        assert all(isinstance(p, FakeTensor) for p in kernels.shift(c, spec, [g]))
    with mode:
        params = [torch.zeros(10, 100)]
        kernels.add(torch.ones(10), spec, params)
        prepared = kernels.prepare(spec, [1000], torch.device("cpu"))
        if prepared is not None:
            assert prepared.project([torch.zeros(1000)], torch.float32) is None
            assert prepared.expand(torch.zeros(10)) is None
            assert prepared.shift(torch.zeros(10), [torch.zeros(1000)]) is None
    with pytest.raises(Exception, match="Please convert all Tensors to FakeTensors first"):
        kernels.add(c, spec, [fakes[1000]])
    with pytest.raises(Exception, match="FakeTensor"):
        kernels.project(g, spec, out=fakes[10])


@pytest.mark.parametrize("name", FAMILIES)
def test_wrapped_tensors_go_through_torch(name):
    spec, g, h, c = BasisSpec(one(10, 1000), distribution_of(name), *KEY), normal(1000, 1), normal(1000, 2), normal(10, 3)
    both = kernels.project(Wrapped(g, h), spec).both
    assert same_bits(both[0], kernels.project(g, spec)) and same_bits(both[1], kernels.project(h, spec))
    wanted = [x + kernels.expand(c, spec) for x in (g, h)]
    param = Wrapped(g.clone(), h.clone())
    kernels.add(c, spec, [param])
    assert all(map(same_bits, param.both, wanted))
    if prepared := kernels.prepare(spec, [1000], torch.device("cpu")):
        assert prepared.project([param], torch.float32) is None and prepared.shift(c, [param]) is None
        assert prepared.expand(Wrapped(c, c)) is None and prepared.expand(c, Wrapped(g, h)) is None
        assert prepared.shift(Wrapped(c, c), [g]) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_sharded_tensors_are_refused(name, fresh_python):
    source = f"""
        import torch, torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Replicate, distribute_tensor
        from rbd import Basis, kernels
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        basis, mesh = Basis(10, 1000, {name!r}), init_device_mesh("cpu", (1,))
        param = distribute_tensor(torch.zeros(1000), mesh, [Replicate()])
        for call in (lambda: kernels.add(torch.ones(10), basis._spec(), [param]), lambda: basis.project(param)):
            try:
                call()
            except RuntimeError as error:  # NotImplementedError is one
                print(error)
        print("zeros", int(param.to_local().count_nonzero()))
        dist.destroy_process_group()
    """
    found = fresh_python(textwrap.dedent(source))
    assert "mixed torch.Tensor and DTensor" in found and "sharding strategy" in found and "zeros 0" in found


@pytest.mark.parametrize("name", FAMILIES)
def test_zeros_without_memory(name):
    """Of forward-mode derivatives: products are zeros, and none can be overwritten."""
    spec, g, c = BasisSpec(one(10, 1000), distribution_of(name), *KEY), normal(1000, 1), normal(10, 2)
    zeros = {length: torch._efficientzerotensor((length,)) for length in (10, 500, 1000)}
    assert not kernels.project(zeros[1000], spec).any() and not kernels.expand(zeros[10], spec).any()
    first = torch.zeros(500)
    for call in (lambda: kernels.add(c, spec, [first, zeros[500]]), lambda: kernels.project(g, spec, out=zeros[10])):
        with pytest.raises(RuntimeError, match="^(params|out): got zeros without memory"):
            call()
    assert not first.any()


@pytest.mark.parametrize("name", FAMILIES)
def test_freed_memory(name):
    """The storage of a tensor may be resized to nothing, as FSDP does."""
    spec, g, c = BasisSpec(one(10, 1000), distribution_of(name), *KEY), normal(1000, 1), normal(10, 2)

    def freed(length: int) -> torch.Tensor:
        x = torch.zeros(length)
        x.untyped_storage().resize_(0)
        return x

    for what, call in {"g": lambda: kernels.project(freed(1000), spec), "c": lambda: kernels.expand(freed(10), spec),
                       "out": lambda: kernels.project(g, spec, out=freed(10)),
                       "params": lambda: kernels.add(c, spec, [freed(1000)])}.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"^{what}: got a tensor whose memory was freed"):
            call()


# writes that autograd has to know of


@pytest.mark.parametrize("name", FAMILIES)
def test_out_counts_as_changed(backend, name):
    """A graph that needs the old values of out raises, as after torch's own operations; wrong gradients otherwise."""
    spec, device = BasisSpec(one(10, 1000), distribution_of(name), *KEY), DEVICES[backend]
    g, c = normal(1000, 1).to(device), normal(10, 2).to(device)
    for product, x, length in ((kernels.project, g, 10), (kernels.expand, c, 1000)):
        out, w = torch.zeros(length, device=device), torch.ones(length, device=device, requires_grad=True)
        y = (w * out).sum()
        product(x, spec, out=out, backend=backend)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()
    if prepared := kernels.prepare(spec, [1000], device=torch.device("cpu")):
        c_out, u_out = torch.zeros(10), torch.zeros(1000)
        prepared.project([g.cpu()], torch.float32, out=c_out)
        prepared.expand(c.cpu(), u_out)
        assert c_out._version == u_out._version == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_what_may_not_be_overwritten(backend, name):
    """It is refused before anything is written, params as well as out."""
    spec, device = BasisSpec(one(10, 1000), distribution_of(name), *KEY), DEVICES[backend]
    g, c = normal(1000, 1).to(device), normal(10, 2).to(device)
    with torch.inference_mode():
        inference = {length: torch.zeros(length, device=device) for length in (10, 500)}
    leaf = {length: torch.zeros(length, device=device, requires_grad=True) for length in (10, 500)}
    first = torch.zeros(500, device=device)
    expanded = torch.zeros(1, device=device).expand(500)  # it was refused after the first had been changed
    with pytest.raises(RuntimeError, match="^params: got a tensor .* of which several values have one place in memory"):
        kernels.add(c, spec, [first, expanded], backend=backend)
    for bad, message in ((inference, "an inference tensor"), (leaf, "a tensor that requires a gradient")):
        with pytest.raises(RuntimeError, match=f"^out: got {message}"):
            kernels.project(g, spec, out=bad[10], backend=backend)
        with pytest.raises(RuntimeError, match=f"^params: got {message}"):
            kernels.add(c, spec, [first, bad[500]], backend=backend)
        assert not any(x.any() for x in (first, *bad.values()))
        if prepared := kernels.prepare(spec, [1000], torch.device("cpu")):
            assert prepared.project([g.cpu()], torch.float32, out=bad[10].cpu() if device != "cpu" else bad[10]) is None
    wanted = kernels.expand(c, spec, backend=backend)
    with torch.no_grad():  # as optimizers do
        kernels.add(c, spec, [first, leaf[500]], backend=backend)
        assert same_bits(torch.cat([first, leaf[500]]), wanted)
        kernels.project(g, spec, out=leaf[10], backend=backend)
    with torch.inference_mode():
        kernels.add(c, spec, [inference[500], inference[500].clone()], backend=backend)
        kernels.project(g, spec, out=inference[10], backend=backend)
    assert same_bits(inference[500], wanted[:500]) and same_bits(inference[10], kernels.project(g, spec, backend=backend))


@pytest.mark.parametrize("name", FAMILIES)
def test_lazily_negated_views(backend, name):
    """Their memory holds the negated values: added to in torch's way, refused as out."""
    spec, device = BasisSpec(one(10, 1000), distribution_of(name), *KEY), DEVICES[backend]
    g, c, memory_of = normal(1000, 1).to(device), normal(10, 2).to(device), torch.zeros(1000, device=device)
    kernels.add(c, spec, [torch._neg_view(memory_of)], backend=backend)
    assert same_bits(memory_of, -kernels.expand(c, spec, backend=backend))
    with pytest.raises(ValueError, match="^out: got a lazily negated view"):
        kernels.project(g, spec, out=torch._neg_view(torch.zeros(10, device=device)), backend=backend)


def test_message_for_a_strided_out():
    spec = BasisSpec(one(10, 1000), distribution_of("rademacher"), *KEY)
    with pytest.raises(ValueError, match=r"^out: got a tensor that is not contiguous \(stride \(2,\)\), allowed contiguous"):
        kernels.project(torch.zeros(1000), spec, out=torch.zeros(20)[::2])


@pytest.mark.gpu
def test_counters_do_not_follow_the_default_device():
    with torch.device("meta"):
        counters = kernels.load("gpu")._Counters.of(3, torch.device(DEVICES["gpu"]))
    assert {x.device.type for x in counters.free} == {DEVICES["gpu"]}
