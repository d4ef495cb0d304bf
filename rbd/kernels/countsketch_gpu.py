"""project, expand and add of a sketch on a GPU (Triton): one nonzero in each column, so one pass over the columns.

A first launch makes the words that define the nonzeros: 64 for the signs of 2048 columns, one for the offset of a segment,
D/8 + 4 D/d bytes. So the product is bound by memory: if each column made its own word, that would cost some eighty
instructions for one bit. A program of project has some rows and some segments, of which it adds a tile at a time, in
float64, and for float64 columns also what these additions lose by rounding; a program of expand has some columns and
looks up their coordinates. There are no float atomics: the last program of a row group adds up the sums of the others, as
in ``gpu``. The order of every sum depends on the shape (d, D) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from rbd.compartment import BasisSpec, Compartment, find_tensors
from rbd.distribution import Distribution
from rbd.kernels import gpu
from rbd.kernels.gpu import (
    _addresses,
    _columns,
    _Counters,
    _first_row,
    _keep,
    _make_table,
    _philox,
    _row_of,
    _scales,
    _step_of,
    _words,
    tl,  # from there, as importing it says what to do if there is no Triton
    triton,
)
from rbd.philox import BLOCKS, OFFSETS, SIGNS, WORDS

DEVICE = gpu.DEVICE
CHUNK = 32 * WORDS  # columns of a chunk of signs
TILE = 1024  # rows times segments of a tile of project; columns of a tile of expand
TALL = (16, 64, 256, 1024)  # rows of a tile of project: the least that is not below d, or the last
STEPS = 8  # tiles of a program of project, at least
GROUP_PROGRAMS = 64  # of a row group of project, at most
PROGRAMS = 1024  # of project, at most, unless there are more row groups
BATCH = 16  # chunks of a program that makes words

_CHUNK_BLOCKS, _CHUNK_COLUMNS = tl.constexpr(BLOCKS), tl.constexpr(CHUNK)
_WORDS, _TILE = tl.constexpr(WORDS), tl.constexpr(TILE)


class _WordsRow(NamedTuple):
    """A row of the table of ``_make_words``: a run of Philox blocks, which has some programs that follow each other."""

    number: int  # of the compartment
    block: int  # the first
    blocks: int
    place: int  # of the first block's first word in words
    first: int = 0  # of its programs; set by _make_table


_RUN = _columns(_WordsRow)


@triton.jit(do_not_specialize=["seed", "stream", "step"])
def _make_words(owners, table, words, seed, stream, step, N: tl.constexpr):
    """The words of N Philox blocks of a run, in the order of the columns."""
    fields = table + len(_RUN.value) * tl.load(owners + tl.program_id(0))
    lane = (tl.program_id(0) - tl.load(fields + _RUN.value.first)) * N + tl.arange(0, N)  # (N,)
    count, place = tl.load(fields + _RUN.value.blocks), tl.load(fields + _RUN.value.place)
    block, zero = (tl.load(fields + _RUN.value.block) + lane).to(tl.uint32), (lane * 0).to(tl.uint32)
    number = tl.load(fields + _RUN.value.number).to(tl.uint32)
    w0, w1, w2, w3 = _philox(block, zero, _step_of(step), number, seed.to(tl.uint32), stream.to(tl.uint32))
    at = words + place + (lane // _CHUNK_BLOCKS) * _WORDS + lane % _CHUNK_BLOCKS
    tl.store(at, w0.to(tl.int32, bitcast=True), mask=lane < count)
    tl.store(at + _CHUNK_BLOCKS, w1.to(tl.int32, bitcast=True), mask=lane < count)
    tl.store(at + 2 * _CHUNK_BLOCKS, w2.to(tl.int32, bitcast=True), mask=lane < count)
    tl.store(at + 3 * _CHUNK_BLOCKS, w3.to(tl.int32, bitcast=True), mask=lane < count)


@triton.jit
def _offset(words, place, q, d, mask):
    """o_q = word d / 2**32 of segments q, int64; place: of segment 0's word."""
    word = tl.load(words + place + q, mask=mask & (d > 1), other=0).to(tl.uint32, bitcast=True)
    return ((word.to(tl.uint64) * d.to(tl.uint64)) >> 32).to(tl.int64)


