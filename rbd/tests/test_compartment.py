"""Compartment and BasisSpec: values with names, whose fields have their defaults, and that survive pickling."""

from __future__ import annotations

import pickle
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace

import pytest

from rbd import partition
from rbd.compartment import BasisSpec, Compartment, find_tensors
from rbd.distribution import distribution

PART = Compartment(3, 20, 50, 4, row=2, before=10, after=60, total=9)


def spec(*compartments: Compartment) -> BasisSpec:
    return BasisSpec(compartments, distribution("normal"), 1, 0, 0)


def test_lengths():
    assert (PART.size, PART.length) == (30, 100)
    assert (Compartment(0, 5, 8, 1).size, Compartment(0, 5, 8, 1).length) == (3, 3)


def test_the_directions_end_with_these_if_nothing_else_is_said():
    assert Compartment(0, 0, 9, 4).total == 4
    assert Compartment(0, 0, 9, 4, row=3).total == 7
    assert PART.total == 9 and replace(PART, dim=1, row=0).total == 9


def test_equal_values_are_one_key():
    """Kernels keep plans by compartments."""
    again = Compartment(*PART.fields)
    assert again is not PART and again == PART and hash(again) == hash(PART)
    assert {again: 1}[PART] == 1
    others = {replace(PART, **{name: 11}) for name in ("number", "start", "stop", "dim", "row", "before", "after", "total")}
    assert len(others | {PART}) == 9


def test_fields_cannot_be_set():
    with pytest.raises(FrozenInstanceError):
        PART.dim = 5
    with pytest.raises(TypeError):
        PART[3]  # the fields have names


@pytest.mark.parametrize("copied", [deepcopy, lambda k: pickle.loads(pickle.dumps(k))], ids=["deepcopy", "pickle"])
def test_copies_are_equal(copied):
    assert copied(PART) == PART and hash(copied(PART)) == hash(PART)


def test_pickles_of_rbd_0_1_can_be_read():
    """They hold rbd.partition.Compartment, a tuple of seven fields then."""
    old = (b"\x80\x04\x954\x00\x00\x00\x00\x00\x00\x00\x8c\rrbd.partition\x94\x8c\x0bCompartment\x94\x93\x94"
           b"(K\x03K\x14K2K\x04K\x02K\nK<t\x94\x81\x94.")  # fmt: skip
    assert partition.Compartment is Compartment
    assert pickle.loads(old) == replace(PART, total=6)


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_words_have_32_bits(bad):
    """The backends read other bits of more: their bases differed."""
    k, signs = Compartment(2**32 - 1, 0, 10, 3), distribution("rademacher")
    with pytest.raises(ValueError, match=f"^number: got {bad}, allowed 0 ... 4294967295$"):
        replace(k, number=bad)
    spec = BasisSpec((k,), signs, 2**32 - 1, 2**32 - 1, 0)
    for name in ("seed", "stream"):
        with pytest.raises(ValueError, match=f"^{name}: got {bad}, allowed 0 ... 4294967295$"):
            replace(spec, **{name: bad})


def test_a_spec_adds_up():
    two = spec(Compartment(0, 0, 7, 3, row=5), Compartment(1, 7, 9, 2))
    assert (two.dim, two.size, two.row) == (5, 9, 5)


def test_one_plan_serves_rows_wherever_they_begin():
    first, later = Compartment(0, 0, 7, 3), Compartment(0, 0, 7, 3, row=5, total=8)
    assert spec(first).from_first_row == spec(later).from_first_row == (first,)
    assert spec(first).from_first_row[0] is first
    two = spec(replace(later, total=8), Compartment(1, 7, 9, 2, row=6))
    assert [k.row for k in two.from_first_row] == [0, 1]


def test_tensors_of_a_compartment():
    """As by comparing each; empty tensors may be among them, but none that lies outside."""
    bounds = [0, 3, 3, 10, 11, 11, 20]
    for start in range(20):
        for stop in range(start + 1, 21):
            found = find_tensors(Compartment(0, start, stop, 1), bounds)
            wanted = [t for t, (a, b) in enumerate(zip(bounds, bounds[1:])) if max(a, start) < min(b, stop)]
            assert [t for t in found if bounds[t] < bounds[t + 1]] == wanted and len(found) <= len(wanted) + 2
