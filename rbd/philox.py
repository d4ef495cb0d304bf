"""Counter to words: Philox4x32-10, and where a basis finds its words. NumPy only; every backend makes the same bits.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Random123).

An entry of a basis is a pure function of (seed, stream, compartment, step, row, column). One row is cut into chunks, and
a chunk is made of 16 Philox blocks = 64 words. Word ``p = 16 * w + b`` of a chunk is output ``w`` of its block ``b``,
so 16 consecutive words come from 16 counters that run in the lanes of one vector register::

    key     = (seed, stream)
    counter = (16 * chunk + b, row, step, compartment)

The sparse distribution has no words for each row. It reads row 0, in two parts of the range of the counter's first word:
signs from SIGNS on, offsets from OFFSETS on. Dense rows never reach these numbers: 2**32 columns of 16 bits take 2**29
blocks.
"""

from __future__ import annotations

import numpy as np

STREAM_VERSION = 1  # plus one whenever any entry of any basis changes; stored in every Record

BLOCKS = 16  # Philox blocks in a chunk
WORDS = 4 * BLOCKS  # words in a chunk
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, in units of 2**-32
SIGNS = 0x80000000  # first block of a sketch's signs: at most 2**25 blocks, of 2048 signs in 16
OFFSETS = 0xC0000000  # first block of a sketch's offsets: at most 2**30 blocks, of 64 segments in 16

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: tuple, key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Philox4x32-10: four words from a counter of four words under a key of two.

    Args:
        counter: four integers or arrays in 0 ... 2**32 - 1 that broadcast against each other.
        key: two integers in 0 ... 2**32 - 1.

    Returns:
        Four uint32 arrays of the broadcast shape.
    """
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])  # 32 x 32 -> 64 bits
        c0, c1 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return tuple(c.astype(np.uint32) for c in np.broadcast_arrays(c0, c1, c2, c3))


def words(rows: np.ndarray, chunks: np.ndarray, seed: int, stream: int, step: int, compartment: int,
          first: int = 0) -> np.ndarray:  # fmt: skip
    """The words of some rows and chunks of one basis.

    Args:
        rows: (m,) integers; chunks: (n,) integers; the others integers in 0 ... 2**32 - 1.
        first: block 0 of chunk 0: 0 for dense entries, SIGNS or OFFSETS for a sketch.

    Returns:
        uint32 array of shape (m, n, 64).
    """
    block = first + BLOCKS * np.asarray(chunks)[:, None] + np.arange(BLOCKS)  # (n, 16)
    out = philox4x32((block, np.asarray(rows)[:, None, None], step, compartment), (seed, stream))
    return np.stack(out, axis=2).reshape(len(rows), len(chunks), WORDS)  # word-major: p = 16 w + b