@triton.jit
def _signed(x, words, place, column, mask):
    """x with the signs of columns; place: of column 0's word."""
    word = tl.load(words + place + (column // _CHUNK_COLUMNS) * _WORDS + column % _WORDS, mask=mask, other=0)
    return tl.where((word >> ((column // _WORDS) % 32).to(tl.int32)) & 1 == 1, -x, x)


@triton.jit
def _lost(s, term):
    """What s + term loses by rounding: exact (TwoSum of Knuth), but NaN if the sum is not finite."""
    total = s + term
    part = total - s
    return (s - (total - part)) + (term - part)


class _ProjectRow(NamedTuple):
    """A row of the table of ``_project``: a compartment, which has some programs that follow each other."""

    origin: int  # place of column 0 in g, which may lie before it
    low: int  # columns low ... high - 1 are in g
    high: int
    row: int
    rows: int
    total: int
    signs: int  # place of column 0's word in words, which may lie before them
    offsets: int  # the same for segment 0's word
    first_segment: int
    stop_segment: int  # the last one + 1
    segments: int  # of a program
    programs: int  # of a row group
    partial: int  # place of its first partial sum
    counter: int  # place of the first row group's counter
    compartment: int  # whose scale is used
    place: int  # of the first row's coordinate in out
    first: int = 0  # of its programs; set by _make_table


_PROJECT = _columns(_ProjectRow)


@triton.jit(do_not_specialize=["row0"])
def _project(g, owners, table, scales, words, partial, counters, out, row0, R: tl.constexpr, S: tl.constexpr):
    """out = scale * (R rows of a compartment) @ g, S segments at a time."""
    fields = table + len(_PROJECT.value) * tl.load(owners + tl.program_id(0))
    program = tl.program_id(0) - tl.load(fields + _PROJECT.value.first)
    origin, d = tl.load(fields + _PROJECT.value.origin), tl.load(fields + _PROJECT.value.total)
    low, high = tl.load(fields + _PROJECT.value.low), tl.load(fields + _PROJECT.value.high)
    row, rows = tl.load(fields + _PROJECT.value.row) + _row_of(row0), tl.load(fields + _PROJECT.value.rows)
    signs, offsets = tl.load(fields + _PROJECT.value.signs), tl.load(fields + _PROJECT.value.offsets)
    first, last = tl.load(fields + _PROJECT.value.first_segment), tl.load(fields + _PROJECT.value.stop_segment)
    per, programs = tl.load(fields + _PROJECT.value.segments), tl.load(fields + _PROJECT.value.programs)
    groups = (rows + R - 1) // R
    slot, group = program // groups, program % groups
    local = group * R + tl.arange(0, R)  # (R,)
    r = (row + local)[None, :]
    total = tl.zeros((S, R), tl.float64)
    lost = tl.zeros((S, R), tl.float64)  # by the additions, of float64 columns
    q0 = first + slot * per
    stop = tl.minimum(q0 + per, last)
    while q0 < stop:
        q = (q0 + tl.arange(0, S))[:, None]  # (S, 1)
        o = _offset(words, offsets, q, d, q < stop)
        column = q * d + tl.where(r < o, r - o + d, r - o)  # (S, R)
        mask = (q < stop) & (local < rows)[None, :] & (column >= low) & (column < high)
        x = tl.load(g + origin + column, mask=mask, other=0).to(tl.float64)
        term = _signed(x, words, signs, column, mask)
        if g.dtype.element_ty == tl.float64:
            lost += _lost(total, term)
        total += term
        q0 += S
    sums = tl.sum(total + tl.where(lost == lost, lost, 0), 0)  # (R,)
    is_last = programs == 1
    if programs > 1:
        at = partial + tl.load(fields + _PROJECT.value.partial) + local
        tl.store(at + slot * rows, sums, mask=local < rows)
        tl.debug_barrier()
        counter = counters + tl.load(fields + _PROJECT.value.counter) + group
        is_last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1
        if is_last:
            sums, part = tl.zeros((R,), tl.float64), programs - programs
            while part < programs:
                sums += tl.load(at + part * rows, mask=local < rows, other=0, cache_modifier=".cg")
                part += 1
            tl.store(counter, 0)
    if is_last:
        scale = tl.load(scales + tl.load(fields + _PROJECT.value.compartment)).to(out.dtype.element_ty)
        c = sums.to(out.dtype.element_ty) * scale
        tl.store(out + tl.load(fields + _PROJECT.value.place) + local, c, mask=local < rows)


class _ExpandRow(NamedTuple):
    """A row of the table of ``_expand``: the columns of a compartment in one tensor, which have some programs, too."""

    origin: int  # place of column 0 in the tensor, which may lie before it
    low: int  # columns low ... high - 1 are written
    high: int
    row: int
    rows: int
    total: int
    signs: int  # place of column 0's word in words, which may lie before them
    offsets: int  # the same for segment 0's word
    place: int  # of the first row's coordinate in c
    compartment: int  # whose scale is used
    tensor: int
    first: int = 0  # of its programs; set by _make_table


_EXPAND = _columns(_ExpandRow)


@triton.jit(do_not_specialize=["row0"])
def _expand(c, owners, table, scales, words, out, addresses, row0, ADD: tl.constexpr):
    """A tile of columns of u: the signed, scaled coordinate of each one's row; ADD: onto the tensors at the addresses."""
    fields = table + len(_EXPAND.value) * tl.load(owners + tl.program_id(0))
    program = tl.program_id(0) - tl.load(fields + _EXPAND.value.first)
    low, high = tl.load(fields + _EXPAND.value.low), tl.load(fields + _EXPAND.value.high)
    row, rows = tl.load(fields + _EXPAND.value.row) + _row_of(row0), tl.load(fields + _EXPAND.value.rows)
    signs, offsets = tl.load(fields + _EXPAND.value.signs), tl.load(fields + _EXPAND.value.offsets)
    d, at = tl.load(fields + _EXPAND.value.total), tl.load(fields + _EXPAND.value.place)
    column = (low // _TILE + program) * _TILE + tl.arange(0, _TILE)  # (TILE,)
    mask = (column >= low) & (column < high)
    q = (column.to(tl.uint32) // d.to(tl.uint32)).to(tl.int64)
    r = column - q * d + _offset(words, offsets, q, d, mask)
    r = tl.where(r >= d, r - d, r) - row
    x = tl.load(c + at + r, mask=mask & (r >= 0) & (r < rows), other=0)
    scale = tl.load(scales + tl.load(fields + _EXPAND.value.compartment)).to(x.dtype)
    u = _signed(x * scale, words, signs, column, mask)
    target = tl.load(addresses + tl.load(fields + _EXPAND.value.tensor)).to(out.dtype) if ADD else out
    target += tl.load(fields + _EXPAND.value.origin) + column
    if ADD:
        old = tl.load(target, mask=mask, other=0)
        u = u.to(tl.float64) + old if old.dtype == tl.float64 else u + old.to(u.dtype)
    tl.store(target, u.to(target.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class _Table:
    """Which program does what: a pure function of sizes. Both tensors are on the device."""

    owners: torch.Tensor  # (programs,) int32: the row of the table that a program belongs to
    table: torch.Tensor  # (n, fields of a row) int64


@dataclass(frozen=True)
class _Plan:
    """The launches of a product."""

    words: _Table
    count: int  # of words
    products: tuple[tuple[int, _Table], ...]  # (rows of a tile, its programs); of expand, one, whose rows are not used
    scales: torch.Tensor  # (K,) float64
    partials: int
    counters: _Counters


class _Places(NamedTuple):
    """Where the words of a compartment are, see _ProjectRow."""

    signs: int
    offsets: int


def _word_runs(compartments: Sequence[Compartment], device: torch.device) -> tuple[_Table, int, list[_Places]]:
    """Runs of the words of the signs and offsets of those columns of each compartment that are here.

    Returns:
        The table of the runs, the number of words, and for each compartment the places of the words of column 0 and of
        segment 0.
    """
    rows, places, at = [], [], 0
    for k in compartments:
        place = []
        for base, cells in ((SIGNS, CHUNK), (OFFSETS, WORDS * k.total)):
            first, last = k.before // cells, -(-(k.before + k.size) // cells)
            place.append(at - WORDS * first)
            if base == SIGNS or k.total > 1:
                blocks = BLOCKS * (last - first)
                rows.append(_WordsRow(number=k.number, block=base + BLOCKS * first, blocks=blocks, place=at))
                at += WORDS * (last - first)
        places.append(_Places(*place))
    counts = [-(-row.blocks // (BATCH * BLOCKS)) for row in rows]
    return _Table(*_make_table(counts, rows, device)), at, places


def _tall(k: Compartment) -> int:
    """Rows of a tile of project, by d alone: it decides the order of a sum."""
    return next((tall for tall in TALL if k.total <= tall), TALL[-1])


def _group_programs(k: Compartment) -> int:
    """Programs of a row group, at most, by d and D alone."""
    tall = _tall(k)
    tiles = -(-k.length // (k.total * (TILE // tall)))
    return max(1, min(GROUP_PROGRAMS, -(-tiles // STEPS), PROGRAMS // -(-k.total // tall)))


@lru_cache(maxsize=4096)
def _project_plan(compartments: tuple[Compartment, ...], distribution: Distribution, device: torch.device) -> _Plan:
    """A launch for each height of tiles, with a row of its table for each compartment."""
    made, words, places = _word_runs(compartments, device)
    of_tall: dict[int, tuple[list, list]] = {}
    at = partials = counters = 0
    for i, (k, place) in enumerate(zip(compartments, places)):
        tall, low, high = _tall(k), k.before, k.before + k.size
        step, segments = TILE // tall, -(-k.length // k.total)
        per = -(-segments // (_group_programs(k) * step)) * step  # whole tiles
        first, last = low // k.total, -(-high // k.total)
        programs, groups = -(-(last - first) // per), -(-k.dim // tall)
        counts, rows = of_tall.setdefault(tall, ([], []))
        counts.append(groups * programs)
        rows.append(_ProjectRow(
            origin=k.start - low, low=low, high=high, row=k.row, rows=k.dim, total=k.total, signs=place.signs,
            offsets=place.offsets, first_segment=first, stop_segment=last, segments=per, programs=programs, partial=partials,
            counter=counters, compartment=i, place=at,
        ))  # fmt: skip
        at += k.dim
        if programs > 1:
            partials, counters = partials + programs * k.dim, counters + groups
    products = tuple((tall, _Table(*_make_table(*cut, device))) for tall, cut in of_tall.items())
    scales = _scales(compartments, distribution, device)
    return _Plan(made, words, products, scales, partials, _Counters.of(counters, device))


@lru_cache(maxsize=4096)
def _expand_plan(compartments: tuple[Compartment, ...], distribution: Distribution, device: torch.device,
                 sizes: tuple[int, ...]) -> _Plan:  # fmt: skip
    """A row for each overlap of a compartment with a tensor of the target, whose sizes are given."""
    made, words, places = _word_runs(compartments, device)
    counts, rows, at, bounds = [], [], 0, np.cumsum([0, *sizes], dtype=np.int64).tolist()
    for i, (k, place) in enumerate(zip(compartments, places)):
        origin = k.start - k.before
        for tensor in find_tensors(k, bounds):
            begin, end = bounds[tensor], bounds[tensor + 1]
            if (low := max(k.start, begin) - origin) < (high := min(k.stop, end) - origin):
                rows.append(_ExpandRow(
                    origin=origin - begin, low=low, high=high, row=k.row, rows=k.dim, total=k.total, signs=place.signs,
                    offsets=place.offsets, place=at, compartment=i, tensor=tensor,
                ))  # fmt: skip
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
