"""project and expand on a CPU: entries are made from Philox words and multiplied in vector registers (Numba, LLVM).

There are three methods, all with the entries of ``reference.py``:

- signs, float32: sums of 4 signed numbers are looked up in a table of 16, by 4 bits of a word with one permute;
- the others: 16 entries in the lanes of a vector, multiplied and added;
- float64 gradients: the same, with entries converted to float64.

Work is cut into units whose sizes depend on the basis alone, and every sum has a fixed order, so results do not depend
on the number of threads. Threads come from ``team``.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from rbd import distribution, philox
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import QUANTILE, Distribution
from rbd.kernels import in_place, simd, team
from rbd.kernels.in_place import DTYPES, Name, name_of
from rbd.kernels.jit import jit
from rbd.kernels.simd import (
    LANES,
    add_lanes,
    at_address,
    bits_of,
    float_bits,
    float_of,
    fma,
    from_place,
    lane_numbers,
    like,
    load,
    narrow,
    permute,
    pointer,
    shift_signed,
    splat_f32,
    splat_like,
    splat_u32,
    splat_u64,
    store,
)  # fmt: skip
from rbd.philox import BLOCKS, MULTIPLIERS, ROUNDS, WEYL, WORDS

NORMAL, UNIFORM, RADEMACHER = 0, 1, 2
_DISTRIBUTION_IDS = {"normal": NORMAL, "uniform": UNIFORM, "rademacher": RADEMACHER}
_M0, _M1 = MULTIPLIERS
_W0, _W1 = WEYL
_LOW = 0xFFFFFFFF
_SIGN, _ONE = 0x80000000, 0x3F800000  # sign bit, and 1.0, as bits of a float32
_OCTAVES = np.roll(QUANTILE, -1, axis=0).T.copy().ravel()  # (5 * 16,) by the exponent field mod 16: 127 + e = e - 1
_LONGS = np.empty(0, np.int64)  # tells at_address the dtype of a table
_EVEN, _PAIRS = 0x55555555, 0x33333333  # every other bit, and every other two

HALF = BLOCKS // 2  # blocks of a chunk whose sign tables are kept at a time
ROWS = 256  # rows of a unit, at most: the sign tables of a chunk are made once for all of them
SEGMENT = 8192  # least columns of a unit of project
SEGMENTS = 64  # of a compartment, at most, so that there are at most 64 d partial sums
STRIPE = 4096  # columns of a unit of expand
SCRATCH = SEGMENT + ROWS * LANES  # elements; the sign kernels take 2048 + 256 + 4096 of them
INLINE = 2**21  # random bits; with fewer, a second thread makes a product slower

_jit = jit(philox, distribution, simd)
_inline = njit(forceinline=True, error_model="numpy")  # pieces of a kernel: vectors must not leave the registers


@_inline
def _run_rounds(counter, seed, stream, first, last):
    """Rounds first ... last - 1 of Philox4x32-10: 4 words (16,) u64, whose upper halves are never read."""
    c0, c1, c2, c3 = counter
    half, low, m0, m1 = splat_u64(32), splat_u64(_LOW), splat_u64(_M0), splat_u64(_M1)
    for i in range(first, last):
        p0, p1 = (c0 & low) * m0, (c2 & low) * m1
        c0, c1 = (p1 >> half) ^ c1 ^ splat_u64((seed + _W0 * i) & _LOW), p1
        c2, c3 = (p0 >> half) ^ c3 ^ splat_u64((stream + _W1 * i) & _LOW), p0
    return c0, c1, c2, c3


@_inline
def _narrow_words(counter):
    """4 words (16,), u64 -> u32."""
    c0, c1, c2, c3 = counter
    return narrow(c0), narrow(c1), narrow(c2), narrow(c3)


@_inline
def _philox(block, row, step, compartment, seed, stream):
    """Philox4x32-10 of blocks and rows, (16,) u64: 4 words (16,) u32."""
    return _narrow_words(_run_rounds((block, row, splat_u64(step), splat_u64(compartment)), seed, stream, 0, ROUNDS))


@_inline
def _normal(top):
    """Level of the 16 upper bits of each lane: sign, then the place in the tail (distribution.normal_levels)."""
    x = float_of(((top >> splat_u32(15)) & splat_u32(0xFFFE)) | splat_u32(1))
    octave = bits_of(x) >> splat_u32(23)
    s = splat_f32(2) - float_bits((bits_of(x) & splat_u32(0x7FFFFF)) | splat_u32(_ONE))
    z = permute(load(pointer(_OCTAVES), 64), octave)
    z = fma(z, s, permute(load(pointer(_OCTAVES), 48), octave))
    z = fma(z, s, permute(load(pointer(_OCTAVES), 32), octave))
    z = fma(z, s, permute(load(pointer(_OCTAVES), 16), octave))
    z = fma(z, s, permute(load(pointer(_OCTAVES), 0), octave))
    return float_bits(bits_of(z) | (top & splat_u32(_SIGN)))


@_inline
def _uniform(top):
    """Level of the 8 upper bits of each lane: 2 b + 1."""
    return float_of(shift_signed(top, splat_u32(23)) | splat_u32(1))


@_inline
def _rademacher(top):
    """Level of the top bit of each lane: its sign."""
    return float_bits(splat_u32(_ONE) ^ (top & splat_u32(_SIGN)))


@_inline
def _entries(distribution_id, word, part):
    """Levels of part number ``part`` of 16 words: its bits, moved to the top of the word, decide."""
    if distribution_id == NORMAL:
        return _normal(word << splat_u32(16 - 16 * part))
    if distribution_id == UNIFORM:
        return _uniform(word << splat_u32(24 - 8 * part))
    return _rademacher(word << splat_u32(31 - part))


@_inline
def _dot(distribution_id, parts, word, x, at, total):
    """total + sum over the parts of 16 words of level * x, (16,) + (16 parts,) -> (16,)."""
    for part in range(parts):
        level = like(_entries(distribution_id, word, part), total)
        total = fma(level, load(x, at + WORDS * part), total)
    return total


@_inline
def _axpy(distribution_id, parts, word, c, u, at):
    """u += c * level over the parts of 16 words, (16 parts,)."""
    for part in range(parts):
        level = like(_entries(distribution_id, word, part), c)
        store(u, at + WORDS * part, fma(level, c, load(u, at + WORDS * part)))


@_inline
def _dot_row(distribution_id, parts, block, chunks, row, step, number, seed, stream, x):
    """One row over some chunks of x: (16,) partial sums."""
    t0 = t1 = t2 = t3 = splat_like(0, x)
    for chunk in range(chunks):
        blocks = splat_u64(block + BLOCKS * chunk) + lane_numbers()
        w0, w1, w2, w3 = _philox(blocks, splat_u64(row), step, number, seed, stream)
        at = chunk * WORDS * parts
        t0, t1 = _dot(distribution_id, parts, w0, x, at, t0), _dot(distribution_id, parts, w1, x, at + 16, t1)
        t2, t3 = _dot(distribution_id, parts, w2, x, at + 32, t2), _dot(distribution_id, parts, w3, x, at + 48, t3)
    return (t0 + t1) + (t2 + t3)


@_inline
def _axpy_rows(distribution_id, parts, unit, block, c, step, seed, stream, u):
    """One chunk of u += all rows of a unit, each times its coordinate."""
    for r in range(unit.rows):
        row = splat_u64(unit.row + r)
        w0, w1, w2, w3 = _philox(splat_u64(block) + lane_numbers(), row, step, unit.number, seed, stream)
        cr = splat_like(c[unit.place + r], u)
        _axpy(distribution_id, parts, w0, cr, u, 0)
        _axpy(distribution_id, parts, w1, cr, u, 16)
        _axpy(distribution_id, parts, w2, cr, u, 32)
        _axpy(distribution_id, parts, w3, cr, u, 48)


@_inline
def _find_tensor(bounds, place, t):
    """The tensor that has this place of a vector, searched from tensor t on. bounds: of the tensors in the vector."""
    while bounds[t] > place:
        t -= 1
    while bounds[t + 1] <= place:
        t += 1
    return t


@_inline
def _join(addresses, bounds, t, first, last, x):
    """x = the places first ... last - 1 of a vector, which begin in tensor t."""
    while first < last:
        stop, tensor = min(last, bounds[t + 1]), from_place(at_address(addresses[t], x), -bounds[t])
        for j in range(first, stop):
            x[j] = tensor[j]
        first, t = stop, t + 1


@_inline
def _write(target, source, j, u, alpha, add):
    """16 elements: u, or source + alpha u, rounded once."""
    store(target, j, fma(alpha, u, load(source, j)) if add else u)


@_inline
def _write_lanes(target, source, j, first, last, u, alpha, add, x):
    """The lanes first ... last - 1 of ``_write``, by way of 16 elements of x."""
    for lane in range(first, last):
        x[lane] = source[j + lane]
    _write(x, x, 0, u, alpha, add)
    for lane in range(first, last):
        target[j + lane] = x[lane]


@_jit
def _read_columns(addresses, bounds, origin, low, high, column, x):
    """x = a vector from that column on; zeros outside of the columns low ... high - 1, which are those that it has.

    addresses, bounds: of tables of the tensors that make up the vector, and of their bounds in it.
    """
    first, last, begin = max(low - column, 0), min(high - column, len(x)), origin + column
    x[:first] = 0
    x[last:] = 0
    tensors, ends = at_address(addresses, _LONGS), at_address(bounds, _LONGS)
    _join(tensors, ends, _find_tensor(ends, begin + first, 0), begin + first, begin + last, from_place(pointer(x), -begin))


@_jit
def _write_columns(u, origin, low, high, column, targets, sources, bounds, alpha, add, x):
    """A vector = u, which begins at that column, or its sources + alpha u; only the columns low ... high - 1.

    targets, sources, bounds: addresses of tables, as of ``_read_columns``. x: 16 elements of scratch memory, which follow
    u: the last vector of u may be read beyond its end.
    """
    first, last, begin = max(low - column, 0), min(high - column, len(u)), origin + column
    written, read, ends = at_address(targets, _LONGS), at_address(sources, _LONGS), at_address(bounds, _LONGS)
    pu, px, weight = pointer(u), pointer(x), splat_like(u.dtype.type(alpha), u)
    t = _find_tensor(ends, begin + first, 0)
    while first < last:
        stop, place = min(last, ends[t + 1] - begin), begin - ends[t]  # of column 0 of u in the tensor
        target, source = from_place(at_address(written[t], u), place), from_place(at_address(read[t], u), place)
        whole = first + (stop - first) // LANES * LANES
        for j in range(first, whole, LANES):
            _write(target, source, j, load(pu, j), weight, add)
        if whole < stop:
            _write_lanes(target, source, whole, 0, stop - whole, load(pu, whole), weight, add, px)
        first, t = stop, t + 1


class _Unit(NamedTuple):
    """What a kernel does at a time: some rows of a compartment by some chunks of its columns."""

    number: int  # of the compartment
    origin: int  # place of column 0 in the vector, which may lie before it
    low: int  # columns low ... high - 1 are in the vector
    high: int
    row: int
    rows: int
    first_chunk: int
    stop_chunk: int  # the last one + 1
    place: int  # of its first number in partial (project) or in c (expand)


_FIELD = _Unit(*range(len(_Unit._fields)))  # where each is in a row of a table of units


@_inline
def _read_unit(units, n, row0):
    """Unit n of a table, whose rows are counted from row0."""
    return _Unit(
        number=units[n, _FIELD.number],
        origin=units[n, _FIELD.origin],
        low=units[n, _FIELD.low],
        high=units[n, _FIELD.high],
        row=units[n, _FIELD.row] + row0,
        rows=units[n, _FIELD.rows],
        first_chunk=units[n, _FIELD.first_chunk],
        stop_chunk=units[n, _FIELD.stop_chunk],
        place=units[n, _FIELD.place],
    )


@_jit
def _project_entries(units, first, last, distribution_id, columns, seed, stream, step, row0, g, bounds, partial, scratch):
    """partial = (rows of a unit) @ (its segment of g), entry by entry."""
    block = SEGMENT // columns  # chunks of g that stay in the cache while the rows pass over them
    x, totals = scratch[:SEGMENT], scratch[SEGMENT : SEGMENT + ROWS * LANES]
    for n in range(first, last):
        unit = _read_unit(units, n, row0)
        totals[:] = 0
        for begin in range(unit.first_chunk, unit.stop_chunk, block):
            chunks = min(block, unit.stop_chunk - begin)
            _read_columns(g, bounds, unit.origin, unit.low, unit.high, begin * columns, x)
            px, pt, b = pointer(x), pointer(totals), BLOCKS * begin
            for r in range(unit.rows):
                if distribution_id == NORMAL:
                    t = _dot_row(NORMAL, 2, b, chunks, unit.row + r, step, unit.number, seed, stream, px)
                elif distribution_id == UNIFORM:
                    t = _dot_row(UNIFORM, 4, b, chunks, unit.row + r, step, unit.number, seed, stream, px)
                else:
                    t = _dot_row(RADEMACHER, 32, b, chunks, unit.row + r, step, unit.number, seed, stream, px)
                store(pt, LANES * r, load(pt, LANES * r) + t)
        for r in range(unit.rows):
            partial[unit.place + r] = add_lanes(load(pointer(totals), LANES * r))


@_jit
def _expand_entries(units, first, last, distribution_id, columns, seed, stream, step, row0, c, targets, sources, bounds,
                    alpha, add, scratch):  # fmt: skip
    """u = (columns of a unit) @ (all coordinates of its compartment), entry by entry; written as by _write_columns."""
    u, few = scratch[:columns], scratch[columns : columns + LANES]
    pu, pc = pointer(u), pointer(c)
    for n in range(first, last):
        unit = _read_unit(units, n, row0)
        for chunk in range(unit.first_chunk, unit.stop_chunk):
            u[:] = 0
            if distribution_id == NORMAL:
                _axpy_rows(NORMAL, 2, unit, BLOCKS * chunk, pc, step, seed, stream, pu)
            elif distribution_id == UNIFORM:
                _axpy_rows(UNIFORM, 4, unit, BLOCKS * chunk, pc, step, seed, stream, pu)
            else:
                _axpy_rows(RADEMACHER, 32, unit, BLOCKS * chunk, pc, step, seed, stream, pu)
            _write_columns(u, unit.origin, unit.low, unit.high, chunk * columns, targets, sources, bounds, alpha, add, few)


@_inline
def _apply_sign(x, bit):
    """x, negated in the lanes whose number has that bit: (16,) of a table of sign sums."""
    flip = (narrow(lane_numbers()) << splat_u32(31 - bit)) & splat_u32(_SIGN)
    return float_bits(bits_of(splat_f32(x)) ^ flip)


@_inline
def _sign_sums(a, b, c, d):
    """The 16 sums ±a ±b ±c ±d; bit 0 of the place is the sign of a, bit 3 that of d."""
    return (_apply_sign(a, 0) + _apply_sign(b, 1)) + (_apply_sign(c, 2) + _apply_sign(d, 3))


@_inline
def _pick_word(word, tables, at):
    """Sum over the 32 signs of a word, by 8 tables of 16: (16 rows,)."""
    t0 = permute(load(tables, at), word) + permute(load(tables, at + 16), word >> splat_u32(4))
    t1 = permute(load(tables, at + 32), word >> splat_u32(8)) + permute(load(tables, at + 48), word >> splat_u32(12))
    t2 = permute(load(tables, at + 64), word >> splat_u32(16)) + permute(load(tables, at + 80), word >> splat_u32(20))
    t3 = permute(load(tables, at + 96), word >> splat_u32(24)) + permute(load(tables, at + 112), word >> splat_u32(28))
    return (t0 + t1) + (t2 + t3)


@_inline
def _pick(words, tables, at, total):
    """total + the sums that the 4 words of a block pick: (16 rows,)."""
    w0, w1, w2, w3 = words
    total = total + (_pick_word(w0, tables, at) + _pick_word(w1, tables, at + 128))
    return total + (_pick_word(w2, tables, at + 256) + _pick_word(w3, tables, at + 384))


@_inline
def _pick_and_generate(words, tables, at, total, counter, seed, stream):
    """_pick interleaved with _philox of another counter: permutes and multiplications use different units of a core."""
    w0, w1, w2, w3 = words
    counter = _run_rounds(counter, seed, stream, 0, 4)
    p0 = _pick_word(w0, tables, at)
    counter = _run_rounds(counter, seed, stream, 4, 6)
    p1 = _pick_word(w1, tables, at + 128)
    counter = _run_rounds(counter, seed, stream, 6, 8)
    p2 = _pick_word(w2, tables, at + 256)
    counter = _run_rounds(counter, seed, stream, 8, ROUNDS)
    p3 = _pick_word(w3, tables, at + 384)
    return total + (p0 + p1) + (p2 + p3), _narrow_words(counter)


@_jit
def _project_signs(units, first, last, distribution_id, columns, seed, stream, step, row0, g, bounds, partial, scratch):
    """partial = (signs of a unit) @ (its segment of g): 16 rows in the lanes, 4 columns a permute."""
    x, totals = scratch[:columns], scratch[columns : columns + ROWS]
    tables = pointer(scratch[columns + ROWS :])  # (8 blocks, 4 words, 8 nibbles, 16): 16 KiB, half an L1 cache
    blocks = HALF * columns // (32 * WORDS)  # HALF, but no constant: LLVM would unroll its loop and run out of registers
    for n in range(first, last):
        unit = _read_unit(units, n, row0)
        totals[:] = 0
        for chunk in range(unit.first_chunk, unit.stop_chunk):
            _read_columns(g, bounds, unit.origin, unit.low, unit.high, chunk * columns, x)
            for half in range(0, BLOCKS, HALF):
                for word in range(4):
                    for b in range(HALF):
                        for nibble in range(8):
                            i = 4 * WORDS * nibble + BLOCKS * word + half + b
                            sums = _sign_sums(x[i], x[i + WORDS], x[i + 2 * WORDS], x[i + 3 * WORDS])
                            store(tables, ((b * 4 + word) * 8 + nibble) * 16, sums)
                for r in range(0, unit.rows, LANES):
                    lanes = splat_u64(unit.row + r) + lane_numbers()
                    block, total = BLOCKS * chunk + half, load(pointer(totals), r)
                    words = _philox(splat_u64(block), lanes, step, unit.number, seed, stream)
                    for b in range(blocks - 1):
                        following = splat_u64(block + b + 1), lanes, splat_u64(step), splat_u64(unit.number)
                        total, words = _pick_and_generate(words, tables, 512 * b, total, following, seed, stream)
                    store(pointer(totals), r, _pick(words, tables, 512 * (blocks - 1), total))
        partial[unit.place : unit.place + unit.rows] = totals[: unit.rows]


@_inline
def _blend(bits, x, y):
    """The bits of x where those of a constant are set, else those of y."""
    return (x & splat_u32(bits)) | (y & splat_u32(_LOW ^ bits))


@_inline
def _transpose(a, b, c, d):
    """Words k = 0 ... 3, whose nibble j has bit 4 j + k of a (in bit 0), b, c and d (in bit 3)."""
    one, two = splat_u32(1), splat_u32(2)
    ab, cd = _blend(_EVEN, a, b << one), _blend(_EVEN, c, d << one)
    n0, n2 = _blend(_PAIRS, ab, cd << two), _blend(_PAIRS, ab >> two, cd)
    ab, cd = _blend(_EVEN, a >> one, b), _blend(_EVEN, c >> one, d)
    return n0, _blend(_PAIRS, ab, cd << two), n2, _blend(_PAIRS, ab >> two, cd)


@_inline
def _add_picked(s0, s1, n0, n1, u, at):
    """u += the sums of 4 signed coordinates each that the 8 nibbles of n0 and n1 pick, 4 * 16 columns apart."""
    for nibble in range(8):
        j, by = at + 4 * WORDS * nibble, splat_u32(4 * nibble)
        store(u, j, load(u, j) + (permute(s0, n0 >> by) + permute(s1, n1 >> by)))


@_inline
def _add_signs(s0, s1, w0, w1, u, at):
    """u += the sums of 4 signed coordinates each; w0 and w1 are the words of 4 rows for the same 16 x 32 columns."""
    m0, m1 = _transpose(*w0), _transpose(*w1)
    for k in range(4):
        _add_picked(s0, s1, m0[k], m1[k], u, at + WORDS * k)


@_jit
def _expand_signs(units, first, last, distribution_id, columns, seed, stream, step, row0, c, targets, sources, bounds,
                  alpha, add, scratch):  # fmt: skip
    """u = (signs of a unit's columns) @ (all coordinates): 16 columns in the lanes, 4 rows a permute. See _write_columns."""
    u, few = scratch[:columns], scratch[columns : columns + LANES]
    pu = pointer(u)
    for n in range(first, last):
        unit = _read_unit(units, n, row0)
        for chunk in range(unit.first_chunk, unit.stop_chunk):
            u[:] = 0
            block = splat_u64(BLOCKS * chunk) + lane_numbers()
            for r in range(0, unit.rows, 8):
                for i in range(8):
                    few[i] = c[unit.place + r + i] if r + i < unit.rows else 0
                s0 = _sign_sums(few[0], few[1], few[2], few[3])
                s1 = _sign_sums(few[4], few[5], few[6], few[7])
                a0, a1, a2, a3 = _philox(block, splat_u64(unit.row + r + 0), step, unit.number, seed, stream)
                b0, b1, b2, b3 = _philox(block, splat_u64(unit.row + r + 1), step, unit.number, seed, stream)
                c0, c1, c2, c3 = _philox(block, splat_u64(unit.row + r + 2), step, unit.number, seed, stream)
                d0, d1, d2, d3 = _philox(block, splat_u64(unit.row + r + 3), step, unit.number, seed, stream)
                e0, e1, e2, e3 = _philox(block, splat_u64(unit.row + r + 4), step, unit.number, seed, stream)
                f0, f1, f2, f3 = _philox(block, splat_u64(unit.row + r + 5), step, unit.number, seed, stream)
                g0, g1, g2, g3 = _philox(block, splat_u64(unit.row + r + 6), step, unit.number, seed, stream)
                h0, h1, h2, h3 = _philox(block, splat_u64(unit.row + r + 7), step, unit.number, seed, stream)
                _add_signs(s0, s1, (a0, b0, c0, d0), (e0, f0, g0, h0), pu, 0)
                _add_signs(s0, s1, (a1, b1, c1, d1), (e1, f1, g1, h1), pu, 16)
                _add_signs(s0, s1, (a2, b2, c2, d2), (e2, f2, g2, h2), pu, 32)
                _add_signs(s0, s1, (a3, b3, c3, d3), (e3, f3, g3, h3), pu, 48)
            _write_columns(u, unit.origin, unit.low, unit.high, chunk * columns, targets, sources, bounds, alpha, add, few)


class _Sum(NamedTuple):
    """Rows of a compartment whose coordinates are sums of several parts each: all rows of one part, then of the next."""

    place: int  # of the first row's coordinate in c
    rows: int
    parts: int
    first: int  # place of the first part in partial
    compartment: int  # whose scale is theirs


_OF_SUM = _Sum(*range(len(_Sum._fields)))  # where each field is in a row of a table of sums


@_jit
def _add_parts(sums, scales, partial, out):
    """out = scale * the sum of the parts of each row, in their order and in float64 until it is rounded."""
    for n in range(len(sums)):
        place, rows, first = sums[n, _OF_SUM.place], sums[n, _OF_SUM.rows], sums[n, _OF_SUM.first]
        for r in range(rows):
            total = 0.0
            for part in range(sums[n, _OF_SUM.parts]):
                total += partial[first + part * rows + r]
            out[place + r] = total
            out[place + r] *= scales[sums[n, _OF_SUM.compartment]]


@_jit
def are_finite(values):
    """Whether none of them is NaN or infinite."""
    zero = values.dtype.type(0)
    total = zero
    for x in values:
        total += x * zero  # NaN if x is not finite
    return total == 0


@dataclass(frozen=True)
class _Plan:
    """How the work on some compartments is cut: a pure function of their sizes, never of the number of threads."""

    units: np.ndarray  # (n, fields of _Unit)
    pieces: np.ndarray  # bounds of runs of units of about equal cost
    entries: int  # sum of d_k D_k
    dims: np.ndarray  # (K,)
    scales: np.ndarray  # (K,) float64
    sums: np.ndarray | None = None  # (K, fields of _Sum), of project
    partials: int = 0  # length of partial


def _make_plan(compartments: Sequence[Compartment], distribution: Distribution, units: list[_Unit], **others) -> _Plan:
    entries = sum(k.size * k.dim for k in compartments)
    dims = np.array([k.dim for k in compartments], np.int64)
    scales = np.array([distribution.scale(dim=k.total, size=k.length) for k in compartments])
    return _Plan(np.array(units, np.int64), _pieces(units), entries, dims, scales, **others)


def _pieces(units: Sequence[_Unit], count: int = 16) -> np.ndarray:
    cost = np.cumsum([unit.rows * (unit.stop_chunk - unit.first_chunk) for unit in units], dtype=np.int64)
    return np.unique(np.r_[0, np.searchsorted(cost, cost[-1] * np.arange(1, count) / count) + 1, len(units)])


def _chunks(k: Compartment, columns: int) -> range:
    """Numbers of the chunks in which a compartment has values."""
    return range(k.before // columns, -(-(k.before + k.size) // columns))


def _cut(chunks: range, most: int) -> list[range]:
    """chunks, cut into runs of at most that length."""
    return [chunks[i : i + most] for i in range(0, len(chunks), most)]


def _make_unit(k: Compartment, first_row: int, rows: int, chunks: range, place: int) -> _Unit:
    """Rows first_row ... first_row + rows - 1 of those that are here, by some chunks."""
    return _Unit(
        number=k.number, origin=k.start - k.before, low=k.before, high=k.before + k.size, row=k.row + first_row, rows=rows,
        first_chunk=chunks.start, stop_chunk=chunks.stop, place=place,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _project_plan(compartments: tuple[Compartment, ...], distribution: Distribution) -> _Plan:
    """Units of a segment and at most ROWS rows; partial has all rows of one segment, then of the next."""
    columns, units, sums, at, first = distribution.columns, [], [], 0, 0
    for i, k in enumerate(compartments):
        chunks = _chunks(k, columns)
        segments = _cut(chunks, max(SEGMENT // columns, -(-len(chunks) // SEGMENTS)))
        for s, segment in enumerate(segments):
            for r in range(0, k.dim, ROWS):
                units.append(_make_unit(k, r, min(ROWS, k.dim - r), segment, first + s * k.dim + r))
        sums.append(_Sum(place=at, rows=k.dim, parts=len(segments), first=first, compartment=i))
        at, first = at + k.dim, first + len(segments) * k.dim
    return _make_plan(compartments, distribution, units, sums=np.array(sums, np.int64), partials=first)


@lru_cache(maxsize=256)
def _expand_plan(compartments: tuple[Compartment, ...], distribution: Distribution) -> _Plan:
    """Units of a stripe of columns and all rows."""
    columns, units, at = distribution.columns, [], 0
    for k in compartments:
        units += [_make_unit(k, 0, k.dim, stripe, at) for stripe in _cut(_chunks(k, columns), STRIPE // columns)]
        at += k.dim
    return _make_plan(compartments, distribution, units)


def _scratch(dtype: np.dtype) -> np.ndarray:
    """Scratch memory of one thread: of the same size, some memory pages, for every basis."""
    return np.empty(SCRATCH, dtype)


def _run(kernel: Callable, plan: _Plan, distribution: Distribution, dtype: np.dtype, *args) -> None:
    """The kernel over all units, on several threads if that pays."""
    shape, count = (_DISTRIBUTION_IDS[distribution.name], distribution.columns), len(plan.pieces) - 1
    threads = min(team.thread_count(), count)
    if threads == 1 or plan.entries * distribution.bits < INLINE:
        return kernel(plan.units, 0, len(plan.units), *shape, *args, _scratch(dtype))

    def work(pieces: Iterator[int]) -> None:
        scratch = _scratch(dtype)
        for piece in pieces:
            kernel(plan.units, plan.pieces[piece], plan.pieces[piece + 1], *shape, *args, scratch)

    team.share_pieces(work, count, threads)


def _takes_signs(distribution: Distribution, dtype: np.dtype) -> bool:
    return distribution.name == "rademacher" and dtype == np.float32


def _read_from(places: list[int], bounds: Sequence[int], plan: _Plan, distribution: Distribution, name: Name,
               out: torch.Tensor) -> None:  # fmt: skip
    """out = the coordinates of a vector in several tensors: their addresses, and their bounds in the vector."""
    table, dtype = array("q", [*places, *bounds]), DTYPES[out.dtype]
    address = table.buffer_info()[0]
    partial = np.empty(plan.partials, dtype)
    kernel = _project_signs if _takes_signs(distribution, dtype) else _project_entries
    _run(kernel, plan, distribution, dtype, *name, address, address + 8 * len(places), partial)
    _add_parts(plan.sums, plan.scales.astype(dtype), partial, out.numpy())


def _write_to(targets: list[int], sources: list[int], bounds: Sequence[int], plan: _Plan, distribution: Distribution,
              name: Name, c: torch.Tensor, alpha: float = 1.0) -> None:  # fmt: skip
    """Write the vector with coordinates c to tensors at these addresses, which have these bounds in it.

    If there are sources, alpha times the vector is added to the tensors there, and every sum is rounded once.
    """
    table, dtype = array("q", [*targets, *(sources or targets), *bounds]), DTYPES[c.dtype]
    first, length = table.buffer_info()[0], 8 * len(targets)
    scaled = c.numpy() * np.repeat(plan.scales.astype(dtype), plan.dims)  # (d,)
    kernel = _expand_signs if _takes_signs(distribution, dtype) else _expand_entries
    vector = first, first + length, first + 2 * length
    _run(kernel, plan, distribution, dtype, *name, scaled, *vector, alpha, bool(sources))


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.project``."""
    plan = _project_plan(spec.from_first_row, spec.distribution)
    _read_from([g.data_ptr()], (0, spec.size), plan, spec.distribution, name_of(spec), out)


def expand(c: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.expand``."""
    plan = _expand_plan(spec.from_first_row, spec.distribution)
    _write_to([out.data_ptr()], [], (0, spec.size), plan, spec.distribution, name_of(spec), c)


def add(c: torch.Tensor, spec: BasisSpec, params: Sequence[torch.Tensor]) -> None:
    """See ``reference.add``."""
    Prepared(spec, [p.numel() for p in params]).add_any(c, params)


class Prepared(in_place.Prepared):
    """For dense bases."""

    def __init__(self, spec: BasisSpec, sizes: Sequence[int]):
        super().__init__(spec, sizes)
        self._project_plan = _project_plan(spec.from_first_row, spec.distribution)
        self._expand_plan = _expand_plan(spec.from_first_row, spec.distribution)

    def read_from(self, places: list[int], name: Name, out: torch.Tensor) -> None:
        _read_from(places, self.bounds, self._project_plan, self.spec.distribution, name, out)

    def is_finite(self, c: torch.Tensor) -> bool:
        return are_finite(c.numpy())

    def write_to(self, targets: list[int], sources: list[int], name: Name, c: torch.Tensor, alpha: float = 1.0) -> None:
        _write_to(targets, sources, self.bounds, self._expand_plan, self.spec.distribution, name, c, alpha)
