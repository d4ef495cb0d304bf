"""project and expand on a GPU: entries are made from Philox words and multiplied in registers (Triton).

A tile is some rows by some blocks of a chunk: its words are made once, and every part of every word is an entry. Sums
have a fixed order: along the columns of a lane, over the lanes of a tile by a tree, over the segments of a compartment
by a tree in float64. There are no float atomics, so every run gives the same bits; the only atomic is a counter, which
tells the last program of a row group that it is the last. The numbers of rows and parts of a tile and of segments of a
program affect speed alone, and so does that of warps while a tile's blocks have a thread each. Nothing is tuned at run time.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from rbd.compartment import BasisSpec, Compartment, find_tensors
from rbd.distribution import QUANTILE, Distribution
from rbd.philox import BLOCKS, MULTIPLIERS, ROUNDS, WEYL, WORDS

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise RuntimeError(f"backend: 'gpu' needs Triton ({error}); pip install triton") from error

_DISTRIBUTION_IDS = {"normal": 0, "uniform": 1, "rademacher": 2}
_BLOCKS = {"normal": 64, "uniform": 64, "rademacher": 16}  # Philox blocks of a tile, whole chunks
SEGMENTS = 64  # of a compartment in project, at most; not by the number of rows, which must not change a row's bits
PROGRAMS = 1024  # of project, at most, unless each has all segments already: enough to fill a large GPU
COUNTER_SETS = 8  # of a plan
OWNER: ContextVar[object | None] = ContextVar("owner", default=None)  # object whose calls never run concurrently

_M0, _M1 = (tl.constexpr(m) for m in MULTIPLIERS)
_W0, _W1 = (tl.constexpr(w) for w in WEYL)
_ROUNDS, _WORDS, _CHUNK_BLOCKS = tl.constexpr(ROUNDS), tl.constexpr(WORDS), tl.constexpr(BLOCKS)
_NORMAL, _UNIFORM, _SIGNS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_OCTAVES = QUANTILE.T.copy()  # (5, 16): the same coefficient of all octaves in half a line of the cache


@triton.jit
def _philox(block, row, step, compartment, seed, stream):
    """Philox4x32-10 of counters that broadcast against each other: four words each."""
    c0, c1, c2, c3 = block, row, step, compartment
    k0, k1 = seed, stream
    for _ in tl.static_range(_ROUNDS):
        p0, p1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1  # 32 x 32 -> 64 bits
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def _level(word, part, octaves, DISTRIBUTION: tl.constexpr):
    """Level of part number ``part`` of a word, float32, as distribution.py defines it."""
    if DISTRIBUTION == _NORMAL:
        top = word << tl.cast(16 - 16 * part, tl.uint32)
        x = (((top >> 15) & 0xFFFE) | 1).to(tl.float32)
        bits = x.to(tl.uint32, bitcast=True)
        s = 2.0 - ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        octave = (bits >> 23).to(tl.int32) - 127
        at = octaves + tl.max_contiguous(octave, [1, 2])  # not true, but keeps Triton from another layout for the loads
        z = tl.fma(tl.load(at + 64), s, tl.load(at + 48))
        z = tl.fma(z, s, tl.load(at + 32))
        z = tl.fma(z, s, tl.load(at + 16))
        z = tl.fma(z, s, tl.load(at))
        level = (z.to(tl.uint32, bitcast=True) | (top & 0x80000000)).to(tl.float32, bitcast=True)
    elif DISTRIBUTION == _UNIFORM:
        top = (word << tl.cast(24 - 8 * part, tl.uint32)).to(tl.int32, bitcast=True)
        level = ((top >> 23) | 1).to(tl.float32)
    else:
        level = (0x3F800000 ^ ((word << tl.cast(31 - part, tl.uint32)) & 0x80000000)).to(tl.float32, bitcast=True)
    return level


@triton.jit
def _add_product(total, word, part, x, octaves, DISTRIBUTION: tl.constexpr):
    """total + level * x."""
    return tl.fma(_level(word, part, octaves, DISTRIBUTION).to(total.dtype), x, total)


@triton.jit
def _add_negative(total, word, part, x):
    """total + x where the sign is -: all x minus twice those is the sum of signs times x."""
    return tl.where((word >> tl.cast(part, tl.uint32)) & 1 != 0, total + x, total)


@triton.jit
def _sum_signed(at, inside, before, left, words, R: tl.constexpr, B: tl.constexpr, dtype: tl.constexpr):
    """(R, B): sums of signs times x over the entries of each lane of a tile; only columns before ... left - 1 of it exist.

    A whole tile has no masks, which take as many instructions as the sums. In other tiles, the loop over parts keeps the
    compiler from moving the masks into the code of whole tiles.
    """
    every, minus = tl.zeros((B,), dtype), tl.zeros((R, B), dtype)
    if left - before == B * 128:
        for w in tl.static_range(4):
            for part in tl.static_range(32):
                x = tl.load(at + inside + (_WORDS * part + _CHUNK_BLOCKS * w)).to(dtype)  # (B,)
                minus = _add_negative(minus, words[w], part, x[None, :])
                every += x
    else:
        for w in tl.static_range(4):
            part = 0
            while part < 32:
                j = inside + (_WORDS * part + _CHUNK_BLOCKS * w)  # (B,)
                x = tl.load(at + j, mask=(j >= before) & (j < left), other=0).to(dtype)
                minus = _add_negative(minus, words[w], part, x[None, :])
                every += x
                part += 1
    return every[None, :] - 2 * minus


@triton.jit
def _step_of(step):
    """The step, given as a number or as the address of one, which may change between replays of a CUDA graph."""
    if step.dtype.is_ptr():
        return tl.load(step).to(tl.uint32)
    else:
        return step.to(tl.uint32)


@triton.jit
def _row_of(row0):
    """Likewise, the number that is added to the numbers of all rows."""
    if row0.dtype.is_ptr():
        return tl.load(row0)
    else:
        return row0


@triton.jit
def _tree(x, R: tl.constexpr, N: tl.constexpr):
    """(R, N) -> (R,), N = 64: neighbours first, so that aligned powers of two of places are subtrees."""
    for level in tl.static_range(6):
        x = tl.sum(tl.reshape(x, (R, N // (2 << level), 2)), 2)  # of two: the same in either order
    return tl.reshape(x, (R,))


@triton.jit
def _of_level(stack, level):
    """(R, 8) -> (R,): the sum of 2**level segments that is still to be added to the next such sum."""
    return tl.sum(tl.where(tl.arange(0, 8)[None, :] == level, stack, 0.0), 1)


def _columns(row: Any) -> tl.constexpr:
    """Where each field is in a row of a table, by name, for kernels: ``.value.name``."""
    return tl.constexpr(row(*range(len(row._fields))))


class _ProjectRow(NamedTuple):
    """A row of the table of ``_project``: a compartment, which has some programs that follow each other."""

    number: int  # of the compartment
    origin: int  # place of column 0 in g, which may lie before it
    low: int  # columns low ... high - 1 are in g
    high: int
    row: int
    rows: int
    chunks: int  # of a segment
    segments: int  # of a program
    programs: int  # of a row group
    partial: int  # place of its first partial sum
    counter: int  # place of the first row group's counter
    place: int  # of the first row's coordinate in out
    first: int = 0  # of its programs; set by _make_table


_PROJECT = _columns(_ProjectRow)


# Long on purpose: the loop and its tail share a dozen values, which helpers would have to take and return.
@triton.jit(do_not_specialize=["seed", "stream", "step", "row0"])
def _project(g, owners, table, scales, partial, counters, out, octaves, seed, stream, step, row0,
             DISTRIBUTION: tl.constexpr, PER_WORD: tl.constexpr, B: tl.constexpr, R: tl.constexpr,
             N: tl.constexpr):  # fmt: skip
    """out = scale * (R rows of a compartment) @ g; see docs/develop/gpu.md for the order of sums."""
    k = tl.load(owners + tl.program_id(0))
    fields = table + len(_PROJECT.value) * k
    program = tl.program_id(0) - tl.load(fields + _PROJECT.value.first)
    low, high = tl.load(fields + _PROJECT.value.low), tl.load(fields + _PROJECT.value.high)
    origin, rows = tl.load(fields + _PROJECT.value.origin), tl.load(fields + _PROJECT.value.rows)
    groups = (rows + R - 1) // R
    slot, group = program // groups, program % groups
    r = group * R + tl.arange(0, R)  # (R,)
    row = (tl.load(fields + _PROJECT.value.row) + r + _row_of(row0)).to(tl.uint32)[:, None]  # (R, 1)
    number = tl.load(fields + _PROJECT.value.number).to(tl.uint32)
    per, count = tl.load(fields + _PROJECT.value.chunks), tl.load(fields + _PROJECT.value.segments)
    chunk, drawn = low // (_WORDS * PER_WORD) + slot * count * per, _step_of(step)
    stop = (high + _WORDS * PER_WORD - 1) // (_WORDS * PER_WORD)
    last_chunk = tl.minimum(chunk + count * per, stop)
    lane, place = tl.arange(0, B), tl.arange(0, N)[None, :]  # (B,), (1, N)
    # (B,): column of a lane's first entry in the tile
    inside = (lane // _CHUNK_BLOCKS) * (_WORDS * PER_WORD) + lane % _CHUNK_BLOCKS
    total, stack, segment = tl.zeros((R, B), out.dtype.element_ty), tl.zeros((R, 8), tl.float64), 0
    end = tl.minimum(chunk + per, stop)
    while chunk < last_chunk:
        block = (chunk * _CHUNK_BLOCKS + lane).to(tl.uint32)[None, :]  # (1, B)
        words = _philox(block, row, drawn, number, seed.to(tl.uint32), stream.to(tl.uint32))  # 4 of (R, B)
        column = chunk * (_WORDS * PER_WORD)
        left = tl.minimum(tl.minimum(high, end * (_WORDS * PER_WORD)) - column, B * 4 * PER_WORD).to(tl.int32)
        before = tl.maximum(low - column, 0).to(tl.int32)
        at = g + (origin + column)
        if DISTRIBUTION == _SIGNS:
            total += _sum_signed(at, inside, before, left, words, R, B, total.dtype)
        else:
            of_tile = tl.zeros((R, B), total.dtype)
            for w in tl.static_range(4):
                for part in tl.static_range(PER_WORD):
                    j = inside + (_WORDS * part + _CHUNK_BLOCKS * w)  # (B,)
                    x = tl.load(at + j, mask=(j >= before) & (j < left), other=0).to(total.dtype)[None, :]
                    of_tile = _add_product(of_tile, words[w], part, x, octaves, DISTRIBUTION)  # (R, B)
            total += of_tile
        chunk += B // _CHUNK_BLOCKS
        if chunk >= end:
            sums, level = tl.sum(total, 1).to(tl.float64), 0  # (R,); a binary counter of segments makes the tree
            while (segment >> level) & 1 == 1:
                sums += _of_level(stack, level)
                level += 1
            stack = tl.where(tl.arange(0, 8)[None, :] == level, sums[:, None], stack)
            segment += 1
            end = tl.minimum(chunk + per, stop)
            total = tl.zeros((R, B), out.dtype.element_ty)
    sums, level = tl.zeros((R,), tl.float64), 0
    while (segment >> level) > 0:
        sums += _of_level(stack, level) * ((segment >> level) & 1)
        level += 1
    programs = tl.load(fields + _PROJECT.value.programs)
    last = programs == 1
    if programs > 1:
        partial += tl.load(fields + _PROJECT.value.partial)
        counter = counters + tl.load(fields + _PROJECT.value.counter) + group
        tl.store(partial + slot * rows + r, sums, mask=r < rows)
        tl.debug_barrier()
        last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
        if last:
            mask = (place < programs) & (r < rows)[:, None]
            sums = _tree(tl.load(partial + place * rows + r[:, None], mask=mask, other=0, cache_modifier=".cg"), R, N)
            tl.store(counter, 0)
    if last:
        c = sums.to(out.dtype.element_ty) * tl.load(scales + k).to(out.dtype.element_ty)
        tl.store(out + tl.load(fields + _PROJECT.value.place) + r, c, mask=r < rows)


class _ExpandRow(NamedTuple):
    """A row of the table of ``_expand``: the columns of a compartment in one tensor, which have some programs, too."""

    number: int  # of the compartment
    origin: int  # place of column 0 in the tensor, which may lie before it
    low: int  # columns low ... high - 1 are written
    high: int
    row: int
    rows: int
    place: int  # of the first row's coordinate in c
    tile: int  # number of the first tile
    compartment: int  # whose scale is used
    tensor: int
    first: int = 0  # of its programs; set by _make_table


_EXPAND = _columns(_ExpandRow)


@triton.jit(do_not_specialize=["seed", "stream", "step", "row0"])
def _expand(c, owners, table, scales, out, addresses, octaves, seed, stream, step, row0,
            DISTRIBUTION: tl.constexpr, PER_WORD: tl.constexpr, B: tl.constexpr, P: tl.constexpr, L: tl.constexpr,
            ADD: tl.constexpr):  # fmt: skip
    """A tile of u = all rows of a compartment, each times its coordinate; ADD: onto the tensors at the addresses."""
    k = tl.load(owners + tl.program_id(0))
    fields = table + len(_EXPAND.value) * k
    program = tl.program_id(0) - tl.load(fields + _EXPAND.value.first)
    rows, at = tl.load(fields + _EXPAND.value.rows), tl.load(fields + _EXPAND.value.place)
    number = tl.load(fields + _EXPAND.value.number).to(tl.uint32)
    first_row = tl.load(fields + _EXPAND.value.row) + _row_of(row0)
    chunk = (tl.load(fields + _EXPAND.value.tile) + program // (PER_WORD // P)) * (B // _CHUNK_BLOCKS)
    part = (program % (PER_WORD // P)) * P + tl.arange(0, P)[:, None]  # (P, 1)
    lane, drawn = tl.arange(0, L), _step_of(step)
    block = (chunk * _CHUNK_BLOCKS + lane % B).to(tl.uint32)  # (L,)
    scale = tl.load(scales + tl.load(fields + _EXPAND.value.compartment)).to(c.dtype.element_ty)
    t0, every = tl.zeros((P, L), c.dtype.element_ty), tl.zeros((1, L), c.dtype.element_ty)
    t1, t2, t3 = t0, t0, t0
    r0 = rows - rows
    while r0 < rows:
        r = r0 + lane // B  # (L,)
        x = (tl.load(c + at + r, mask=r < rows, other=0) * scale)[None, :]  # (1, L)
        row = (first_row + r).to(tl.uint32)
        w0, w1, w2, w3 = _philox(block, row, drawn, number, seed.to(tl.uint32), stream.to(tl.uint32))  # (L,) each
        if DISTRIBUTION == _SIGNS and x.dtype == tl.float32:
            t0 = _add_negative(t0, w0[None, :], part, x)  # (P, L)
            t1 = _add_negative(t1, w1[None, :], part, x)
            t2 = _add_negative(t2, w2[None, :], part, x)
            t3 = _add_negative(t3, w3[None, :], part, x)
            every += x
        else:
            t0 = _add_product(t0, w0[None, :], part, x, octaves, DISTRIBUTION)  # (P, L)
            t1 = _add_product(t1, w1[None, :], part, x, octaves, DISTRIBUTION)
            t2 = _add_product(t2, w2[None, :], part, x, octaves, DISTRIBUTION)
            t3 = _add_product(t3, w3[None, :], part, x, octaves, DISTRIBUTION)
        r0 += L // B
    if DISTRIBUTION == _SIGNS and every.dtype == tl.float32:
        t0, t1, t2, t3 = every - 2 * t0, every - 2 * t1, every - 2 * t2, every - 2 * t3
    b = tl.arange(0, B)[None, :]
    column = (chunk + b // _CHUNK_BLOCKS) * (_WORDS * PER_WORD) + _WORDS * part + b % _CHUNK_BLOCKS  # (P, B)
    target = tl.load(addresses + tl.load(fields + _EXPAND.value.tensor)).to(out.dtype) if ADD else out
    low, high = tl.load(fields + _EXPAND.value.low), tl.load(fields + _EXPAND.value.high)
    target += tl.load(fields + _EXPAND.value.origin)
    _store_tile(target, column, low, high, t0, P, B, L, ADD)
    _store_tile(target, column + _CHUNK_BLOCKS, low, high, t1, P, B, L, ADD)
    _store_tile(target, column + 2 * _CHUNK_BLOCKS, low, high, t2, P, B, L, ADD)
    _store_tile(target, column + 3 * _CHUNK_BLOCKS, low, high, t3, P, B, L, ADD)


@triton.jit
def _store_tile(target, column, low, high, total, P: tl.constexpr, B: tl.constexpr, L: tl.constexpr, ADD: tl.constexpr):
    """Add up the groups of rows and write (or add) the columns low ... high - 1."""
    u = tl.sum(tl.reshape(total, (P, L // B, B)), 1)  # (P, B)
    mask = (column >= low) & (column < high)
    if ADD:
        old = tl.load(target + column, mask=mask, other=0)
        u = u.to(tl.float64) + old if old.dtype == tl.float64 else u + old.to(u.dtype)
    tl.store(target + column, u.to(target.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class _Counters:
    """Counters of finished programs per row group. Zero before and after each call.

    Two calls that may run concurrently must not use the same set. Calls on one stream follow each other and share a set,
    and so do those of one OWNER, also in graphs. Any other captured call keeps a set of its own permanently, since its
    graph may run at any time. If no set is left, a call makes one, which is a second launch.
    """

    groups: int
    free: list[torch.Tensor]  # (groups,) int32
    of_stream: dict[int, torch.Tensor]
    of_owner: WeakKeyDictionary[object, torch.Tensor] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def of(cls, groups: int, device: torch.device, sets: int = COUNTER_SETS) -> _Counters:
        """Sets for that number of row groups. Made on the CPU, as the copy is synchronous: every stream finds zeros.

        Each set begins at a multiple of 16 bytes. For other addresses Triton compiles another kernel, and a call that is
        captured by a CUDA graph must not load a kernel that the call before it did not need.
        """
        groups = -(-groups // 4) * 4
        return cls(groups, list(torch.zeros(sets, groups, dtype=torch.int32, device="cpu").to(device)), {})

    def of_call(self, device: torch.device) -> torch.Tensor:
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if (owner := OWNER.get()) is not None and (owner in self.of_owner or not captured):
            if owner not in self.of_owner:
                self.of_owner[owner] = self.of(self.groups, device, 1).free[0]
            return self.of_owner[owner]
        if not captured and stream in self.of_stream:
            return self.of_stream[stream]
        try:
            mine = self.free.pop()
        except IndexError:
            return torch.zeros(self.groups, dtype=torch.int32, device=device)
        return mine if captured else self.of_stream.setdefault(stream, mine)


@dataclass(frozen=True)
class _Plan:
    """Which program does what: a pure function of sizes. All tensors are on the device."""

    owners: torch.Tensor  # (programs,) int32: the row of the table that a program belongs to
    table: torch.Tensor  # (n, fields of _ProjectRow or _ExpandRow) int64
    scales: torch.Tensor  # (K,) float64
    partials: int = 0
    counters: _Counters = field(default_factory=lambda: _Counters(0, [], {}))  # of project


def _make_table(counts: Sequence[int], rows: Sequence[Any], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Owners and table of rows that have counts programs each."""
    firsts = np.cumsum([0, *counts], dtype=np.int64)[:-1]
    table = np.array([row._replace(first=first) for first, row in zip(firsts, rows)], np.int64)
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return torch.from_numpy(owners).to(device), torch.from_numpy(table).to(device)


