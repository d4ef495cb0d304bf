"""Words: against the published vectors, against a loop written out, and against the same generator in torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rbd.philox import BLOCKS, WORDS, philox4x32, words

EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)  # of a 32-bit field: zero, the sign bit, carries


def philox_by_hand(counter, key) -> tuple[int, ...]:
    """The definition in Python's integers: a round, then the key is raised (Salmon et al. 2011, section 3.2)."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        high0, low0 = divmod(a * 0xD2511F53, 2**32)
        high1, low1 = divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = high1 ^ b ^ k, low1, high0 ^ d ^ m, low0
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


@pytest.mark.parametrize("number", range(3), ids=["zeros", "ones", "pi"])
def test_known_answers(vectors, number):
    *counter_and_key, a, b, c, d = vectors[number]
    counter, key = counter_and_key[:4], counter_and_key[4:]
    assert tuple(int(w) for w in philox4x32(tuple(counter), tuple(key))) == (a, b, c, d)
    assert philox_by_hand(counter, key) == (a, b, c, d)


def test_extremes_of_every_field():
    for fields in itertools.product((0, 2**31, 2**32 - 1), repeat=6):
        got = tuple(int(w) for w in philox4x32(fields[:4], fields[4:]))
        assert got == philox_by_hand(fields[:4], fields[4:]), fields


def test_counters_broadcast():
    a, b = np.arange(5)[:, None], np.arange(3)
    out = philox4x32((a, 7, b, 2**32 - 1), (1, 2))
    assert [(w.shape, w.dtype) for w in out] == [((5, 3), np.uint32)] * 4
    for i, j in itertools.product(range(5), range(3)):
        assert tuple(int(w[i, j]) for w in out) == philox_by_hand((i, 7, j, 2**32 - 1), (1, 2))


def test_layout_of_words_is_a_loop_over_blocks():
    """Word 16 w + b of a chunk is output w of block 16 chunk + b; key (seed, stream), counter (block, row, step, k)."""
    rows, chunks, (seed, stream, step, compartment) = [0, 3, 2**32 - 1], [0, 5, 2**28 - 1], (11, 22, 33, 44)
    made = words(np.array(rows), np.array(chunks), seed, stream, step, compartment)
    assert made.shape == (3, 3, WORDS)
    assert made.dtype == np.uint32
    for (i, row), (j, chunk), b in itertools.product(enumerate(rows), enumerate(chunks), range(BLOCKS)):
        out = philox_by_hand((16 * chunk + b, row, step, compartment), (seed, stream))
        assert tuple(int(made[i, j, 16 * w + b]) for w in range(4)) == out


@pytest.mark.parametrize("field", ["row", "step", "compartment", "seed", "stream"])
def test_extremes_of_the_fields_of_words(field):
    for value in EXTREMES:
        name = {"row": 5, "step": 6, "compartment": 7, "seed": 8, "stream": 9, field: value}
        row = name.pop("row")
        made = words(np.array([row]), np.array([1]), **name)
        counter, key = (16, row, name["step"], name["compartment"]), (name["seed"], name["stream"])
        assert tuple(int(w) for w in made[0, 0, ::16]) == philox_by_hand(counter, key)


def test_every_bit_of_counter_and_key_moves_half_of_the_output(vectors):
    """Flip one of 192 bits: 64 of 128 bits change, sd 5.66; 6 sd leave 192 tries a chance of 4e-7 in all."""
    base = np.array(vectors[2][:6], np.uint64)
    before = np.array(philox4x32(tuple(base[:4]), tuple(int(k) for k in base[4:])))
    for field, bit in itertools.product(range(6), range(32)):
        flipped = base.copy()
        flipped[field] ^= np.uint64(1 << bit)
        after = np.array(philox4x32(tuple(flipped[:4]), tuple(int(k) for k in flipped[4:])))
        changed = np.unpackbits((before ^ after).view(np.uint8)).sum()
        assert abs(int(changed) - 64) < 6 * 5.66, (field, bit)


def torch_bits(seed: int, offset: int, count: int) -> np.ndarray:
    """count words of torch's stateless Philox; the test is skipped where torch has none for the CPU."""
    random = pytest.importorskip("torch.func._random", reason="this torch has no stateless generator")
    if not hasattr(random, "bits"):
        pytest.skip("this torch's stateless generator gives no raw words")
    try:
        return random.bits(torch.tensor([seed, offset], dtype=torch.uint64), count, dtype=torch.uint32).numpy()
    except NotImplementedError as error:
        pytest.skip(f"this torch's stateless generator does not run on the CPU: {error}")


@pytest.mark.parametrize("row", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (0xA4093822, 0x299F31D0), (2**32 - 1, 2**31)])
def test_torch_makes_the_same_words(seed, stream, row):
    """torch's Philox has key = halves of its seed, counter = (halves of its offset, 0, 0), the lower half first."""
    theirs = torch_bits(stream << 32 | seed, row << 32, 4 * BLOCKS * 3).reshape(3, BLOCKS, 4)  # chunk, block, w
    ours = words(np.array([row]), np.arange(3), seed, stream, step=0, compartment=0)[0].reshape(3, 4, BLOCKS)
    np.testing.assert_array_equal(ours, theirs.transpose(0, 2, 1))
