"""Products that read and write several tensors where they are: the bits of those by way of one vector."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from rbd import RBD, kernels
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import distribution as distribution_of
from rbd.kernels import in_place
from rbd.tests.test_kernels import FLOATS, integers, normal, same_bits, unscaled

SPARSE = [("countsketch", dim) for dim in (1, 3, 7, 250, 1500, 5000)]
CASES = [*SPARSE, *((name, dim) for name in ("rademacher", "uniform", "normal") for dim in (1, 7, 50))]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("name", "dim"), CASES)
def test_parts_are_read_in_place(name, dim, dtype):
    """To the bit what their vector gives: chunks of one tensor, of two, of many small ones; the definition on integers."""
    sizes = (4096, 3000, 1, 700, *[5] * 40, 9000, 3003)  # 20,000
    k = Compartment(0, 0, 5001, dim), Compartment(1, 5001, 20_000, dim)  # the second begins inside a tensor
    exact = integers(20_000, 21, 100, dtype), unscaled(name)
    for g, distribution in ((normal(20_000, 20, dtype), distribution_of(name)), exact):
        spec, out = BasisSpec(k, distribution, 1, 2, 3), torch.full((2 * dim,), math.nan, dtype=dtype)
        prepared, parts = kernels.prepare(spec, sizes, torch.device("cpu")), [p.clone() for p in g.split(sizes)]
        assert prepared.project(parts, dtype, out=out) is out
        assert same_bits(out, kernels.project(g, spec, backend="cpu"))
    if name != "normal":  # its sums are not exact
        assert same_bits(out, kernels.project(g, spec, backend="reference"))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("name", "dim"), CASES)
def test_one_pass_adds_what_torch_adds(name, dim, dtype):
    """params + alpha u: the bits of torch.add with the vector u, in tensors of every length, and the version is counted."""
    sizes = (4096, 3000, 1, 700, *range(1, 41), 9000, 2383)  # 20,000
    spec = BasisSpec((Compartment(0, 0, 5001, dim), Compartment(1, 5001, 20_000, dim)), distribution_of(name), 1, 2, 3)
    prepared, c = kernels.prepare(spec, sizes, torch.device("cpu")), normal(2 * dim, 22, dtype)
    for alpha in (1.0, -0.1, -0.0, 1e-30, -8.0):
        params = list(normal(20_000, 23, dtype).split(sizes))
        wanted = [torch.add(p, v, alpha=alpha) for p, v in zip(params, kernels.expand(c, spec).split(sizes))]
        params = [p.clone() for p in params]
        if (places := prepared.find_written(params, dtype)) is None:
            pytest.skip("torch.add rounds twice on this machine, so optimizers add a vector")
        prepared.add_at(places, params, c, alpha, spec.step)
        assert all(map(same_bits, params, wanted)) and all(p._version == 1 for p in params)


@pytest.mark.parametrize(("distribution", "large"), [("countsketch", 5e37), ("rademacher", 1e34), ("normal", 1e34)])
def test_a_step_in_one_pass_has_the_bits_of_one_by_way_of_a_vector(distribution, large, monkeypatch):
    """Two groups, one with a parameter that cannot be written where it is; coordinates of a sketch whose sum overflows."""
    found = []
    for method in ("find_read", "find_written", None):
        torch.manual_seed(0)
        models = [torch.nn.Linear(40, 30), torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)]
        groups = [{"params": m.parameters(), "dim": d} for m, d in zip(models, (600, 70))]
        optimizer = RBD(groups, lr=0.1, distribution=distribution)
        with monkeypatch.context() as patched:
            if method:
                patched.setattr(in_place.Prepared, method, lambda *args, **given: None)
            for step in range(3):
                for p in (p for m in models for p in m.parameters()):
                    p.grad = torch.randn(p.shape).sign() * (large if step == 1 else 1)
                optimizer.step()
        found.append([p for m in models for p in m.parameters()])
    assert all(same_bits(p, q) for other in found[:2] for p, q in zip(other, found[2]))
    assert all(p.isfinite().all() for p in found[2])


class Elsewhere(torch.Tensor):
    """Says that it is on a GPU."""

    is_cpu = False


@pytest.mark.parametrize("name", ["countsketch", "rademacher", "uniform", "normal"])
def test_prepared_products_are_the_general_ones(name):
    """To the bit; None for tensors that cannot be read as they stand."""
    spec, shapes = BasisSpec((Compartment(0, 0, 600, 50),), distribution_of(name), 1, 2, 3), ((20, 25), (100,))
    prepared = kernels.prepare(spec, [500, 100], torch.device("cpu"))
    params, c, f32 = [normal(math.prod(s), 1).view(s) for s in shapes], normal(50, 2), torch.float32
    g = torch.cat([p.reshape(-1) for p in params])
    assert same_bits(prepared.project(params, f32), kernels.project(g, spec))
    moved = torch.cat([p.reshape(-1) for p in prepared.shift(c, params)])
    assert same_bits(moved, g + kernels.expand(c, spec))
    later, u = replace(spec, step=9), torch.full((600,), math.nan)
    places, out = prepared.find_read(params, f32), torch.empty(50)
    assert prepared.expand(c, u) is u and same_bits(u, kernels.expand(c, spec))
    for step in (9, torch.tensor(9), 9.0, 9 + 2**32):  # as the general products take it
        assert same_bits(prepared.project_at(places, step, out), kernels.project(g, later))
    with torch.device("meta"):  # torch's default device does not matter
        assert same_bits(prepared.project(params, f32), kernels.project(g, spec))
        assert same_bits(prepared.expand(c), u)
        in_place._is_add_fused.cache_clear()
        prepared.find_written(params, f32)
    zeros = torch._efficientzerotensor((100,))  # has no memory
    others = (params[0].t(), None), (params[0].double(), None), (params[0].to_sparse(), None), (params[0], zeros)
    others += (params[0], torch._neg_view(params[1])), (params[0], params[1][:99]), (params[0], None)
    others += ((params[0], params[1].as_subclass(Elsewhere)),)
    assert all(prepared.project(other, f32) is None and prepared.find_read(other, f32) is None for other in others)
    assert prepared.shift(normal(49, 2), params) is None and prepared.shift(c.half(), params) is None
    before = [p.clone() for p in params]
    with torch.inference_mode():
        apart = [p.clone() for p in params]
    for other in [*others, apart, [p.requires_grad_() for p in before]]:
        assert prepared.find_written(other, f32) is None
    assert prepared.expand(normal(49, 2), u) is None and prepared.expand(c, u.double()) is None


@pytest.mark.parametrize("name", ["countsketch", "rademacher"])
def test_parameters_that_share_memory_are_added_to_one_after_the_other(name):
    """Threads would add to the same values at once, and lose additions."""
    spec, memory = BasisSpec((Compartment(0, 0, 600, 50),), distribution_of(name), 1, 2, 3), normal(450, 1)
    c, wanted = normal(50, 2), memory.clone()
    for part, place in zip(kernels.expand(c, spec).split(300), (0, 150)):
        wanted[place : place + 300] += part
    params = [memory[:300], memory[150:]]
    assert not kernels.prepare(spec, [300, 300], torch.device("cpu")).find_written(params, memory.dtype)
    kernels.add(c, spec, params)
    assert same_bits(memory, wanted)


@pytest.mark.parametrize("name", ["countsketch", "rademacher"])
def test_coordinates_in_the_memory_that_is_added_to(name):
    spec, memory = BasisSpec((Compartment(0, 0, 600, 50),), distribution_of(name), 1, 2, 3), normal(600, 1)
    wanted = memory + kernels.expand(memory[:50].clone(), spec)
    kernels.add(memory[:50], spec, [memory])
    assert same_bits(memory, wanted)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["countsketch", "rademacher"])
def test_is_finite_sees_every_value(name, dtype):
    """Values whose sum overflows are finite; one that is not is found at any place."""
    for count in (1, 7, 16, 250, 1001):
        spec = BasisSpec((Compartment(0, 0, count, count),), distribution_of(name), 1, 2, 3)
        is_finite = kernels.prepare(spec, [count], torch.device("cpu")).is_finite
        c = torch.full((count,), torch.finfo(dtype).max, dtype=dtype)
        assert is_finite(c) and is_finite(-c) and is_finite(torch.zeros_like(c))
        for place, bad in itertools.product({0, count // 2, count - 1}, (math.nan, math.inf, -math.inf)):
            assert not is_finite(c.index_fill(0, torch.tensor(place), bad))
