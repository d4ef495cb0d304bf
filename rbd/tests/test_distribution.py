"""Entries: the tables of levels, exactly; the order of columns, exactly; their statistics, at stated significance.

The draws are fixed, so a test passes always or never. A bound of k standard errors says how seldom a good generator
would have failed it: 5 standard errors once in 1.7 million numbers looked at.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats

from rbd.distribution import DISTRIBUTIONS, QUANTILE, _distribution, _fma
from rbd.distribution import distribution as distribution_of
from rbd.philox import words

NAMES = tuple(name for name in DISTRIBUTIONS if not DISTRIBUTIONS[name].sparse)  # tests of the sparse one: test_countsketch
ROWS, COLUMNS = 32, 2**15  # about a million entries: the standard error of a mean is 0.001


@cache
def sample(name: str, seed: int = 0, stream: int = 0, step: int = 0, compartment: int = 0) -> np.ndarray:
    """Levels of variance 1 of the first rows and columns of a basis, (ROWS, COLUMNS) float64."""
    distribution = distribution_of(name)
    made = words(np.arange(ROWS), np.arange(COLUMNS // distribution.columns), seed, stream, step, compartment)
    return distribution.entries(made).reshape(ROWS, -1).astype(np.float64) / distribution.deviation


# tables


@pytest.mark.parametrize(("name", "bits"), [("normal", 16), ("uniform", 8), ("rademacher", 1)])
def test_table(name, bits):
    distribution = distribution_of(name)
    assert (distribution.name, distribution.bits) == (name, bits)
    assert (distribution.per_word, distribution.columns) == (32 // bits, 64 * 32 // bits)
    assert distribution.levels.shape == (2**bits,)
    assert distribution.levels.dtype == np.float32
    assert len(np.unique(distribution.levels)) == 2**bits
    assert (distribution.levels != 0).all()  # so a NaN or an infinity in a gradient always reaches the coordinates
    upwards = np.sort(distribution.levels)
    np.testing.assert_array_equal(upwards, -upwards[::-1])  # symmetric: the mean is 0 exactly
    with pytest.raises(ValueError, match="read-only"):
        _distribution(name, bits, distribution.levels.copy()).levels[0] = 1  # torch 2.11 leaves one that it traced writable


@pytest.mark.parametrize("name", NAMES)
def test_variance_is_one(name):
    distribution = distribution_of(name)
    mean_square = sum(Fraction(float(level)) ** 2 for level in distribution.levels) / len(distribution.levels)
    assert distribution.deviation == math.sqrt(mean_square)  # the exact mean square, rounded once
    assert distribution.scale(dim=3, size=10) == 1 / (distribution.deviation * math.sqrt(10))


def test_levels_of_signs_and_uniform_numbers():
    assert distribution_of("rademacher").levels.tolist() == [1, -1]
    assert distribution_of("rademacher").deviation == 1
    by_hand = [2 * (b - 256 if b > 127 else b) + 1 for b in range(256)]
    assert distribution_of("uniform").levels.tolist() == by_hand
    assert distribution_of("uniform").deviation == math.sqrt((256**2 - 1) / 3)  # of n odd integers: (n^2 - 1) / 3


def test_levels_of_normal_numbers_are_quantiles():
    """3.2e-5: the polynomials' largest error of 3.1e-5, and float32's roundings (half an ulp at 4: 2.4e-7)."""
    levels = distribution_of("normal").levels
    quantiles = [-NormalDist().inv_cdf((m + 0.5) / 2**16) for m in range(2**15)]
    assert np.abs(levels[: 2**15] - np.array(quantiles)).max() < 3.2e-5
    np.testing.assert_array_equal(levels[2**15 :], -levels[: 2**15])  # bit 15 is the sign
    assert (np.diff(levels[: 2**15]) < 0).all()  # further from the tail, nearer to 0
    assert np.abs(levels).max() <= 4.325
    assert abs(distribution_of("normal").deviation - 1) < 1e-4


def test_small_levels_keep_their_relative_precision():
    """The least level, half of 2**-16 from the middle, to 1 %: 3.2e-5 would be more than all of it."""
    least = distribution_of("normal").levels[2**15 - 1]
    assert least == pytest.approx(NormalDist().inv_cdf(0.5 + 0.5 / 2**16), rel=0.01)
    assert QUANTILE[15, 0] == 0


def rounded(x: Fraction) -> float:
    """The float32 nearest to x, ties to even (x in the range of normal numbers, or 0)."""
    if x == 0:
        return 0.0
    exponent = x.numerator.bit_length() - x.denominator.bit_length() - 24  # 24 or 25 bits before the point
    scaled = abs(x) / Fraction(2) ** exponent
    if scaled >= 2**24:
        exponent, scaled = exponent + 1, scaled / 2
    return math.copysign(math.ldexp(round(scaled), exponent), x)  # round() takes ties to even


def test_rounded_is_the_rounding_of_float32():
    generator = np.random.default_rng(0)
    doubles = generator.standard_normal(2000) * 2.0 ** generator.integers(-20, 20, 2000)
    ties = (1 + (2 * np.arange(50) + 1) * 2.0**-24)  # halfway between neighbours
    for x in [*doubles, *ties, *-ties, 0.0, 1.0, 2.0**24 - 0.5]:
        assert rounded(Fraction(float(x))) == float(np.float32(x))


def test_fma_rounds_once_for_every_level():
    """Every product-and-sum of all 2**15 polynomials, against exact fractions: _fma works in float64, where the product
    is exact but the sum is not, so a second rounding could have shown."""
    x = 2 * np.arange(2**15) + 1
    octave = np.array([int(v).bit_length() - 1 for v in x])
    s = (2 - x / 2.0**octave).astype(np.float32)
    c = QUANTILE[octave].T
    z = c[4]
    for power in (3, 2, 1, 0):
        exact = [Fraction(a) * Fraction(b) + Fraction(d) for a, b, d in zip(*(v.tolist() for v in (z, s, c[power])))]
        z = _fma(z, s, c[power])
        np.testing.assert_array_equal(z, np.array([rounded(f) for f in exact], np.float32))
    np.testing.assert_array_equal(z, distribution_of("normal").levels[: 2**15])


@pytest.mark.parametrize("bad", ["gauss", "Normal", "", None, 3])
def test_unknown_name(bad):
    with pytest.raises(ValueError, match=r"distribution: got .*, allowed 'normal', 'uniform', 'rademacher'"):
        distribution_of(bad)


# order of columns


@pytest.mark.parametrize("name", NAMES)
def test_order_of_columns(name):
    """Column 64 part + p of a chunk is part number ``part``, the lowest bits first, of word p."""
    distribution = distribution_of(name)
    made = words(np.array([4, 9]), np.array([0, 7, 8]), 1, 2, 3, 4)  # (2, 3, 64)
    entries = distribution.entries(made)
    assert entries.shape == (2, 3, distribution.columns)
    assert entries.dtype == np.float32
    for place in np.ndindex(made.shape):
        word = int(made[place])
        for part in range(distribution.per_word):
            level = distribution.levels[(word >> (distribution.bits * part)) % 2**distribution.bits]
            assert entries[place[0], place[1], 64 * part + place[2]] == level


# statistics


@pytest.mark.parametrize("name", NAMES)
def test_moments(name):
    """Mean, variance, skewness, kurtosis within 5 standard errors, from the moments of the levels themselves."""
    x, levels = sample(name), distribution_of(name).levels / distribution_of(name).deviation
    for power in (1, 2, 3, 4):
        expected = np.mean(levels.astype(np.float64) ** power)
        error = np.std(levels.astype(np.float64) ** power) / math.sqrt(x.size)
        assert abs(np.mean(x**power) - expected) <= 5 * error + 1e-12  # 1e-12: even powers of a sign do not vary


def test_kurtosis_is_that_of_the_law():
    """The table of normal levels ends at 4.325 and still has kurtosis 3 to 0.2 %; uniform numbers have 9/5, signs 1."""
    kurtosis = {n: np.mean(distribution_of(n).levels.astype(float) ** 4) / distribution_of(n).deviation ** 4 for n in NAMES}
    assert kurtosis["normal"] == pytest.approx(3, rel=0.002)
    assert kurtosis["uniform"] == pytest.approx(9 / 5, rel=1e-4)
    assert kurtosis["rademacher"] == 1


def test_kolmogorov_smirnov_of_normal_numbers():
    """p > 1e-4; what 100,000 numbers can show (0.007) is far above the steps of the table (2**-16)."""
    numbers = sample("normal").ravel()[:100_000]
    assert scipy.stats.kstest(numbers, "norm").pvalue > 1e-4


def test_kolmogorov_smirnov_of_projections():
    """Coordinates of any fixed direction are normal for all distributions when D is large (central limit), p > 1e-4."""
    for name in NAMES:
        x = sample(name).reshape(-1, 1024)  # 1024 pieces of rows: (1024, 1024)
        assert scipy.stats.kstest(x.mean(axis=1) * 32, "norm").pvalue > 1e-4


def test_chi_square_of_uniform_levels():
    """256 levels, 4096 numbers expected of each: p > 1e-4, and p < 1 - 1e-4 (not too even either)."""
    counts = np.unique(sample("uniform"), return_counts=True)[1]
    assert len(counts) == 256
    assert 1e-4 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-4


def test_chi_square_of_normal_levels():
    """1024 equally likely bands of 64 levels, 1024 numbers expected in each."""
    distribution = distribution_of("normal")
    place = np.searchsorted(np.sort(distribution.levels), sample("normal") * distribution.deviation)
    counts = np.bincount(place.ravel() // 64, minlength=1024)
    assert len(counts) == 1024
    assert 1e-4 < scipy.stats.chisquare(counts).pvalue < 1 - 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_balance_of_signs(name):
    """Of all entries, of every row, and of every bit position of a word: within 5 standard deviations of one half."""
    positive = sample(name) > 0
    assert abs(positive.mean() - 0.5) < 5 * 0.5 / math.sqrt(positive.size)
    assert np.abs(positive.mean(axis=1) - 0.5).max() < 5 * 0.5 / math.sqrt(COLUMNS)
    parts = positive.reshape(ROWS, -1, distribution_of(name).per_word, 64).mean(axis=(0, 1, 3))
    assert np.abs(parts - 0.5).max() < 5 * 0.5 / math.sqrt(positive.size / len(parts))


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_uncorrelated(name):
    """496 pairs of rows; the correlation of n pairs of numbers has standard error 1 / sqrt(n)."""
    x = sample(name)
    correlation = (x @ x.T / COLUMNS)[np.triu_indices(ROWS, 1)]
    assert np.abs(correlation).max() < 5 / math.sqrt(COLUMNS)
    assert (correlation**2).mean() * COLUMNS == pytest.approx(1, abs=5 * math.sqrt(2 / len(correlation)))  # chi-square


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_uncorrelated(name):
    """At lags within a register, a word, a chunk and beyond."""
    x = sample(name)
    for lag in (1, 2, 15, 16, 17, 32, 48, 63, 64, 65, 128, 192, 256, 512, 1024, 2048, 4096):
        product = x[:, :-lag] * x[:, lag:]
        assert abs(product.mean()) < 5 / math.sqrt(product.size), lag


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["seed", "stream", "step", "compartment"])
def test_bases_of_other_names_are_uncorrelated(name, field):
    """Neighbours, powers of two and the largest number of every field; also squares, which would show equal sizes."""
    x = sample(name)
    for value in (1, 2, 2**16, 2**31, 2**32 - 1):
        distribution = distribution_of(name)
        fields = {"seed": 0, "stream": 0, "step": 0, "compartment": 0, field: value}
        made = words(np.arange(4), np.arange(COLUMNS // distribution.columns), **fields)
        y = distribution.entries(made).reshape(4, -1) / distribution.deviation
        assert abs((x[:4] * y).mean()) < 5 / math.sqrt(y.size), value
        kurtosis = (x**4).mean()
        covariance = ((x[:4] ** 2 - 1) * (y**2 - 1)).mean()
        assert abs(covariance) <= 5 * (kurtosis - 1) / math.sqrt(y.size) + 1e-6, value


def test_fields_do_not_add_up():
    """Basis t of worker w is not basis t - 1 of worker w + 1, nor are any two fields interchangeable."""
    names = list(np.ndindex(3, 3, 3, 3, 3))  # row, seed, stream, step, compartment
    made = {words(np.array([row]), np.array([0]), *name).tobytes() for row, *name in names}
    assert len(made) == len(names) == 3**5
