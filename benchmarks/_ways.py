"""Ways to have Φ (d, D): out of the generator, or as a user would do without one. Each is checked before it is timed.

A way has project (D,) -> (d,), expand (d,) -> (D,) and dense() -> (d, D) float64, by another route than the products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

from benchmarks._cost import LANES, ON_DEMAND, TILE, padded, rows, seconds, stored_mib, words
from benchmarks._measure import captured, expected, fits
from rbd import Basis, distribution, philox


def build(way: str, dim: int, size: int, device: str = "cpu"):
    """The way itself.

    Raises:
        NotImplementedError: it does not fit into memory, is not in this set of cells, or does not exist on the device.
    """
    expected(seconds(way, dim, size, device))
    making = {"sklearn gaussian": 3, "sklearn sparse": 3, "stored sketch": 3}.get(way, 1)  # in float64, then converted
    fits(f"{way} of {dim:,} x {size:,}", making * stored_mib(way, dim, size) + 8 * size * 4 / 2**20, device)
    if way in ON_DEMAND:
        return OnDemand(Basis(dim, size, way, seed=1), device)
    if way.startswith("sklearn"):
        return _sklearn(way, dim, size, device)
    if way == "stored sketch":
        return StoredSketch.make(Basis(dim, size, "countsketch", seed=1), device)
    if way == "hadamard":
        return Hadamard.make(dim, size, device)
    return {"stored fp32": StoredFloat, "stored bf16": StoredFloat, "stored bits": _bits(device), "randn": Randn}[way].make(
        Basis(dim, size, "rademacher", seed=1), device, torch.bfloat16 if way == "stored bf16" else torch.float32
    )


@dataclass(frozen=True)
class OnDemand:
    """Ours."""

    basis: Basis
    device: str

    def project(self, g: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.basis.project(g, out)

    def expand(self, c: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.basis.expand(c, out)

    def dense(self) -> torch.Tensor:
        return self.basis.dense().double()

    def window(self) -> tuple[slice, torch.Tensor]:
        """The last columns, 128 at most, and the entries that the definition gives them, (d, columns) float64."""
        law, b = distribution.distribution(self.basis.distribution), self.basis
        if getattr(law, "sparse", False):
            columns = np.arange(max(0, b.size - min(128, 1 + 2**24 // b.dim)), b.size)
            which, signs = distribution.sketch(columns, b.dim, b.seed, b.stream, b.step, b.compartment)
            phi = torch.zeros(b.dim, len(columns), dtype=torch.float64)
            phi[which, np.arange(len(columns))] = torch.from_numpy(signs).double() * law.scale(b.size, b.dim)
            return slice(int(columns[0]), b.size), phi
        chunk = (b.size - 1) // law.columns
        drawn = philox.words(b.row + np.arange(b.dim), np.array([chunk]), b.seed, b.stream, b.step, b.compartment)
        start = max(chunk * law.columns, b.size - 128)
        levels = law.entries(drawn).reshape(b.dim, -1)[:, start - chunk * law.columns : b.size - chunk * law.columns]
        return slice(start, b.size), torch.from_numpy(levels).double() / (law.deviation * b.size**0.5)


@dataclass(frozen=True)
class Into:
    """A way that writes its products into tensors that are kept: at D = 1e7 new pages take ten times as long as a sketch."""

    way: OnDemand | StoredSketch
    c: torch.Tensor  # (d,)
    u: torch.Tensor  # (D,)

    @classmethod
    def kept(cls, way, g: torch.Tensor, c: torch.Tensor):
        """The way itself, where it allocates by itself."""
        return cls(way, torch.empty_like(c), torch.empty_like(g)) if isinstance(way, OnDemand | StoredSketch) else way

    def project(self, g: torch.Tensor) -> torch.Tensor:
        return self.way.project(g, self.c)

    def expand(self, c: torch.Tensor) -> torch.Tensor:
        return self.way.expand(c, self.u)


def _rows(basis: Basis, device: str):
    """The rows of a basis one by one, (D,) each: all stored rivals of one cell hold the same Φ."""
    one = torch.ones(1, device=device)
    for row in range(basis.dim):
        yield Basis(1, basis.size, basis.distribution, basis.seed, row=row).expand(one)


@dataclass(frozen=True)
class StoredFloat:
    """torch's matmul on a stored matrix; bfloat16 takes and gives bfloat16, and sums in float32."""

    phi: torch.Tensor  # (d, D)
    basis: Basis

    @classmethod
    def make(cls, basis: Basis, device: str, dtype: torch.dtype):
        phi = torch.empty(basis.dim, basis.size, dtype=dtype, device=device)
        for i, row in enumerate(_rows(basis, device)):
            phi[i] = row
        return cls(phi, basis)

    def project(self, g: torch.Tensor) -> torch.Tensor:
        return (self.phi @ g.to(self.phi.dtype)).float()

    def expand(self, c: torch.Tensor) -> torch.Tensor:
        return (self.phi.T @ c.to(self.phi.dtype)).float()

    def dense(self) -> torch.Tensor:
        return self.basis.dense().double()


