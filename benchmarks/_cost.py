"""The ways to have a basis, the time each is expected to take and the memory it keeps, without making one. No torch."""

from __future__ import annotations

import math

ON_DEMAND = ("normal", "uniform", "rademacher", "countsketch")
STORED = ("stored fp32", "stored bf16", "stored bits", "sklearn gaussian", "sklearn sparse", "stored sketch", "hadamard")
WAYS = (*ON_DEMAND, "stored fp32", "stored bf16", "stored bits", "randn", "sklearn gaussian", "sklearn sparse",
        "stored sketch", "hadamard")  # fmt: skip
CHUNK = 2**22  # entries that `randn` draws at a time: 16 MiB
LANES = 64  # packed signs: words that one bit number is taken from at a time
TILE = 32 * LANES  # columns

# Entries per second of making a basis and using it once, in orders of magnitude on two cores and on one GPU of 2023. They
# decide only which set of cells a cell belongs to, so that it is the same on every machine.
RATE = {
    "cpu": {"normal": 2.5e9, "uniform": 6e9, "rademacher": 3e10, "stored fp32": 1e9, "stored bf16": 1e9,
            "stored bits": 1e9, "randn": 1.5e8, "sklearn gaussian": 3e7, "sklearn sparse": 3e9},
    "cuda": {"normal": 1e12, "uniform": 1.5e12, "rademacher": 9e12, "stored fp32": 1e11, "stored bf16": 1e11,
             "stored bits": 1e11, "randn": 3e11, "sklearn gaussian": 3e7, "sklearn sparse": 3e9},
}  # fmt: skip
# Columns per second of the ways that cost the same for every d; a Hadamard transform, columns times log2 of their number.
COLUMN_RATE = {
    "cpu": {"countsketch": 5e8, "stored sketch": 1.2e8, "hadamard": 4e8},
    "cuda": {"countsketch": 1e11, "stored sketch": 1e10, "hadamard": 2e10},
}


def seconds(way: str, dim: int, size: int, device: str = "cpu") -> float:
    """Expected time of making a basis and a product with it."""
    if way in COLUMN_RATE[device]:
        return size * (math.log2(padded(size)) if way == "hadamard" else 1) / COLUMN_RATE[device][way]
    return dim * size / RATE[device][way]


def stored_mib(way: str, dim: int, size: int) -> float:
    """What a way keeps in memory, MiB: nothing on demand, a chunk of rows for randn."""
    entries = dim * size
    bytes_of = {
        "stored fp32": 4 * entries, "stored bf16": 2 * entries, "stored bits": 4 * dim * words(size),
        "randn": 4 * size * rows(size), "sklearn gaussian": 4 * entries, "sklearn sparse": 12 * dim * math.sqrt(size),
        "stored sketch": 16 * size, "hadamard": 4 * size + 8 * dim,
    }  # fmt: skip
    return bytes_of.get(way, 0) / 2**20


def padded(size: int) -> int:
    """The power of two that a Hadamard transform takes for a vector of that size."""
    return 1 << (size - 1).bit_length()


def words(size: int) -> int:
    """32-bit words that a row of packed signs takes."""
    return -(-size // TILE) * LANES


def rows(size: int) -> int:
    """Rows that `randn` draws at a time."""
    return max(1, CHUNK // size)
