"""The one list of backends under test, the known answers, threads that are put back, and fresh Python processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:  # Triton's kernels then run on the CPU, operation by operation
    os.environ["TRITON_INTERPRET"] = "1"

import rbd  # noqa: E402
from rbd import kernels  # noqa: E402

BACKENDS = [name for name in kernels.BACKENDS if name != "reference"]  # each is held to the reference
DEVICES = {"reference": "cpu", "cpu": "cpu", "gpu": "cpu" if INTERPRETED else "cuda"}
VECTORS = Path(__file__).parent / "vectors" / "philox4x32-10.txt"


def _fuse_multiply_add() -> None:
    """Interpreters of older Tritons round a fused multiply-add twice, which no GPU does; float32 ones are mended here."""
    from triton.runtime import interpreter

    if hasattr(interpreter._interpreter, "fma_fp32"):
        return
    twice = interpreter.InterpreterBuilder.create_fma

    def create_fma(self, x, y, z):
        if z.data.dtype != np.float32:
            return twice(self, x, y, z)
        once = (x.data.astype(np.float64) * y.data + z.data).astype(np.float32)
        return interpreter.TensorHandle(once, z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = create_fma


if INTERPRETED and importlib.util.find_spec("triton"):
    _fuse_multiply_add()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cases of the gpu backend, or of the device cuda, are tests for a GPU: `-m gpu` selects them."""
    for item in items:
        values = getattr(item, "callspec", None)
        if values and {"gpu", "cuda"} & {value for value in values.params.values() if isinstance(value, str)}:
            item.add_marker(pytest.mark.gpu)


def on_a_gpu(test: Callable) -> Callable:
    """Mark a test that only a GPU can run."""
    return pytest.mark.gpu(pytest.mark.skipif(INTERPRETED, reason="no GPU")(test))


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def vectors() -> list[tuple[int, ...]]:
    """Known answers of Philox4x32-10, ten words each: counter (4), key (2), output (4); zeros, ones, digits of pi."""
    lines = [line.split("#")[0].split() for line in VECTORS.read_text().splitlines()]
    return [tuple(int(word, 16) for word in line) for line in lines if line]


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Processes that a test starts end on Ctrl-C, though tests in the background may have been made to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def plain_pictures() -> Iterator[None]:
    """What a test changes of matplotlib's settings, as the notebooks do, ends with it."""
    with matplotlib.rc_context():
        yield


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory) -> Callable[..., str]:
    """Run a script in a new process, with rbd importable; returns what it printed."""

    def run(script: str, *arguments: str, root: Path = Path(rbd.__file__).parents[1], **environment: str) -> str:
        file = tmp_path_factory.mktemp("fresh") / "script.py"  # a file, because spawned workers import it
        file.write_text(script)
        done = subprocess.run(
            [sys.executable, file, *arguments], env={**os.environ, "PYTHONPATH": str(root), **environment},
            cwd=file.parent, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
