"""Training and validation batches: the order of the images, and what is drawn for each (arXiv 2011.04720).

A training batch is a pure function of (split, batch_size, seed, epoch).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rbd.suite.datasets import Split
from rbd.suite.images import PADDING, Draws, normalise, prepare

_EVALUATED = 125  # images: a CNN's activations for 1,000 do not fit a CPU's caches, and take twice the time
_BLOCK = 256  # images prepared at a time: 3 MB of colour images stay in the cache; the bits do not depend on it


def batches(split: Split, batch_size: int, seed: int, epoch: int, first: int = 0, every: int = 1,
            augment: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """One epoch of training batches: shuffled, augmented, the last incomplete batch dropped.

    Grey images: / 255, zero-padded by 3, cropped at random to their size, brightness + U[-0.5, 0.5) per image, not
    clipped. Colour images: mirrored with probability 1/2, zero-padded by 4, cropped at random to their size, then
    standardised one by one (see `evaluation`). Preprocessing of arXiv 2011.04720.

    All randomness comes from raw words of Philox4x64-10 with key (seed, epoch), whose values never change
    (NumPy's Generator methods are not, see NEP 19): words 0 ... N-1 are the sort keys of the images; the bits of
    word N + i are the draws for the i-th image of the epoch. So batches depend neither on threads, nor on the device,
    nor on what was consumed before.

    Args:
        split: the images; batches are made on their device.
        batch_size: 1 ... N images.
        seed: 0 ... 2^64 - 1.
        epoch: 0 ... 2^64 - 1.
        first, every: make only the batches number first, first + every, ... of the floor(N / batch_size) of the epoch.
        augment: the one part of the augmentation to keep, "crop", "brightness" or "mirror", or "none"; None: all of it.

    Returns:
        Pairs of x, (batch_size, C, H, W) float32, and y, (batch_size,) int64.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_range("batch_size", batch_size, 1, len(split))
    used = len(split) // batch_size * batch_size
    places = torch.arange(used, device=split.images.device).view(-1, batch_size)[first::every].flatten()
    draws = _kept(_draws(split, seed, epoch), augment, PADDING[split.images.shape[1]]).at(places)
    labels, many = split.labels[draws.order], max(_BLOCK // batch_size, 1) * batch_size
    drawn = (Draws(*part) for part in zip(*(tensor.split(many) for tensor in draws.tensors), strict=True))
    blocks = ((prepare(split.images, part), y) for part, y in zip(drawn, labels.split(many), strict=True) if len(y))
    return (batch for x, y in blocks for batch in zip(x.split(batch_size), y.split(batch_size), strict=True))


class Table:
    """Training batches made on the split's device from a table of draws there, without the host.

    A CUDA graph that asks for the next batch gets another one at every replay. The batches are those of `batches`, bit for
    bit, one epoch after another.

    Args:
        split, batch_size, seed, augment: as in `batches`.
        most: the batches that the table has room for.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, augment: str | None, most: int) -> None:
        _check_range("batch_size", batch_size, 1, len(split))
        self.split, self.batch_size, self.seed, self.augment = split, batch_size, seed, augment
        device, room = split.images.device, most * batch_size
        order, row, column, mirror = torch.zeros(4, room, dtype=torch.int64, device=device)
        self.draws = Draws(order, row, column, mirror, torch.zeros(room, device=device))
        self.place = torch.arange(batch_size, device=device)  # (B,) in the table, of the next batch

    def fill(self, first: int, count: int) -> None:
        """Draw the batches number first, ..., first + count - 1, counted over all epochs; the first one comes next."""
        per_epoch, at = len(self.split) // self.batch_size, 0
        while count:
            epoch, start = divmod(first, per_epoch)
            some = min(count, per_epoch - start)
            drawn = _kept(_draws(self.split, self.seed, epoch), self.augment, PADDING[self.split.images.shape[1]])
            for kept, new in zip(self.draws.tensors, drawn.tensors):
                part = new[start * self.batch_size : (start + some) * self.batch_size]
                kept[at : at + len(part)].copy_(part)
            first, count, at = first + some, count - some, at + some * self.batch_size
        torch.arange(self.batch_size, out=self.place)

    def __iter__(self) -> Table:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) float32 and y (B,) int64."""
        x, y = self.peek()
        self.skip()
        return x, y

    def peek(self) -> tuple[Tensor, Tensor]:
        """The next batch, which stays the next one."""
        draws = self.draws.at(self.place)
        return prepare(self.split.images, draws), self.split.labels[draws.order]

    def skip(self) -> None:
        self.place += self.batch_size


def evaluation(split: Split, batch_size: int = _EVALUATED) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, not augmented; the last batch may be smaller. With one thread predictions do not
    depend on its size.

    Grey images: / 255. Colour images: (v - mean) / max(std, 1 / sqrt(n)), mean and (population) standard deviation
    over the n = C H W values v in 0 ... 1 of the image itself.

    Returns:
        Pairs of x, (batch_size, C, H, W) float32, and y, (batch_size,) int64, on the split's device.

    Raises:
        ValueError: batch_size is below 1.
    """
    _check_range("batch_size", batch_size, 1, sys.maxsize)
    parts = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    return ((normalise(images), labels) for images, labels in parts)


def _draws(split: Split, seed: int, epoch: int) -> Draws:
    _check_range("seed", seed, 0, 2**64 - 1)
    _check_range("epoch", epoch, 0, 2**64 - 1)
    philox = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    sort_keys, words = philox.random_raw(2 * len(split)).reshape(2, -1)  # (N,) uint64 each
    positions = 2 * PADDING[split.images.shape[1]] + 1
    integers = (
        np.argsort(sort_keys, kind="stable"),
        (words & 0xFFFF) * positions >> 16,  # bits 0-15
        (words >> 16 & 0xFFFF) * positions >> 16,  # bits 16-31
        words >> 32 & 1,  # bit 32
    )
    order, row, column, mirror = (torch.from_numpy(c.astype(np.int64)).to(split.images.device) for c in integers)
    brightness = ((words >> 40) * 2.0**-24 - 0.5).astype(np.float32)  # bits 40-63, exact
    return Draws(order, row, column, mirror, torch.from_numpy(brightness).to(split.images.device))


def _kept(draws: Draws, part: str | None, padding: int) -> Draws:
    """The draws, with all parts of the augmentation but one switched off; None keeps all."""
    centre = torch.full_like(draws.row, padding)
    at_rest = {"crop": {"row": centre, "column": centre}, "mirror": {"mirror": torch.zeros_like(draws.mirror)},
               "brightness": {"brightness": torch.zeros_like(draws.brightness)}}  # fmt: skip
    if part not in (None, "none", *at_rest):
        raise ValueError(f"augment: got {part!r}, allowed None, none, {', '.join(at_rest)}")
    still = {} if part is None else {n: v for name, rest in at_rest.items() if name != part for n, v in rest.items()}
    return replace(draws, **still)


def _check_range(argument: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{argument}: got {value}, allowed {low} ... {high}")
