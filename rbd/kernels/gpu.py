"""project and expand on a GPU: entries made in registers from Philox words and used up there (Triton).

A tile is some rows by some blocks of a chunk: its words are made once, and every part of every word is an entry. Sums
have a fixed order: along the columns of a lane, over the lanes of a tile by a tree, over the segments of a compartment
by a tree in float64. No float atomics, so the same bits on every run: a counter says which program of a row group is the
last, and nothing else. How many rows, parts and warps a tile and segments a program has is for speed alone. Nothing is
tuned at run time.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
import torch

from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import QUANTILE, Distribution
from rbd.kernels.memory import share_memory
from rbd.philox import BLOCKS, MULTIPLIERS, ROUNDS, WEYL, WORDS

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise RuntimeError(f"backend: 'gpu' needs Triton ({error}); pip install triton") from error

_DISTRIBUTION_IDS = {"normal": 0, "uniform": 1, "rademacher": 2}
_BLOCKS = {"normal": 64, "uniform": 64, "rademacher": 16}  # Philox blocks of a tile, whole chunks
SEGMENTS = 64  # at most, of a compartment in project; not by the number of rows, which must not change a row's bits
PROGRAMS = 1024  # of project, at most, as long as a program can take more segments: enough to fill a large GPU
SLOTS = 8  # sets of counters of a plan
OWNER: ContextVar[object | None] = ContextVar("owner", default=None)  # whose calls never run beside each other

_M0, _M1 = (tl.constexpr(m) for m in MULTIPLIERS)
_W0, _W1 = (tl.constexpr(w) for w in WEYL)
_ROUNDS, _WORDS, _CHUNK = tl.constexpr(ROUNDS), tl.constexpr(WORDS), tl.constexpr(BLOCKS)
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
    """(R, B): sums of signs times x over a tile's entries of each lane, of which numbers before ... left - 1 are there.

    A whole tile has no masks, which take as many instructions as the sums. The loop over parts keeps those of others apart.
    """
    every, minus = tl.zeros((B,), dtype), tl.zeros((R, B), dtype)
    if left - before == B * 128:
        for w in tl.static_range(4):
            for part in tl.static_range(32):
                x = tl.load(at + inside + (_WORDS * part + _CHUNK * w)).to(dtype)  # (B,)
                minus = _add_negative(minus, words[w], part, x[None, :])
                every += x
    else:
        for w in tl.static_range(4):
            part = 0
            while part < 32:
                j = inside + (_WORDS * part + _CHUNK * w)  # (B,)
                x = tl.load(at + j, mask=(j >= before) & (j < left), other=0).to(dtype)
                minus = _add_negative(minus, words[w], part, x[None, :])
                every += x
                part += 1
    return every[None, :] - 2 * minus


@triton.jit
def _step_of(step):
    """A number, or a number in device memory, which a CUDA graph may count up between replays."""
    if step.dtype.is_ptr():
        return tl.load(step).to(tl.uint32)
    else:
        return step.to(tl.uint32)


@triton.jit
def _row_of(row0):
    """Likewise, the number that is added to those of all rows."""
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
    """(R, 8) -> (R,): the sum of 2**level segments that waits for its neighbour's."""
    return tl.sum(tl.where(tl.arange(0, 8)[None, :] == level, stack, 0.0), 1)


