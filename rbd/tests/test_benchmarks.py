"""The benchmarks run, once each and in little time, and measure what they say."""

from __future__ import annotations

import importlib
import math
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are in the repository only")


@pytest.fixture
def benchmarks(monkeypatch):
    """Imports a module of benchmarks/ whose ratios take as little time as they can."""
    monkeypatch.syspath_prepend(str(ROOT))
    measure = importlib.import_module("benchmarks._measure")
    monkeypatch.setattr(measure.ratio, "__defaults__", (0.0, 1))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_ratio_is_of_medians(benchmarks):
    """Sleeps of 20 and 10 ms: twice as long, within what a busy machine adds to either."""
    measured = benchmarks("_measure").ratio(lambda: time.sleep(0.02), lambda: time.sleep(0.01), least=5)
    assert 1.2 < measured < 3


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="peak memory is read on Linux and macOS")
def test_peak_counts_what_was_touched_and_let_go(benchmarks):
    peak = benchmarks("_measure").peak_mib
    empty, touched = peak("pass"), peak("x = bytearray(200 * 2**20); del x")
    assert 190 < touched - empty < 215  # MiB: 200 and what an allocator rounds up


@pytest.mark.parametrize("distribution", ["normal", "uniform", "rademacher"])
@pytest.mark.parametrize("name", ["track_project", "track_expand", "track_project_against_randn"])
def test_kernels(benchmarks, distribution, name):
    suite = benchmarks("kernels").OnDemand()
    suite.setup(distribution)
    assert 0 < getattr(suite, name)(distribution) < math.inf


def test_step(benchmarks):
    suite = benchmarks("step").Step()
    suite.setup("rademacher")
    assert 0 < suite.track_step("rademacher") < math.inf


def test_peak_of_a_step_does_not_grow_with_d(benchmarks):
    """Within 1 % between d = 10 and d = 10,000; a stored basis of the latter would take 37 GiB."""
    memory = benchmarks("memory")
    few, many = memory.Peak().track_step(10), memory.Peak().track_step(10_000)
    assert many < 1.01 * few
    assert memory.track_import() <= few
