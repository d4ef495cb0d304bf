"""analysis/worker_time.py, benchmarks/workers.py and the sweep: the model against what was measured, and that they run."""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest

import rbd
from rbd import distributed
from rbd.suite import rates
from rbd.suite.experiments import workers

ROOT = Path(rbd.__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "analysis").is_dir(), reason="analysis is in the repository only")

# Least of 300 calls (60 of the longest), microseconds, gloo on the loopback of two busy cores, 2026-11-22: what, values, W.
MEASURED = {
    ("bases", 250, 2): 346, ("bases", 2500, 2): 368, ("bases", 101_770, 2): 705, ("common", 250, 2): 646,
    ("common", 101_770, 2): 1003, ("common", 1_000_000, 2): 7127, ("bases", 250, 3): 779, ("bases", 2500, 3): 890,
    ("bases", 101_770, 3): 2087, ("common", 250, 3): 1367, ("common", 101_770, 3): 2300, ("common", 1_000_000, 3): 16_777,
    ("bases", 250, 4): 1929, ("bases", 2500, 4): 1577, ("bases", 101_770, 4): 4350, ("common", 250, 4): 2728,
    ("common", 101_770, 4): 4375, ("common", 1_000_000, 4): 22_610,
}  # fmt: skip


def module(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_under_test", ROOT / path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    importlib.sys.modules[spec.name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def model():
    return module("analysis/worker_time.py")


@pytest.fixture(scope="module")
def machine(model):
    """Latency and bandwidth from two points of two workers; the rest of an RBD step with signs on one core, roughly."""
    small, large = MEASURED["bases", 2500, 2] * 1e-6, MEASURED["bases", 101_770, 2] * 1e-6
    bandwidth = 4 * (101_770 - 2500) / (large - small)
    return model.Machine(0.5e-3, 0.6e-3, 0.6e-3, small - 4 * 2500 / bandwidth, bandwidth)


@pytest.mark.parametrize("point", MEASURED)
def test_exchange_against_measured_points(model, machine, point):
    """Two of the 18 points made the model. Measured is 0.7 to 2.1 times the model (3 and 4 processes wait for 2 cores too),
    up to 3.2 times at a million values, where adding them up, which the model leaves out, costs as much as sending."""
    variant, values, workers = point
    modelled = model.exchange_seconds(variant, workers, values, values, machine)
    assert 1 / 1.6 < MEASURED[point] * 1e-6 / modelled < (2.5 if values < 10**6 else 3.3)


def test_bytes_are_those_of_the_table(model):
    """The formulas of the table in rbd.distributed, which test_distributed holds to the counters of the kernel."""
    d, size = 1000, 12_938
    for w in range(1, 9):
        sent = {v: math.prod(model.messages(v, w, d, size)) for v in model.VARIANTS}
        assert sent == pytest.approx({
            "common": 8 * d * (w - 1) / w, "bases": 4 * d * (w - 1), "directions": 4 * d * (w - 1),
            "shares": 4 * -(-d // w) * (w - 1), "ddp": 8 * size * (w - 1) / w})  # fmt: skip


def test_one_worker_waits_for_nobody(model, machine):
    for variant in ("common", "bases", "directions", "shares"):
        assert model.step_seconds(variant, 1, 250, 101_770, machine) == pytest.approx(1.7e-3)
    assert model.step_seconds("ddp", 1, 250, 101_770, machine) == 0.5e-3


def test_what_grows_with_the_workers(model, machine):
    """Regeneration: own bases W-fold, common and shares never. Waiting and the first expansion overlap."""
    near = replace(machine, latency=0.0, bandwidth=math.inf)
    cost = {v: [model.step_seconds(v, w, 250, 101_770, near) for w in (1, 2, 1000)] for v in model.VARIANTS}
    assert cost["bases"] == cost["directions"] == pytest.approx([1.7e-3, 2.3e-3, 1.1e-3 + 0.6])
    assert cost["common"] == pytest.approx([1.7e-3] * 3) and cost["ddp"] == [0.5e-3] * 3
    assert cost["shares"] == pytest.approx([1.7e-3, 1.4e-3, 1.1e-3 + 0.6e-6])
    far = replace(machine, latency=1.0)
    assert model.step_seconds("bases", 2, 250, 101_770, far) == pytest.approx(1.0 + 1.7e-3, abs=1e-4)
    shared = replace(near, cores=2)
    assert model.step_seconds("common", 4, 250, 101_770, shared) == pytest.approx(2 * 1.7e-3)
    with pytest.raises(ValueError, match="^variant: got 'gossip', allowed common"):
        model.step_seconds("gossip", 2, 250, 101_770, machine)


@pytest.mark.parametrize(("profile", "count"), [("quick", 60 + 18), ("paper", 60 + 18)])
def test_sweep(profile, count):
    """Every variant at every W with every seed, once; equal images; ids apart."""
    requests = list(workers.runs(profile))
    runs = rates.resolve(requests, {rates.key(r.config): 0.125 for r in requests}).configs
    assert len({c.id for c in runs}) == len(runs) == count
    assert {c.variant for c in runs} == {"common", "bases", "directions", "shares", "ddp"}
    assert len({(c.epochs, c.data, c.batch_size) for c in runs}) == 1
    for c in runs:
        sums = {"directions": c.workers**-0.5} if c.distribution == "countsketch" else {}
        assert c.lr == 0.125 * ({"common": c.workers, "ddp": math.sqrt(c.workers)} | sums).get(c.variant, 1)


@pytest.mark.timeout(200)
def test_benchmark(monkeypatch):
    """Two workers, two calls: every cell of the tables has a number."""
    monkeypatch.syspath_prepend(str(ROOT))
    measured, inside = (importlib.import_module(f"benchmarks.{name}") for name in ("workers", "_workers"))
    assert measured.VARIANTS == distributed.VARIANTS
    found = distributed.launch(inside.measured, 2, (1, 2), 2)
    for variant in measured.VARIANTS:
        assert 0 < measured.Steps().track_step(found, variant, 2) < math.inf
        assert 0 < measured.Regeneration().track_step(found, variant, 2) < math.inf
    for variant in (*measured.VARIANTS, *measured.RIVALS):
        assert 0 < measured.Exchange().track_step(found, variant, 2) < math.inf
        assert measured.Exchange().track_bytes(found, variant, 2) > 0
