"""project and expand on a CPU: entries made in vector registers from Philox words and used up there (Numba, LLVM).

Three ways of one product, all with the entries of ``reference.py``:

- signs, float32: sums of 4 signed numbers come from a table of 16, picked by 4 bits of a word with one permute;
- the others: 16 entries in the lanes of a vector, multiplied and added;
- float64 gradients: the same, widened.

Work is cut into units whose sizes depend on the basis alone, and every sum has a fixed order, so results do not depend
on the number of threads. Threads come from ``team``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numba import njit

from rbd import distribution, philox
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import QUANTILE, Distribution
from rbd.kernels import simd, team
from rbd.kernels.jit import jit
from rbd.kernels.simd import (
    LANES,
    add_lanes,
    bits_of,
    float_bits,
    float_of,
    fma,
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
_EVEN, _PAIRS = 0x55555555, 0x33333333  # every other bit, and every other two

HALF = BLOCKS // 2  # blocks whose sign tables are in use at a time
ROWS = 256  # rows of a unit: the sign tables of a chunk serve them all
SEGMENT = 8192  # least columns of a unit of project
SEGMENTS = 64  # at most so many along a compartment, so that partial sums take O(64 d)
STRIPE = 4096  # columns of a unit of expand
SCRATCH = SEGMENT + ROWS * LANES  # elements; the sign kernels take 2048 + 256 + 4096 of them
INLINE = 2**21  # random bits; below this, a second thread does not pay

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
def _axpy_rows(distribution_id, parts, block, c, at, rows, row, step, number, seed, stream, u):
    """One chunk of u += all rows of a compartment, each times its coordinate."""
    for r in range(rows):
        w0, w1, w2, w3 = _philox(splat_u64(block) + lane_numbers(), splat_u64(row + r), step, number, seed, stream)
        cr = splat_like(c[at + r], u)
        _axpy(distribution_id, parts, w0, cr, u, 0)
        _axpy(distribution_id, parts, w1, cr, u, 16)
        _axpy(distribution_id, parts, w2, cr, u, 32)
        _axpy(distribution_id, parts, w3, cr, u, 48)


@_jit
def _copy_padded(g, origin, low, high, column, x):
    """x = g at the columns from column on, of which low ... high - 1 are there, the others being zeros."""
    first, last = max(low - column, 0), min(high - column, len(x))
    x[:first] = 0
    x[first:last] = g[origin + column + first : origin + column + last]
    x[last:] = 0


@_jit
def _copy_inside(u, origin, low, high, column, out):
    """out = u, the columns from column on, where low ... high - 1 are there."""
    first, last = max(low - column, 0), min(high - column, len(u))
    out[origin + column + first : origin + column + last] = u[first:last]


@_jit
def _project_entries(units, first, last, distribution_id, columns, g, seed, stream, step, row0, partial, scratch):
    """partial = (rows of a unit) @ (its segment of g), entry by entry."""
    block = SEGMENT // columns  # chunks of g that stay in the cache while the rows pass over them
    x, totals = scratch[:SEGMENT], scratch[SEGMENT : SEGMENT + ROWS * LANES]
    for n in range(first, last):
        number, origin, low, high, row, rows, chunk0, chunk1, at = units[n]
        row += row0
        totals[:] = 0
        for begin in range(chunk0, chunk1, block):
            chunks = min(block, chunk1 - begin)
            _copy_padded(g, origin, low, high, begin * columns, x)
            px, pt, b = pointer(x), pointer(totals), BLOCKS * begin
            for r in range(rows):
                if distribution_id == NORMAL:
                    t = _dot_row(NORMAL, 2, b, chunks, row + r, step, number, seed, stream, px)
                elif distribution_id == UNIFORM:
                    t = _dot_row(UNIFORM, 4, b, chunks, row + r, step, number, seed, stream, px)
                else:
                    t = _dot_row(RADEMACHER, 32, b, chunks, row + r, step, number, seed, stream, px)
                store(pt, LANES * r, load(pt, LANES * r) + t)
        for r in range(rows):
            partial[at + r] = add_lanes(load(pointer(totals), LANES * r))


@_jit
def _expand_entries(units, first, last, distribution_id, columns, c, seed, stream, step, row0, out, scratch):
    """out = (columns of a unit) @ (all coordinates of its compartment), entry by entry."""
    u = scratch[:columns]
    pu, pc = pointer(u), pointer(c)
    for n in range(first, last):
        number, origin, low, high, row, rows, chunk0, chunk1, at = units[n]
        row += row0
        for chunk in range(chunk0, chunk1):
            u[:] = 0
            if distribution_id == NORMAL:
                _axpy_rows(NORMAL, 2, BLOCKS * chunk, pc, at, rows, row, step, number, seed, stream, pu)
            elif distribution_id == UNIFORM:
                _axpy_rows(UNIFORM, 4, BLOCKS * chunk, pc, at, rows, row, step, number, seed, stream, pu)
            else:
                _axpy_rows(RADEMACHER, 32, BLOCKS * chunk, pc, at, rows, row, step, number, seed, stream, pu)
            _copy_inside(u, origin, low, high, chunk * columns, out)


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
    """_pick, and _philox of another counter in turns with it: multiplying and permuting keep different units busy."""
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
def _project_signs(units, first, last, distribution_id, columns, g, seed, stream, step, row0, partial, scratch):
    """partial = (signs of a unit) @ (its segment of g): 16 rows in the lanes, 4 columns a permute."""
    x, totals = scratch[:columns], scratch[columns : columns + ROWS]
    tables = pointer(scratch[columns + ROWS :])  # (8 blocks, 4 words, 8 nibbles, 16): 16 KiB, half an L1 cache
    blocks = HALF * columns // (32 * WORDS)  # HALF, but no constant: LLVM would unroll its loop and run out of registers
    for n in range(first, last):
        number, origin, low, high, row, rows, chunk0, chunk1, at = units[n]
        row += row0
        totals[:] = 0
        for chunk in range(chunk0, chunk1):
            _copy_padded(g, origin, low, high, chunk * columns, x)
            for half in range(0, BLOCKS, HALF):
                for word in range(4):
                    for b in range(HALF):
                        for nibble in range(8):
                            i = 4 * WORDS * nibble + BLOCKS * word + half + b
                            sums = _sign_sums(x[i], x[i + WORDS], x[i + 2 * WORDS], x[i + 3 * WORDS])
                            store(tables, ((b * 4 + word) * 8 + nibble) * 16, sums)
                for r in range(0, rows, LANES):
                    lanes = splat_u64(row + r) + lane_numbers()
                    block, total = BLOCKS * chunk + half, load(pointer(totals), r)
                    words = _philox(splat_u64(block), lanes, step, number, seed, stream)
                    for b in range(blocks - 1):
                        following = splat_u64(block + b + 1), lanes, splat_u64(step), splat_u64(number)
                        total, words = _pick_and_generate(words, tables, 512 * b, total, following, seed, stream)
                    store(pointer(totals), r, _pick(words, tables, 512 * (blocks - 1), total))
        partial[at : at + rows] = totals[:rows]


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
def _expand_signs(units, first, last, distribution_id, columns, c, seed, stream, step, row0, out, scratch):
    """out = (signs of a unit's columns) @ (all coordinates): 16 columns in the lanes, 4 rows a permute."""
    u, four = scratch[:columns], scratch[columns : columns + 8]
    pu = pointer(u)
    for n in range(first, last):
        number, origin, low, high, row, rows, chunk0, chunk1, at = units[n]
        row += row0
        for chunk in range(chunk0, chunk1):
            u[:] = 0
            block = splat_u64(BLOCKS * chunk) + lane_numbers()
            for r in range(0, rows, 8):
                for i in range(8):
                    four[i] = c[at + r + i] if r + i < rows else 0
                s0 = _sign_sums(four[0], four[1], four[2], four[3])
                s1 = _sign_sums(four[4], four[5], four[6], four[7])
                a0, a1, a2, a3 = _philox(block, splat_u64(row + r + 0), step, number, seed, stream)
                b0, b1, b2, b3 = _philox(block, splat_u64(row + r + 1), step, number, seed, stream)
                c0, c1, c2, c3 = _philox(block, splat_u64(row + r + 2), step, number, seed, stream)
                d0, d1, d2, d3 = _philox(block, splat_u64(row + r + 3), step, number, seed, stream)
                e0, e1, e2, e3 = _philox(block, splat_u64(row + r + 4), step, number, seed, stream)
                f0, f1, f2, f3 = _philox(block, splat_u64(row + r + 5), step, number, seed, stream)
                g0, g1, g2, g3 = _philox(block, splat_u64(row + r + 6), step, number, seed, stream)
                h0, h1, h2, h3 = _philox(block, splat_u64(row + r + 7), step, number, seed, stream)
                _add_signs(s0, s1, (a0, b0, c0, d0), (e0, f0, g0, h0), pu, 0)
                _add_signs(s0, s1, (a1, b1, c1, d1), (e1, f1, g1, h1), pu, 16)
                _add_signs(s0, s1, (a2, b2, c2, d2), (e2, f2, g2, h2), pu, 32)
                _add_signs(s0, s1, (a3, b3, c3, d3), (e3, f3, g3, h3), pu, 48)
            _copy_inside(u, origin, low, high, chunk * columns, out)


@_jit
def _add_segments(places, scales, partial, out):
    """out = scale * the sum over segments of partial, in their order and in float64 until it is rounded."""
    for k in range(len(places)):
        at, rows, segments, first = places[k]
        for r in range(rows):
            total = 0.0
            for s in range(segments):
                total += partial[first + s * rows + r]
            out[at + r] = total
            out[at + r] *= scales[k]


@dataclass(frozen=True)
class _Plan:
    """How the work on some compartments is cut: a pure function of their sizes, never of the number of threads."""

    units: np.ndarray  # (n, 9): number, place of column 0, low, high, row, rows, chunk0, chunk1, place in partial or c
    pieces: np.ndarray  # bounds of runs of units of about equal cost
    entries: int  # sum of d_k D_k
    dims: np.ndarray  # (K,)
    scales: np.ndarray  # (K,) float64
    places: np.ndarray  # (K, 4) for _add_segments: place in c, rows, segments, place in partial
    partials: int = 0


def _make_plan(compartments: Sequence[Compartment], distribution: Distribution, units: list, **more) -> _Plan:
    entries = sum(k.size * k.dim for k in compartments)
    dims = np.array([k.dim for k in compartments])
    scales = np.array([distribution.scale(dim=k.total, size=k.length) for k in compartments])
    return _Plan(np.array(units), _pieces(units), entries, dims, scales, **more)


def _pieces(units: Sequence[tuple[int, ...]], count: int = 16) -> np.ndarray:
    cost = np.cumsum([rows * (chunk1 - chunk0) for *_, rows, chunk0, chunk1, _ in units])
    return np.unique(np.r_[0, np.searchsorted(cost, cost[-1] * np.arange(1, count) / count) + 1, len(units)])


def _chunks(k: Compartment, columns: int) -> range:
    """Numbers of the chunks in which a compartment has values."""
    return range(k.before // columns, -(-(k.before + k.size) // columns))


def _runs(chunks: range, most: int) -> list[tuple[int, int]]:
    """chunks cut into runs of at most so many: (first, last + 1) of each."""
    return [(first, min(first + most, chunks.stop)) for first in chunks[::most]]


def _place(k: Compartment) -> tuple[int, int, int, int]:
    """What a unit says of its compartment: number, place of column 0 in the vector, columns low ... high - 1."""
    return k.number, k.start - k.before, k.before, k.before + k.size


@lru_cache(maxsize=256)
def _project_plan(compartments: tuple[Compartment, ...], distribution: Distribution) -> _Plan:
    """Units of a segment and at most ROWS rows; their partial sums stand by segments, then rows."""
    columns, units, places, at, first = distribution.columns, [], [], 0, 0
    for k in compartments:
        chunks = _chunks(k, columns)
        segments = _runs(chunks, max(SEGMENT // columns, -(-len(chunks) // SEGMENTS)))
        for s, segment in enumerate(segments):
            for r in range(0, k.dim, ROWS):
                rows = min(ROWS, k.dim - r)
                units.append((*_place(k), k.row + r, rows, *segment, first + s * k.dim + r))
        places.append((at, k.dim, len(segments), first))
        at, first = at + k.dim, first + len(segments) * k.dim
    return _make_plan(compartments, distribution, units, places=np.array(places), partials=first)


@lru_cache(maxsize=256)
def _expand_plan(compartments: tuple[Compartment, ...], distribution: Distribution) -> _Plan:
    """Units of a stripe of columns and all rows."""
    columns, units, at = distribution.columns, [], 0
    for k in compartments:
        for stripe in _runs(_chunks(k, columns), STRIPE // columns):
            units.append((*_place(k), k.row, k.dim, *stripe, at))
        at += k.dim
    return _make_plan(compartments, distribution, units, places=np.empty((0, 4), np.int64))


def _scratch(dtype: np.dtype) -> np.ndarray:
    """Room for what one thread has in hand, a few cache pages whatever the basis."""
    return np.empty(SCRATCH, dtype)


def _run(kernel: Callable, plan: _Plan, spec: BasisSpec, x: np.ndarray, out: np.ndarray) -> None:
    """The kernel over all units, piece by piece, each taken by the next free thread."""
    distribution = spec.distribution
    shape = _DISTRIBUTION_IDS[distribution.name], distribution.columns
    args = *shape, x, spec.seed, spec.stream, spec.step, spec.row, out
    threads = min(team.thread_count(), len(plan.pieces) - 1)
    if threads == 1 or plan.entries * distribution.bits < INLINE:
        return kernel(plan.units, 0, len(plan.units), *args, _scratch(out.dtype))
    taken = itertools.count()  # next() is atomic

    def work() -> None:
        scratch = _scratch(out.dtype)
        while (piece := next(taken)) < len(plan.pieces) - 1:
            kernel(plan.units, plan.pieces[piece], plan.pieces[piece + 1], *args, scratch)

    team.share(work, threads)


def _takes_signs(distribution: Distribution, x: np.ndarray) -> bool:
    return distribution.name == "rademacher" and x.dtype == np.float32


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.project``."""
    plan = _project_plan(spec.from_first_row, spec.distribution)
    x = g.numpy()  # (D,)
    partial = np.empty(plan.partials, x.dtype)
    kernel = _project_signs if _takes_signs(spec.distribution, x) else _project_entries
    _run(kernel, plan, spec, x, partial)
    _add_segments(plan.places, plan.scales.astype(x.dtype), partial, out.numpy())


def expand(c: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.expand``."""
    plan = _expand_plan(spec.from_first_row, spec.distribution)
    x = c.numpy()  # (d,)
    scaled = x * np.repeat(plan.scales.astype(x.dtype), plan.dims)  # (d,)
    kernel = _expand_signs if _takes_signs(spec.distribution, x) else _expand_entries
    _run(kernel, plan, spec, scaled, out.numpy())


def add(c: torch.Tensor, spec: BasisSpec, params: Sequence[torch.Tensor]) -> None:
    """See ``reference.add``."""
    u = torch.empty(spec.size, dtype=c.dtype, device=c.device)
    expand(c, spec, u)
    torch._foreach_add_(list(params), [v.view_as(p) for p, v in zip(params, u.split([p.numel() for p in params]))])