def _scales(compartments: Sequence[Compartment], distribution: Distribution, device: torch.device) -> torch.Tensor:
    scales = [distribution.scale(dim=k.total, size=k.length) for k in compartments]
    return torch.tensor(scales, dtype=torch.float64, device=device)


@lru_cache(maxsize=4096)
def _project_plan(compartments: tuple[Compartment, ...], distribution: Distribution, device: torch.device) -> _Plan:
    """A row for each compartment; its programs are the row groups of the first program's segments, then of the next's."""
    tall, wide = _ROWS[distribution.name], _BLOCKS[distribution.name] // BLOCKS
    cut = [_segments(k, distribution.columns, wide) for k in compartments]
    groups = [-(-k.dim // tall) for k in compartments]
    each = _segments_per_program(groups, [segments for segments, _ in cut])
    table, counts, at, partials, counters = [], [], 0, 0, 0
    for k, (segments, per), tiles in zip(compartments, cut, groups):
        programs = -(-segments // each)
        table.append(_ProjectRow(
            number=k.number, origin=k.start - k.before, low=k.before, high=k.before + k.size, row=k.row, rows=k.dim,
            chunks=per, segments=each, programs=programs, partial=partials, counter=counters, place=at,
        ))  # fmt: skip
        counts.append(tiles * programs)
        at += k.dim
        if programs > 1:
            partials, counters = partials + programs * k.dim, counters + tiles
    return _Plan(*_make_table(counts, table, device), _scales(compartments, distribution, device), partials,
                 _Counters.of(counters, device))  # fmt: skip


def _segments(k: Compartment, columns: int, wide: int) -> tuple[int, int]:
    """Their number, and the chunks of each, which are whole tiles; by the compartment's columns alone."""
    chunks = -(-(k.before + k.size) // columns) - k.before // columns
    per = wide * -(-chunks // (wide * SEGMENTS))
    return -(-chunks // per), per


def _segments_per_program(groups: Sequence[int], segments: Sequence[int]) -> int:
    """The least power of two that leaves PROGRAMS or fewer, or all segments."""
    each = 1
    while each < SEGMENTS and sum(n * -(-count // each) for n, count in zip(groups, segments)) > PROGRAMS:
        each *= 2
    return each


@lru_cache(maxsize=4096)
def _expand_plan(compartments: tuple[Compartment, ...], distribution: Distribution, device: torch.device,
                 sizes: tuple[int, ...]) -> _Plan:  # fmt: skip
    """A row for each overlap of a compartment with a tensor of the target, whose sizes are given."""
    table, counts, at = [], [], 0
    tile = distribution.columns * _BLOCKS[distribution.name] // BLOCKS
    splits = distribution.per_word // _PARTS[distribution.name]
    bounds = np.cumsum([0, *sizes], dtype=np.int64).tolist()
    for i, k in enumerate(compartments):
        origin = k.start - k.before
        for tensor in find_tensors(k, bounds):
            begin, end = bounds[tensor], bounds[tensor + 1]
            if (low := max(k.start, begin) - origin) < (high := min(k.stop, end) - origin):
                table.append(_ExpandRow(
                    number=k.number, origin=origin - begin, low=low, high=high, row=k.row, rows=k.dim, place=at,
                    tile=low // tile, compartment=i, tensor=tensor,
                ))  # fmt: skip
                counts.append((-(-high // tile) - low // tile) * splits)
        at += k.dim
    return _Plan(*_make_table(counts, table, device), _scales(compartments, distribution, device))


DEVICE = "cuda" if isinstance(_project, triton.JITFunction) else "cpu"  # Triton's interpreter works on the CPU
if DEVICE == "cuda":
    _ROWS = {"normal": 8, "uniform": 16, "rademacher": 16}  # of a tile of project
    _WARPS = {"normal": 4, "uniform": 4, "rademacher": 2}  # of a program of project; four rows of signs share a load of g
    # ^ at least _BLOCKS / 32: with fewer, a thread first adds the two blocks that it has, which rounds otherwise
    _REGISTERS = {"normal": (72, 104), "uniform": (128, 168), "rademacher": (None, None)}  # a thread; float32, float64
    _PARTS = {"normal": 2, "uniform": 2, "rademacher": 8}  # of a word, of a tile of expand
    TILE_LANES = 256  # rows times blocks of a tile of expand
else:  # one NumPy call for each operation on a tile: few large ones
    _ROWS, _PARTS, TILE_LANES = dict.fromkeys(_DISTRIBUTION_IDS, 64), {"normal": 2, "uniform": 4, "rademacher": 32}, 4096
    _WARPS = dict.fromkeys(_DISTRIBUTION_IDS, 1)


@lru_cache(maxsize=8)
def _octaves(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(_OCTAVES.ravel()).to(device)


@lru_cache(maxsize=4096)
def _addresses(pointers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(pointers, dtype=torch.int64, device=device)


def _word(value):
    """A 32-bit word as the int32 that Triton takes; a tensor of one int64 is returned unchanged."""
    if isinstance(value, torch.Tensor):
        return value
    return operator.index(value) - 2**32 * (value >= 2**31)


_captured: list[tuple] = []  # tensors that CUDA graphs point at, kept as long as the process lives


def _keep(x: torch.Tensor, *tables) -> None:
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        _captured.append(tables)


def _tile(distribution: Distribution) -> dict[str, int]:
    name = distribution.name
    return {"DISTRIBUTION": _DISTRIBUTION_IDS[name], "PER_WORD": distribution.per_word, "B": _BLOCKS[name]}


def _limit(distribution: Distribution, dtype: torch.dtype) -> dict[str, int | None]:
    """A limit of registers: without one, ptxas takes more of them for the last sums than the long loop needs."""
    return {"maxnreg": _REGISTERS[distribution.name][dtype == torch.float64]} if DEVICE == "cuda" else {}


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.project``; g of any floating-point dtype, step an integer or a tensor of one int64 on the device."""
    distribution, plan = spec.distribution, _project_plan(spec.from_first_row, spec.distribution, g.device)
    counters = plan.counters.of_call(g.device)
    _keep(g, plan, counters)
    partial = torch.empty(plan.partials, dtype=torch.float64, device=g.device)
    with torch.cuda.device_of(g):
        _project[(len(plan.owners),)](g, plan.owners, plan.table, plan.scales, partial, counters, out,
                                      _octaves(g.device), *_words(spec), **_tile(distribution),
                                      R=_ROWS[distribution.name], N=SEGMENTS, num_warps=_WARPS[distribution.name],
                                      **_limit(distribution, out.dtype))  # fmt: skip


def expand(c: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.expand``; step as in ``project``."""
    plan = _expand_plan(spec.from_first_row, spec.distribution, c.device, (spec.size,))
    _launch_expand(plan, c, spec, out, out, False)


def add(c: torch.Tensor, spec: BasisSpec, params: Sequence[torch.Tensor]) -> None:
    """See ``reference.add``: every parameter is read and written once, and no vector of length D is made."""
    plan = _expand_plan(spec.from_first_row, spec.distribution, c.device, tuple(p.numel() for p in params))
    addresses = _addresses(tuple(p.data_ptr() for p in params), c.device)
    _launch_expand(plan, c, spec, params[0], addresses, True)


def _launch_expand(plan: _Plan, c: torch.Tensor, spec: BasisSpec, out: torch.Tensor, addresses: torch.Tensor,
                   add: bool) -> None:  # fmt: skip
    _keep(c, plan, addresses)
    with torch.cuda.device_of(c):
        _expand[(len(plan.owners),)](c, plan.owners, plan.table, plan.scales, out, addresses, _octaves(c.device),
                                     *_words(spec), **_tile(spec.distribution), P=_PARTS[spec.distribution.name],
                                     L=TILE_LANES, ADD=add, num_warps=TILE_LANES // 32)  # fmt: skip


def _words(spec: BasisSpec) -> tuple:
    """seed, stream, step, row0 as the Triton kernels take them."""
    return _word(spec.seed), _word(spec.stream), _word(spec.step), _first_row(spec)


def _first_row(spec: BasisSpec) -> int | torch.Tensor:
    """The number to be added to the rows of a plan, which are counted from the first row."""
    return spec.row if spec.first_row is None else spec.first_row + spec.row if spec.row else spec.first_row
