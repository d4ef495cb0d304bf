"""project, expand and add of a sketch on a CPU: one pass over the columns, contiguous loads and stores (Numba, LLVM).

A sketch has one nonzero in a column (distribution.py). A segment of d columns is a run of all rows that begins at its
offset, so runs of columns meet runs of coordinates:

- project: signed columns are made in a scratch of one chunk and added, run by run, onto sums in float64.
- expand: runs of coordinates are copied into the scratch, then signed, scaled and written. No sum is rounded.
- up to 16 rows: a segment is one register, rotated by a permute.

All fixed by sizes alone, as in ``cpu``: a sum has the order of its segments, in float64, and at most 16 parts.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch

from rbd import distribution as distribution_module
from rbd import philox
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import Distribution
from rbd.kernels import cpu, simd, team
from rbd.kernels.cpu import _inline, _philox, _rademacher
from rbd.kernels.jit import jit
from rbd.kernels.memory import ORDINARY, count_change, find_obstacle, is_watched, share_memory
from rbd.kernels.simd import (
    LANES,
    add_lanes,
    as_elements,
    at_address,
    first_lanes,
    from_place,
    lane_numbers,
    like,
    load,
    permute,
    pointer,
    splat_like,
    splat_u32,
    splat_u64,
    store,
)  # fmt: skip
from rbd.philox import BLOCKS, OFFSETS, SIGNS, WORDS

CHUNK = 32 * WORDS  # columns of a chunk of signs
BLOCK = 16_384  # rows of a unit of project: their sums stay in the second-level cache
PARTS = 16  # at most, of the sum of a row
UNIT = 2**18  # columns of a unit
INLINE = 2**20  # columns; below this a second thread costs more than it brings
DOUBLED = 4096  # rows; up to so many, expand reads coordinates from a table in which they stand twice
ONE_RUN = 1024  # rows; up to so many, project has two sums for each, so that a segment is one run
SHORT = 64  # rows; up to so many, eight
SMALL = LANES  # rows; up to so many, a segment is one register

_FRONT = LANES  # of the scratch: room before the chunk for a segment that begins in the one before
_TABLE = _FRONT + CHUNK + 2 * LANES  # of the scratch: where the table of coordinates begins
_SCRATCH = _TABLE + 2 * DOUBLED + 2 * LANES
_JOINED = _TABLE + WORDS * LANES  # of the scratch of project: a chunk that lies in several tensors
_SUMS = BLOCK + LANES
_SHIFTS, _ROTATIONS = WORDS, 2 * WORDS  # of the words: offsets of 64 segments; rotations of up to 16 lanes
_WORDS = 2 * WORDS + SMALL * LANES
_FIELDS = 12  # of a unit
_LONGS = np.empty(0, np.int64)  # tells at_address what a table holds

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
def _offset(q, span, total, words):
    """o_q, whose word has been made; none of a single row. The product may take all 64 bits, so it has no sign."""
    product = np.uint64(words[_SHIFTS + (q & 63)]) * np.uint64(total)
    return np.int64(product >> np.uint64(32)) if total > 1 else 0


@_inline
def _sign(words, i, model):
    """Signs of the 16 columns from place i of a chunk on, a multiple of 16."""
    word = load(words, i & 63)
    return like(_rademacher(word << splat_u32(31 - (i >> 6))), model)


@_inline
def _level(word, shift, model):
    """Signs of 16 columns, whose bits the shift moves to the top of their words."""
    return like(_rademacher(word << shift), model)


@_inline
def _reach(vector, column, low, high, t, x):
    """A pointer whose element j is column j, for the columns low ... high - 1 of a chunk, and the tensor they begin in.

    vector: addresses of its tensors, their bounds in it, and the place of column 0. t: a tensor near by.
    """
    tensors, bounds, origin = vector
    first, last = origin + max(column, low), origin + min(column + CHUNK, high)
    while bounds[t] > first:
        t -= 1
    while bounds[t + 1] <= first:
        t += 1
    if last <= bounds[t + 1]:
        return from_place(at_address(tensors[t], x), origin - bounds[t]), t
    _join(tensors, bounds, t, first, last, from_place(x, _JOINED - column - origin))
    return from_place(x, _JOINED - column), t


@_inline
def _join(tensors, bounds, t, first, last, x):
    """x = the places first ... last - 1 of a vector, which begin in tensor t."""
    while first < last:
        stop, tensor = min(last, bounds[t + 1]), from_place(at_address(tensors[t], x), -bounds[t])
        for j in range(first, stop):
            x[j] = tensor[j]
        first, t = stop, t + 1


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
def _sign_columns(g, low, high, column, first, last, words, x):
    """x = signed g, places first ... last - 1 of the chunk at that column, rounded up to 16; 0 outside low ... high - 1."""
    i = first
    while i < last:
        j = column + i
        if low <= j and j + LANES <= high:
            gj = load(g, j)
        else:
            for lane in range(LANES):
                x[_FRONT + i + lane] = g[j + lane] if low <= j + lane and j + lane < high else 0
            gj = load(x, _FRONT + i)
        store(x, _FRONT + i, _sign(words, i, gj) * gj)
        i += LANES
    return i


@_inline
def _accumulate(x, at, sums, place, count, fresh):
    """sums += x, count elements; the sums beyond them get zeros. fresh: sums = x, whatever was there before."""
    i = 0
    if fresh:
        while i + LANES <= count:
            store(sums, place + i, like(load(x, at + i), load(sums, place)))
            i += LANES
        for left in range(i, count):
            sums[place + left] = 0
    while i + LANES <= count:
        s = load(sums, place + i)
        store(sums, place + i, s + like(load(x, at + i), s))
        i += LANES
    if i < count:
        s = load(sums, place + i)
        left = first_lanes(load(x, at + i), splat_u32(count - i))
        store(sums, place + i, s + like(left, s))


@_inline
def _add_run(vector, low, high, column, place, count, whole, fresh, state, name, words, x, sums):
    """sums += signed columns, a run of them; whole: others will want the rest of a chunk; fresh: sums = them.

    state: the chunk in the scratch, up to where it has been signed, where its columns are, and their first tensor.
    """
    chunk, made, g, t = state
    number, seed, stream, step = name
    if column < low:
        place, count, column = place + low - column, count - (low - column), low
    count = min(count, high - column)
    while count > 0:
        i = column & (CHUNK - 1)
        if column // CHUNK != chunk:
            chunk, made = column // CHUNK, 0
            g, t = _reach(vector, CHUNK * chunk, low, high, t, x)
            _make_words(SIGNS | (BLOCKS * chunk), 0, number, seed, stream, step, words)
            if (whole or 2 * count >= CHUNK) and low <= CHUNK * chunk and CHUNK * (chunk + 1) <= high:
                _sign_chunk(g, CHUNK * chunk, words, x)
                made = CHUNK
        n = min(count, CHUNK - i)
        if made < i + n:
            made = _sign_columns(g, low, high, CHUNK * chunk, max(made, i & ~15), i + n, words, x)
        _accumulate(x, _FRONT + i, sums, place, n, fresh)
        column, place, count = column + n, place + n, count - n
    return chunk, made, g, t


@_inline
def _kinds(total):
    """How many sums a row has, for segments of different kinds: a rule by d alone, as it decides the order of a sum.

    Two where a segment is one run: rows at or after its offset, and rows before it. Four times as many for the shortest
    segments, so that one need not wait for the sums of the one before.
    """
    return 1 if total > ONE_RUN else 2 if total > SHORT else 8


@_inline
def _add_segments(vector, low, high, total, row, rows, q0, q1, fresh, name, words, x, sums):
    """sums (kinds, rows) += the segments q0 ... q1 - 1 of rows row ... row + rows - 1; fresh: = them."""
    number, seed, stream, step = name
    span, kinds = CHUNK if total == 1 else total, _kinds(total)  # a single row has no offsets: any cut will do
    state, have, all_rows = (-1, 0, x, 0), -1, total == 1 or rows == total
    for q in range(q0, q1):
        if total > 1 and q >> 6 != have:
            have = q >> 6
            _make_words(OFFSETS | (BLOCKS * have), _SHIFTS, number, seed, stream, step, words)
        o = _offset(q, span, total, words)
        at = 2 * (q & 3) * rows if kinds == 8 and total > 1 else 0
        start, first, last = q * span, max(o, row), min(o, row + rows)
        if total == 1 or (all_rows and kinds > 1):  # columns in order are rows from o on, and then the others: one run
            column, place, count, runs = start, at + o, span, 1
        else:
            column, place, count, runs = start + first - o, at + first - row, max(row + rows - first, 0), 2
        for _ in range(runs):
            new = fresh and q == q0
            state = _add_run(vector, low, high, column, place, count, all_rows, new, state, name, words, x, sums)
            column, place, count = start + span - o + row, at + (rows if kinds > 1 else 0), max(last - row, 0)


@_inline
def _make_rotations(total, by, words):
    """Lane i of rotation s has (i + by s) mod total, for permutes; by: 1 or total - 1."""
    for s in range(total):
        for lane in range(LANES):
            words[_ROTATIONS + LANES * s + lane] = (lane + by * s) % total


@_inline
def _add_small_segments(vector, low, high, total, q0, q1, name, words, x, sums):
    """sums (total,) = the segments q0 ... q1 - 1 of 2 ... 16 rows; lanes beyond them are not read."""
    number, seed, stream, step = name
    even = odd = load(sums, 0)
    q, have, t = q0, -1, 0
    _make_rotations(total, total - 1, words)
    last_column = min(q1 * total, high) - 1
    for chunk in range(q0 * total // CHUNK, last_column // CHUNK + 1):
        _make_words(SIGNS | (BLOCKS * chunk), 0, number, seed, stream, step, words)
        g, t = _reach(vector, CHUNK * chunk, low, high, t, x)
        store(x, 0, load(x, CHUNK))  # the end of the chunk before, where a segment may begin
        if low <= CHUNK * chunk and CHUNK * (chunk + 1) <= high:
            _sign_chunk(g, CHUNK * chunk, words, x)
        else:
            _sign_columns(g, low, high, CHUNK * chunk, 0, CHUNK, words, x)
        stop = q1 if chunk == last_column // CHUNK else CHUNK * (chunk + 1) // total
        while q < stop:
            if q >> 6 != have:
                have = q >> 6
                _make_words(OFFSETS | (BLOCKS * have), _SHIFTS, number, seed, stream, step, words)
            count = min(stop, 64 * (have + 1)) - q
            for i in range(count):  # apart from the sums, or LLVM would permute half of a float64 segment lane by lane
                turn = load(words, _ROTATIONS + LANES * _offset(q + i, total, total, words))
                segment = load(x, _FRONT + (q + i) * total - CHUNK * chunk)
                store(x, _TABLE + LANES * i, permute(segment, turn))
            for i in range(count):
                even, odd = odd, even + like(load(x, _TABLE + LANES * i), even)
            q += count
    store(sums, 0, even + odd)


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


@_jit
def _project(units, first, last, tensors, count, seed, stream, step, row0, scales, partial, out, x, sums, words):
    """The sums of some units, into out, scaled, or into partial; the tensors' addresses and their bounds are a table."""
    addresses, bounds = at_address(tensors, _LONGS), at_address(tensors + 8 * count, _LONGS)
    unit, factor, parts = at_address(units, _LONGS), at_address(scales, sums), at_address(partial, sums)
    px, ps, pw, c = pointer(x), pointer(sums), pointer(words), at_address(out, x)
    for n in range(_FIELDS * first, _FIELDS * last, _FIELDS):
        number, total, origin, low, high, row = unit[n], unit[n + 1], unit[n + 2], unit[n + 3], unit[n + 4], unit[n + 5]
        rows, q0, q1, k, place, ends = unit[n + 6], unit[n + 7], unit[n + 8], unit[n + 9], unit[n + 10], unit[n + 11]
        row += row0
        name = number, seed, stream, step
        vector = addresses, bounds, origin  # of column 0, which may lie before the vector
        if 1 < total <= SMALL:
            sums[:LANES] = 0
            x[_FRONT + CHUNK : _TABLE] = 0
            _add_small_segments(vector, low, high, total, q0, q1, name, pw, px, ps)
            if row:
                for r in range(rows):
                    ps[r] = ps[row + r]
            kinds = 1
        else:
            kinds = _kinds(total)
            fresh = kinds == 1 and low <= q0 * total and (q0 + 1) * total <= high  # the first segment has all rows
            sums[: CHUNK if total == 1 else 0 if fresh else kinds * rows + LANES] = 0
            _add_segments(vector, low, high, total, row, rows, q0, q1, fresh, name, pw, px, ps)
        if total == 1:
            all_lanes = load(ps, 0)
            for i in range(LANES, CHUNK, LANES):
                all_lanes = all_lanes + load(ps, i)
            ps[0] = add_lanes(all_lanes)
            kinds = 1
        if ends:
            _finish(ps, kinds, rows, x.dtype.type(factor[k]), c, place)
        else:
            _finish(ps, kinds, rows, 1.0, parts, place)


