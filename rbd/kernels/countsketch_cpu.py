"""project, expand and add of a sketch on a CPU: one pass over the columns, contiguous loads and stores (Numba, LLVM).

A sketch has one nonzero in each column (distribution.py). The columns of a segment belong to consecutive rows, from its
offset on and wrapping round once, so a segment is two runs in which columns and rows are both contiguous:

- project: columns are signed as they are read, and added, run by run, to sums in float64; for float64 columns, what each
  addition loses by rounding is summed too (compensated sums).
- expand: runs of coordinates are copied to scratch memory, then signed, scaled and written. There are no sums to round.
- up to 16 rows: a register holds one segment or several, which a permute rotates.

As in ``cpu``, the order of every sum depends on sizes alone: segments are added in order, in float64, in at most 16 parts.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from rbd import distribution as distribution_module
from rbd import philox
from rbd.compartment import BasisSpec, Compartment, find_tensors
from rbd.distribution import Distribution
from rbd.kernels import cpu, in_place, simd, team
from rbd.kernels.cpu import (
    _LONGS,
    _add_parts,
    _find_tensor,
    _inline,
    _join,
    _philox,
    _rademacher,
    _Sum,
    _write,
    _write_lanes,
)
from rbd.kernels.in_place import DTYPES, Name, name_of
from rbd.kernels.jit import jit
from rbd.kernels.simd import (
    LANES,
    add_lanes,
    as_elements,
    at_address,
    bits_of,
    float_bits,
    from_place,
    is_double,
    lane_numbers,
    like,
    load,
    permute,
    pointer,
    replace_lanes,
    smaller,
    splat_like,
    splat_u32,
    splat_u64,
    store,
)  # fmt: skip
from rbd.philox import BLOCKS, OFFSETS, SIGNS, WORDS

CHUNK = 32 * WORDS  # columns of a chunk of signs
UNIT_ROWS = 16_384  # of project, at most: their sums stay in the second-level cache
UNIT_COLUMNS = 2**18  # at most
SUM_PARTS = 16  # of the sum of a row, at most, each made by another unit
INLINE = 2**20  # columns; with fewer, a second thread makes a product slower
DOUBLED = 4096  # most rows for which expand reads coordinates from a table that holds them twice
ONE_RUN = 1024  # most rows for which project has two sums for each row, so that a segment is one run
SHORT = 64  # most rows for which it has eight
SMALL = LANES  # most rows for which a register holds whole segments

# places in the scratch memory of a thread, which is three arrays
_FRONT = LANES  # x: of the chunk; the room before it is for a segment that begins in the chunk before
_TABLE = _FRONT + CHUNK + 2 * LANES  # x: of the table of coordinates, in expand
_JOINED = _TABLE + WORDS * LANES  # x: of a chunk that is spread over several tensors, in project
_SCRATCH = _TABLE + 2 * DOUBLED + 2 * LANES  # x: its length
_LOST = UNIT_ROWS + LANES  # sums: of what additions to the sums lost by rounding, for float64 columns
_SUMS = {"f": _LOST, "d": 2 * _LOST}  # sums: its length, by the columns' dtype
_SHIFTS = WORDS + LANES  # words: of those of the offsets of 64 segments, after the signs of a chunk and 16 of them again
_TURNS = _SHIFTS + WORDS  # words: of the turns of 64 segments of up to 16 rows; a register is read from any of them
_LANES = _TURNS + WORDS + LANES  # words: of the two vectors of _make_lanes
_WORDS = _LANES + 2 * LANES  # words: its length

_jit = jit(philox, distribution_module, simd, cpu)


@_inline
def _make_words(first, place, number, seed, stream, step, words):
    """The 64 words of the chunk whose first block is given, in column order."""
    block, zero = splat_u64(first) + lane_numbers(), splat_u64(0)
    w0, w1, w2, w3 = _philox(block, zero, step, number, seed, stream)
    store(words, place, w0)
    store(words, place + 16, w1)
    store(words, place + 32, w2)
    store(words, place + 48, w3)


@_inline
def _offset(q, total, words):
    """o_q, from its word in words; 0 for a single row. Unsigned, as the product may need all 64 bits."""
    product = np.uint64(words[_SHIFTS + (q & 63)]) * np.uint64(total)
    return np.int64(product >> np.uint64(32)) if total > 1 else 0


@_inline
def _sign(words, i, model):
    """Signs of the 16 columns of a chunk that begin at place i, a multiple of 16; at any place after _repeat_words."""
    word = load(words, i & 63)
    return like(_rademacher(word << splat_u32(31 - (i >> 6))), model)


@_inline
def _repeat_words(words):
    """Let the words of a chunk go on as column 64 does: with its first word, moved to the next bit."""
    first = load(words, 0)
    store(words, WORDS, (first >> splat_u32(1)) | (first << splat_u32(31)))


@_inline
def _level(word, shift, model):
    """Signs of 16 columns, whose bits the shift moves to the top of their words."""
    return like(_rademacher(word << shift), model)


@_inline
def _reach(vector, column, low, high, t, x):
    """A pointer whose element j is column j, for the columns of a chunk in low ... high - 1, and the tensor they begin in.

    vector: addresses of its tensors, their bounds in it, and the place of column 0. t: the tensor where the search begins.
    """
    tensors, bounds, origin = vector
    first, last = origin + max(column, low), origin + min(column + CHUNK, high)
    t = _find_tensor(bounds, first, t)
    if last <= bounds[t + 1]:
        return from_place(at_address(tensors[t], x), origin - bounds[t]), t
    _join(tensors, bounds, t, first, last, from_place(x, _JOINED - column - origin))
    return from_place(x, _JOINED - column), t


@_inline
def _sign_chunk(g, column, words, x):
    """x = signed g, all columns of the chunk at that column: (2048,)."""
    w0, w1, w2, w3 = load(words, 0), load(words, 16), load(words, 32), load(words, 48)
    for part in range(32):
        shift, i = splat_u32(31 - part), WORDS * part
        g0, g1, g2, g3 = load(g, column + i), load(g, column + i + 16), load(g, column + i + 32), load(g, column + i + 48)
        store(x, _FRONT + i, _level(w0, shift, g0) * g0)
        store(x, _FRONT + i + 16, _level(w1, shift, g1) * g1)
        store(x, _FRONT + i + 32, _level(w2, shift, g2) * g2)
        store(x, _FRONT + i + 48, _level(w3, shift, g3) * g3)


@_inline
def _sign_some(g, low, high, column, words, x):
    """x = signed g, the columns low ... high - 1 of the chunk at that column; 0 for its others."""
    for i in range(0, CHUNK, LANES):
        j = column + i
        if low <= j and j + LANES <= high:
            gj = load(g, j)
        else:
            for lane in range(LANES):
                x[_FRONT + i + lane] = g[j + lane] if low <= j + lane and j + lane < high else 0
            gj = load(x, _FRONT + i)
        store(x, _FRONT + i, _sign(words, i, gj) * gj)


@_inline
def _keep_lost(s, term, sums, place, first, last):
    """Keep what s + term loses by rounding, in the lanes first ... last - 1: exact (TwoSum of Knuth)."""
    total = s + term
    part = total - s
    lost = load(sums, _LOST + place)
    more = lost + ((s - (total - part)) + (term - part))
    store(sums, _LOST + place, replace_lanes(lost, more, splat_u32(first), splat_u32(last)))


@_inline
def _restore_lost(sums, count):
    """sums += what they lost, which is NaN for sums that are not finite."""
    for i in range(count):
        lost = sums[_LOST + i]
        sums[i] += lost if lost == lost else 0.0


@_inline
def _accumulate_lanes(g, column, first, last, start, stop, words, sums, place, fresh, x):
    """sums += signed columns in the lanes first ... last - 1 of a register, which begins at that column and place."""
    gi, s = load(x, _FRONT), load(sums, place)
    if start <= column and column + LANES <= stop:
        gi = load(g, column)
    else:
        for lane in range(first, last):
            x[_FRONT + lane] = g[column + lane]
        gi = load(x, _FRONT)
    signed = like(_sign(words, column & (CHUNK - 1), gi) * gi, s)
    if is_double(x) and not fresh:
        _keep_lost(s, signed, sums, place, first, last)
    store(sums, place, replace_lanes(s, signed if fresh else s + signed, splat_u32(first), splat_u32(last)))


@_inline
def _accumulate(g, column, count, start, stop, words, sums, place, fresh, x):
    """sums += signed columns of a chunk, count of them from that column on.

    Columns start ... stop - 1 may be read. fresh: sums = signed columns, overwriting what was there.
    """
    head = place & (LANES - 1) if count > SHORT else 0  # aligned stores are faster; short runs lose more by another register
    column, place, end, i = column - head, place - head, head + count, 0
    if head:
        _accumulate_lanes(g, column, head, min(end, LANES), start, stop, words, sums, place, fresh, x)
        i = LANES
    while fresh and i + LANES <= end:
        gi = load(g, column + i)
        store(sums, place + i, like(_sign(words, (column + i) & (CHUNK - 1), gi) * gi, load(sums, place)))
        i += LANES
    while i + LANES <= end:
        gi, s = load(g, column + i), load(sums, place + i)
        signed = like(_sign(words, (column + i) & (CHUNK - 1), gi) * gi, s)
        if is_double(x):
            _keep_lost(s, signed, sums, place + i, 0, LANES)
        store(sums, place + i, s + signed)
        i += LANES
    if i < end:
        _accumulate_lanes(g, column + i, 0, end - i, start, stop, words, sums, place + i, fresh, x)


@_inline
def _add_run(vector, low, high, column, place, count, fresh, state, name, words, x, sums):
    """sums += a run of signed columns.

    fresh: overwrite sums by the columns. state: the chunk whose signs are in words, a pointer to its columns, and their
    first tensor.
    """
    chunk, g, t = state
    number, seed, stream, step = name
    if column < low:
        place, count, column = place + low - column, count - (low - column), low
    count = min(count, high - column)
    while count > 0:
        if column // CHUNK != chunk:
            chunk = column // CHUNK
            g, t = _reach(vector, CHUNK * chunk, low, high, t, x)
            _make_words(SIGNS | (BLOCKS * chunk), 0, number, seed, stream, step, words)
            _repeat_words(words)
        start, stop = max(low, CHUNK * chunk), min(high, CHUNK * (chunk + 1))
        n = min(count, stop - column)
        _accumulate(g, column, n, start, stop, words, sums, place, fresh, x)
        column, place, count = column + n, place + n, count - n
    return chunk, g, t


@_inline
def _kinds(total):
    """The number of sums of each row, which are added up at the end. It depends on d alone, as it fixes the order of a sum.

    Two where a segment is one run: one for rows from its offset on, one for rows before it. Four times as many for the
    shortest segments, so that a segment does not wait for the stores of the one before.
    """
    return 1 if total > ONE_RUN else 2 if total > SHORT else 8


@_inline
def _add_segments(vector, low, high, total, row, rows, q0, q1, fresh, name, words, x, sums):
    """sums (kinds, rows) += the segments q0 ... q1 - 1 of rows row ... row + rows - 1.

    fresh: the first segment overwrites sums.
    """
    number, seed, stream, step = name
    span, kinds = CHUNK if total == 1 else total, _kinds(total)  # a single row has no offsets: segments may be longer
    state, have, all_rows = (-1, x, 0), -1, total == 1 or rows == total
    for q in range(q0, q1):
        if total > 1 and q >> 6 != have:
            have = q >> 6
            _make_words(OFFSETS | (BLOCKS * have), _SHIFTS, number, seed, stream, step, words)
        o = _offset(q, total, words)
        at = 2 * (q & 3) * rows if kinds == 8 and total > 1 else 0
        start, first, last = q * span, max(o, row), min(o, row + rows)
        if total == 1 or (all_rows and kinds > 1):  # columns in order are rows from o on, and then the others: one run
            column, place, count, runs = start, at + o, span, 1
        else:
            column, place, count, runs = start + first - o, at + first - row, max(row + rows - first, 0), 2
        for _ in range(runs):
            new = fresh and q == q0
            state = _add_run(vector, low, high, column, place, count, new, state, name, words, x, sums)
            column, place, count = start + span - o + row, at + (rows if kinds > 1 else 0), max(last - row, 0)


@_inline
def _make_turns(have, total, backwards, name, words):
    """The offsets o of segments 64 have ... 64 have + 63, or, backwards, d - o."""
    number, seed, stream, step = name
    _make_words(OFFSETS | (BLOCKS * have), _SHIFTS, number, seed, stream, step, words)
    for k in range(WORDS):
        offset = np.uint32(np.uint64(words[_SHIFTS + k]) * np.uint64(total) >> np.uint64(32))
        words[_TURNS + k] = np.uint32(total) - offset if backwards else offset


@_inline
def _make_lanes(total, words):
    """For a register of 16 // d segments side by side: which segment a lane is in, and its place there."""
    for lane in range(LANES):
        words[_LANES + lane] = lane // total
        words[_LANES + LANES + lane] = lane % total


