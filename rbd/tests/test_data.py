"""rbd.suite.datasets: what is read, what is drawn, what is said when a file is missing, damaged or out of reach."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import math
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from rbd.suite import batches, cli, datasets, images

MAKE_EMBEDDED = Path(datasets.__file__).parents[2] / "benchmarks" / "make_embedded.py"


def random_split(count: int, channels: int, seed: int = 0) -> datasets.Split:
    """Random images; the label of an image is its position."""
    size = {1: 28, 3: 32}[channels]
    images = np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return datasets.Split(torch.from_numpy(images), torch.arange(count))


def joined(pairs) -> tuple[torch.Tensor, torch.Tensor]:
    xs, ys = zip(*pairs, strict=True)
    return torch.cat(xs), torch.cat(ys)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# ---------------------------------------------------------------- embedded sets


@pytest.mark.parametrize("name", ["mnist-embedded", "fmnist-embedded"])
def test_embedded_sizes_and_types(name):
    dataset = datasets.load(name, "a directory that is not there")  # none is needed
    assert dataset.name == name
    for split, count in ((dataset.train, 5000), (dataset.validation, 2000)):
        assert split.images.shape == (count, 1, 28, 28)
        assert split.images.dtype == torch.uint8
        assert split.labels.shape == (count,)
        assert split.labels.dtype == torch.int64
        assert len(split) == count
        assert split.images.min() == 0
        assert split.images.max() == 255
        share = split.labels.bincount(minlength=10) / count
        assert share.shape == (10,)
        assert share.min() > 0.08
        assert share.max() < 0.12


def test_embedded_are_the_first_of_the_published_files():
    """The first labels of both training files are well known; the pixel sums pin the images."""
    mnist, fmnist = datasets.load("mnist-embedded"), datasets.load("fmnist-embedded")
    assert mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert fmnist.train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert mnist.train.images[0].sum() == 27525
    assert fmnist.train.images[0].sum() == 76247


def test_embedded_files_say_their_licences():
    text = (Path(datasets.__file__).parent / "embedded" / "README.md").read_text(encoding="utf-8")
    assert "ShareAlike 3.0" in text
    assert "Copyright (c) 2017 Zalando SE" in text
    for name in ("mnist-embedded", "fmnist-embedded"):
        ((file, digest),) = datasets._MD5[name].items()
        assert file in text
        assert digest in text


def test_embedded_need_no_torchvision():
    code = (
        "import sys, rbd.suite.datasets as d; d.load('mnist-embedded'); d.status('nowhere'); "
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(datasets.__file__).parents[2]
    )
    assert done.stdout.strip() == "False"


@pytest.fixture
def copied_package(tmp_path, monkeypatch):
    """rbd.suite.datasets reads its embedded files beside itself; let it stand beside copies that may be damaged."""
    shutil.copytree(Path(datasets.__file__).parent / "embedded", tmp_path / "embedded")
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "data.py"))
    return tmp_path / "embedded"


def test_damaged_embedded_file_is_named(copied_package):
    path = copied_package / "mnist.npz"
    content = bytearray(path.read_bytes())
    content[500_000] ^= 1  # one bit
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mnist-embedded: damaged.*mnist\.npz; install the package again"):
        datasets.load("mnist-embedded")
    states = {file.dataset: file.state for file in datasets.status() if file.dataset.endswith("embedded")}
    assert states == {"mnist-embedded": "damaged", "fmnist-embedded": "ok"}


def test_missing_embedded_file_is_named(copied_package):
    (copied_package / "fmnist.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"fmnist-embedded: missing.*fmnist\.npz; install the package again$"):
        datasets.load("fmnist-embedded")


@pytest.mark.skipif(not MAKE_EMBEDDED.exists(), reason="the package is installed without benchmarks/")
def test_make_embedded_writes_the_same_bytes_and_the_shipped_arrays(tmp_path):
    make_embedded = runpy.run_path(str(MAKE_EMBEDDED))
    with np.load(make_embedded["EMBEDDED"] / "mnist.npz") as shipped:
        images, labels = shipped["images"][:100], shipped["labels"][:100]
    for file in ("a.npz", "b.npz"):
        make_embedded["write"](tmp_path / file, images, labels)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as again:
        assert np.array_equal(again["images"], images)
        assert np.array_equal(again["labels"], labels)


# ---------------------------------------------------------------- values


def test_split_refuses_other_shapes_and_types():
    good = random_split(3, 1)
    with pytest.raises(ValueError, match=r"images: got float32 \(3, 1, 28, 28\), allowed uint8"):
        datasets.Split(good.images.float(), good.labels)
    with pytest.raises(ValueError, match=r"images: got uint8 \(3, 28, 28\)"):
        datasets.Split(good.images[:, 0], good.labels)
    with pytest.raises(ValueError, match=r"images: got uint8 \(3, 2, 28, 28\), allowed .* C = 1 or 3"):
        datasets.Split(good.images.repeat(1, 2, 1, 1), good.labels)
    with pytest.raises(ValueError, match=r"labels: got int64 \(2,\), allowed int64 \(3,\)"):
        datasets.Split(good.images, good.labels[:2])
    with pytest.raises(ValueError, match=r"labels: got int32"):
        datasets.Split(good.images, good.labels.int())


# ---------------------------------------------------------------- draws, against obvious twins


def philox4x64(key: tuple[int, int], blocks: int) -> list[int]:
    """Philox4x64-10 in plain integers (Salmon et al. 2011); NumPy's counter starts at 1."""
    words = []
    for block in range(1, blocks + 1):
        (k0, k1), (x0, x1, x2, x3) = key, (block, 0, 0, 0)
        for _ in range(10):
            p0, p1 = x0 * 0xD2E7470EE14C6C93, x2 * 0xCA5A826395121157
            x0, x1, x2, x3 = p1 >> 64 ^ x1 ^ k0, p1 % 2**64, p0 >> 64 ^ x3 ^ k1, p0 % 2**64
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) % 2**64, (k1 + 0xBB67AE8584CAA73B) % 2**64
        words += [x0, x1, x2, x3]
    return words


