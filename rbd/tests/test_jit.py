"""Compiled kernels on disk: what a user has without a place for them, with damaged files, and on a full disk."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import rbd
from rbd.kernels import jit

KERNEL = """
import sys
import numpy as np
from rbd.kernels import countsketch_cpu, cpu
for dtype in sys.argv[1:]:
    x, g = np.empty(4, dtype), np.arange(4, dtype=dtype)
    table = np.array([g.ctypes.data, 0, 4])
    cpu._read_columns(table.ctypes.data, table.ctypes.data + 8, 0, 0, 4, 0, x)
    assert (x == g).all(), x
print(sum(cpu._read_columns.stats.cache_hits.values()))
"""
ADVICE = r"compiled kernels are not kept \(no directory for it can be written\).*; set NUMBA_CACHE_DIR to a directory"


@pytest.fixture
def nowhere(tmp_path) -> dict[str, str]:
    """An installation of the package, and an environment, where nothing can be written, not even by root."""
    copytree(Path(rbd.__file__).parent, tmp_path / "rbd", ignore=ignore_patterns("__pycache__", "tests"))
    (tmp_path / "rbd" / "kernels" / "__pycache__").write_text("a file")
    (tmp_path / "home").write_text("a file")
    usual = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return {**usual, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path / "home"), "USERPROFILE": str(tmp_path / "home")}


def run(environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.skipif(os.name != "posix", reason="Windows has its cache elsewhere")
def test_without_any_place_it_works_and_says_once_what_helps(nowhere, tmp_path):
    """A kernel is compiled for two dtypes: one warning; and the same where NUMBA_CACHE_DIR is of no use either."""
    useless = {**nowhere, "NUMBA_CACHE_DIR": str(tmp_path / "home" / "below")}
    for environment, dtypes in ((nowhere, ("f4", "f8")), (useless, ("f4",))):
        done = run(environment, tmp_path, "-c", KERNEL, *dtypes)
        assert done.stdout == "0\n" and len(re.findall(ADVICE, done.stderr)) == 1, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="Windows has its cache elsewhere")
def test_without_any_place_sgd_hears_nothing_of_it(nowhere, tmp_path):
    words = ["train", "--method", "sgd", "--epochs", "1", "--batch-size", "500", "--results-dir", "mine"]
    done = run(nowhere, tmp_path, "-m", "rbd", *words)
    assert "finished after 1 epoch:" in done.stdout and "NUMBA" not in done.stderr


@jit.jit()
def twice(x):
    """A kernel of this file alone, compiled in a tenth of a second."""
    return x + x


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Makes kernels as a new process would, whose files are in one folder; nothing has been announced yet."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path / "cache"))

    def make():
        jit._warn.cache_clear()
        jit._announce.cache_clear()
        return jit.jit()(twice.py_func)

    yield make
    jit._warn.cache_clear()


def hits(kernel) -> int:
    return sum(kernel.stats.cache_hits.values())


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_each_signature_has_a_file_and_is_loaded_by_the_next_process(fresh, tmp_path):
    first = fresh()
    assert (first(2), first(2.5)) == (4, 5.0) and hits(first) == 0
    assert [path.suffix for path in files(tmp_path)] == [".nbc"] * 2
    second = fresh()
    assert (second(2), second(2.5)) == (4, 5.0) and hits(second) == 2


@pytest.mark.parametrize("damage", [
    lambda whole: b"", lambda whole: whole[:7], lambda whole: whole[: len(whole) // 2], lambda whole: bytes(len(whole)),
    lambda whole: whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:], lambda whole: b"garbage" * 100,
], ids=["empty", "head", "half", "zeros", "a bit", "garbage"])  # fmt: skip
def test_damaged_files_are_compiled_anew_and_replaced(damage, fresh, tmp_path):
    fresh()(2)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    second = fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert second(2) == 4 and hits(second) == 0
    assert files(tmp_path) == [path]
    third = fresh()
    assert third(2) == 4 and hits(third) == 1


def test_what_was_compiled_from_other_sources_is_not_loaded(fresh, tmp_path, monkeypatch):
    fresh()(2)
    (path,) = files(tmp_path)
    changed = jit.jit(jit)(twice.py_func)  # as if another module were included
    assert changed(2) == 4 and hits(changed) == 0 and files(tmp_path) == [path]
    assert hits(fresh()) == 0


def test_the_code_of_another_signature_is_not_loaded(fresh, tmp_path):
    """With Numba's index, two processes that compile at once can leave the code for int64 under the name of float64."""
    kernel = fresh()
    kernel(2)
    (of_ints,) = files(tmp_path)
    kernel(2.5)
    (of_floats,) = set(files(tmp_path)) - {of_ints}
    of_floats.write_bytes(of_ints.read_bytes())
    again = fresh()
    assert again(2.5) == 5.0 and hits(again) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("failing", ["write_bytes", "mkdir"])
def test_full_disk(number, failing, fresh, tmp_path, monkeypatch):
    """The kernel is compiled and runs; said once, and no half of a file is left."""

    def refuse(*arguments, **named):
        raise OSError(number, os.strerror(number))

    kernel = fresh()
    if failing == "mkdir":  # as Numba makes the folder
        monkeypatch.setattr(os, "makedirs", refuse)
    else:
        monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.warns(RuntimeWarning, match=f"{os.strerror(number)}.*set NUMBA_CACHE_DIR") as told:
        assert (kernel(2), kernel(2.5)) == (4, 5.0)
    assert len(told) == 1 and files(tmp_path) == []


def test_processes_that_compile_at_once_leave_good_files(tmp_path):
    """In opposite order, so that the same two signatures come from two processes; a third finds both."""
    root, place = Path(rbd.__file__).parents[1], tmp_path / "cache"
    environment = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(place)}
    words, orders = [sys.executable, "-c", KERNEL], [("f4", "f8"), ("f8", "f4")]
    both = [subprocess.Popen([*words, *order], env=environment, stdout=subprocess.PIPE, text=True) for order in orders]
    assert [one.wait(200) for one in both] == [0, 0]
    assert run(environment, tmp_path, *words[1:], "f4", "f8").stdout == "2\n"
    assert len(files(tmp_path)) == 2 and not list(tmp_path.rglob("*.tmp"))


def test_compiling_is_told_in_the_log_and_nowhere_else(fresh, caplog, capfd):
    caplog.set_level("INFO", "rbd")
    fresh()(2)
    assert [r.getMessage() for r in caplog.records] == ["compiling kernels, which takes some seconds"]
    caplog.clear()
    fresh()(2)
    assert not caplog.records and capfd.readouterr() == ("", "")
