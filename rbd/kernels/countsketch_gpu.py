"""project, expand and add of a sketch on a GPU (Triton): one nonzero in a column, so one pass over the columns.

A first launch makes the words that say where the nonzeros are: 64 for the signs of 2048 columns, one for the offset of a
segment, D/8 + 4 D/d bytes. The product then is bound by memory: made by each column for itself, a word would cost some
eighty instructions for one bit. A program of project has some rows and some segments, of which it adds a tile at a time,
in float64; a program of expand has some columns and looks up their coordinates. No float atomics: sums of several
programs meet in the last of them, as in ``gpu``, and what is added in which order depends on the shape (d, D) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import Distribution
from rbd.kernels import gpu
from rbd.kernels.gpu import (
    _addresses,
    _Counters,
    _first_row,
    _keep,
    _make_table,
    _philox,
    _row_of,
    _scales,
    _step_of,
    _words,
    tl,  # from there, as it says what to do where there is no Triton
    triton,
)
from rbd.kernels.memory import share_memory
from rbd.philox import BLOCKS, OFFSETS, SIGNS, WORDS

DEVICE = gpu.DEVICE
CHUNK = 32 * WORDS  # columns of a chunk of signs
TILE = 1024  # rows times segments of a tile of project; columns of a tile of expand
TALL = (16, 64, 256, 1024)  # rows of a tile of project: the least that d fits, or the last
STEPS = 8  # tiles of a program of project, at least
PARTS = 64  # programs that share the sum of a row, at most
PROGRAMS = 1024  # of project, at most, unless there are more tiles of rows
BATCH = 16  # chunks of a program that makes words

_BLOCKS, _WORDS, _CHUNK, _TILE = tl.constexpr(BLOCKS), tl.constexpr(WORDS), tl.constexpr(CHUNK), tl.constexpr(TILE)


@triton.jit(do_not_specialize=["seed", "stream", "step"])
def _make_words(owners, table, words, seed, stream, step, N: tl.constexpr):
    """N Philox blocks of a run of them: their words, in the order of the columns. Fields: see _word_runs."""
    fields = table + 5 * tl.load(owners + tl.program_id(0))
    lane = (tl.program_id(0) - tl.load(fields)) * N + tl.arange(0, N)  # (N,)
    count, place = tl.load(fields + 3), tl.load(fields + 4)
    block, zero = (tl.load(fields + 2) + lane).to(tl.uint32), (lane * 0).to(tl.uint32)
    number = tl.load(fields + 1).to(tl.uint32)
    w0, w1, w2, w3 = _philox(block, zero, _step_of(step), number, seed.to(tl.uint32), stream.to(tl.uint32))
    at = words + place + (lane // _BLOCKS) * _WORDS + lane % _BLOCKS
    tl.store(at, w0.to(tl.int32, bitcast=True), mask=lane < count)
    tl.store(at + _BLOCKS, w1.to(tl.int32, bitcast=True), mask=lane < count)
    tl.store(at + 2 * _BLOCKS, w2.to(tl.int32, bitcast=True), mask=lane < count)
    tl.store(at + 3 * _BLOCKS, w3.to(tl.int32, bitcast=True), mask=lane < count)


@triton.jit
def _offset(words, place, q, d, mask):
    """o_q = word d / 2**32 of segments q, int64; place: of segment 0's word."""
    word = tl.load(words + place + q, mask=mask & (d > 1), other=0).to(tl.uint32, bitcast=True)
    return ((word.to(tl.uint64) * d.to(tl.uint64)) >> 32).to(tl.int64)