_SIGN = np.uint32(0x80000000)


@njit(inline="always")
def _flip(x, word, by):
    """x, a float32 seen as uint32, with its sign flipped if bit 31 - by of the word is set."""
    return np.uint32(x ^ ((word << np.uint32(by)) & _SIGN)).view(np.float32)


@njit(parallel=True, fastmath=True, cache=True)
def _project_bits(bits, g, scale, c):
    """c = scale * signs @ g. bits (tiles, d, 64), g (tiles, 32, 64) as uint32; 16 rows share a tile of g in the cache."""
    tiles, rows, _ = bits.shape
    for part in prange((rows + 15) // 16):
        first, last = 16 * part, min(16 * part + 16, rows)
        total = np.zeros((16, LANES), np.float32)
        for tile in range(tiles):
            for row in range(first, last):
                for bit in range(0, 32, 8):
                    for lane in range(LANES):
                        w = bits[tile, row, lane] << np.uint32(24 - bit)
                        a = _flip(g[tile, bit, lane], w, 7) + _flip(g[tile, bit + 1, lane], w, 6)
                        b = _flip(g[tile, bit + 2, lane], w, 5) + _flip(g[tile, bit + 3, lane], w, 4)
                        d = _flip(g[tile, bit + 4, lane], w, 3) + _flip(g[tile, bit + 5, lane], w, 2)
                        e = _flip(g[tile, bit + 6, lane], w, 1) + _flip(g[tile, bit + 7, lane], w, 0)
                        total[row - first, lane] += (a + b) + (d + e)
        for row in range(first, last):
            c[row] = scale * total[row - first].sum()


@njit(parallel=True, fastmath=True, cache=True)
def _expand_bits(bits, c, u):
    """u = signs.T @ c, (tiles, 32, 64); bits (tiles, d, 64), c (d,) as uint32, scaled; 8 rows a pass over u."""
    tiles, rows, _ = bits.shape
    for tile in prange(tiles):
        u[tile] = 0
        for r in range(0, rows, 8):
            c0, c1, c2, c3 = c[r], c[r + 1], c[r + 2], c[r + 3]
            c4, c5, c6, c7 = c[r + 4], c[r + 5], c[r + 6], c[r + 7]
            for bit in range(32):
                by = 31 - bit
                for lane in range(LANES):
                    x = _flip(c0, bits[tile, r, lane], by) + _flip(c1, bits[tile, r + 1, lane], by)
                    y = _flip(c2, bits[tile, r + 2, lane], by) + _flip(c3, bits[tile, r + 3, lane], by)
                    z = _flip(c4, bits[tile, r + 4, lane], by) + _flip(c5, bits[tile, r + 5, lane], by)
                    t = _flip(c6, bits[tile, r + 6, lane], by) + _flip(c7, bits[tile, r + 7, lane], by)
                    u[tile, bit, lane] += (x + y) + (z + t)


@dataclass(frozen=True)
class StoredBits:
    """Signs, 32 to a word, multiplied by Numba: the best of six loops tried (tables of bytes had half the speed).

    Bit b of word (t, l) of a row is the sign of column 2048 t + 64 b + l, so that inner loops run over contiguous words and
    columns and LLVM makes vectors of them.
    """

    bits: np.ndarray  # (tiles, d rounded up to 8, 64) uint32
    basis: Basis

    @classmethod
    def make(cls, basis: Basis, device: str, dtype: torch.dtype):
        tiles, shifts = words(basis.size) // LANES, np.arange(32, dtype=np.uint32)[:, None]
        bits = np.zeros((tiles, -(-basis.dim // 8) * 8, LANES), np.uint32)
        signs = np.zeros(tiles * TILE, np.uint32)
        for i, row in enumerate(_rows(basis, device)):
            signs[: basis.size] = row.numpy() < 0
            bits[:, i] = np.bitwise_or.reduce(signs.reshape(tiles, 32, LANES) << shifts, axis=1)
        return cls(bits, basis)

    def project(self, g: torch.Tensor) -> torch.Tensor:
        padded = np.zeros(len(self.bits) * TILE, np.float32)
        padded[: self.basis.size] = g.numpy()
        c = np.empty(self.bits.shape[1], np.float32)
        _project_bits(self.bits, padded.view(np.uint32).reshape(-1, 32, LANES), np.float32(self.basis.size**-0.5), c)
        return torch.from_numpy(c[: self.basis.dim])

    def expand(self, c: torch.Tensor) -> torch.Tensor:
        scaled = np.zeros(self.bits.shape[1], np.float32)
        scaled[: self.basis.dim] = c.numpy() * np.float32(self.basis.size**-0.5)
        u = np.empty((len(self.bits), 32, LANES), np.float32)
        _expand_bits(self.bits, scaled.view(np.uint32), u)
        return torch.from_numpy(u.reshape(-1)[: self.basis.size])

    def dense(self) -> torch.Tensor:
        return self.basis.dense().double()


def _signs(words: torch.Tensor) -> torch.Tensor:
    """(d, W) int32 -> (d, W, 32) float32 of ±1; bit b of word w is column 32 w + b."""
    shifts = torch.arange(32, device=words.device, dtype=torch.int32)
    return 1.0 - 2.0 * ((words[:, :, None] >> shifts) & 1).float()


def _project_words(words: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return (_signs(words) * g.view(1, -1, 32)).sum((1, 2))


def _expand_words(words: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return (_signs(words) * c[:, None, None]).sum(0).view(-1)


@dataclass(frozen=True)
class StoredWords:
    """Packed signs on a GPU: torch.compile fuses unpacking and sum into one kernel, so that only words are read."""

    words: torch.Tensor  # (d, W) int32
    basis: Basis
    products: tuple  # _project_words and _expand_words, compiled for these shapes

    @classmethod
    def make(cls, basis: Basis, device: str, dtype: torch.dtype):
        packed = torch.empty(basis.dim, words(basis.size), dtype=torch.int32, device=device)
        padded = torch.zeros(packed.shape[1], 32, dtype=torch.int32, device=device)
        shifts = torch.arange(32, dtype=torch.int32, device=device)
        for i, row in enumerate(_rows(basis, device)):
            padded.view(-1)[: basis.size] = row < 0
            packed[i] = (padded << shifts).sum(1, dtype=torch.int32)  # no two have a bit in common
        torch.compiler.reset()  # it compiles a function for a few shapes only, then falls back in silence
        return cls(packed, basis, tuple(torch.compile(f, dynamic=False) for f in (_project_words, _expand_words)))

    def project(self, g: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(g, (0, self.words.shape[1] * 32 - self.basis.size))
        return self.products[0](self.words, padded) * self.basis.size**-0.5

    def expand(self, c: torch.Tensor) -> torch.Tensor:
        return self.products[1](self.words, c * self.basis.size**-0.5)[: self.basis.size]

    def dense(self) -> torch.Tensor:
        return self.basis.dense().double()


def _bits(device: str) -> type:
    return StoredBits if device == "cpu" else StoredWords


@dataclass(frozen=True)
class Randn:
    """What a user would write with torch alone: normal rows drawn for every product, some at a time, and multiplied."""

    dim: int
    size: int
    device: str

    @classmethod
    def make(cls, basis: Basis, device: str, dtype: torch.dtype):
        return cls(basis.dim, basis.size, device)

    def _chunks(self):
        generator, tall = torch.Generator(self.device).manual_seed(1), rows(self.size)
        for first in range(0, self.dim, tall):
            count = min(tall, self.dim - first)
            yield slice(first, first + count), torch.randn(count, self.size, generator=generator, device=self.device)

    def project(self, g: torch.Tensor) -> torch.Tensor:
        return torch.cat([phi @ g for _, phi in self._chunks()]).mul_(self.size**-0.5)

    def expand(self, c: torch.Tensor) -> torch.Tensor:
        u = torch.zeros(self.size, device=self.device)
        for part, phi in self._chunks():
            u.addmv_(phi.T, c[part])
        return u.mul_(self.size**-0.5)

    def dense(self) -> torch.Tensor:
        return torch.cat([phi for _, phi in self._chunks()]).double().cpu() * self.size**-0.5


@dataclass(frozen=True)
class Sklearn:
    """scikit-learn's random_projection, fitted, so stored: transform, and the transposed product, which it lacks."""

    projection: object
    phi: object  # components_, (d, D): array, or scipy.sparse matrix of density 1/√D

    def project(self, g: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.projection.transform(g.numpy()[None])[0])

    def expand(self, c: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.phi.T @ c.numpy())

    def dense(self) -> torch.Tensor:
        phi = self.phi.toarray() if hasattr(self.phi, "toarray") else self.phi
        return torch.from_numpy(np.asarray(phi, np.float64))


def _sklearn(way: str, dim: int, size: int, device: str) -> Sklearn:
    try:
        from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection
    except ImportError:
        raise NotImplementedError("scikit-learn is not installed") from None
    if device != "cpu":
        raise NotImplementedError("scikit-learn's random_projection works on the CPU only")
    if way == "sklearn gaussian":
        made = GaussianRandomProjection(dim, random_state=1)
    else:
        made = SparseRandomProjection(dim, dense_output=True, random_state=1)
    made.fit(np.zeros((1, size), np.float32))
    return Sklearn(made, made.components_)


@dataclass(frozen=True)
class StoredSketch:
    """A CountSketch as torch users write it: for every column the number of its row, and its sign.

    Of the same Φ as ours, whose row numbers run on for d columns: kinder to the caches than independent ones would be. Of
    torch's operations those that were fastest here: index_add_ takes 1.6 times as long as scatter_add_, gather 3 times as
    long as index_select (one thread, D = 101,770).
    """

    index: torch.Tensor  # (D,) int64
    signs: torch.Tensor  # (D,) float32, scaled
    signed: torch.Tensor  # (D,) float32, for signs * g
    basis: Basis

    @classmethod
    def make(cls, basis: Basis, device: str):
        scale = (basis.dim / basis.size) ** 0.5
        numbers = basis.expand(torch.arange(1, basis.dim + 1, dtype=torch.float64, device=device)) / scale  # ±(row + 1)
        signs = numbers.sign().float() * scale
        return cls(numbers.abs().round().long() - 1, signs, torch.zeros_like(signs), basis)

    def project(self, g: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        out = torch.zeros(self.basis.dim, device=g.device) if out is None else out.zero_()
        return out.scatter_add_(0, self.index, torch.mul(self.signs, g, out=self.signed))

    def expand(self, c: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.index_select(c, 0, self.index, out=out).mul_(self.signs)

    def dense(self) -> torch.Tensor:
        return self.basis.dense().double()


def _hadamard(x: torch.Tensor) -> torch.Tensor:
    """H x, (n,) -> (n,), n a power of two, H of ±1: log2(n) passes between x, which it overwrites, and one more vector.

    torch.stack((a + b, a - b), 1), which one writes first, takes three new vectors a pass, and several times as long.
    """
    n, half, other = len(x), 1, torch.empty_like(x)
    while half < n:
        a, b = x.view(-1, 2, half).unbind(1)  # (n / 2 half, half) each
        s, d = other.view(-1, 2, half).unbind(1)
        torch.add(a, b, out=s)
        torch.sub(a, b, out=d)
        x, other, half = other, x, 2 * half
    return x


@dataclass(frozen=True)
class Hadamard:
    """A subsampled randomised Hadamard transform as torch users write it: d rows of H times random signs, padded to 2**k."""

    signs: torch.Tensor  # (D,) float32, scaled
    rows: torch.Tensor  # (d,) int64, none twice

    @classmethod
    def make(cls, dim: int, size: int, device: str):
        generator = torch.Generator().manual_seed(1)
        signs = torch.randint(2, (size,), generator=generator).float().mul_(2).sub_(1).mul_(size**-0.5)
        numbers = np.random.default_rng(1).choice(padded(size), dim, replace=False)  # without a permutation of all
        return cls(signs.to(device), torch.from_numpy(numbers).to(device))

    def project(self, g: torch.Tensor) -> torch.Tensor:
        more = padded(len(g)) - len(g)
        return _hadamard(torch.nn.functional.pad(g * self.signs, (0, more)))[self.rows]

    def expand(self, c: torch.Tensor) -> torch.Tensor:
        x = torch.zeros(padded(len(self.signs)), device=c.device)
        x[self.rows] = c
        return _hadamard(x)[: len(self.signs)] * self.signs

    def dense(self) -> torch.Tensor:
        both = self.rows.cpu()[:, None] & torch.arange(len(self.signs))  # (d, D); H[i, j] = -1 where i & j has odd bits
        for shift in (32, 16, 8, 4, 2, 1):
            both = both ^ (both >> shift)
        return (1 - 2 * (both & 1)).double() * self.signs.double().cpu()


def timed(way, product: str, x: torch.Tensor):
    """A product with x as it is timed: on a GPU as a CUDA graph, since launches by Python take longer than small products.

    Not torch.randn, which draws by a generator that is seeded anew in every call: a graph cannot hold that.
    """

    def call() -> torch.Tensor:
        return getattr(way, product)(x)

    return captured(call) if x.is_cuda and not isinstance(way, Randn) else call


def vectors(dim: int, size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """g (D,) and c (d,), standard normal, the same for all ways."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, generator=generator).to(device), torch.randn(dim, generator=generator).to(device)


def check_small(way: str, device: str = "cpu") -> None:
    """Both products of an odd-shaped basis against float64 ones with its dense matrix; AssertionError if they are others."""
    small = build(way, 7, 5003, device)
    g, c = vectors(7, 5003, device)
    phi, x, y = small.dense(), g.double().cpu(), c.double().cpu()
    assert float(phi.square().mean()) > 0.5 / 5003 or way.startswith("sklearn"), f"{way}: rows are not of unit length"
    _close(way, small.project(g), phi, x)
    _close(way, small.expand(c), phi.T, y)


def check(way: str, built, g: torch.Tensor, c: torch.Tensor) -> None:
    """The very products that are timed: ⟨Φ g, c⟩ = ⟨g, Φᵀ c⟩; ours, and so what was stored of it, are the definition's."""
    p, u = built.project(g).double(), built.expand(c).double()
    size = float(p.norm() * c.double().norm())
    apart = abs(float(p @ c.double() - g.double() @ u)) / size
    assert apart < (0.02 if way == "stored bf16" else 1e-3), f"{way}: <Φg, c> and <g, Φᵀc> are {apart:.1e} of |Φg||c| apart"
    if hasattr(built, "basis"):
        columns, phi = OnDemand(built.basis, "cpu").window()  # (d, n)
        _close(way, u[columns], phi.T, c.double().cpu())


def _close(way: str, got: torch.Tensor, phi: torch.Tensor, x: torch.Tensor) -> None:
    """got = phi @ x within float32's rounding of every term, or within bfloat16's 2**-9 of terms that err independently."""
    bfloat16 = 2**-6 * (phi.square() @ x.square()).sqrt()  # 8 standard deviations, also for the rounded scale 1/√D
    allowed = bfloat16 if way == "stored bf16" else 2e-5 * (phi.abs() @ x.abs())
    true = phi @ x
    worst = float(((got.double().cpu() - true).abs() / (allowed + 1e-30)).max())  # a sparse column may be empty
    assert got.shape == true.shape and worst <= 1, f"{way}: {worst:.1f} times the allowed distance from the reference"
