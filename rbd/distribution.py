"""Words to entries: normal, uniform and Rademacher numbers of mean 0 and variance 1, and a sparse sketch. NumPy only.

A distribution is a table of levels indexed by the bits of one entry: 1 bit for a sign, 8 for a uniform number, 16 for a
normal one. Random bits are what on-demand bases cost, so an entry takes no more of them than its distribution needs. The
table is the definition; the fast kernels compute the same levels, bit for bit, without it.

Column ``64 * per_word * chunk + 64 * part + p`` of a row is part ``part`` (the lowest bits first) of word ``p`` of the
chunk, so contiguous columns meet contiguous words.

"countsketch" has one nonzero in every column, a sign (Charikar, Chen, Farach-Colton 2002; Clarkson, Woodruff 2013). Its
D columns are cut into segments of d. Segment q is a signed cyclic shift of the identity by an offset o_q: column q d + k
belongs to row (k + o_q) mod d. Rows have disjoint supports of floor(D/d) or ceil(D/d) columns, so they are orthogonal;
with d = D there is one segment, and the basis is orthogonal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from rbd.philox import OFFSETS, SIGNS, WORDS, words


@dataclass(frozen=True)
class Distribution:
    """Distribution of the entries of a basis.

    Attributes:
        name: "normal", "uniform", "rademacher" or "countsketch".
        bits: random bits an entry takes.
        levels: (2**bits,) float32, the value for every pattern of bits, symmetric about 0 and not yet of variance 1.
        deviation: root mean square of the levels; level / deviation has variance 1.
        sparse: whether a column has one entry only, in a row of its own, instead of one in every row.
    """

    name: str
    bits: int
    levels: np.ndarray = field(repr=False, compare=False)
    deviation: float = field(repr=False)
    sparse: bool = False

    @property
    def per_word(self) -> int:
        """Entries made from one 32-bit word."""
        return 32 // self.bits

    @property
    def columns(self) -> int:
        """Columns in a chunk of 64 words."""
        return WORDS * self.per_word

    def entries(self, words: np.ndarray) -> np.ndarray:
        """Levels of the columns of whole chunks: uint32 (..., 64) -> float32 (..., columns)."""
        shifts = np.arange(0, 32, self.bits, dtype=np.uint32)[:, None]  # (per_word, 1)
        parts = (words[..., None, :] >> shifts) & np.uint32(2**self.bits - 1)  # (..., per_word, 64)
        return self.levels[parts].reshape(*words.shape[:-1], self.columns)

    def scale(self, *, dim: int, size: int) -> float:
        """Factor from levels to entries of dim directions in R^size with unit expected norm.

        Dense: 1 / (deviation sqrt(size)) for every dim. Sparse: sqrt(dim / size), as a row has size / dim entries.
        """
        return math.sqrt(dim / size) if self.sparse else 1.0 / (self.deviation * math.sqrt(size))


# Row e: z(u) for u = x / 2**17, x in [2**e, 2**(e+1)), as a polynomial in s = 2 - x / 2**e, lowest power first; z is
# the upper quantile of the standard normal. Least maximum error over the odd x of the octave (3.1e-5 in the worst),
# rounded to float32; the last row has z(s = 0) = 0 exactly, so small levels keep their relative precision.
QUANTILE = np.array([
    (4.324919, 0.0, 0.0, 0.0, 0.0),
    (4.0762067, 0.0, 0.0, 0.0, 0.0),
    (3.833984, 0.16235872, 0.0, 0.0, 0.0),
    (3.6680915, 0.13095188, 0.018796548, 0.023680763, 0.0),
    (3.4871442, 0.13291334, 0.03580034, -0.0002811849, 0.012695928),
    (3.297223, 0.13965085, 0.037355386, -0.0006539613, 0.01349315),
    (3.0972922, 0.14746787, 0.03895214, -0.0006708827, 0.01412605),
    (2.8856547, 0.15663898, 0.04085255, -0.0007053091, 0.014806697),
    (2.6600862, 0.16764213, 0.043050773, -0.0007027089, 0.015539279),
    (2.4175773, 0.18117662, 0.045612678, -0.0006739929, 0.016356021),
    (2.1538935, 0.19836214, 0.04861794, -0.00062246155, 0.017288975),
    (1.8627514, 0.22113046, 0.052145083, -0.00054426765, 0.018372333),
    (1.5341412, 0.25316757, 0.056184378, -0.00043001922, 0.019647969),
    (1.1503716, 0.3026146, 0.060175393, -0.00022854563, 0.021165404),
    (0.6745137, 0.39227512, 0.059940044, 0.00067211216, 0.02292438),
    (0.0, 0.62575847, 0.007977728, 0.019586023, 0.02113647),
], dtype=np.float32)  # fmt: skip


def _fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c in float32, rounded once (a test holds it to the hardware's fused operation for every level)."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def normal_levels() -> np.ndarray:
    """The 65,536 mid-quantiles of the standard normal distribution: bit 15 is the sign, the others the place in the tail.

    z = the upper quantile at u = (m + 1/2) / 2**16 for m = the lower 15 bits, by a polynomial of degree 4 in each
    octave of x = 2 m + 1 (the exponent of float(x) names the octave, its mantissa the place inside). |level| <= 4.325.
    """
    m = np.arange(2**15)
    mantissa, exponent = np.frexp((2 * m + 1).astype(np.float32))  # x = mantissa 2**exponent, mantissa in [1/2, 1)
    s = np.float32(2) - np.float32(2) * mantissa
    c = QUANTILE[exponent - 1].T  # (5, 2**15)
    z = _fma(_fma(_fma(_fma(c[4], s, c[3]), s, c[2]), s, c[1]), s, c[0])
    return np.concatenate([z, -z])


def uniform_levels() -> np.ndarray:
    """The 256 odd integers -255 ... 255: 2 b + 1 for b the byte read as a signed integer."""
    return (2 * np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32) + 1).astype(np.float32)


def rademacher_levels() -> np.ndarray:
    """A sign: the bit is the sign bit of the entry."""
    return np.array([1, -1], dtype=np.float32)


def offsets(segments: np.ndarray, dim: int, seed: int, stream: int, step: int, compartment: int) -> np.ndarray:
    """Offsets o_q in 0 ... dim - 1 of segments of a sketch with dim rows: (n,) integers -> (n,) int64.

    Segment q has word q mod 64 of chunk q div 64, and o_q = word * dim div 2**32: uniform up to dim / 2**32.
    """
    chunks, which = np.unique(segments // WORDS, return_inverse=True)
    made = words(np.array([0]), chunks, seed, stream, step, compartment, OFFSETS)[0]  # (chunks, 64)
    word = made[which, segments % WORDS].astype(np.uint64)  # (n,)
    return ((word * np.uint64(dim)) >> np.uint64(32)).astype(np.int64)


def sketch(columns: np.ndarray, dim: int, seed: int, stream: int, step: int, compartment: int,
           ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Where the nonzeros of a sketch with dim rows are, and their signs.

    Args:
        columns: (n,) integers; the others integers in 0 ... 2**32 - 1.

    Returns:
        Rows (n,) int64 in 0 ... dim - 1 and signs (n,) float32.
    """
    countsketch = DISTRIBUTIONS["countsketch"]
    segments, place = columns // dim, columns % dim
    rows = (place + offsets(segments, dim, seed, stream, step, compartment)) % dim
    chunks, which = np.unique(columns // countsketch.columns, return_inverse=True)
    signs = countsketch.entries(words(np.array([0]), chunks, seed, stream, step, compartment, SIGNS)[0])  # (chunks, 2048)
    return rows, signs[which, columns % countsketch.columns]


def _distribution(name: str, bits: int, levels: np.ndarray, sparse: bool = False) -> Distribution:
    levels.setflags(write=False)
    mean_square = math.fsum(levels.astype(np.float64) ** 2) / len(levels)  # exact, so equal on every machine
    return Distribution(name, bits, levels, math.sqrt(mean_square), sparse)


DISTRIBUTIONS = {
    "normal": _distribution("normal", 16, normal_levels()),
    "uniform": _distribution("uniform", 8, uniform_levels()),
    "rademacher": _distribution("rademacher", 1, rademacher_levels()),
    "countsketch": _distribution("countsketch", 1, rademacher_levels(), sparse=True),
}


def distribution(name: str) -> Distribution:
    """The distribution of that name.

    Raises:
        ValueError: the name is not one of DISTRIBUTIONS.
    """
    if not isinstance(name, str) or name not in DISTRIBUTIONS:
        raise ValueError(f"distribution: got {name!r}, allowed {', '.join(map(repr, DISTRIBUTIONS))}")
    return DISTRIBUTIONS[name]