def slow_epoch(split: datasets.Split, seed: int, epoch: int) -> tuple[np.ndarray, list[int]]:
    """The definition of an epoch, one image after the other, in plain integers and NumPy float32."""
    count, channels, height, width = split.images.shape
    words = philox4x64((seed, epoch), count // 2 + 1)
    order = sorted(range(count), key=lambda i: words[i])
    padding = {1: 3, 3: 4}[channels]
    xs = []
    for i, word in zip(order, words[count : 2 * count], strict=True):
        row = (word % 2**16) * (2 * padding + 1) // 2**16
        column = (word // 2**16 % 2**16) * (2 * padding + 1) // 2**16
        image = split.images[i].numpy()
        if channels == 3 and word >> 32 & 1:
            image = image[:, :, ::-1]
        image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        image = image[:, row : row + height, column : column + width]
        if channels == 1:
            brightness = np.float32((word >> 40) / 2**24 - 0.5)
            xs.append(image.astype(np.float32) * np.float32(1 / 255) + brightness)
        else:
            xs.append(slow_standardise(image))
    return np.stack(xs), [int(split.labels[i]) for i in order]


def slow_standardise(image: np.ndarray) -> np.ndarray:
    """(n v - S) / sqrt(max(n Q - S^2, 255^2 n)) with Python's integers."""
    values = [int(v) for v in image.flatten()]
    n, s, q = len(values), sum(values), sum(v * v for v in values)
    root = np.float32(math.sqrt(max(n * q - s * s, 255**2 * n)))
    return np.array([n * v - s for v in values], dtype=np.float32).reshape(image.shape) / root


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**64 - 1, 2**63)])
def test_epoch_is_the_slow_twin_bit_for_bit(channels, seed, epoch):
    split = random_split(101, channels)
    x, y = joined(batches.batches(split, 1, seed, epoch))
    slow_x, slow_y = slow_epoch(split, seed, epoch)
    assert y.tolist() == slow_y
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert np.array_equal(x.numpy(), slow_x)


