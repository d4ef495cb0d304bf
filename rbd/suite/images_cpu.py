"""`images.prepare` on a CPU, an image at a time: the bits of the torch operations in a fraction of the time (Numba)."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numba import njit

from rbd.kernels import simd
from rbd.kernels.jit import jit
from rbd.kernels.simd import (
    LANES,
    float_of,
    fma,
    from_place,
    lane_numbers,
    load,
    narrow,
    permute,
    pointer,
    splat_f32,
    splat_u32,
    store,
    widen,
)

_inline = njit(forceinline=True, error_model="numpy")
_255TH = np.float32(1 / 255)
_GREY, _COLOUR = 28, 32  # pixels of a row, and rows
_VALUES = 3 * _COLOUR**2  # of a colour image


@_inline
def _scale(v, brightness):
    """v / 255 + brightness."""
    return v * splat_f32(_255TH) + splat_f32(brightness)  # (16,)


@_inline
def _standardise(v, s, root):
    """(n v - S) / root."""
    return (v * splat_f32(_VALUES) - splat_f32(s)) / splat_f32(root)  # (16,)


@_inline
def _load_pixels(crop, place):
    """16 pixels of a row as numbers 0 ... 255."""
    return float_of(widen(load(crop, place)))  # (16,) uint8 -> float32


@_inline
def _reverse(x):
    return permute(x, splat_u32(LANES - 1) - narrow(lane_numbers()))  # (16,)


@_inline
def _pad_channel(image, height, width, padding, padded):
    """Copy a channel, (H, W), into the middle of its zeros, (H + 2 padding, W + 2 padding)."""
    for y in range(height):
        row, place = y * width, (y + padding) * (width + 2 * padding) + padding
        store(padded, place, load(image, row))  # (16,) from the left edge
        store(padded, place + width - LANES, load(image, row + width - LANES))  # (16,) to the right edge; some come twice


@_inline
def _write_grey(crop, stride, brightness, out):
    """out (28, 28) from a crop whose rows are stride bytes apart."""
    for y in range(_GREY):
        for x in (0, _GREY - LANES):  # 4 pixels are written twice
            store(out, _GREY * y + x, _scale(_load_pixels(crop, stride * y + x), brightness))  # (16,)


@_inline
def _find_root(crop, plane, stride, sums):
    """Sum S of a colour image, and sqrt(max(n Q - S^2, 255^2 n)); a lane's sums are integers below 2^24, so exact."""
    s, q = splat_f32(0), splat_f32(0)  # (16,) each
    for c in range(3):
        for y in range(_COLOUR):
            for x in (0, LANES):
                v = _load_pixels(crop, plane * c + stride * y + x)  # (16,)
                s, q = s + v, fma(v, v, q)
    store(pointer(sums), 0, s)  # sums (32,)
    store(pointer(sums), LANES, q)
    total_s = total_q = 0.0
    for lane in range(LANES):
        total_s, total_q = total_s + np.float64(sums[lane]), total_q + np.float64(sums[LANES + lane])
    return total_s, sqrt(max(_VALUES * total_q - total_s * total_s, 255.0**2 * _VALUES))


@_inline
def _write_colour(crop, plane, stride, mirror, s, root, out):
    """out (3, 32, 32) from a crop whose rows are stride bytes apart, and its channels plane bytes."""
    for c in range(3):
        for y in range(_COLOUR):
            to = (_COLOUR * c + y) * _COLOUR
            for x in (0, LANES):
                z = _standardise(_load_pixels(crop, plane * c + stride * y + x), s, root)  # (16,)
                if mirror:
                    store(out, to + LANES - x, _reverse(z))
                else:
                    store(out, to + x, z)


@jit(simd)
def fill(images, order, row, column, mirror, brightness, padding, out):
    """out[b] = image number order[b], cropped where drawn, mirrored if colour, and normalised, as `images.prepare` has it.

    Args:
        images: (N, 1, 28, 28) or (N, 3, 32, 32) uint8, contiguous.
        order, row, column, mirror, brightness: (B,), see `images.Draws`.
        padding: zeros on each side.
        out: (B, C, H, W) float32, contiguous.

    Raises:
        IndexError: a draw lies outside of the images or of the padding.
    """
    channels, height, width = images.shape[1:]
    stride = width + 2 * padding
    plane = (height + 2 * padding) * stride
    padded, sums = np.zeros(channels * plane, np.uint8), np.empty(2 * LANES, np.float32)  # (C, H + 2p, W + 2p), (2, 16)
    for b in range(len(order)):
        if not (0 <= order[b] < len(images) and 0 <= row[b] <= 2 * padding and 0 <= column[b] <= 2 * padding):
            raise IndexError("draws: one lies outside of the images or of the padding")
        for c in range(channels):
            image = from_place(pointer(images), (channels * order[b] + c) * height * width)
            _pad_channel(image, height, width, padding, from_place(pointer(padded), plane * c))
        to = from_place(pointer(out), channels * height * width * b)
        if channels == 1:
            _write_grey(from_place(pointer(padded), stride * row[b] + column[b]), stride, brightness[b], to)
        else:  # a crop of the mirror image is the mirror image of the crop that is as far from the other edge
            left = 2 * padding - column[b] if mirror[b] else column[b]
            crop = from_place(pointer(padded), stride * row[b] + left)
            s, root = _find_root(crop, plane, stride, sums)
            _write_colour(crop, plane, stride, mirror[b], s, root, to)
