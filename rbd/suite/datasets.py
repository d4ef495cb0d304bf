"""Data sets as tensors: MNIST, Fashion-MNIST and CIFAR-10, complete or as a small part that the package carries.

Every file is checked by its md5. Splits are those of arXiv 2011.04720.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rbd.suite import store

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


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: (N, C, H, W) uint8, values 0 ... 255; C is 1 (grey) or 3 (colour) and decides the preprocessing.
        labels: (N,) int64.

    Raises:
        ValueError: a shape or dtype differs.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise ValueError(f"images: got {_kind(self.images)}, allowed uint8 (N, C, H, W) with C = 1 or 3")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels: got {_kind(self.labels)}, allowed int64 ({len(self.images)},)")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> Split:
        """The same split on another device; `batches.batches` and `batches.evaluation` then make their batches there."""
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
        state: "ok", "missing", or "damaged" (its md5 differs).
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
    try:
        return Path(chosen or Path(cache, "rbd", "data")).expanduser()
    except RuntimeError as error:  # usually in a container with an arbitrary uid
        raise RuntimeError(f"{error}; set RBD_DATA_DIR to the directory of the full data sets") from error


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
    after an interruption. Downloads of one set into one directory wait for each other, across processes.

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
    if all(file.state == "ok" for file in _files(name, root)):  # nothing is written, as the directory may be read-only
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{name}: download into {root} failed: {error}") from error
    with store.lock(root / f".{name}.lock", f"{name}: another process is downloading it"):
        _remove_damaged(name, root)
        lacking = {file.path.name for file in _files(name, root) if file.state == "missing"}
        if lacking:
            _fetch(name, root, lacking)
        _verify(name, root)


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
    import torchvision.datasets  # takes a second to import; the embedded sets do without

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
        source(root, train=True, download=True)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())  # torchvision's runs over several lines
        hint = "run the same command again to continue; complete files are kept, also those put there by hand: "
        hint += ", ".join(str(path) for path in _archives(name, root) if name == "cifar10" or path.stem in lacking)
        raise OSError(f"{name}: download into {root} failed: {reason}; {hint}") from error


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
