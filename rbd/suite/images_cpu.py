"""What `images.prepare` does with torch operations, one image after the other on a CPU: the same bits (Numba)."""

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

SHAPES = {(1, 28, 28), (3, 32, 32)}  # (C, H, W) of images that `fill` takes
_inline = njit(forceinline=True, error_model="numpy")
_255TH = np.float32(1 / 255)


@_inline
def _scale(v, brightness):
    """v / 255 + brightness."""
    return v * splat_f32(_255TH) + splat_f32(brightness)


@_inline
def _standardise(v, n, s, root):
    """(n v - S) / root."""
    return (v * splat_f32(n) - splat_f32(s)) / splat_f32(root)


@_inline
def _pixels(crop, place):
    """16 of them as numbers 0 ... 255."""
    return float_of(widen(load(crop, place)))


@_inline
def _reverse(x):
    return permute(x, splat_u32(LANES - 1) - narrow(lane_numbers()))


@_inline
def _put(image, height, width, padding, padded):
    """A channel of an image inside its zeros, by two vectors a line, which overlap where it has 28 pixels."""
    for y in range(height):
        line, place = y * width, (y + padding) * (width + 2 * padding) + padding
        store(padded, place, load(image, line))
        store(padded, place + width - LANES, load(image, line + width - LANES))


@_inline
def _write_grey(crop, stride, brightness, out):
    for y in range(28):
        for x in (0, 28 - LANES):
            store(out, 28 * y + x, _scale(_pixels(crop, stride * y + x), brightness))


@_inline
def _find_root(crop, plane, stride, sums):
    """Sum S of a colour image, and sqrt(max(n Q - S^2, 255^2 n)); a lane's sums are integers below 2^24, so exact."""
    s, q = splat_f32(0), splat_f32(0)
    for c in range(3):
        for y in range(32):
            for x in (0, LANES):
                v = _pixels(crop, plane * c + stride * y + x)
                s, q = s + v, fma(v, v, q)
    store(pointer(sums), 0, s)
    store(pointer(sums), LANES, q)
    total_s = total_q = 0.0
    for lane in range(LANES):
        total_s, total_q = total_s + np.float64(sums[lane]), total_q + np.float64(sums[LANES + lane])
    return total_s, sqrt(max(3072 * total_q - total_s * total_s, 255.0**2 * 3072))


@_inline
def _write_colour(crop, plane, stride, mirror, s, root, out):
    for c in range(3):
        for y in range(32):
            for x in (0, LANES):
                z = _standardise(_pixels(crop, plane * c + stride * y + x), 3072, s, root)
                if mirror:
                    store(out, (32 * c + y) * 32 + LANES - x, _reverse(z))
                else:
                    store(out, (32 * c + y) * 32 + x, z)


@jit(simd)
def fill(images, order, row, column, mirror, brightness, padding, out):
    """out[b] = image number order[b], cropped where drawn, mirrored if colour, and normalised, as `images.prepare` has it.

    Args:
        images: (N, C, H, W) uint8, of a shape in SHAPES, contiguous.
        order, row, column, mirror, brightness: (B,), see `images.Draws`.
        padding: zeros on each side.
        out: (B, C, H, W) float32, contiguous.
    """
    channels, height, width = images.shape[1:]
    stride = width + 2 * padding
    plane = (height + 2 * padding) * stride
    padded, sums = np.zeros(channels * plane, np.uint8), np.empty(2 * LANES, np.float32)
    for b in range(len(order)):
        for c in range(channels):
            image = from_place(pointer(images), (channels * order[b] + c) * height * width)
            _put(image, height, width, padding, from_place(pointer(padded), plane * c))
        to = from_place(pointer(out), channels * height * width * b)
        if channels == 1:
            _write_grey(from_place(pointer(padded), stride * row[b] + column[b]), stride, brightness[b], to)
        else:  # a crop of the mirror image is the mirror image of the crop that is as far from the other edge
            left = 2 * padding - column[b] if mirror[b] else column[b]
            crop = from_place(pointer(padded), stride * row[b] + left)
            s, root = _find_root(crop, plane, stride, sums)
            _write_colour(crop, plane, stride, mirror[b], s, root, to)