@_jit
def _add_parts(places, scales, partial, out):
    """out = scale * the sum of the parts of each row, in their order and in float64 until it is rounded."""
    for n in range(len(places)):
        at, rows, count, first, k = places[n]
        for r in range(rows):
            total = 0.0
            for s in range(count):
                total += partial[first + s * rows + r]
            out[at + r] = total
            out[at + r] *= scales[k]


@_inline
def _copy_over(source, at, x, place, count):
    """x = source, count elements and up to 15 more, which the next run overwrites."""
    for i in range(0, count, LANES):
        store(x, place + i, load(source, at + i))


@_inline
def _copy_run(source, at, x, place, column, count, start, stop):
    """x[place + j] = source for the columns column ... column + count - 1 that lie in start ... stop - 1, and no more."""
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
    """The table: all coordinates, zeros for rows that are not here, and the same again; a chunk of a single coordinate."""
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
    """x = unsigned entries of the columns start ... stop - 1, for 2 ... 16 rows."""
    number, seed, stream, step = name
    c = load(x, _TABLE)
    q = start // total
    while q * total < stop:
        if q >> 6 != have:
            have = q >> 6
            _make_words(OFFSETS | (BLOCKS * have), _SHIFTS, number, seed, stream, step, words)
        turn = load(words, _ROTATIONS + LANES * _offset(q, total, total, words))
        store(x, _FRONT + q * total - column, permute(c, turn))
        q += 1
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
        o = _offset(q, span, total, words)
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
def _write(target, source, j, u, add):
    """16 elements."""
    store(target, j, load(source, j) + u if add else u)


