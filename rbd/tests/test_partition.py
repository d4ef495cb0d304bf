"""Partition: exact cover and totals, the share rule, and every form by hand and on a random sweep."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from torch import nn

from rbd.partition import Compartment, Partition, apportion, parse, partition

LAYOUT = (("conv.weight", 288), ("conv.bias", 32), ("bn.weight", 32), ("bn.bias", 32),
          ("fc.weight", 640), ("fc.bias", 10))  # fmt: skip
SIZE = 1034


def sizes(p: Partition) -> list[int]:
    return [k.stop - k.start for k in p.compartments]


def dims(p: Partition) -> list[int]:
    return [k.dim for k in p.compartments]


def check_cover(p: Partition, size: int) -> None:
    """Compartments 0, 1, 2 ... that follow each other from 0 to size, each with 1 ... D_k directions from row 0 on."""
    assert p.compartments[0].start == 0
    assert p.compartments[-1].stop == p.size == size
    for number, k in enumerate(p.compartments):
        assert k.number == number
        assert k.row == 0
        assert 1 <= k.dim <= k.stop - k.start
    assert all(a.stop == b.start for a, b in zip(p.compartments, p.compartments[1:]))
    assert p.dim == sum(dims(p))


# shares


@pytest.mark.parametrize(("dim", "sizes", "shares"), [
    (10, [1000], [10]),
    (10, [50, 50], [5, 5]),
    (10, [500, 300, 200], [5, 3, 2]),  # quotas that are whole
    (10, [100, 100, 100], [4, 3, 3]),  # 3.33 each: the first of equals gets what is left
    (11, [100, 100, 100], [4, 4, 3]),
    (10, [260, 370, 370], [2, 4, 4]),  # 2.6, 3.7, 3.7: the two largest remainders
    (3, [1000, 1, 1], [1, 1, 1]),  # at least one each: 2.99 gives way
    (5, [96, 2, 2], [3, 1, 1]),  # 4.8, 0.1, 0.1: rounded down, raised to one, then one too many
    (6, [50, 49, 1], [3, 2, 1]),  # 3, 2.94, 0.06: rounded down, raised to one, nothing left over
    (7, [3, 4], [3, 4]),  # as many as there are parameters
    (4, [1, 1, 1, 1], [1, 1, 1, 1]),
    (250, [100_352, 128, 1280, 10], [246, 1, 2, 1]),  # FC by tensor: 246.52, 0.31, 3.14, 0.02; 246 lacks more than 3
])  # fmt: skip
def test_apportion_by_hand(dim, sizes, shares):
    assert apportion(dim, sizes) == shares


def test_share_on_a_sweep():
    """5000 random cuts: exact total, limits; where all quotas are at least 1, the largest remainders win (Hamilton)."""
    generator = random.Random(0)
    for _ in range(5000):
        parts = [int(10 ** generator.uniform(0, 5)) for _ in range(generator.randint(1, 12))]
        dim = generator.randint(len(parts), min(sum(parts), 3000))
        shares = apportion(dim, parts)
        quotas = [Fraction(dim * size, sum(parts)) for size in parts]
        assert sum(shares) == dim
        assert all(1 <= d <= size for d, size in zip(shares, parts))
        assert all(d == 1 for d, q in zip(shares, quotas) if q <= Fraction(1, 2))
        assert all(d <= math.ceil(max(q, 1)) for d, q in zip(shares, quotas))
        if min(quotas) >= 1:
            rest = dim - sum(map(math.floor, quotas))
            order = sorted(range(len(parts)), key=lambda k: math.floor(quotas[k]) - quotas[k])[:rest]
            assert shares == [math.floor(q) + (k in order) for k, q in enumerate(quotas)]


def test_shares_that_give_way_are_the_furthest_above_their_quotas():
    """After the minimum of one, no compartment could give its direction to another and both be nearer their quotas."""
    generator = random.Random(1)
    for _ in range(2000):
        parts = [generator.choice([1, 2, 3, 5, 100, 1000]) for _ in range(generator.randint(2, 8))]
        dim = generator.randint(len(parts), min(sum(parts), 50))
        shares = apportion(dim, parts)
        over = [d - Fraction(dim * size, sum(parts)) for d, size in zip(shares, parts)]
        givers = [over[k] for k in range(len(parts)) if shares[k] > 1]
        takers = [over[k] for k in range(len(parts)) if shares[k] < parts[k]]
        assert not givers or not takers or max(givers) - 1 <= min(takers)


@pytest.mark.parametrize(("dim", "sizes"), [(0, [5]), (-1, [5]), (6, [5]), (1, [5, 5]), (11, [5, 5]), (1, [0])])
def test_share_refuses(dim, sizes):
    allowed = rf"{len(sizes)} ... {sum(sizes)} \(at least 1 per compartment, at most 1 per parameter\)"
    with pytest.raises(ValueError, match=rf"^dim: got {dim}, allowed {allowed}$"):
        apportion(dim, sizes)


@pytest.mark.parametrize("integer", [np.int64, np.uint8])
def test_dim_may_be_an_integer_of_numpy(integer):
    """Whether or not an equal plain one was asked for before."""
    partition.cache_clear()
    cut = partition("even:2", LAYOUT, integer(7))
    assert [type(k.dim) for k in cut.compartments] == [int, int]
    assert cut == partition("even:2", LAYOUT, 7)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("dim", [2.5, math.nan, None])
def test_dim_is_whole(dim):
    """2.5 must not be shared out without end: the remainder would never be 0."""
    with pytest.raises((TypeError, ValueError), match="^dim: got"):
        partition("whole", LAYOUT, dim)


# forms


def test_whole():
    assert partition("whole", LAYOUT, 100).compartments == (Compartment(0, 0, SIZE, 100),)


def test_by_layer():
    p = partition("by_layer", LAYOUT, 100)
    check_cover(p, SIZE)
    assert sizes(p) == [320, 64, 650]
    assert dims(p) == [31, 6, 63]  # 30.95, 6.19, 62.86


def test_by_tensor():
    p = partition("by_tensor", LAYOUT, 100)
    check_cover(p, SIZE)
    assert sizes(p) == [288, 32, 32, 32, 640, 10]
    assert dims(p) == [28, 3, 3, 3, 62, 1]  # 27.85, 3.09 (3), 61.90, 0.97


def test_even_crosses_borders():
    p = partition("even:4", LAYOUT, 100)
    check_cover(p, SIZE)
    assert [(k.start, k.stop) for k in p.compartments] == [(0, 259), (259, 518), (518, 776), (776, 1034)]
    assert dims(p) == [25, 25, 25, 25]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1033, 1034])
def test_even_sizes(count):
    """They differ by 1 at most and the longer ones come first."""
    p = partition(f"even:{count}", LAYOUT, max(count, 50))
    check_cover(p, SIZE)
    assert sizes(p) == sorted(sizes(p), reverse=True)
    assert max(sizes(p)) - min(sizes(p)) <= 1
    assert len(p.compartments) == count


def test_by_ratio():
    """d_k = max(ceil(D_k / r), 10) (arXiv 2011.04720), never more than D_k; dim is not used."""
    layout = (("a.weight", 100_352), ("a.bias", 128), ("b.weight", 1280), ("b.bias", 10), ("c.bias", 7))
    for dim in (None, 250):
        p = partition("by_ratio:100", layout, dim)
        check_cover(p, 101_777)
        assert dims(p) == [1005, 13, 7]  # 1004.8, 12.9, at least 10 but there are 7
    assert dims(partition("by_ratio:1", layout, None)) == [100_480, 1290, 7]
    assert dims(partition("by_ratio:62.5", layout, None)) == [1608, 21, 7]  # 1607.68, 20.64
    assert dims(partition("by_ratio:1000000", layout, None)) == [10, 10, 7]


def test_by_ratio_is_exact():
    """21 / 1.4 is 15, which binary fractions make a little more than 15."""
    for size, ratio in ((21, "1.4"), (42, "1.4"), (84, "1.4"), (161, "1.4"), (121, "1.1")):
        exact = math.ceil(Fraction(size) / Fraction(ratio))
        assert dims(partition(f"by_ratio:{ratio}", (("fc.weight", size),), None)) == [exact]


def test_layers_of_a_model():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Sequential(nn.Linear(30, 5, bias=False), nn.BatchNorm1d(5)))
    layout = tuple((name, p.numel()) for name, p in model.named_parameters())
    assert [name for name, _ in layout] == ["0.weight", "0.bias", "2.0.weight", "2.1.weight", "2.1.bias"]
    assert sizes(partition("by_layer", layout, 10)) == [630, 150, 10]
    assert sizes(partition("by_tensor", layout, 10)) == [600, 30, 150, 5, 5]


def test_names_without_a_dot_are_one_layer():
    assert sizes(partition("by_layer", (("weight", 20), ("bias", 4), ("head.weight", 8)), 3)) == [24, 8]


@pytest.mark.parametrize("form", ["by_layer", "by_tensor", "even:7", "whole", "by_ratio:3"])
def test_forms_on_a_sweep(form):
    """Random layouts and dims: covered without gaps, totals exact."""
    generator = random.Random(2)
    for _ in range(300):
        tensors = [generator.randint(1, 500) for _ in range(generator.randint(7, 20))]
        layout = tuple((f"layer{k // 2}.{'wb'[k % 2]}", n) for k, n in enumerate(tensors))
        dim = generator.randint(20, sum(tensors)) if sum(tensors) > 20 else 20
        p = partition(form, layout, dim)
        check_cover(p, sum(tensors))
        assert form.startswith("by_ratio") or p.dim == dim


@pytest.mark.parametrize("form", ["by_tensor", "by_layer", "by_ratio:2"])
def test_tensors_without_values_get_no_directions(form):
    """An empty parameter is no compartment (its directions would have length 0)."""
    p = partition(form, (("a.weight", 30), ("b.weight", 0), ("c.weight", 20)), 10)
    assert [(k.start, k.stop) for k in p.compartments] == [(0, 30), (30, 50)]


# values


def test_renumber():
    p = partition("even:3", LAYOUT, 30)
    q = p.renumber(5)
    assert [k.number for k in q.compartments] == [5, 6, 7]
    assert [k.fields[1:] for k in q.compartments] == [k.fields[1:] for k in p.compartments]
    assert p.renumber(0) == p


def test_partitions_are_values():
    assert partition("even:3", LAYOUT, 30) == partition("even:3", tuple(LAYOUT), 30)
    assert hash(partition("even:3", LAYOUT, 30)) == hash(partition("even:3", LAYOUT, 30))
    assert partition("even:3", LAYOUT, 30) != partition("even:3", LAYOUT, 31)


@pytest.mark.parametrize(("form", "parsed"), [
    ("whole", ("whole", 1)), ("by_layer", ("by_layer", 1)), ("by_tensor", ("by_tensor", 1)),
    ("even:1", ("even", 1)), ("even:64", ("even", 64)),
    ("by_ratio:1", ("by_ratio", 1)), ("by_ratio:2.5", ("by_ratio", 2.5)),
])  # fmt: skip
def test_parse(form, parsed):
    assert parse(form) == parsed


@pytest.mark.parametrize("form", [
    "", "Whole", "whole ", "whole:1", "by_layer:", "even", "even:", "even:0", "even:-1", "even:2.5", "even:x",
    "even: 2", "even:2\n", "by_ratio", "by_ratio:", "by_ratio:0.5", "by_ratio:0", "by_ratio:-3", "by_ratio:nan",
    "by_ratio:inf", "by_ratio:1e3", "by_ratio:" + "9" * 309, "even:" + "9" * 5000, "layers", None, 3, 2.5, True,
])  # fmt: skip
def test_bad_forms(form):
    message = r"^partition: got .*, allowed whole, by_layer, by_tensor, even:K, by_ratio:R with K >= 1 whole, R >= 1$"
    with pytest.raises(ValueError, match=message):
        parse(form)
    with pytest.raises(ValueError, match=message):
        partition(form, LAYOUT, 10)


def test_even_has_at_most_one_compartment_a_value():
    with pytest.raises(ValueError, match=r"^partition: got even:1035, allowed even:1 ... even:1034$"):
        partition("even:1035", LAYOUT, 1034)


@pytest.mark.parametrize("form", ["whole", "by_layer", "by_tensor", "even:1", "by_ratio:1000000"])
def test_a_compartment_has_as_many_values_as_32_bits_number(form):
    """And as a Basis may have."""
    message = (r"^partition: got a compartment of 4294967296 values, allowed at most 4294967295 \(columns are numbered in "
               r"32 bits\): use by_layer, or even:K with a larger K$")  # fmt: skip
    with pytest.raises(ValueError, match=message):
        partition(form, (("a.w", 2**32),), 250)
    assert partition(form, (("a.w", 2**32 - 1),), 250).size == 2**32 - 1


def test_a_vector_may_be_longer_than_a_compartment():
    layout = ("a.w", 2**31), ("b.w", 2**32 - 1)
    for form in ("even:2", "by_layer"):
        assert partition(form, layout, 250).size == 2**31 + 2**32 - 1


@pytest.mark.parametrize("form", ["by_layer", "by_ratio:10"])
@pytest.mark.parametrize("layout", [(("", 5), ("", 6)), (("a.weight", 5), ("", 6))])
def test_layers_need_names(form, layout):
    with pytest.raises(ValueError, match=r"^partition: by_layer and by_ratio need names, pass model.named_parameters"):
        partition(form, layout, 5)


@pytest.mark.parametrize(("form", "dim", "allowed"), [
    ("whole", 1035, "1 ... 1034"), ("whole", 0, "1 ... 1034"), ("by_layer", 2, "3 ... 1034"),
    ("by_tensor", 5, "6 ... 1034"), ("even:8", 7, "8 ... 1034"),
])  # fmt: skip
def test_dim_has_room(form, dim, allowed):
    limits = r"\(at least 1 per compartment, at most 1 per parameter\)"
    with pytest.raises(ValueError, match=rf"^dim: got {dim}, allowed {allowed} {limits}$"):
        partition(form, LAYOUT, dim)
