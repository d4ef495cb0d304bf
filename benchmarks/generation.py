"""Random numbers alone: ten million words or entries, ours and other libraries', in milliseconds (higher is worse)."""

from __future__ import annotations

import sys

from benchmarks._measure import DEVICES, alone, attempt, on_device, unwrap

COUNT = 10_000_000
SOURCES = ("words", "rademacher", "uniform", "normal", "torch.randn", "torch.rand", "torch signs", "numpy words")


def setup_cache() -> dict:
    """{(device, source): seconds or an exception}."""
    cache = {}
    for device in DEVICES:
        for source in SOURCES:
            cache[device, source] = attempt(_seconds, device, source)
            print(device, source, cache[device, source], file=sys.stderr, flush=True)
    return cache


setup_cache.timeout = 600


def _seconds(device: str, source: str) -> float:
    device = on_device(device)
    if source.endswith("words"):
        if device != "cpu":
            raise NotImplementedError(f"{source}: on the CPU only")
        return alone(_numpy_words() if source.startswith("numpy") else _words())
    return alone(_entries(device, source), device)


def _words():
    """Words of the CPU kernels' Philox, summed up so that they are needed; checked against the definition."""
    import numpy as np
    from numba import njit, prange

    from rbd import philox

    try:
        from rbd.kernels.cpu import _philox
        from rbd.kernels.simd import float_bits, lane_numbers, narrow, pointer, splat_u64, store
    except ImportError as error:
        raise NotImplementedError(f"words: this rbd has other names inside: {error}") from None

    @njit(parallel=True)
    def total(count, sums):
        for part in prange(len(sums)):
            one = np.zeros(16, np.float32)
            acc = narrow(splat_u64(0))
            for block in range(part * count, (part + 1) * count):
                lanes = splat_u64(16 * block) + lane_numbers()
                w0, w1, w2, w3 = _philox(lanes, splat_u64(5), 3, 2, 7, 0)
                acc = acc ^ ((w0 ^ w1) ^ (w2 ^ w3))
            store(pointer(one), 0, float_bits(acc))
            sums[part] = one

    chunks = COUNT // 64 // 16
    sums = np.empty((16, 16), np.float32)
    total(2, sums)
    words = philox.words(np.array([5]), np.arange(32), seed=7, stream=0, step=3, compartment=2)  # (1, 32, 64)
    true = np.bitwise_xor.reduce(words.reshape(16, 2, 4, 16), axis=(1, 2))
    assert np.array_equal(sums.view(np.uint32), true), "words: other ones than philox.words"
    return lambda: total(chunks, sums)


def _numpy_words():
    import numpy as np

    generator = np.random.Philox(0)  # Philox4x64-10: 64 bits a word
    return lambda: generator.random_raw(COUNT // 2)


def _entries(device: str, source: str):
    """One row of a basis, written out, or a vector of torch's of the same length."""
    import torch

    from rbd import Basis

    u = torch.empty(COUNT, device=device)
    generator = torch.Generator(device).manual_seed(0)
    if source == "torch.randn":
        return lambda: u.normal_(generator=generator)
    if source == "torch.rand":
        return lambda: u.uniform_(generator=generator)
    if source == "torch signs":
        return lambda: u.bernoulli_(generator=generator).mul_(2).sub_(1)
    basis, one = Basis(1, COUNT, source), torch.ones(1, device=device)
    basis.expand(one, out=u)
    assert abs(float(u.square().sum()) - 1) < 0.01, f"{source}: the row is not of unit length"
    return lambda: basis.expand(one, out=u)


class Generation:
    """Words: 32 bits each. Entries: a row of Φ written to memory, multiplied by a coordinate."""

    params = (DEVICES, SOURCES)
    param_names = ("device", "source")
    unit = "ms for 10 million"
    version = "1"

    def setup(self, cache: dict, *cell) -> None:
        unwrap(cache[cell])

    def track_time(self, cache: dict, *cell) -> float:
        return 1000 * unwrap(cache[cell])