@_inline
def _write_signed(x, scale, start, stop, column, words, target, source, add):
    """target = (or source +) scale * signed x, the columns start ... stop - 1 of the chunk at that column."""
    factor = splat_like(scale, x)
    if stop - start == CHUNK:
        w0, w1, w2, w3 = load(words, 0), load(words, 16), load(words, 32), load(words, 48)
        for part in range(32):
            shift, i, j = splat_u32(31 - part), _FRONT + WORDS * part, column + WORDS * part
            _write(target, source, j, load(x, i) * (_level(w0, shift, factor) * factor), add)
            _write(target, source, j + 16, load(x, i + 16) * (_level(w1, shift, factor) * factor), add)
            _write(target, source, j + 32, load(x, i + 32) * (_level(w2, shift, factor) * factor), add)
            _write(target, source, j + 48, load(x, i + 48) * (_level(w3, shift, factor) * factor), add)
        return
    for i in range((start - column) & ~15, stop - column, LANES):
        j = column + i
        u = load(x, _FRONT + i) * (_sign(words, i, factor) * factor)
        if start <= j and j + LANES <= stop:
            _write(target, source, j, u, add)
        else:
            store(x, _FRONT + i, u)
            for lane in range(max(start - j, 0), min(stop - j, LANES)):
                if add:
                    target[j + lane] = source[j + lane] + x[_FRONT + i + lane]
                else:
                    target[j + lane] = x[_FRONT + i + lane]


