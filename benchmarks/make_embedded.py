"""Make rbd/suite/embedded/*.npz, the first 7,000 images of the training files of MNIST and Fashion-MNIST.

    python benchmarks/make_embedded.py [FOLDER]     # reads the full sets from RBD_DATA_DIR; FOLDER: rbd/suite/embedded

The same input gives the same bytes (with the same liblzma). Prints the md5 of each file, for rbd/suite/datasets.py.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from rbd.suite import datasets

COUNT = 7_000  # images: 5,000 to train on and 2,000 to validate
EMBEDDED = Path(datasets.__file__).parent / "embedded"


def write(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images (N, H, W) uint8 and labels (N,) uint8 as an .npz that np.load reads, without a date in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for field, array in (("images", images), ("labels", labels)):
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{field}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # else it says which system wrote it
            archive.writestr(member, content.getvalue(), zipfile.ZIP_LZMA)  # a seventh smaller than deflate


def main(folder: Path) -> None:
    for name in ("mnist", "fmnist"):
        train = datasets.load(name).train
        path = folder / f"{name}.npz"
        write(path, train.images[:COUNT, 0].numpy(), train.labels[:COUNT].numpy().astype(np.uint8))
        print(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.stat().st_size:,} bytes  {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else EMBEDDED)