@pytest.mark.parametrize("part", [None, "none", "crop", "mirror", "brightness"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_kernel_gives_the_bits_of_the_torch_operations(channels, part):
    split = random_split(300, channels)
    split.images[0], split.images[1], split.images[2] = 0, 255, split.images[2] // 64  # also below the least contrast
    draws = batches._kept(batches._draws(split, 3, 4), part, images.PADDING[channels])
    assert images._has_kernel(split.images)
    x, by_operations = images.prepare(split.images, draws), images._prepare_by_operations(split.images, draws)
    assert x.dtype == by_operations.dtype and torch.equal(x, by_operations)
    assert torch.equal(images.normalise(split.images), images._normalise(split.images))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_float32_on_the_cpu_whatever_the_defaults_are(channels):
    split = random_split(3, channels)
    x, _ = joined(batches.batches(split, 1, 0, 0))
    seen = images.normalise(split.images)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(joined(batches.batches(split, 1, 0, 0))[0], x)
        assert torch.equal(images.normalise(split.images), seen)
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        assert torch.equal(images.normalise(split.images), seen)


@pytest.mark.parametrize(("name", "value"), [("order", 5), ("order", -1), ("row", 7), ("column", -1)])
def test_draws_outside_of_the_images_are_refused(name, value):
    split = random_split(5, 1)
    draws = batches._draws(split, 0, 0)
    getattr(draws, name)[2] = value
    with pytest.raises(IndexError, match="draws: one lies outside of the images or of the padding"):
        images.prepare(split.images, draws)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_other_sizes_are_prepared_by_torch_operations(channels):
    pixels = torch.randint(256, (5, channels, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = datasets.Split(pixels, torch.arange(5))
    x, y = joined(batches.batches(split, 1, 0, 0, augment="none"))
    (seen, labels), = batches.evaluation(split)
    assert x.shape == (5, channels, 12, 20) and torch.equal(x, seen[y]) and torch.equal(labels, split.labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_bits_depend_on_neither_block_nor_batch_nor_threads_nor_consumption(channels, monkeypatch):
    split = random_split(200, channels)
    x, y = joined(batches.batches(split, 20, seed=1, epoch=2))
    threads = torch.get_num_threads()
    try:
        for block, batch_size, used_threads in ((1, 8, 1), (7, 8, 2), (64, 50, 3), (10**6, 200, 1)):
            monkeypatch.setattr(batches, "_BLOCK", block)
            torch.set_num_threads(used_threads)
            other = batches.batches(split, 100, seed=5, epoch=0)
            next(other)  # another epoch half consumed in between
            again_x, again_y = joined(batches.batches(split, batch_size, seed=1, epoch=2))
            assert torch.equal(again_x, x)
            assert torch.equal(again_y, y)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("channels", [1, 3])
def test_parts_of_the_augmentation(channels):
    """Each part alone does what it says, with the draws that it has among all of them; none leaves the images alone."""
    split = random_split(50, channels)
    parts = (None, "none", "crop", "mirror", "brightness")
    made = {part: joined(batches.batches(split, 50, 3, 4, augment=part)) for part in parts}
    assert all(torch.equal(y, made[None][1]) for _, y in made.values())
    plain = datasets.Split(split.images[torch.tensor(order_of(split, 3, 4))], made[None][1])
    (seen, _), = batches.evaluation(plain)
    x = {part: images for part, (images, _) in made.items()}
    assert torch.equal(x["none"], seen)
    if channels == 1:
        shift = x["brightness"] - seen
        assert torch.equal(x["mirror"], seen) and shift.std() > 0.2 and shift.abs().max() < 0.5001
        assert (shift.flatten(1).std(1) < 1e-6).all() and torch.allclose(x[None] - x["crop"], shift, atol=1e-6)
    else:
        mirrored = (x["mirror"] != seen).flatten(1).any(1)
        assert torch.equal(x["brightness"], seen) and 10 < mirrored.sum() < 40
        assert torch.equal(x["mirror"][mirrored], seen[mirrored].flip(-1))
    moved = (x["crop"] != seen).flatten(1).any(1)
    assert 40 < moved.sum() <= 50
    with pytest.raises(ValueError, match="augment: got 'crops', allowed None, none, crop, mirror, brightness"):
        batches.batches(split, 50, 3, 4, augment="crops")


def order_of(split: datasets.Split, seed: int, epoch: int) -> list[int]:
    return batches._draws(split, seed, epoch).order.tolist()


def test_no_global_generator_is_used():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    list(batches.batches(random_split(10, 1), 5, 0, 0))
    assert (torch.rand(1), np.random.rand()) == first  # noqa: NPY002


def test_seeds_and_epochs_differ():
    split = random_split(64, 1)
    drawn = {key: joined(batches.batches(split, 64, *key)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}
    for a in drawn:
        for b in drawn:
            assert (a == b) == torch.equal(drawn[a][0], drawn[b][0]) == torch.equal(drawn[a][1], drawn[b][1])


@pytest.mark.parametrize(("batch_size", "count"), [(32, 3), (100, 1), (33, 3), (1, 100)])
def test_every_image_once_less_the_dropped(batch_size, count):
    split = random_split(100, 1)
    pairs = list(batches.batches(split, batch_size, 0, 0))
    assert len(pairs) == count
    assert all(x.shape == (batch_size, 1, 28, 28) and y.shape == (batch_size,) for x, y in pairs)
    seen = torch.cat([y for _, y in pairs]).tolist()
    assert len(set(seen)) == len(seen) == count * batch_size


def test_channels_last_images_give_the_same_batches():
    split = random_split(40, 3)
    last = datasets.Split(split.images.to(memory_format=torch.channels_last), split.labels)
    assert torch.equal(joined(batches.batches(last, 8, 0, 0))[0], joined(batches.batches(split, 8, 0, 0))[0])
    assert torch.equal(joined(batches.evaluation(last))[0], joined(batches.evaluation(split))[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_draws_follow_their_law(channels):
    """5 sigma about the expected counts and moments of 20,000 draws: a false alarm in 3 million runs."""
    count, positions = 20_000, {1: 7, 3: 9}[channels]
    split = datasets.Split(torch.zeros(count, channels, 1, 1, dtype=torch.uint8), torch.arange(count))
    draws = batches._draws(split, seed=0, epoch=0)
    assert draws.order.sort().values.tolist() == list(range(count))
    for offsets in (draws.row, draws.column):
        seen = offsets.bincount().double()
        assert len(seen) == positions
        p = 1 / positions
        assert (seen - count * p).abs().max() < 5 * math.sqrt(count * p * (1 - p))
    assert abs(draws.mirror.double().mean() - 0.5) < 5 * 0.5 / math.sqrt(count)
    b = draws.brightness.double()
    assert -0.5 <= b.min() < -0.499
    assert 0.499 < b.max() < 0.5
    assert abs(b.mean()) < 5 * math.sqrt(1 / 12 / count)
    columns = torch.stack([draws.order.double(), draws.row.double(), draws.column.double(), draws.mirror.double(), b])
    assert (columns.corrcoef() - torch.eye(5)).abs().max() < 5 / math.sqrt(count)


def test_brightness_is_not_clipped():
    x, _ = joined(batches.batches(datasets.load("mnist-embedded").train, 1000, 0, 0))
    assert -0.5 <= x.min() < -0.49
    assert 1.49 < x.max() < 1.5


# ---------------------------------------------------------------- evaluation


def test_evaluation_of_grey_images_is_a_255th():
    split = random_split(25, 1)
    pairs = list(batches.evaluation(split, 10))
    assert [len(y) for _, y in pairs] == [10, 10, 5]
    x, y = joined(pairs)
    assert x.dtype == torch.float32
    assert torch.equal(y, split.labels)
    assert x.min() == 0
    assert x.max() == 1
    torch.testing.assert_close(x, split.images.float() / 255, rtol=2**-23, atol=0)  # one ulp


def test_standardisation_is_the_naive_formula():
    split = random_split(20, 3)
    split.images[3] //= 50  # little contrast
    split.images[4] = 128 + (split.images[4] > 250)
    x, y = joined(batches.evaluation(split, 7))
    v = split.images.double().numpy() / 255
    mean, std = v.mean((1, 2, 3), keepdims=True), v.std((1, 2, 3), keepdims=True)
    assert std.flatten()[4] < 1 / math.sqrt(3072)  # so that the floor is at work once
    naive = (v - mean) / np.maximum(std, 1 / math.sqrt(3072))
    assert torch.equal(y, split.labels)
    assert np.allclose(x.numpy(), naive, rtol=3 * 2**-24, atol=1e-12)  # root and quotient round once each
    assert np.array_equal(x.numpy(), np.stack([slow_standardise(image.numpy()) for image in split.images]))


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_constant_image_standardises_to_zero(value):
    split = datasets.Split(torch.full((2, 3, 32, 32), value, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    (x, _), *rest = batches.evaluation(split)
    assert torch.equal(x, torch.zeros(2, 3, 32, 32))
    assert not rest


def test_arguments_out_of_range_are_named():
    split = random_split(10, 1)
    for batch_size in (0, 11, -3):
        with pytest.raises(ValueError, match=f"batch_size: got {batch_size}, allowed 1 ... 10"):
            batches.batches(split, batch_size, 0, 0)
    with pytest.raises(ValueError, match=r"seed: got -1, allowed 0 ... 18446744073709551615"):
        batches.batches(split, 5, -1, 0)
    with pytest.raises(ValueError, match=r"epoch: got 18446744073709551616, allowed 0 ..."):
        batches.batches(split, 5, 0, 2**64)
    with pytest.raises(ValueError, match=r"batch_size: got 0, allowed 1 ..."):
        batches.evaluation(split, 0)


# ---------------------------------------------------------------- directories, names, missing and damaged files


def test_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("RBD_DATA_DIR", str(tmp_path / "a"))
    assert datasets.data_dir(tmp_path / "b") == tmp_path / "b"
    assert datasets.data_dir() == tmp_path / "a"
    monkeypatch.delenv("RBD_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert datasets.data_dir() == tmp_path / "c" / "rbd" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "d"))
    assert datasets.data_dir() == tmp_path / "d" / "rbd" / "data"
    monkeypatch.delenv("LOCALAPPDATA")
    assert datasets.data_dir() == Path.home() / ".cache" / "rbd" / "data"
    assert datasets.data_dir("~/x") == Path.home() / "x"


@pytest.mark.parametrize("name", ["MNIST", "cifar100", ""])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=f"name: got {name!r}, allowed mnist, fmnist, cifar10, mnist-embedded, fm"):
        datasets.load(name)


def test_embedded_are_not_downloaded():
    with pytest.raises(ValueError, match="name: got 'mnist-embedded', allowed mnist, fmnist, cifar10"):
        datasets.download("mnist-embedded")


@pytest.mark.parametrize("name", ["mnist", "fmnist", "cifar10"])
def test_missing_set(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load(name, tmp_path / "nowhere")
    message = str(caught.value)
    for file in datasets._MD5[name]:
        assert str(Path(file)) in message
    for part in (str(tmp_path / "nowhere"), f"`rbd data --download {name}`", "`--data mnist-embedded`"):
        assert part in message
    assert not (tmp_path / "nowhere").exists()  # looking leaves nothing behind


def test_status_has_a_line_for_every_file(tmp_path):
    files = datasets.status(tmp_path)
    assert [file.dataset for file in files] == ["mnist"] * 4 + ["fmnist"] * 4 + ["cifar10"] * 7 + [
        "mnist-embedded",
        "fmnist-embedded",
    ]
    assert [file.state for file in files] == ["missing"] * 15 + ["ok"] * 2
    assert str(files[0]) == f"mnist            missing  {tmp_path / 'MNIST' / 'raw' / 'train-images-idx3-ubyte'}"


def test_md5_of_cifar10_are_those_of_torchvision():
    from torchvision.datasets import CIFAR10

    published = dict(CIFAR10.train_list + CIFAR10.test_list + [[CIFAR10.meta["filename"], CIFAR10.meta["md5"]]])
    assert datasets._MD5["cifar10"] == {f"cifar-10-batches-py/{file}": digest for file, digest in published.items()}


# ---------------------------------------------------------------- small sets in place of the published ones

HELD_OUT, TRAIN = 10_000, 6  # images


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_mnist(seed: int) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {}
    for part, count in (("train", TRAIN + HELD_OUT), ("t10k", 5)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 4, 4), dtype=np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, count, dtype=np.uint8))
    return files


def small_cifar10() -> dict[str, bytes]:
    """Five batches; all pixels of an image have the value of its position modulo 251, red first."""
    count = (TRAIN + HELD_OUT + 4) // 5
    files = {"batches.meta": pickle.dumps({"label_names": [str(i) for i in range(10)]})}
    for k, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        position = np.arange(k * count, (k + 1) * count)
        pixels = np.repeat((position % 251).astype(np.uint8)[:, None], 3072, axis=1)
        pixels[:, :1024] = 255
        files[name] = pickle.dumps({"data": pixels, "labels": (position % 10).tolist()})
    return files


class Server:
    """Serves `files` on 127.0.0.1; `asked` are the names asked for, `cut` those broken off half-way."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: set[str] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                content = server.files[name]
                server.asked.append(name)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if name in server.cut else content)

            def log_message(self, *_) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.stop()


@pytest.fixture(params=["mnist", "fmnist"])
def small(request, server, monkeypatch):
    """A small MNIST or Fashion-MNIST on the server; torchvision's addresses and all md5s are its own."""
    import torchvision.datasets

    name, folder = request.param, {"mnist": "MNIST", "fmnist": "FashionMNIST"}[request.param]
    files = small_mnist(seed=len(name))
    server.files = {f"{file}.gz": gzip.compress(content, mtime=0) for file, content in files.items()}
    source = getattr(torchvision.datasets, folder)
    monkeypatch.setattr(source, "mirrors", [server.url])
    monkeypatch.setattr(source, "resources", [(file, md5(content)) for file, content in server.files.items()])
    monkeypatch.setitem(datasets._MD5, name, {f"{folder}/raw/{file}": md5(content) for file, content in files.items()})
    return name, folder, files


def states(name: str, root: Path) -> set[str]:
    return {file.state for file in datasets.status(root) if file.dataset == name}


def test_download_and_load(small, server, tmp_path, capsys):
    name, _, files = small
    root = tmp_path / "new" / "folder"
    datasets.download(name, root)
    assert set(server.asked) == set(server.files)
    assert states(name, root) == {"ok"}
    assert "removing" not in capsys.readouterr().err
    dataset = datasets.load(name, root)
    assert (len(dataset.train), len(dataset.validation)) == (TRAIN, HELD_OUT)
    images = torch.cat([dataset.train.images, dataset.validation.images])
    assert images.shape == (TRAIN + HELD_OUT, 1, 4, 4)
    assert images.numpy().tobytes() == files["train-images-idx3-ubyte"][16:]  # in file order
    labels = torch.cat([dataset.train.labels, dataset.validation.labels])
    assert labels.to(torch.uint8).numpy().tobytes() == files["train-labels-idx1-ubyte"][8:]

    server.asked.clear()
    datasets.download(name, root)
    assert server.asked == []


def test_two_downloads_at_once(small, server, tmp_path):
    """The second one waits for the first and then finds everything there: no file is fetched twice."""
    name, _, _ = small
    datasets.download(name, tmp_path / "one")
    asked_by_one = sorted(server.asked)
    server.asked.clear()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(datasets.download, name, tmp_path / "two") for _ in range(2)]:
            done.result()
    assert sorted(server.asked) == asked_by_one and states(name, tmp_path / "two") == {"ok"}


def test_interrupted_download_goes_on(small, server, tmp_path, capsys):
    name, folder, _ = small
    datasets.download(name, tmp_path)
    raw = tmp_path / folder / "raw"
    # Broken off: the first archive half there; an unpacked file half there; another file whole without its archive.
    archive = raw / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:1000])
    (raw / "train-images-idx3-ubyte").unlink()
    unpacked = raw / "t10k-images-idx3-ubyte"
    unpacked.write_bytes(unpacked.read_bytes()[:20])
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    assert states(name, tmp_path) == {"ok", "missing", "damaged"}
    with pytest.raises(FileNotFoundError, match=r"missing.*train-images-idx3-ubyte; run"):
        datasets.load(name, tmp_path)
    server.asked.clear()
    capsys.readouterr()

    datasets.download(name, tmp_path)
    said = capsys.readouterr().err
    assert said.count("removing") == 2
    for path in (archive, unpacked):
        assert f"{name}: removing {path}, which is damaged or incomplete\n" in said
    assert set(server.asked) == {"train-images-idx3-ubyte.gz"}  # the other archive was whole
    assert states(name, tmp_path) == {"ok"}
    datasets.load(name, tmp_path)


def test_transfer_cut_half_way(small, server, tmp_path):
    name, folder, _ = small
    server.cut = {"train-labels-idx1-ubyte.gz"}
    with pytest.raises(OSError, match=f"{name}: download into .* failed: .*; run the same command again to continue"):
        datasets.download(name, tmp_path)
    assert (tmp_path / folder / "raw" / "train-labels-idx1-ubyte.gz").exists()  # the half that came
    server.cut = set()
    server.asked.clear()
    datasets.download(name, tmp_path)
    assert "train-images-idx3-ubyte.gz" not in server.asked  # came whole the first time
    assert states(name, tmp_path) == {"ok"}


def test_archives_put_there_by_hand_are_taken(small, server, tmp_path):
    """Where the error of a failed download says that they may be put."""
    name, folder, _ = small
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for file, content in server.files.items():
        (raw / file).write_bytes(content)
    datasets.download(name, tmp_path)
    assert server.asked == [] and states(name, tmp_path) == {"ok"}


def test_without_a_home_the_message_says_what_to_set(monkeypatch, capsys):
    """Containers with an arbitrary uid."""

    def fail(path):
        raise RuntimeError("no home directory")

    for variable in ("RBD_DATA_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "expanduser", fail)
    assert cli.main(["data"]) == 2
    assert capsys.readouterr().err == (
        "rbd: error: no home directory; set RBD_DATA_DIR to the directory of the full data sets\n"
    )
    assert len(datasets.load("mnist-embedded").train) == 5000  # which needs no directory


def test_server_gone(small, server, tmp_path, monkeypatch):
    import torchvision.datasets

    name, folder, _ = small
    gone = Server()
    gone.stop()
    monkeypatch.setattr(getattr(torchvision.datasets, folder), "mirrors", [gone.url])
    with pytest.raises(OSError, match="download") as caught:
        datasets.download(name, tmp_path)
    archives = [str(tmp_path / folder / "raw" / file) for file, _ in getattr(torchvision.datasets, folder).resources]
    for part in (name, str(tmp_path), gone.url, "run the same command again to continue", f"by hand: {', '.join(archives)}"):
        assert part in str(caught.value)
    monkeypatch.setattr(getattr(torchvision.datasets, folder), "mirrors", [gone.url, server.url])
    datasets.download(name, tmp_path)  # the second mirror serves
    assert states(name, tmp_path) == {"ok"}


def test_a_complete_set_in_a_read_only_directory_is_left_alone(small, server, tmp_path, monkeypatch):
    """A shared one, say. Tests may run as root, who can write there: so the lock is refused by hand."""
    datasets.download(small[0], tmp_path)

    def refuse(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(datasets.store, "lock", refuse)
    server.asked.clear()
    datasets.download(small[0], tmp_path)
    assert server.asked == []
    next(tmp_path.rglob("train-labels-idx1-ubyte")).unlink()
    with pytest.raises(OSError, match="Read-only file system"):
        datasets.download(small[0], tmp_path)


def test_target_that_is_a_file(small, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"download into .*file failed"):
        datasets.download(small[0], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_damaged_full_file_is_named(small, server, tmp_path):
    name, folder, files = small
    datasets.download(name, tmp_path)
    path = tmp_path / folder / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(files["train-labels-idx1-ubyte"][:-1] + b"\x0b")
    with pytest.raises(ValueError, match="damaged") as caught:
        datasets.load(name, tmp_path)
    for part in (f"{name}: damaged", str(path), f"run `rbd data --download {name}` with RBD_DATA_DIR={tmp_path}"):
        assert part in str(caught.value)


def test_files_of_old_torchvision_are_not_read(small, server, tmp_path):
    """torchvision prefers processed/*.pt to the raw files, unchecked, and then does not download either."""
    name, folder, _ = small
    (tmp_path / folder / "processed").mkdir(parents=True)
    wrong = (torch.zeros(10_050, 4, 4, dtype=torch.uint8), torch.zeros(10_050, dtype=torch.int64))
    for file in ("training.pt", "test.pt"):
        torch.save(wrong, tmp_path / folder / "processed" / file)
    datasets.download(name, tmp_path)
    assert len(datasets.load(name, tmp_path).train) == TRAIN


@pytest.fixture
def small_cifar(server, monkeypatch):
    from torchvision.datasets import CIFAR10

    files = small_cifar10()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for file, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server.files = {"cifar-10-python.tar.gz": packed.getvalue()}
    digests = {file: md5(content) for file, content in files.items()}
    monkeypatch.setattr(CIFAR10, "url", server.url + "cifar-10-python.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(packed.getvalue()))
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", digests[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digests["batches.meta"]})
    monkeypatch.setitem(datasets._MD5, "cifar10", {f"cifar-10-batches-py/{f}": digest for f, digest in digests.items()})
    return files


def test_download_cifar10(small_cifar, server, tmp_path, capsys):
    datasets.download("cifar10", tmp_path)
    dataset = datasets.load("cifar10", tmp_path)
    assert dataset.train.images.shape == (10, 3, 32, 32)
    assert dataset.validation.images.shape == (HELD_OUT, 3, 32, 32)
    position = torch.arange(10 + HELD_OUT)
    images = torch.cat([dataset.train.images, dataset.validation.images])
    assert torch.equal(images[:, 1:].amax((1, 2, 3)), (position % 251).to(torch.uint8))
    assert images[:, 0].min() == 255  # red stays the first channel
    assert torch.equal(torch.cat([dataset.train.labels, dataset.validation.labels]), position % 10)

    # A damaged batches.meta alone, which torchvision's own download would never mend; the archive is there still.
    server.asked.clear()
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"cifar10: damaged.*batches.meta; run `rbd data --download cifar10`"):
        datasets.load("cifar10", tmp_path)
    datasets.download("cifar10", tmp_path)
    assert f"cifar10: removing {meta}" in capsys.readouterr().err
    assert server.asked == []
    assert states("cifar10", tmp_path) == {"ok"}

    # Half an archive and a missing batch: fetched again.
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:5000])
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    datasets.download("cifar10", tmp_path)
    assert f"cifar10: removing {archive}" in capsys.readouterr().err
    assert set(server.asked) == {archive.name}
    assert states("cifar10", tmp_path) == {"ok"}


def test_cifar10_server_gone(small_cifar, server, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    gone = Server()
    gone.stop()
    monkeypatch.setattr(CIFAR10, "url", gone.url + "cifar-10-python.tar.gz")
    with pytest.raises(OSError, match=r"cifar10: download into .* failed: .*refused.*; run the same command again"):
        datasets.download("cifar10", tmp_path)


# ---------------------------------------------------------------- the published sets, where they are


@pytest.mark.parametrize(
    ("name", "train"),
    [("mnist", (50_000, 1, 28, 28)), ("fmnist", (50_000, 1, 28, 28)), ("cifar10", (40_000, 3, 32, 32))],
)
def test_full_sets(name, train):
    if "RBD_DATA_DIR" not in os.environ or any(file.state != "ok" for file in datasets._files(name, datasets.data_dir())):
        pytest.skip(f"{name} is not in RBD_DATA_DIR")
    dataset = datasets.load(name)
    assert dataset.train.images.shape == train
    assert dataset.validation.images.shape == (10_000, *train[1:])
    if name != "cifar10":  # the embedded images are its first
        embedded = datasets.load(f"{name}-embedded")
        assert torch.equal(dataset.train.images[:5000], embedded.train.images)
        assert torch.equal(dataset.train.labels[5000:7000], embedded.validation.labels)