@_jit
def _expand(units, first, last, c, seed, stream, step, row0, scales, bases, sources, add, x, sums, words):
    """The columns of some units, written to the tensors at the bases, alone or added to those at the sources."""
    unit, factor, tensor = at_address(units, _LONGS), at_address(scales, sums), at_address(bases, _LONGS)
    origins = at_address(sources, _LONGS)
    px, pw = pointer(x), pointer(words)
    table = have = -1
    for n in range(_FIELDS * first, _FIELDS * last, _FIELDS):
        number, total, origin, low, high, row = unit[n], unit[n + 1], unit[n + 2], unit[n + 3], unit[n + 4], unit[n + 5]
        rows, place, k, t = unit[n + 6], unit[n + 7], unit[n + 8], unit[n + 9]
        row += row0
        name = number, seed, stream, step
        pc = at_address(c + place * x.itemsize, x)
        target = at_address(tensor[t] + origin * x.itemsize, x)
        source = at_address(origins[t] + origin * x.itemsize, x)
        if k != table:
            table, have = k, -1
            if total <= DOUBLED:
                _fill_table(pc, total, row, rows, px)
            if 1 < total <= SMALL:
                _make_rotations(total, 1, pw)
        scale = x.dtype.type(factor[k])
        for chunk in range(low // CHUNK, (high - 1) // CHUNK + 1):
            column = CHUNK * chunk
            start, stop = max(low, column), min(high, column + CHUNK)
            _make_words(SIGNS | (BLOCKS * chunk), 0, number, seed, stream, step, pw)
            if 1 < total <= SMALL:
                have = _gather_small(total, start, stop, column, name, have, pw, px)
            else:
                have = _gather(pc, total, row, rows, start, stop, column, name, have, pw, px)
            _write_signed(px, scale, start, stop, column, pw, target, source, add)


@dataclass(frozen=True)
class _Plan:
    """How the work on some compartments is cut: a pure function of their sizes, never of the number of threads."""

    units: np.ndarray  # (n, 12): see _project_plan and _expand_plan
    scales: np.ndarray  # (K,) float64
    columns: int  # that the units pass over, in all
    places: np.ndarray  # (m, 5) for _add_parts: place in c, rows, parts, place of the first part, compartment
    partials: int = 0
    address: int = 0  # of the units
    of_scales: int = 0  # the address of the scales


def _make_plan(compartments: Sequence[Compartment], distribution: Distribution, units: list, columns: int,
               **others) -> _Plan:  # fmt: skip
    table = np.array(units, np.int64).reshape(-1, _FIELDS)
    scales = np.array([distribution.scale(dim=k.total, size=k.length) for k in compartments])
    return _Plan(table, scales, columns, address=table.ctypes.data, of_scales=scales.ctypes.data, **others)


@lru_cache(maxsize=256)
def _project_plan(compartments: tuple[Compartment, ...], distribution: Distribution) -> _Plan:
    """Units of up to BLOCK rows and a run of segments.

    A unit: number, total, place of column 0, low, high, row, rows, first and last segment, compartment, place of its sums
    in out or among the parts, 1 if that is out.
    """
    units, places, at, first, columns = [], [], 0, 0, 0
    for i, k in enumerate(compartments):
        span = CHUNK if k.total == 1 else k.total
        segments = -(-k.length // span)
        parts = min(max(1, PARTS // -(-k.total // BLOCK)), -(-k.length // UNIT))  # whatever rows and columns are here
        tall = -(-segments // parts)
        low, high = k.before, k.before + k.size
        name = k.number, k.total, k.start - low, low, high
        cuts = [(max(q, low // span), min(q + tall, -(-high // span))) for q in range(0, segments, tall)]
        cuts = [(q0, q1) for q0, q1 in cuts if q0 < q1]
        for s, (q0, q1) in enumerate(cuts):
            for r in range(0, k.dim, BLOCK):
                place = at + r if len(cuts) == 1 else first + s * k.dim + r
                units.append((*name, k.row + r, min(BLOCK, k.dim - r), q0, q1, i, place, len(cuts) == 1))
        if len(cuts) > 1:
            places.append((at, k.dim, len(cuts), first, i))
            first += len(cuts) * k.dim
        at, columns = at + k.dim, columns + k.size * k.dim // k.total
    return _make_plan(compartments, distribution, units, columns, places=np.array(places), partials=first)


@lru_cache(maxsize=256)
def _expand_plan(compartments: tuple[Compartment, ...], distribution: Distribution, sizes: tuple[int, ...]) -> _Plan:
    """Units of up to UNIT columns, whole chunks, of one tensor; sizes: of the tensors that make up the vector.

    A unit: number, total, place of column 0 in the tensor, low, high, row, rows, place in c, compartment, tensor, 0, 0.
    """
    units, at, bounds = [], 0, np.cumsum([0, *sizes]).tolist()
    for i, k in enumerate(compartments):
        origin = k.start - k.before
        for t, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            low, high = max(k.start, begin) - origin, min(k.stop, end) - origin
            while low < high:
                cut = min(high, low // UNIT * UNIT + UNIT)
                units.append((k.number, k.total, origin - begin, low, cut, k.row, k.dim, at, i, t, 0, 0))
                low = cut
        at += k.dim
    return _make_plan(compartments, distribution, units, bounds[-1], places=np.empty((0, 5), np.int64))


_Scratch = tuple[np.ndarray, np.ndarray, np.ndarray]
_free: dict[str, list[_Scratch]] = {"f": [], "d": []}  # of each dtype, made once and not in use; kept for the next product


def _aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """Zeros that begin with a cache line."""
    room = np.zeros(count * dtype.itemsize + 64, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + count * dtype.itemsize].view(dtype)


def _take_scratch(dtype: np.dtype) -> _Scratch:
    """Room for what one thread has in hand, the same 0.4 MB whatever the basis; it goes back to _free."""
    try:
        return _free[dtype.char].pop()
    except IndexError:
        return _aligned(_SCRATCH, dtype), _aligned(_SUMS, np.dtype(np.float64)), _aligned(_WORDS, np.dtype(np.uint32))


def _run(kernel: Callable, plan: _Plan, dtype: np.dtype, *args) -> None:
    """The kernel over all units; many columns are shared out, each unit taken by the next free thread."""
    count = len(plan.units)
    threads = 1 if plan.columns < INLINE else min(team.thread_count(), count)
    if threads == 1:
        scratch = _take_scratch(dtype)
        kernel(plan.address, 0, count, *args, *scratch)
        return _free[dtype.char].append(scratch)
    taken = itertools.count()  # next() is atomic

    def work() -> None:
        scratch = _take_scratch(dtype)
        while (n := next(taken)) < count:
            kernel(plan.address, n, n + 1, *args, *scratch)
        _free[dtype.char].append(scratch)

    team.share(work, threads)


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.project``."""
    project_parts([_apart(g, out)], spec, out)


def project_parts(parts: Sequence[torch.Tensor], spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.project_parts``; the parts are read where they stand."""
    bounds, plan = accumulate([p.numel() for p in parts], initial=0), _project_plan(spec.from_first_row, spec.distribution)
    _read_from([p.data_ptr() for p in parts], bounds, plan, _words_of(spec), out)


def _words_of(spec: BasisSpec) -> tuple[int, ...]:
    return spec.seed, spec.stream, spec.step, spec.row


def _read_from(parts: list[int], bounds: Iterable[int], plan: _Plan, name: tuple, out: torch.Tensor) -> None:
    """out = the coordinates of the vector whose parts are at these addresses and have these bounds in it."""
    table = array("q", [*parts, *bounds])
    basis, dtype = (table.buffer_info()[0], len(parts), *name, plan.of_scales), _DTYPES[out.dtype]
    if not plan.partials:
        return _run(_project, plan, dtype, *basis, 0, out.data_ptr())
    partial = np.empty(plan.partials)
    _run(_project, plan, dtype, *basis, partial.ctypes.data, out.data_ptr())
    _add_parts(plan.places, plan.scales.astype(dtype), partial, out.numpy())


def _apart(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """x, copied if it shares memory with out: units would read what others have written."""
    return x.clone() if share_memory(x, out) else x


def expand(c: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.expand``."""
    plan = _expand_plan(spec.from_first_row, spec.distribution, (spec.size,))
    _write_to([out.data_ptr()], [], plan, _words_of(spec), _apart(c, out))


def add(c: torch.Tensor, spec: BasisSpec, params: Sequence[torch.Tensor]) -> None:
    """See ``reference.add``; without a vector of length D if params and c have the same dtype."""
    sizes = [p.numel() for p in params]
    if params[0].dtype == c.dtype:
        places, plan = [p.data_ptr() for p in params], _expand_plan(spec.from_first_row, spec.distribution, tuple(sizes))
        return _write_to(places, places, plan, _words_of(spec), c)
    u = torch.empty(spec.size, dtype=c.dtype, device=c.device)
    expand(c, spec, u)
    torch._foreach_add_(list(params), [v.view_as(p) for p, v in zip(params, u.split(sizes))])


def _write_to(targets: list[int], sources: list[int], plan: _Plan, name: tuple, c: torch.Tensor) -> None:
    """Write the vector with coordinates c to tensors at these addresses, added to those at the sources if there are any."""
    table = array("q", targets + sources)
    target = table.buffer_info()[0]
    source = target + 8 * len(targets) if sources else target
    _run(_expand, plan, _DTYPES[c.dtype], c.data_ptr(), *name, plan.of_scales, target, source, bool(sources))


class Prepared:
    """``shift``, ``project`` and ``expand`` for tensors of the same sizes every time: what lasts is looked up once.

    All give None for tensors that the kernels cannot read or write in place. step: of the basis, if not that of the spec.
    """

    def __init__(self, spec: BasisSpec, sizes: Sequence[int]):
        compartments, self._spec, self._dim, self._sizes = spec.from_first_row, spec, spec.dim, sizes
        self._name, self._size = _words_of(spec), spec.size
        self._bounds = list(accumulate(sizes, initial=0))
        self._project_plan = _project_plan(compartments, spec.distribution)
        self._expand_plan = _expand_plan(compartments, spec.distribution, tuple(sizes))

    def _words(self, step: int | None) -> tuple[int, ...]:
        if step is None:
            return self._name
        return self._spec.seed, self._spec.stream, int(step) % 2**32, self._name[-1]

    def expand(self, c: torch.Tensor, u: torch.Tensor | None = None, step: int | None = None) -> torch.Tensor | None:
        """The vector with coordinates c, (d,) -> (D,); u, if given, is overwritten by it."""
        if is_watched() or (u is not None and find_obstacle(u)):
            return None
        made = torch.empty(self._size, dtype=c.dtype, device="cpu") if u is None else u
        if _addresses((c, made), (self._dim, self._size), c.dtype) is None or share_memory(c, made):
            return None
        if u is not None:
            count_change(u)
        first, width = made.data_ptr(), made.element_size()
        pieces = [first + place * width for place in self._bounds[:-1]]
        _write_to(pieces, [], self._expand_plan, self._words(step), c)
        return made

    def shift(self, c: torch.Tensor, params: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """params + the vector with coordinates c, in new tensors: one pass."""
        if is_watched() or c.shape != (self._dim,) or _addresses((c,), (self._dim,), c.dtype) is None:
            return None
        sources = _addresses(params, self._sizes, c.dtype)
        if sources is None:
            return None
        made = [torch.empty_like(p) for p in params]
        _write_to([p.data_ptr() for p in made], sources, self._expand_plan, self._name, c)
        return made

    def project(self, parts: Sequence[torch.Tensor | None], dtype: torch.dtype, step: int | None = None,
                out: torch.Tensor | None = None) -> torch.Tensor | None:  # fmt: skip
        """Coordinates, of that dtype, of the vector that the parts make up, read in place; out, if given, gets them."""
        if is_watched() or (places := _addresses(parts, self._sizes, dtype)) is None:
            return None
        if out is None:
            out = torch.empty(self._dim, dtype=dtype, device="cpu")  # whatever the default device is
        else:
            if find_obstacle(out) or _addresses((out,), (self._dim,), dtype) is None:
                return None
            if any(p is not None and share_memory(p, out) for p in parts):
                return None
            count_change(out)
        _read_from(places, self._bounds, self._project_plan, self._words(step), out)
        return out


def _addresses(tensors: Sequence[torch.Tensor | None], sizes: Sequence[int], dtype: torch.dtype) -> list[int] | None:
    """Of the tensors' values, or None if there is one that has not so many, of that dtype, one after another in memory."""
    found = []
    for x, size in zip(tensors, sizes):
        if x is None or x.dtype != dtype or x.layout != torch.strided or not x.is_contiguous() or x.is_neg():
            return None
        if x.numel() != size or not x.is_cpu or type(x).__torch_dispatch__ is not ORDINARY:
            return None
        found.append(x.data_ptr())
    return found if dtype in _DTYPES and all(found) else None  # torch has tensors of zeros without memory


_DTYPES: dict[torch.dtype, np.dtype] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
