"""Images as a network sees them: mirrored, cropped, normalised (preprocessing of arXiv 2011.04720).

In torch operations, and for images of the usual shapes on a CPU by a kernel (`images_cpu`) that gives the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PADDING = {1: 3, 3: 4}  # channels: zeros on each side, 28 -> 34 and 32 -> 40 pixels
_SHAPES = {(1, 28, 28), (3, 32, 32)}  # (C, H, W) for which there is a kernel


@dataclass(frozen=True, eq=False)
class Draws:
    """What is drawn for N images, each (N,), in the order in which they are visited."""

    order: Tensor  # int64, image
    row: Tensor  # int64, upper edge of the crop in the padded image, 0 ... 2 padding
    column: Tensor  # int64, left edge
    mirror: Tensor  # int64, 0 or 1
    brightness: Tensor  # float32, U[-0.5, 0.5)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.order, self.row, self.column, self.mirror, self.brightness

    def at(self, places: Tensor) -> Draws:
        """Those of some of the images, (M,) int64."""
        return Draws(*(tensor[places] for tensor in self.tensors))


def prepare(images: Tensor, draws: Draws) -> Tensor:
    """The images of a batch as a network is trained on them, (N, C, H, W) uint8 -> (B, C, H, W) float32.

    Raises:
        IndexError: a draw lies outside of the images or of the padding.
    """
    return _prepare_by_kernel(images, draws) if _has_kernel(images) else _prepare_by_operations(images, draws)


def normalise(images: Tensor) -> Tensor:
    """The images as a network is tested on them, (B, C, H, W) uint8 -> float32."""
    return _prepare_by_kernel(images, _draw_nothing(images)) if _has_kernel(images) else _normalise(images)


def _has_kernel(images: Tensor) -> bool:
    return images.device.type == "cpu" and tuple(images.shape[1:]) in _SHAPES and images.is_contiguous()


def _draw_nothing(images: Tensor) -> Draws:
    """The draws that leave all images where and as they are."""
    order = torch.arange(len(images), device="cpu")  # (N,)
    zero, centre = torch.zeros_like(order), torch.full_like(order, PADDING[images.shape[1]])
    return Draws(order, centre, centre, zero, zero.to(torch.float32))


def _prepare_by_kernel(images: Tensor, draws: Draws) -> Tensor:
    from rbd.suite import images_cpu  # it loads Numba, which runs on a GPU do without

    x = torch.empty(len(draws.order), *images.shape[1:], dtype=torch.float32, device="cpu")  # whatever the defaults are
    given = images.numpy(), *(tensor.numpy() for tensor in draws.tensors), PADDING[images.shape[1]]
    images_cpu.fill(*given, x.numpy())
    return x


def _prepare_by_operations(images: Tensor, draws: Draws) -> Tensor:
    images = images.index_select(0, draws.order)  # (B, C, H, W) uint8
    if images.shape[1] == 3:
        mirrored = torch.cat([images, images.flip(-1)])  # image i of 2B is the original, B + i its mirror image
        chosen = torch.arange(len(images), device=images.device) + len(images) * draws.mirror
        return _normalise(_crop(mirrored, chosen, draws.row, draws.column))
    chosen = torch.arange(len(images), device=images.device)
    cropped = _crop(images, chosen, draws.row, draws.column)
    return _normalise(cropped).add_(draws.brightness[:, None, None, None])


def _crop(images: Tensor, chosen: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """out[b] = padded[chosen[b], :, row[b] : row[b] + H, column[b] : column[b] + W], copied by runs of W pixels."""
    _, channels, height, width = images.shape
    padded = functional.pad(images, (PADDING[channels],) * 4)
    runs = padded.flatten().unfold(0, width, 1)  # every run of W successive pixels, a view
    c = torch.arange(channels, device=images.device)[:, None]
    y = torch.arange(height, device=images.device)
    corner = chosen * padded.stride(0) + row * padded.stride(2) + column  # (B,)
    start = corner[:, None, None] + c * padded.stride(1) + y * padded.stride(2)  # (B, C, H)
    return runs.index_select(0, start.flatten()).view(len(chosen), channels, height, width)


def _normalise(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> float32, the same bits on every device, with any number of threads and any B."""
    x = images.float()
    if images.shape[1] == 3:
        return _standardise(x)
    return x.mul_(1 / 255)  # not div_, which CUDA turns into this, other bits than on a CPU


def _standardise(x: Tensor) -> Tensor:
    """(v - mean) / max(std, 1 / sqrt(n)) times n / n, on values 0 ... 255: (n v - S) / sqrt(max(n Q - S^2, 255^2 n)).

    S = sum of v and Q = sum of v^2 are integers, exact in whatever order they are added (a row in float32, below 2^24,
    rows in float64), and so is n v - S; only the root and the quotient are rounded.
    """
    n = math.prod(x.shape[1:])
    s = x.sum(dim=-1).sum(dim=(1, 2), dtype=torch.float64)  # (B,)
    q = x.square().sum(dim=-1).sum(dim=(1, 2), dtype=torch.float64)  # (B,)
    root = (n * q - s.square()).clamp_(min=255**2 * n).sqrt_()  # (B,) n times the standard deviation
    return x.mul_(n).sub_(s.float()[:, None, None, None]).div_(root.float()[:, None, None, None])