# Long on purpose: the loop and its tail share a dozen values, which helpers would have to pass on and return.
@triton.jit(do_not_specialize=["seed", "stream", "step", "row0"])
def _project(g, owners, table, scales, partial, counters, out, octaves, seed, stream, step, row0,
             DISTRIBUTION: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr, R: tl.constexpr,
             N: tl.constexpr):  # fmt: skip
    """out = scale * (R rows of a compartment) @ g; see _project_plan for the table, docs/develop/gpu.md for the order of
    sums."""
    k = tl.load(owners + tl.program_id(0))
    fields = table + 13 * k
    program = tl.program_id(0) - tl.load(fields)
    origin, low, high, rows = tl.load(fields + 2), tl.load(fields + 3), tl.load(fields + 4), tl.load(fields + 6)
    groups = (rows + R - 1) // R
    slot, group = program // groups, program % groups
    r = group * R + tl.arange(0, R)  # (R,)
    row = (tl.load(fields + 5) + r + _row_of(row0)).to(tl.uint32)[:, None]  # (R, 1)
    number, per = tl.load(fields + 1).to(tl.uint32), tl.load(fields + 7)
    count = tl.load(fields + 8)
    chunk, drawn = low // (_WORDS * PARTS) + slot * count * per, _step_of(step)
    stop = (high + _WORDS * PARTS - 1) // (_WORDS * PARTS)
    last_chunk = tl.minimum(chunk + count * per, stop)
    lane, place = tl.arange(0, B), tl.arange(0, N)[None, :]  # (B,), (1, N)
    inside = (lane // _CHUNK) * (_WORDS * PARTS) + lane % _CHUNK  # (B,) column of the lane's first entry in the tile
    total, stack, segment = tl.zeros((R, B), out.dtype.element_ty), tl.zeros((R, 8), tl.float64), 0
    end = tl.minimum(chunk + per, stop)
    while chunk < last_chunk:
        block = (chunk * _CHUNK + lane).to(tl.uint32)[None, :]  # (1, B)
        words = _philox(block, row, drawn, number, seed.to(tl.uint32), stream.to(tl.uint32))  # 4 of (R, B)
        column = chunk * (_WORDS * PARTS)
        left = tl.minimum(tl.minimum(high, end * (_WORDS * PARTS)) - column, B * 4 * PARTS).to(tl.int32)
        before = tl.maximum(low - column, 0).to(tl.int32)
        at = g + (origin + column)
        if DISTRIBUTION == _SIGNS:
            total += _sum_signed(at, inside, before, left, words, R, B, total.dtype)
        else:
            of_tile = tl.zeros((R, B), total.dtype)
            for w in tl.static_range(4):
                for part in tl.static_range(PARTS):
                    j = inside + (_WORDS * part + _CHUNK * w)  # (B,)
                    x = tl.load(at + j, mask=(j >= before) & (j < left), other=0).to(total.dtype)[None, :]
                    of_tile = _add_product(of_tile, words[w], part, x, octaves, DISTRIBUTION)  # (R, B)
            total += of_tile
        chunk += B // _CHUNK
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
    programs = tl.load(fields + 9)
    last = programs == 1
    if programs > 1:
        partial += tl.load(fields + 10)
        counter = counters + tl.load(fields + 11) + group
        tl.store(partial + slot * rows + r, sums, mask=r < rows)
        tl.debug_barrier()
        last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
        if last:
            mask = (place < programs) & (r < rows)[:, None]
            sums = _tree(tl.load(partial + place * rows + r[:, None], mask=mask, other=0, cache_modifier=".cg"), R, N)
            tl.store(counter, 0)
    if last:
        c = sums.to(out.dtype.element_ty) * tl.load(scales + k).to(out.dtype.element_ty)
        tl.store(out + tl.load(fields + 12) + r, c, mask=r < rows)


@triton.jit(do_not_specialize=["seed", "stream", "step", "row0"])
def _expand(c, owners, table, scales, out, addresses, octaves, seed, stream, step, row0,
            DISTRIBUTION: tl.constexpr, PARTS: tl.constexpr, B: tl.constexpr, P: tl.constexpr, L: tl.constexpr,
            ADD: tl.constexpr):  # fmt: skip
    """A tile of u = all rows of a compartment, each times its coordinate; ADD: onto the tensors at the addresses."""
    k = tl.load(owners + tl.program_id(0))
    fields = table + 11 * k
    program = tl.program_id(0) - tl.load(fields)
    rows, at = tl.load(fields + 4), tl.load(fields + 5)
    number, first_row = tl.load(fields + 1).to(tl.uint32), tl.load(fields + 3) + _row_of(row0)
    chunk = (tl.load(fields + 6) + program // (PARTS // P)) * (B // _CHUNK)
    part = (program % (PARTS // P)) * P + tl.arange(0, P)[:, None]  # (P, 1)
    lane, drawn = tl.arange(0, L), _step_of(step)
    block = (chunk * _CHUNK + lane % B).to(tl.uint32)  # (L,)
    scale = tl.load(scales + tl.load(fields + 10)).to(c.dtype.element_ty)
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
    column = (chunk + b // _CHUNK) * (_WORDS * PARTS) + _WORDS * part + b % _CHUNK  # (P, B)
    target = tl.load(addresses + tl.load(fields + 9)).to(out.dtype) if ADD else out
    low, high = tl.load(fields + 7), tl.load(fields + 8)
    _store_tile(target + tl.load(fields + 2), column, low, high, t0, P, B, L, ADD)
    _store_tile(target + tl.load(fields + 2), column + _CHUNK, low, high, t1, P, B, L, ADD)
    _store_tile(target + tl.load(fields + 2), column + 2 * _CHUNK, low, high, t2, P, B, L, ADD)
    _store_tile(target + tl.load(fields + 2), column + 3 * _CHUNK, low, high, t3, P, B, L, ADD)


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
    """Of the programs of a row group that are done: zeros before and after every call, shared by no two under way.

    Calls on one stream follow each other and share a set, and so do those of one OWNER, in graphs too. Any other captured
    call has its own for ever, since its graph may run beside anything. Where none is left, a call makes its own, and that
    is a second launch.
    """

    groups: int
    free: list[torch.Tensor]  # (groups,) int32
    of_stream: dict[int, torch.Tensor]
    of_owner: WeakKeyDictionary[object, torch.Tensor] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def of(cls, groups: int, device: torch.device, slots: int = SLOTS) -> _Counters:
        """Made on the CPU: a copy from there is waited for, so every stream finds zeros.

        Each set begins at a multiple of 16 bytes. Triton compiles another kernel for an address that is none, and a call
        captured by a CUDA graph must not have to load one that the call before it did not need.
        """
        groups = -(-groups // 4) * 4
        return cls(groups, list(torch.zeros(slots, groups, dtype=torch.int32, device="cpu").to(device)), {})

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
    """Which program does what: a pure function of sizes. Tables are on the device; their owners say whose a program is."""

    owners: torch.Tensor  # (programs,) int32: row of the table
    table: torch.Tensor  # (n, fields) int64, the first field the owner's first program
    scales: torch.Tensor  # (K,) float64
    partials: int = 0
    counters: _Counters = field(default_factory=lambda: _Counters(0, [], {}))  # of project


def _make_table(counts: Sequence[int], rows: Sequence[tuple[int, ...]], device) -> tuple[torch.Tensor, torch.Tensor]:
    firsts = np.cumsum([0, *counts])[:-1]
    table = np.array([(first, *row) for first, row in zip(firsts, rows)], np.int64)
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return torch.from_numpy(owners).to(device), torch.from_numpy(table).to(device)


def _scales(compartments: Sequence[Compartment], distribution: Distribution, device: torch.device) -> torch.Tensor:
    scales = [distribution.scale(dim=k.total, size=k.length) for k in compartments]
    return torch.tensor(scales, dtype=torch.float64, device=device)


@lru_cache(maxsize=4096)
def _project_plan(compartments: tuple[Compartment, ...], distribution: Distribution, device: torch.device) -> _Plan:
    """Table: first program, number, place of column 0, low, high, row, rows, chunks of a segment, segments of a program,
    programs of a row group, place in partial, place of the first counter, place in c.
    """
    tall, wide = _ROWS[distribution.name], _BLOCKS[distribution.name] // BLOCKS
    cut = [_segments(k, distribution.columns, wide) for k in compartments]
    groups = [-(-k.dim // tall) for k in compartments]
    each = _segments_per_program(groups, [segments for segments, _ in cut])
    table, counts, at, partials, counters = [], [], 0, 0, 0
    for k, (segments, per), tiles in zip(compartments, cut, groups):
        programs = -(-segments // each)
        place = k.number, k.start - k.before, k.before, k.before + k.size, k.row, k.dim
        table.append((*place, per, each, programs, partials, counters, at))
        counts.append(tiles * programs)
        at += k.dim
        if programs > 1:
            partials, counters = partials + programs * k.dim, counters + tiles
    return _Plan(*_make_table(counts, table, device), _scales(compartments, distribution, device), partials,
                 _Counters.of(counters, device))  # fmt: skip


def _segments(k: Compartment, columns: int, wide: int) -> tuple[int, int]:
    """How many, and chunks of each, in whole tiles; by the compartment's columns alone."""
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
    """One row for each overlap of a compartment with a tensor of the target, whose sizes are given.

    Table: first program, number, place of column 0 in the tensor, row, rows, place in c, first tile, low and high column
    of the overlap, tensor, compartment.
    """
    table, counts, at = [], [], 0
    tile = distribution.columns * _BLOCKS[distribution.name] // BLOCKS
    splits = distribution.per_word // _PARTS[distribution.name]
    bounds = np.cumsum([0, *sizes]).tolist()
    for i, k in enumerate(compartments):
        origin = k.start - k.before
        for tensor, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            if (low := max(k.start, begin) - origin) < (high := min(k.stop, end) - origin):
                table.append((k.number, origin - begin, k.row, k.dim, at, low // tile, low, high, tensor, i))
                counts.append((-(-high // tile) - low // tile) * splits)
        at += k.dim
    return _Plan(*_make_table(counts, table, device), _scales(compartments, distribution, device))


DEVICE = "cuda" if isinstance(_project, triton.JITFunction) else "cpu"  # Triton's interpreter works on the CPU
if DEVICE == "cuda":
    _ROWS = {"normal": 8, "uniform": 16, "rademacher": 16}  # of a tile of project
    _WARPS = {"normal": 4, "uniform": 4, "rademacher": 2}  # of a program of project; four rows of signs share a load of g
    _REGISTERS = {"normal": (72, 104), "uniform": (128, 168), "rademacher": (None, None)}  # a thread; float32, float64
    _PARTS = {"normal": 2, "uniform": 2, "rademacher": 8}  # of a word, of a tile of expand
    LANES = 256  # rows times blocks of a tile of expand
else:  # one NumPy call for each operation on a tile: few large ones
    _ROWS, _PARTS, LANES = dict.fromkeys(_DISTRIBUTION_IDS, 64), {"normal": 2, "uniform": 4, "rademacher": 32}, 4096
    _WARPS = dict.fromkeys(_DISTRIBUTION_IDS, 1)


@lru_cache(maxsize=8)
def _octaves(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(_OCTAVES.ravel()).to(device)


@lru_cache(maxsize=4096)
def _addresses(pointers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(pointers, dtype=torch.int64, device=device)


def _word(value):
    """A 32-bit word as Triton's int32 takes it, or a tensor of one int64 as it is."""
    if isinstance(value, torch.Tensor):
        return value
    return operator.index(value) - 2**32 * (value >= 2**31)


_captured: list[tuple] = []  # what CUDA graphs point at, for as long as the process lives


def _keep(x: torch.Tensor, *tables) -> None:
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        _captured.append(tables)


def _tile(distribution: Distribution) -> dict[str, int]:
    name = distribution.name
    return {"DISTRIBUTION": _DISTRIBUTION_IDS[name], "PARTS": distribution.per_word, "B": _BLOCKS[name]}


def _limit(distribution: Distribution, dtype: torch.dtype) -> dict[str, int | None]:
    """ptxas takes more registers for the last sums than the long loop needs, unless it is held back."""
    return {"maxnreg": _REGISTERS[distribution.name][dtype == torch.float64]} if DEVICE == "cuda" else {}


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.project``; g of any floating-point dtype, step an integer or a tensor of one int64 on the device."""
    if share_memory(g, out):
        made = torch.empty_like(out)  # programs would read what others have written
        project(g, spec, made)
        out.copy_(made)
        return
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
    if share_memory(c, out):
        c = c.clone()  # programs would read what others have written
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
                                     *_words(spec), **_tile(spec.distribution), P=_PARTS[spec.distribution.name], L=LANES,
                                     ADD=add, num_warps=LANES // 32)  # fmt: skip


def _words(spec: BasisSpec) -> tuple:
    """seed, stream, step, row0 as the Triton kernels take them."""
    return _word(spec.seed), _word(spec.stream), _word(spec.step), _first_row(spec)


def _first_row(spec: BasisSpec) -> int | torch.Tensor:
    """What plans by ``from_first_row`` lack of the rows' numbers."""
    return spec.row if spec.first_row is None else spec.first_row + spec.row if spec.row else spec.first_row