@triton.jit
def _signed(x, words, place, column, mask):
    """x with the signs of columns; place: of column 0's word."""
    word = tl.load(words + place + (column // _CHUNK) * _WORDS + column % _WORDS, mask=mask, other=0)
    return tl.where((word >> ((column // _WORDS) % 32).to(tl.int32)) & 1 == 1, -x, x)


@triton.jit(do_not_specialize=["row0"])
def _project(g, owners, table, scales, words, partial, counters, out, row0, R: tl.constexpr, S: tl.constexpr):
    """out = scale * (R rows of a compartment) @ g, S segments at a time. Fields: see _project_plan."""
    fields = table + 17 * tl.load(owners + tl.program_id(0))
    program = tl.program_id(0) - tl.load(fields)
    origin, low, high = tl.load(fields + 1), tl.load(fields + 2), tl.load(fields + 3)
    row, rows, d = tl.load(fields + 4) + _row_of(row0), tl.load(fields + 5), tl.load(fields + 6)
    signs, offsets = tl.load(fields + 7), tl.load(fields + 8)
    first, last, per = tl.load(fields + 9), tl.load(fields + 10), tl.load(fields + 11)  # segments; of a program
    groups, programs = (rows + R - 1) // R, tl.load(fields + 12)
    share, group = program // groups, program % groups
    local = group * R + tl.arange(0, R)  # (R,)
    r = (row + local)[None, :]
    total = tl.zeros((S, R), tl.float64)
    q0 = first + share * per
    stop = tl.minimum(q0 + per, last)
    while q0 < stop:
        q = (q0 + tl.arange(0, S))[:, None]  # (S, 1)
        o = _offset(words, offsets, q, d, q < stop)
        column = q * d + tl.where(r < o, r - o + d, r - o)  # (S, R)
        mask = (q < stop) & (local < rows)[None, :] & (column >= low) & (column < high)
        x = tl.load(g + origin + column, mask=mask, other=0).to(tl.float64)
        total += _signed(x, words, signs, column, mask)
        q0 += S
    sums = tl.sum(total, 0)  # (R,)
    is_last = programs == 1
    if programs > 1:
        at = partial + tl.load(fields + 13) + local
        tl.store(at + share * rows, sums, mask=local < rows)
        tl.debug_barrier()
        counter = counters + tl.load(fields + 14) + group
        is_last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
        if is_last:
            sums, part = tl.zeros((R,), tl.float64), programs - programs
            while part < programs:
                sums += tl.load(at + part * rows, mask=local < rows, other=0, cache_modifier=".cg")
                part += 1
            tl.store(counter, 0)
    if is_last:
        c = sums.to(out.dtype.element_ty) * tl.load(scales + tl.load(fields + 15)).to(out.dtype.element_ty)
        tl.store(out + tl.load(fields + 16) + local, c, mask=local < rows)


@triton.jit(do_not_specialize=["row0"])
def _expand(c, owners, table, scales, words, out, addresses, row0, ADD: tl.constexpr):
    """A tile of columns of u: the signed, scaled coordinate of each one's row; ADD: onto the tensors at the addresses."""
    fields = table + 12 * tl.load(owners + tl.program_id(0))
    program = tl.program_id(0) - tl.load(fields)
    low, high, rows, d = tl.load(fields + 2), tl.load(fields + 3), tl.load(fields + 5), tl.load(fields + 6)
    row, signs = tl.load(fields + 4) + _row_of(row0), tl.load(fields + 7)
    offsets, at = tl.load(fields + 8), tl.load(fields + 9)
    column = (low // _TILE + program) * _TILE + tl.arange(0, _TILE)  # (TILE,)
    mask = (column >= low) & (column < high)
    q = (column.to(tl.uint32) // d.to(tl.uint32)).to(tl.int64)
    r = column - q * d + _offset(words, offsets, q, d, mask)
    r = tl.where(r >= d, r - d, r) - row
    x = tl.load(c + at + r, mask=mask & (r >= 0) & (r < rows), other=0)
    u = _signed(x * tl.load(scales + tl.load(fields + 10)).to(x.dtype), words, signs, column, mask)
    target = tl.load(addresses + tl.load(fields + 11)).to(out.dtype) if ADD else out
    target += tl.load(fields + 1) + column
    if ADD:
        old = tl.load(target, mask=mask, other=0)
        u = u.to(tl.float64) + old if old.dtype == tl.float64 else u + old.to(u.dtype)
    tl.store(target, u.to(target.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class _Table:
    """Which program does what: a pure function of sizes. Tensors are on the device; owners say whose a program is."""

    owners: torch.Tensor  # (programs,) int32: row of the table
    table: torch.Tensor  # (n, fields) int64, the first field the owner's first program


@dataclass(frozen=True)
class _Plan:
    """The launches of a product."""

    words: _Table
    count: int  # of words
    products: tuple[tuple[int, _Table], ...]  # (rows of a tile, its programs); of expand, one with no such rows
    scales: torch.Tensor  # (K,) float64
    partials: int
    counters: _Counters


def _word_runs(compartments: Sequence[Compartment], device: torch.device) -> tuple[_Table, int, list[tuple[int, int]]]:
    """Words of the signs and offsets of what is there of each compartment, one run after another.

    Returns:
        The table of the runs (first program, number, first block, blocks, place of its first word), the number of words,
        and for each compartment where the words of column 0 and of segment 0 would be: maybe before the first word.
    """
    rows, places, at = [], [], 0
    for k in compartments:
        place = []
        for base, cells in ((SIGNS, CHUNK), (OFFSETS, WORDS * k.total)):
            first, last = k.before // cells, -(-(k.before + k.size) // cells)
            place.append(at - WORDS * first)
            if base == SIGNS or k.total > 1:
                rows.append((k.number, base + BLOCKS * first, BLOCKS * (last - first), at))
                at += WORDS * (last - first)
        places.append((place[0], place[1]))
    counts = [-(-blocks // (BATCH * BLOCKS)) for _, _, blocks, _ in rows]
    return _Table(*_make_table(counts, rows, device)), at, places


def _tall(k: Compartment) -> int:
    """Rows of a tile of project, by d alone: it decides the order of a sum."""
    return next((tall for tall in TALL if k.total <= tall), TALL[-1])


def _parts(k: Compartment) -> int:
    """Programs that share a row, by d and D alone."""
    tall = _tall(k)
    tiles = -(-k.length // (k.total * (TILE // tall)))
    return max(1, min(PARTS, -(-tiles // STEPS), PROGRAMS // -(-k.total // tall)))


@lru_cache(maxsize=4096)
def _project_plan(compartments: tuple[Compartment, ...], distribution: Distribution, device: torch.device) -> _Plan:
    """A launch for each height of tiles.

    Table: first program, place of column 0, low, high, row, rows, total, place of the words of column 0 and segment 0,
    first and last segment, segments of a program, programs of a row group, place in partial, place of the first counter,
    compartment, place in c.
    """
    made, words, places = _word_runs(compartments, device)
    of_tall: dict[int, tuple[list, list]] = {}
    at = partials = counters = 0
    for i, (k, place) in enumerate(zip(compartments, places)):
        tall, parts, low, high = _tall(k), _parts(k), k.before, k.before + k.size
        step, segments = TILE // tall, -(-k.length // k.total)
        per = -(-segments // (parts * step)) * step  # whole tiles
        first, last = low // k.total, -(-high // k.total)
        programs, groups = -(-(last - first) // per), -(-k.dim // tall)
        counts, rows = of_tall.setdefault(tall, ([], []))
        counts.append(groups * programs)
        rows.append((k.start - low, low, high, k.row, k.dim, k.total, *place, first, last, per, programs, partials,
                     counters, i, at))  # fmt: skip
        at += k.dim
        if programs > 1:
            partials, counters = partials + programs * k.dim, counters + groups
    products = tuple((tall, _Table(*_make_table(*cut, device))) for tall, cut in of_tall.items())
    scales = _scales(compartments, distribution, device)
    return _Plan(made, words, products, scales, partials, _Counters.of(counters, device))


@lru_cache(maxsize=4096)
def _expand_plan(compartments: tuple[Compartment, ...], distribution: Distribution, device: torch.device,
                 sizes: tuple[int, ...]) -> _Plan:  # fmt: skip
    """One row for each overlap of a compartment with a tensor of the target, whose sizes are given.

    Table: first program, place of column 0 in the tensor, low, high, row, rows, total, place of the words of column 0 and
    segment 0, place in c, compartment, tensor.
    """
    made, words, places = _word_runs(compartments, device)
    counts, rows, at, bounds = [], [], 0, np.cumsum([0, *sizes]).tolist()
    for i, (k, place) in enumerate(zip(compartments, places)):
        origin = k.start - k.before
        for tensor, (begin, end) in enumerate(zip(bounds, bounds[1:])):
            if (low := max(k.start, begin) - origin) < (high := min(k.stop, end) - origin):
                rows.append((origin - begin, low, high, k.row, k.dim, k.total, *place, at, i, tensor))
                counts.append(-(-high // TILE) - low // TILE)
        at += k.dim
    table = _Table(*_make_table(counts, rows, device))
    return _Plan(made, words, ((0, table),), _scales(compartments, distribution, device), 0, _Counters.of(0, device))


def _launch_words(plan: _Plan, spec: BasisSpec, device: torch.device) -> torch.Tensor:
    words = torch.empty(plan.count, dtype=torch.int32, device=device)
    seed, stream, step, _ = _words(spec)
    runs = plan.words
    _make_words[(len(runs.owners),)](runs.owners, runs.table, words, seed, stream, step, N=BATCH * BLOCKS)
    return words


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor) -> None:
    """See ``reference.project``; g of any floating-point dtype, step an integer or a tensor of one int64 on the device."""
    if share_memory(g, out):
        g = g.clone()  # programs would read what others have written
    plan = _project_plan(spec.from_first_row, spec.distribution, g.device)
    counters = plan.counters.of_call(g.device)
    _keep(g, plan, counters)
    partial = torch.empty(plan.partials, dtype=torch.float64, device=g.device)
    with torch.cuda.device_of(g):
        words = _launch_words(plan, spec, g.device)
        for tall, programs in plan.products:
            _project[(len(programs.owners),)](g, programs.owners, programs.table, plan.scales, words, partial, counters, out,
                                              _first_row(spec), R=tall, S=TILE // tall)  # fmt: skip


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
    ((_, programs),) = plan.products
    with torch.cuda.device_of(c):
        words = _launch_words(plan, spec, c.device)
        _expand[(len(programs.owners),)](c, programs.owners, programs.table, plan.scales, words, out, addresses,
                                         _first_row(spec), ADD=add)  # fmt: skip