@_inline
def _turn(words, k, total):
    """The places of all lanes, turned by those of segments k, k + 1, ... of 64: (place + turn) mod d."""
    turns = bits_of(permute(float_bits(load(words, _TURNS + k)), load(words, _LANES)))
    place, d = load(words, _LANES + LANES) + turns, splat_u32(total)
    return smaller(place, place - d)  # place - d wraps round to more than place where place < d


@_inline
def _add_small_segments(vector, low, high, total, q0, q1, name, words, x, sums):
    """sums (total,) = the segments q0 ... q1 - 1 of 2 ... 16 rows; lanes beyond them are not read."""
    number, seed, stream, step = name
    even = odd = load(sums, 0)
    zero = splat_like(0, x)
    q, have, t, each = q0, -1, 0, LANES // total  # each: segments of a register
    _make_lanes(total, words)
    begins = load(words, _LANES) * splat_u32(total)  # the lane where a lane's segment begins
    last_column = min(q1 * total, high) - 1
    for chunk in range(q0 * total // CHUNK, last_column // CHUNK + 1):
        _make_words(SIGNS | (BLOCKS * chunk), 0, number, seed, stream, step, words)
        g, t = _reach(vector, CHUNK * chunk, low, high, t, x)
        store(x, 0, load(x, CHUNK))  # the end of the chunk before, where a segment may begin
        if low <= CHUNK * chunk and CHUNK * (chunk + 1) <= high:
            _sign_chunk(g, CHUNK * chunk, words, x)
        else:
            _sign_some(g, low, high, CHUNK * chunk, words, x)
        stop = q1 if chunk == last_column // CHUNK else CHUNK * (chunk + 1) // total
        while q < stop:
            if q >> 6 != have:
                have = q >> 6
                _make_turns(have, total, True, name, words)
            count = min(stop, 64 * (have + 1)) - q
            registers = (count + each - 1) // each
            for i in range(registers):  # apart from the sums: LLVM would permute half of a float64 register lane by lane
                lanes = min(count - i * each, each) * total
                segments = load(x, _FRONT + (q + i * each) * total - CHUNK * chunk)
                segments = replace_lanes(zero, segments, splat_u32(0), splat_u32(lanes))
                turned = _turn(words, (q & 63) + i * each, total) + begins
                store(x, _TABLE + LANES * i, permute(segments, turned))
            for i in range(registers):
                term = like(load(x, _TABLE + LANES * i), even)
                if is_double(x):
                    _keep_lost(even, term, sums, 0, 0, LANES)
                even, odd = odd, even + term
            q += count
    store(sums, 0, even + odd)
    if is_double(x):
        _keep_lost(even, odd, sums, 0, 0, LANES)
        _restore_lost(sums, LANES)
    for i in range(total, each * total):
        sums[i % total] += sums[i]


@_inline
def _finish(sums, kinds, rows, scale, out, place):
    """out = scale * the sums of all kinds, rounded before they are scaled."""
    factor, r = splat_like(scale, out), 0
    while r + LANES <= rows:
        total = load(sums, r)
        for kind in range(1, kinds):
            total = total + load(sums, kind * rows + r)
        store(out, place + r, as_elements(total, out) * factor)
        r += LANES
    for i in range(r, rows):
        one = sums[i]
        for kind in range(1, kinds):
            one += sums[kind * rows + i]
        out[place + i] = one
        out[place + i] *= scale


class _ProjectUnit(NamedTuple):
    """What ``_project`` does at a time: some rows of a compartment by a run of its segments."""

    number: int  # of the compartment
    total: int
    origin: int  # place of column 0 in the vector, which may lie before it
    low: int  # columns low ... high - 1 are in the vector
    high: int
    row: int
    rows: int
    first_segment: int
    stop_segment: int  # the last one + 1
    compartment: int  # whose scale is used
    place: int  # of the first row's sum, in partial or in out
    to_out: int  # 1: the sums are whole, so they are scaled and written to out


_OF_PROJECT = _ProjectUnit(*range(len(_ProjectUnit._fields)))  # where each field is in a unit


@_jit
def _project(units, first, last, tensors, count, seed, stream, step, row0, scales, partial, out, x, sums, words):
    """The sums of some units, written to out, scaled, or to partial. tensors: their addresses, then their bounds."""
    addresses, bounds = at_address(tensors, _LONGS), at_address(tensors + 8 * count, _LONGS)
    table, factor, parts = at_address(units, _LONGS), at_address(scales, sums), at_address(partial, sums)
    px, ps, pw, c = pointer(x), pointer(sums), pointer(words), at_address(out, x)
    for n in range(first, last):
        unit = n * len(_OF_PROJECT)
        total, low, high = table[unit + _OF_PROJECT.total], table[unit + _OF_PROJECT.low], table[unit + _OF_PROJECT.high]
        row, rows = table[unit + _OF_PROJECT.row] + row0, table[unit + _OF_PROJECT.rows]
        q0, q1 = table[unit + _OF_PROJECT.first_segment], table[unit + _OF_PROJECT.stop_segment]
        place, k = table[unit + _OF_PROJECT.place], table[unit + _OF_PROJECT.compartment]
        name = table[unit + _OF_PROJECT.number], seed, stream, step
        vector = addresses, bounds, table[unit + _OF_PROJECT.origin]
        kinds = 1 if total <= SMALL else _kinds(total)
        filled = CHUNK if total == 1 else LANES if total <= SMALL else kinds * rows  # sums that are used
        if is_double(px):
            sums[_LOST : _LOST + filled + LANES] = 0
        if 1 < total <= SMALL:
            sums[:LANES] = 0
            x[_FRONT + CHUNK : _TABLE] = 0
            _add_small_segments(vector, low, high, total, q0, q1, name, pw, px, ps)
            if row:
                for r in range(rows):
                    ps[r] = ps[row + r]
        else:
            fresh = total > ONE_RUN and low <= q0 * total and (q0 + 1) * total <= high  # the first segment has all rows
            sums[: 0 if fresh else filled + LANES] = 0
            _add_segments(vector, low, high, total, row, rows, q0, q1, fresh, name, pw, px, ps)
            if is_double(px):
                _restore_lost(ps, filled)
        if total == 1:
            while filled > LANES:
                filled //= 2
                for i in range(0, filled, LANES):
                    store(ps, i, load(ps, i) + load(ps, filled + i))
            ps[0] = add_lanes(load(ps, 0))
        if table[unit + _OF_PROJECT.to_out]:
            _finish(ps, kinds, rows, x.dtype.type(factor[k]), c, place)
        else:
            _finish(ps, kinds, rows, 1.0, parts, place)


@_inline
def _copy_over(source, at, x, place, count):
    """x = count elements of source and up to 15 more, which the next run overwrites."""
    for i in range(0, count, LANES):
        store(x, place + i, load(source, at + i))


@_inline
def _copy_run(source, at, x, place, column, count, start, stop):
    """x[place + j] = source for those of the columns j = column ... column + count - 1 that are in start ... stop - 1."""
    if column < start:
        at, count, column = at + start - column, count - (start - column), start
    count = min(count, stop - column)
    i = 0
    while i + LANES <= count:
        store(x, place + column + i, load(source, at + i))
        i += LANES
    while i < count:
        x[place + column + i] = source[at + i]
        i += 1


@_inline
def _fill_table(c, total, row, rows, x):
    """The table of coordinates, twice: 0 for rows that are not in c. A single row's coordinate is repeated for a chunk."""
    span = CHUNK if total == 1 else total
    for r in range(span):
        if total == 1:
            x[_TABLE + r] = c[0]
        elif row <= r < row + rows:
            x[_TABLE + r] = c[r - row]
        else:
            x[_TABLE + r] = 0
    for r in range(span):
        x[_TABLE + span + r] = x[_TABLE + r]


@_inline
def _gather_small(total, start, stop, column, name, have, words, x):
    """x = unsigned entries of the columns start ... stop - 1, for 2 ... 16 rows, and of some beyond them."""
    c, q, each = load(x, _TABLE), start // total, LANES // total
    while q * total < stop:
        if q >> 6 != have:
            have = q >> 6
            _make_turns(have, total, False, name, words)
        store(x, _FRONT + q * total - column, permute(c, _turn(words, q & 63, total)))
        q += min(each, 64 - (q & 63))  # the next register overwrites the lanes beyond
    return have


@_inline
def _gather(c, total, row, rows, start, stop, column, name, have, words, x):
    """x = unsigned entries of the columns start ... stop - 1 of the chunk at that column."""
    number, seed, stream, step = name
    span = CHUNK if total == 1 else total
    if total > DOUBLED and rows < total:
        for i in range(start - column, stop - column):
            x[_FRONT + i] = 0
    q = start // span
    while q * span < stop:
        if total > 1 and q >> 6 != have:
            have = q >> 6
            _make_words(OFFSETS | (BLOCKS * have), _SHIFTS, number, seed, stream, step, words)
        o = _offset(q, total, words)
        if total <= DOUBLED:
            first, last = max(q * span, start), min((q + 1) * span, stop)
            _copy_over(x, _TABLE + o + first - q * span, x, _FRONT + first - column, last - first)
        else:
            first, last, place = max(o, row), min(o, row + rows), _FRONT - column
            if first < row + rows:
                _copy_run(c, first - row, x, place, q * total + first - o, row + rows - first, start, stop)
            if row < last:
                _copy_run(c, 0, x, place, q * total + total - o + row, last - row, start, stop)
        q += 1
    return have


@_inline
def _write_signed(x, scale, start, stop, column, words, target, source, weight, add):
    """target = (or source + weight *) scale * signed x, the columns start ... stop - 1 of the chunk at that column."""
    factor, alpha = splat_like(scale, x), splat_like(weight, x)
    if stop - start == CHUNK:
        w0, w1, w2, w3 = load(words, 0), load(words, 16), load(words, 32), load(words, 48)
        for part in range(32):
            shift, i, j = splat_u32(31 - part), _FRONT + WORDS * part, column + WORDS * part
            _write(target, source, j, load(x, i) * (_level(w0, shift, factor) * factor), alpha, add)
            _write(target, source, j + 16, load(x, i + 16) * (_level(w1, shift, factor) * factor), alpha, add)
            _write(target, source, j + 32, load(x, i + 32) * (_level(w2, shift, factor) * factor), alpha, add)
            _write(target, source, j + 48, load(x, i + 48) * (_level(w3, shift, factor) * factor), alpha, add)
        return
    for i in range((start - column) & ~15, stop - column, LANES):
        j = column + i
        u = load(x, _FRONT + i) * (_sign(words, i, factor) * factor)
        if start <= j and j + LANES <= stop:
            _write(target, source, j, u, alpha, add)
        else:
            _write_lanes(target, source, j, max(start - j, 0), min(stop - j, LANES), u, alpha, add, x)


class _ExpandUnit(NamedTuple):
    """What ``_expand`` does at a time: all rows of a compartment by some of its columns, which are in one tensor."""

    number: int  # of the compartment
    total: int
    origin: int  # place of column 0 in the tensor, which may lie before it
    low: int  # columns low ... high - 1 are written
    high: int
    row: int
    rows: int
    place: int  # of the first row's coordinate in c
    compartment: int  # whose scale is used
    tensor: int


_OF_EXPAND = _ExpandUnit(*range(len(_ExpandUnit._fields)))  # where each field is in a unit


@_jit
def _expand(units, first, last, c, seed, stream, step, row0, scales, targets, sources, alpha, add, x, sums, words):
    """The columns of some units, written to tensors; add: alpha times them, added to those at the sources."""
    table, factor = at_address(units, _LONGS), at_address(scales, sums)
    written, read = at_address(targets, _LONGS), at_address(sources, _LONGS)  # addresses of tensors
    px, pw = pointer(x), pointer(words)
    of_table = have = -1  # the compartment whose coordinates are in x; the chunk whose offsets are in words
    for n in range(first, last):
        unit = n * len(_OF_EXPAND)
        number, total = table[unit + _OF_EXPAND.number], table[unit + _OF_EXPAND.total]
        low, high = table[unit + _OF_EXPAND.low], table[unit + _OF_EXPAND.high]
        row, rows = table[unit + _OF_EXPAND.row] + row0, table[unit + _OF_EXPAND.rows]
        k, t = table[unit + _OF_EXPAND.compartment], table[unit + _OF_EXPAND.tensor]
        first_byte = table[unit + _OF_EXPAND.origin] * x.itemsize
        name = number, seed, stream, step
        pc = at_address(c + table[unit + _OF_EXPAND.place] * x.itemsize, x)
        target, source = at_address(written[t] + first_byte, x), at_address(read[t] + first_byte, x)
        if k != of_table:
            of_table, have = k, -1
            if total <= DOUBLED:
                _fill_table(pc, total, row, rows, px)
            if 1 < total <= SMALL:
                _make_lanes(total, pw)
        scale, weight = x.dtype.type(factor[k]), x.dtype.type(alpha)
        for chunk in range(low // CHUNK, (high - 1) // CHUNK + 1):
            column = CHUNK * chunk
            start, stop = max(low, column), min(high, column + CHUNK)
            _make_words(SIGNS | (BLOCKS * chunk), 0, number, seed, stream, step, pw)
            if 1 < total <= SMALL:
                have = _gather_small(total, start, stop, column, name, have, pw, px)
            else:
                have = _gather(pc, total, row, rows, start, stop, column, name, have, pw, px)
            _write_signed(px, scale, start, stop, column, pw, target, source, weight, add)


@dataclass(frozen=True)
class _Plan:
    """How the work on some compartments is cut: a pure function of their sizes, never of the number of threads."""

    units: np.ndarray  # (n, fields of _ProjectUnit or _ExpandUnit)
    scales: np.ndarray  # (K,) float64
    columns: int  # of all units together
    sums: np.ndarray | None = None  # (m, fields of _Sum), of project
    partials: int = 0  # length of partial
    address: int = 0  # of the units
    of_scales: int = 0  # the address of the scales


def _make_plan(compartments: Sequence[Compartment], distribution: Distribution, units: Sequence[_ProjectUnit | _ExpandUnit],
               columns: int, **others) -> _Plan:  # fmt: skip
    table = np.array(units, np.int64)
    scales = np.array([distribution.scale(dim=k.total, size=k.length) for k in compartments])
    return _Plan(table, scales, columns, address=table.ctypes.data, of_scales=scales.ctypes.data, **others)


def _runs(k: Compartment) -> list[range]:
    """The segments that have columns here, a run for each part of a sum. Cut by d_k and D_k alone, as in the whole basis."""
    span = CHUNK if k.total == 1 else k.total
    segments = -(-k.length // span)
    parts = min(max(1, SUM_PARTS // -(-k.total // UNIT_ROWS)), -(-k.length // UNIT_COLUMNS))
    each = -(-segments // parts)
    first, stop = k.before // span, -(-(k.before + k.size) // span)
    runs = [range(max(q, first), min(q + each, stop)) for q in range(0, segments, each)]
    return [run for run in runs if run]


@lru_cache(maxsize=256)
def _project_plan(compartments: tuple[Compartment, ...], distribution: Distribution) -> _Plan:
    """Units of up to UNIT_ROWS rows and a run of segments."""
    units, sums, at, first, columns = [], [], 0, 0, 0
    for i, k in enumerate(compartments):
        runs = _runs(k)
        whole = len(runs) == 1
        for s, run in enumerate(runs):
            for r in range(0, k.dim, UNIT_ROWS):
                units.append(_ProjectUnit(
                    number=k.number, total=k.total, origin=k.start - k.before, low=k.before, high=k.before + k.size,
                    row=k.row + r, rows=min(UNIT_ROWS, k.dim - r), first_segment=run.start, stop_segment=run.stop,
                    compartment=i, place=at + r if whole else first + s * k.dim + r, to_out=int(whole),
                ))  # fmt: skip
        if not whole:
            sums.append(_Sum(place=at, rows=k.dim, parts=len(runs), first=first, compartment=i))
            first += len(runs) * k.dim
        at, columns = at + k.dim, columns + k.size * k.dim // k.total
    return _make_plan(compartments, distribution, units, columns, sums=np.array(sums, np.int64), partials=first)


@lru_cache(maxsize=256)
def _expand_plan(compartments: tuple[Compartment, ...], distribution: Distribution, sizes: tuple[int, ...]) -> _Plan:
    """Units of up to UNIT_COLUMNS columns, cut at whole chunks, of one tensor; sizes: of the tensors of the vector."""
    units, at, bounds = [], 0, np.cumsum([0, *sizes], dtype=np.int64).tolist()
    for i, k in enumerate(compartments):
        origin = k.start - k.before
        for t in find_tensors(k, bounds):
            begin, end = bounds[t], bounds[t + 1]
            low, high = max(k.start, begin) - origin, min(k.stop, end) - origin
            while low < high:
                cut = min(high, low // UNIT_COLUMNS * UNIT_COLUMNS + UNIT_COLUMNS)
                units.append(_ExpandUnit(
                    number=k.number, total=k.total, origin=origin - begin, low=low, high=cut, row=k.row, rows=k.dim,
                    place=at, compartment=i, tensor=t,
                ))  # fmt: skip
                low = cut
        at += k.dim
    return _make_plan(compartments, distribution, units, bounds[-1])


_Scratch = tuple[np.ndarray, np.ndarray, np.ndarray]
_free: dict[str, list[_Scratch]] = {"f": [], "d": []}  # by dtype: scratch memory that no product uses now, kept for the next


def _aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """Zeros, aligned to a cache line."""
    room = np.zeros(count * dtype.itemsize + 64, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + count * dtype.itemsize].view(dtype)


def _take_scratch(dtype: np.dtype) -> _Scratch:
    """Scratch memory of one thread, 0.4 MB for every basis. The caller puts it back to _free."""
    try:
        return _free[dtype.char].pop()
    except IndexError:
        sums = _aligned(_SUMS[dtype.char], np.dtype(np.float64))
        return _aligned(_SCRATCH, dtype), sums, _aligned(_WORDS, np.dtype(np.uint32))


def _run(kernel: Callable, plan: _Plan, dtype: np.dtype, *args) -> None:
    """The kernel over all units, on several threads from INLINE columns on."""
    count = len(plan.units)
    threads = 1 if plan.columns < INLINE else min(team.thread_count(), count)
    if threads == 1:
        scratch = _take_scratch(dtype)
        kernel(plan.address, 0, count, *args, *scratch)
        return _free[dtype.char].append(scratch)

    def work(pieces: Iterator[int]) -> None:
        scratch = _take_scratch(dtype)
        for n in pieces:
            kernel(plan.address, n, n + 1, *args, *scratch)
        _free[dtype.char].append(scratch)

    team.share_pieces(work, count, threads)


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.project``."""
    plan = _project_plan(spec.from_first_row, spec.distribution)
    _read_from([g.data_ptr()], (0, spec.size), plan, name_of(spec), out)


def _read_from(parts: list[int], bounds: Iterable[int], plan: _Plan, name: Name, out: torch.Tensor) -> None:
    """out = the coordinates of a vector in several parts: their addresses, and their bounds in the vector."""
    table = array("q", [*parts, *bounds])
    basis, dtype = (table.buffer_info()[0], len(parts), *name, plan.of_scales), DTYPES[out.dtype]
    if not plan.partials:
        return _run(_project, plan, dtype, *basis, 0, out.data_ptr())
    partial = np.empty(plan.partials)
    _run(_project, plan, dtype, *basis, partial.ctypes.data, out.data_ptr())
    _add_parts(plan.sums, plan.scales.astype(dtype), partial, out.numpy())


def expand(c: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.expand``."""
    plan = _expand_plan(spec.from_first_row, spec.distribution, (spec.size,))
    _write_to([out.data_ptr()], [], plan, name_of(spec), c)


def add(c: torch.Tensor, spec: BasisSpec, params: Sequence[torch.Tensor]) -> None:
    """See ``reference.add``."""
    Prepared(spec, [p.numel() for p in params]).add_any(c, params)


def _write_to(targets: list[int], sources: list[int], plan: _Plan, name: Name, c: torch.Tensor, alpha: float = 1.0) -> None:
    """Write the vector with coordinates c to tensors at these addresses.

    If there are sources, alpha times the vector is added to the tensors there, and every sum is rounded once.
    """
    table = array("q", targets + sources)
    address = table.buffer_info()[0]
    of_sources = address + 8 * len(targets) if sources else address
    _run(_expand, plan, DTYPES[c.dtype], c.data_ptr(), *name, plan.of_scales, address, of_sources, alpha, bool(sources))


class Prepared(in_place.Prepared):
    """For sketches."""

    def __init__(self, spec: BasisSpec, sizes: Sequence[int]):
        super().__init__(spec, sizes)
        self._project_plan = _project_plan(spec.from_first_row, spec.distribution)
        self._expand_plan = _expand_plan(spec.from_first_row, spec.distribution, tuple(sizes))

    def read_from(self, places: list[int], name: Name, out: torch.Tensor) -> None:
        _read_from(places, self.bounds, self._project_plan, name, out)

    def is_finite(self, c: torch.Tensor) -> bool:
        return cpu.are_finite(c.numpy())

    def write_to(self, targets: list[int], sources: list[int], name: Name, c: torch.Tensor, alpha: float = 1.0) -> None:
        _write_to(targets, sources, self._expand_plan, name, c, alpha)
