"""Data sets as tensors: MNIST, Fashion-MNIST and CIFAR-10, whole or as a small part that the package carries.

Splits and preprocessing are those of "Improving Neural Network Training in Low Dimensional Random Bases"
(NeurIPS 2020, arXiv 2011.04720). A training batch is a pure function of (split, batch_size, seed, epoch).
"""

from __future__ import annotations

import hashlib
import http.client
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_FULL = {"mnist": "MNIST", "fmnist": "FashionMNIST", "cifar10": "CIFAR10"}  # name: class in torchvision.datasets
_EMBEDDED = ("mnist-embedded", "fmnist-embedded")
NAMES: tuple[str, ...] = (*_FULL, *_EMBEDDED)

# Files below the root of a set and their md5. Of MNIST, torchvision knows only the md5 of the .gz, not of what is read.
_MD5: dict[str, dict[str, str]] = {
    "mnist": {
        "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fmnist": {
        "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "cifar10": {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "mnist-embedded": {"mnist.npz": "3c500fce02492265ccffa0593ea67f6f"},
    "fmnist-embedded": {"fmnist.npz": "1a1406a5dafbf3d891037aa750dfadb0"},
}
_HELD_OUT = {"mnist": 10_000, "fmnist": 10_000, "cifar10": 10_000, "mnist-embedded": 2_000, "fmnist-embedded": 2_000}

_PADDING = {1: 3, 3: 4}  # channels: zeros on each side, 28 -> 34 and 32 -> 40 pixels
_BLOCK = 1024  # images prepared at a time: bounds memory, amortises calls; the bits do not depend on it


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: (N, C, H, W) uint8, values 0 ... 255; C is 1 (grey) or 3 (colour) and decides the preprocessing.
        labels: (N,) int64.

    Raises:
        ValueError: a shape or dtype is another one.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] not in _PADDING:
            raise ValueError(f"images: got {_kind(self.images)}, allowed uint8 (N, C, H, W) with C = 1 or 3")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels: got {_kind(self.labels)}, allowed int64 ({len(self.images)},)")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> Split:
        """The same split on another device; `batches` and `evaluation` then make their batches there."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set and the images held out of it.

    Attributes:
        name: one of `NAMES`.
        train: 50,000 (mnist, fmnist), 40,000 (cifar10) or 5,000 (embedded) images, in file order.
        validation: the last 10,000 images of the training file; embedded: the 2,000 after the first 5,000.
    """

    name: str
    train: Split
    validation: Split


@dataclass(frozen=True)
class FileStatus:
    """One file of one data set; its `str` is a line of a table.

    Attributes:
        dataset: one of `NAMES`.
        path: where the file is, or should be.
        state: "ok", "missing", or "damaged" (its md5 is another one).
    """

    dataset: str
    path: Path
    state: str

    def __str__(self) -> str:
        return f"{self.dataset:<15}  {self.state:<7}  {self.path}"


def data_dir(explicit: str | Path | None = None) -> Path:
    """The directory of the full data sets: the argument, else RBD_DATA_DIR, else rbd/data in the user's cache.

    The cache is XDG_CACHE_HOME, LOCALAPPDATA (Windows) or ~/.cache, the first that is set.
    """
    chosen = explicit or os.environ.get("RBD_DATA_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(chosen or Path(cache, "rbd", "data")).expanduser()


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Read a data set from disk, every file checked by its md5.

    Args:
        name: one of `NAMES`; the embedded sets come with the package and need no directory.
        data_dir: root of the full sets in torchvision's layout; None: see `data_dir`.

    Raises:
        ValueError: unknown name, or a damaged file (named, with what to do).
        FileNotFoundError: files of the set are missing (named, with what to do).
    """
    root = _root(name, data_dir)
    _verify(name, root)
    images, labels = _read_embedded(name, root) if name in _EMBEDDED else _read_full(name, root)
    cut = len(labels) - _HELD_OUT[name]
    return Dataset(name, Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:]))


def status(data_dir: str | Path | None = None) -> list[FileStatus]:
    """Every file of every data set and whether it is there and intact; `print(*status(), sep="\\n")` is a table."""
    return [file for name in NAMES for file in _files(name, _root(name, data_dir))]


def download(name: str, data_dir: str | Path | None = None) -> None:
    """Fetch what a full data set lacks, through torchvision; intact files are kept and not fetched again.

    Damaged and half-fetched files are removed first, each with a line on stderr, so that running it again goes on
    after an interruption.

    Args:
        name: mnist, fmnist or cifar10.
        data_dir: root to fill, made if need be; None: see `data_dir`.

    Raises:
        ValueError: another name, or a file still damaged afterwards.
        OSError: the download failed; says where and how to go on.
    """
    if name not in _FULL:
        raise ValueError(f"name: got {name!r}, allowed {', '.join(_FULL)} (the embedded sets come with the package)")
    root = _root(name, data_dir)
    _remove_damaged(name, root)
    lacking = {file.path.name for file in _files(name, root) if file.state == "missing"}
    if lacking:
        _fetch(name, root, lacking)
    _verify(name, root)


def batches(split: Split, batch_size: int, seed: int, epoch: int, first: int = 0, every: int = 1,
            augment: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """One epoch of training batches: shuffled, augmented, the last incomplete batch dropped.

    Grey images: / 255, zero-padded by 3, cropped at random to their size, brightness + U[-0.5, 0.5) per image, not
    clipped. Colour images: mirrored with probability 1/2, zero-padded by 4, cropped at random to their size, then
    standardised one by one (see `evaluation`). Preprocessing of arXiv 2011.04720.

    All randomness comes from raw words of Philox4x64-10 with key (seed, epoch), whose values are fixed for good
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
    draws = _kept(_draws(split, seed, epoch), augment, _PADDING[split.images.shape[1]])
    used = len(split) // batch_size * batch_size
    places = torch.arange(used, device=split.images.device).view(-1, batch_size)[first::every].flatten()
    parts = places.split(max(_BLOCK // batch_size, 1) * batch_size) if len(places) else ()
    blocks = ((_training_inputs(split, draws, part), split.labels[draws.order[part]]) for part in parts)
    return (batch for x, y in blocks for batch in zip(x.split(batch_size), y.split(batch_size), strict=True))


def evaluation(split: Split, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, not augmented; the last batch may be smaller.

    Grey images: / 255. Colour images: (v - mean) / max(std, 1 / sqrt(n)), mean and (population) standard deviation
    over the n = C H W values v in 0 ... 1 of the image itself.

    Returns:
        Pairs of x, (batch_size, C, H, W) float32, and y, (batch_size,) int64, on the split's device.

    Raises:
        ValueError: batch_size is below 1.
    """
    _check_range("batch_size", batch_size, 1, sys.maxsize)
    parts = zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
    return ((_normalise(images), labels) for images, labels in parts)


@dataclass(frozen=True, eq=False)
class _Draws:
    """What an epoch draws, each (N,), in the order in which the images are visited."""

    order: Tensor  # int64, image
    row: Tensor  # int64, upper edge of the crop in the padded image, 0 ... 2 padding
    column: Tensor  # int64, left edge
    mirror: Tensor  # int64, 0 or 1
    brightness: Tensor  # float32, U[-0.5, 0.5)


def _draws(split: Split, seed: int, epoch: int) -> _Draws:
    _check_range("seed", seed, 0, 2**64 - 1)
    _check_range("epoch", epoch, 0, 2**64 - 1)
    philox = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    sort_keys, words = philox.random_raw(2 * len(split)).reshape(2, -1)  # (N,) uint64 each
    positions = 2 * _PADDING[split.images.shape[1]] + 1
    integers = (
        np.argsort(sort_keys, kind="stable"),
        (words & 0xFFFF) * positions >> 16,  # bits 0-15
        (words >> 16 & 0xFFFF) * positions >> 16,  # bits 16-31
        words >> 32 & 1,  # bit 32
    )
    order, row, column, mirror = (torch.from_numpy(c.astype(np.int64)).to(split.images.device) for c in integers)
    brightness = ((words >> 40) * 2.0**-24 - 0.5).astype(np.float32)  # bits 40-63, exact
    return _Draws(order, row, column, mirror, torch.from_numpy(brightness).to(split.images.device))


def _kept(draws: _Draws, part: str | None, padding: int) -> _Draws:
    """The draws with those of all other parts of the augmentation at rest; None keeps all."""
    centre = torch.full_like(draws.row, padding)
    at_rest = {"crop": {"row": centre, "column": centre}, "mirror": {"mirror": torch.zeros_like(draws.mirror)},
               "brightness": {"brightness": torch.zeros_like(draws.brightness)}}  # fmt: skip
    if part not in (None, "none", *at_rest):
        raise ValueError(f"augment: got {part!r}, allowed None, none, {', '.join(at_rest)}")
    still = {} if part is None else {n: v for name, rest in at_rest.items() if name != part for n, v in rest.items()}
    return replace(draws, **still)


def _training_inputs(split: Split, draws: _Draws, part: Tensor) -> Tensor:
    images = split.images.index_select(0, draws.order[part])  # (B, C, H, W) uint8
    if images.shape[1] == 3:
        mirrored = torch.cat([images, images.flip(-1)])  # image i of 2B is the original, B + i its mirror image
        chosen = torch.arange(len(images), device=images.device) + len(images) * draws.mirror[part]
        return _normalise(_crop(mirrored, chosen, draws.row[part], draws.column[part]))
    chosen = torch.arange(len(images), device=images.device)
    cropped = _crop(images, chosen, draws.row[part], draws.column[part])
    return _normalise(cropped).add_(draws.brightness[part, None, None, None])


def _crop(images: Tensor, chosen: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """out[b] = padded[chosen[b], :, row[b] : row[b] + H, column[b] : column[b] + W], copied by runs of W pixels."""
    _, channels, height, width = images.shape
    padded = functional.pad(images, (_PADDING[channels],) * 4)
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


def _root(name: str, explicit: str | Path | None) -> Path:
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}, allowed {', '.join(NAMES)}")
    return Path(__file__).parent / "embedded" if name in _EMBEDDED else data_dir(explicit)


def _files(name: str, root: Path) -> list[FileStatus]:
    return [FileStatus(name, root / path, _state(root / path, md5)) for path, md5 in _MD5[name].items()]


def _state(path: Path, md5: str) -> str:
    if not path.is_file():
        return "missing"
    return "ok" if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5 else "damaged"


def _verify(name: str, root: Path) -> None:
    files = _files(name, root)
    missing = ", ".join(str(file.path.relative_to(root)) for file in files if file.state == "missing")
    damaged = ", ".join(str(file.path) for file in files if file.state == "damaged")
    mend = f"run `rbd data --download {name}` with RBD_DATA_DIR={root}"
    if name in _EMBEDDED:
        mend = "install the package again"
    elif missing:
        mend += ", or use `--data mnist-embedded`, which needs no download"
    if missing:
        raise FileNotFoundError(f"{name}: missing in {root}: {missing}; {mend}")
    if damaged:
        raise ValueError(f"{name}: damaged, its md5 is not the published one: {damaged}; {mend}")


def _read_embedded(name: str, root: Path) -> tuple[Tensor, Tensor]:
    (path,) = _MD5[name]
    with np.load(root / path) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    return images[:, None], labels.long()  # (N, 1, 28, 28), (N,)


def _read_full(name: str, root: Path) -> tuple[Tensor, Tensor]:
    stored = _source(name)(root, train=True)
    images, labels = torch.as_tensor(stored.data), torch.as_tensor(stored.targets)
    return (images.permute(0, 3, 1, 2).contiguous() if name == "cifar10" else images[:, None]), labels


def _source(name: str, **attributes: Any) -> Any:
    """torchvision's class with some class attributes replaced; its name, part of the files' paths, stays."""
    import torchvision.datasets  # takes a second, and the embedded sets do without

    base = getattr(torchvision.datasets, _FULL[name])
    # Without processed_folder it cannot prefer the .pt files of old versions to the raw files that _verify checked.
    return type(base.__name__, (base,), {"processed_folder": "", **attributes})


def _archives(name: str, root: Path) -> dict[Path, str]:
    source = _source(name)
    if name == "cifar10":
        return {root / source.filename: source.tgz_md5}
    return {root / source.__name__ / "raw" / filename: md5 for filename, md5 in source.resources}


def _remove_damaged(name: str, root: Path) -> None:
    damaged = [file.path for file in _files(name, root) if file.state == "damaged"]
    damaged += [path for path, md5 in _archives(name, root).items() if _state(path, md5) == "damaged"]
    for path in damaged:
        print(f"{name}: removing {path}, which is damaged or incomplete", file=sys.stderr)
        path.unlink()


def _fetch(name: str, root: Path, lacking: set[str]) -> None:
    source = _source(name)
    if name == "cifar10":  # torchvision would not fetch batches.meta if nothing else were lacking
        source = _source(name, test_list=[*source.test_list, [source.meta["filename"], source.meta["md5"]]])
    else:  # torchvision would fetch all four, were one lacking
        source = _source(name, resources=[r for r in source.resources if r[0].removesuffix(".gz") in lacking])
    try:
        root.mkdir(parents=True, exist_ok=True)
        source(root, train=True, download=True)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())  # torchvision's runs over several lines
        hint = "run the same command again to go on; complete files are kept"
        raise OSError(f"{name}: download into {root} failed: {reason}; {hint}") from error


def _check_range(argument: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{argument}: got {value}, allowed {low} ... {high}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
