"""The benchmarks' own tools, tested by a clock made for the tests, by planted bugs, and by asv reading what is saved.

That every benchmark runs is checked by `tox -e bench-quick`.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import load
import pytest
import torch

from rbd.distribution import DISTRIBUTIONS
from rbd.suite import checkpoint, experiment, paper, record, replay, train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are in the repository only")
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def benchmarks(monkeypatch):
    """Imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def measure(benchmarks):
    return benchmarks("_measure")


@dataclass
class Machine:
    """A clock, a processor whose idle threads spin for a while after `theirs`, and `ours`, which they halve."""

    now: float = 0.0
    used: float = 0.0
    spinning: float = 0.0  # until then
    calls: str = ""

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.used

    def sleep(self, seconds: float) -> None:
        self.used += max(0.0, min(seconds, self.spinning - self.now))
        self.now += seconds

    def run(self, seconds: float) -> None:
        self.now, self.used = self.now + seconds, self.used + seconds

    def theirs(self) -> None:
        self.calls += "t"
        self.run(0.010)
        self.spinning = self.now + 0.030

    def ours(self) -> None:
        self.calls += "o"
        self.run(0.004 if self.now < self.spinning else 0.002)

    def first_slow(self) -> None:
        self.run(1.0 if self.calls == "" else 0.001)
        self.calls += "f"


@pytest.fixture
def machine(measure, monkeypatch):
    made = Machine()
    monkeypatch.setattr(measure, "time", made)
    return made


def test_blocks_are_not_disturbed_by_threads_that_spin(measure, machine):
    """2 ms against 10 ms is 0.2; the strict turn has ours at 4 ms, hence 0.4."""
    pair = measure.alternate(machine.ours, machine.theirs, pairs=5, budget=0.0)
    assert (pair.ours, pair.theirs, pair.ratio) == pytest.approx((0.002, 0.010, 0.2))
    turns = measure.interleave(machine.ours, machine.theirs, budget=0.5)
    assert (turns.ours, turns.theirs, turns.ratio) == pytest.approx((0.004, 0.010, 0.4))


def test_blocks_alternate_in_order(measure, machine):
    """Ours first, theirs first, ours first; a call that warms up and two that are timed in each block."""
    measure.alternate(machine.ours, machine.theirs, pairs=3, budget=0.0)
    assert [len(run) for run in machine.calls.replace("to", "t o").replace("ot", "o t").split()] == [4, 8, 8, 4]
    assert machine.calls[0] == "o" and machine.calls[-1] == "t"


def test_ratio_is_the_median_of_neighbours(measure, machine):
    """A machine ten times slower for a pair, or for one side of another, changes nothing."""
    rounds = iter([1, 1, 10, 10, 1, 1, 10, 1, 1, 1])  # ten blocks of 4 calls
    slow = [factor for factor in rounds for _ in range(4)]
    calls = iter(slow)
    ours, theirs = (lambda: machine.run(0.001 * next(calls))), (lambda: machine.run(0.004 * next(calls)))
    pair = measure.alternate(ours, theirs, pairs=5, budget=0.0)
    assert pair.ratio == pytest.approx(0.25)


def test_rounds_take_turns(measure, machine):
    """A block of every call in a round, each in the other order; a machine ten times slower for a round changes nothing."""
    took, order = {"a": 0.001, "b": 0.004, "c": 0.002}, []

    def call(name: str):
        order.append(name)
        machine.run(took[name] * (10 if 12 <= len(order) - 1 < 24 else 1))

    found = measure.rounds({name: lambda name=name: call(name) for name in took}, count=3, budget=0.0)
    assert found == pytest.approx(took)
    assert "".join(order) == "aaaabbbbcccc" + "ccccbbbbaaaa" + "aaaabbbbcccc"


def test_time_and_ratio_of_a_step_are_of_the_same_blocks(benchmarks, monkeypatch):
    """So the quotient of the two times in the table is the ratio beside them (issue 13, 23)."""
    step = benchmarks("step")
    times = {"sgd": 0.002, "rbd rademacher": 0.003}

    def made(network: str, method: str, device: str):
        if method not in times:
            raise NotImplementedError(method)
        return lambda: None

    monkeypatch.setattr(step, "_step", made)
    monkeypatch.setattr(step, "rounds", lambda calls, device: {method: times[method] for method in calls})
    cell = ("cpu", "fc", "rbd rademacher")
    cache = {("cpu", "fc", method): found for method, found in step._steps("cpu", "fc").items()}
    assert step.Step().track_time(cache, *cell) == pytest.approx(3) and step.Step().track_against_sgd(cache, *cell) == 1.5
    with pytest.raises(NotImplementedError, match="rbd normal"):
        step.Step().setup(cache, "cpu", "fc", "rbd normal")


def test_the_price_of_a_step_is_measured_at_every_d_of_the_sweep(benchmarks):
    """Else the notebook `price` draws the records' seconds, which hold validation and whatever ran beside them."""
    step, price = benchmarks("step"), experiment.load("price")
    configs = [request.config for profile in experiment.PROFILES for request in price.runs(profile)]
    points = {(c.model, c.dim, f"{c.method} {c.distribution}") for c in configs if c.model == "fc" and c.method != "sgd"}
    once = {("fc", 250, f"rbd {distribution}") for distribution in ("uniform", "normal")}  # which Step measures, at d = 250
    assert len(points) == 15 and points - once <= {cell[1:] for cell in product(*step.Price.params)}
    assert once <= points and once <= {(network, 250, method) for _, network, method in product(*step.Step.params)}
    assert paper.SIZES["fc", 1] == step.SIZE and step.Price.param_names == ("device", "network", "d", "method")


def test_the_price_of_a_step_is_a_multiple_of_sgds_in_the_same_rounds(benchmarks, monkeypatch):
    """SGD takes 2 ms, the others d ms; a dense step that takes too long for the set of cells is not made."""
    step, made = benchmarks("step"), []

    def make(network: str, method: str, device: str):
        made.append((network, method))
        return lambda: None

    def clock(calls, device):
        return {cell: 0.002 if cell == "sgd" else cell[0] / 1000 for cell in calls}

    monkeypatch.setattr(step, "_step", make)
    monkeypatch.setattr(step, "rounds", clock)
    monkeypatch.setattr(step, "_steps", lambda *_: NotImplementedError("elsewhere"))
    monkeypatch.setattr(step, "METHODS", ())
    monkeypatch.setattr(step, "DEVICES", ("cpu",))
    monkeypatch.setattr(importlib.import_module("benchmarks._measure"), "SET", "quick")  # 50 ms
    cache, price = step.setup_cache(), step.Price()
    for method, dim in (("rbd countsketch", 101_770), ("rbd rademacher", 2500)):
        cell = ("cpu", "fc", dim, method)
        price.setup(cache, *cell)
        assert price.track_against_sgd(cache, *cell) == dim / 2 and ("fc", f"{method} {dim}") in made
    with pytest.raises(NotImplementedError, match="not in the set 'quick'"):
        price.setup(cache, "cpu", "fc", 101_770, "rbd rademacher")
    assert ("fc", "rbd rademacher 101770") not in made


def test_the_suites_loop_and_a_bare_one_take_turns(benchmarks, monkeypatch):
    """Three pairs of 2 / 1, 9 / 3 and 4 / 1 seconds a step: the median ratio is 3."""
    loop, order = benchmarks("loop"), []
    ours, bare = iter((2.0, 9.0, 4.0)), iter((2.0, 6.0, 2.0))  # seconds of a step; of an epoch of two batches
    monkeypatch.setattr(loop, "PAIRS", 3)
    monkeypatch.setattr(loop, "settle", lambda: order.append(" "))
    monkeypatch.setattr(loop, "seconds", lambda call: (order.append("b"), next(bare))[1])
    assert loop._compare(lambda: (order.append("s"), next(ours))[1], lambda: None, 2) == 3.0
    assert "".join(order) == " b s s b b s"


def test_the_first_call_of_a_block_is_not_timed(measure, machine):
    assert measure.block(machine.first_slow, budget=0.05) == pytest.approx(0.001)


def test_waiting_has_an_end(measure, machine):
    machine.spinning = math.inf
    measure.settle(quiet=0.005, patience=0.5)
    assert 0.5 <= machine.now < 0.51
    machine.spinning = 0.0
    measure.settle(quiet=0.005, patience=0.5)
    assert machine.now < 0.52


def test_long_calls_are_timed_once(measure, machine):
    """Two calls of 20 s: one that warms up, one that is timed, in one block."""
    assert measure.alone(lambda: machine.run(20), budget=0.1) == pytest.approx(20)
    assert machine.now < 41


def test_the_real_clock_tells_a_long_sleep_from_a_short_one(measure):
    import time

    pair = measure.alternate(lambda: time.sleep(0.02), lambda: time.sleep(0.01), pairs=3, budget=0.0)
    assert 1.2 < pair.ratio < 3  # 2, within what a busy machine adds to either


def test_cells_belong_to_sets(measure, monkeypatch):
    monkeypatch.setattr(measure, "SET", "default")
    measure.skip_if_slow(1.0)
    with pytest.raises(NotImplementedError, match="about 3 s a call: not in the set 'default', RBD_BENCH=slow measures it"):
        measure.skip_if_slow(3.0)
    with pytest.raises(NotImplementedError, match="no set measures it"):
        measure.skip_if_slow(1e4)


def test_an_unknown_set_is_named(fresh_python):
    script = "try:\n    import benchmarks._measure\nexcept ValueError as error:\n    print(error)"
    printed = fresh_python(script, root=ROOT, RBD_BENCH="fast")
    assert printed.strip() == "RBD_BENCH: got 'fast', allowed 'quick', 'default', 'slow'"


@pytest.mark.parametrize(("given", "told"), [
    ("cuda", "RBD_BENCH_DEVICE: got 'cuda', allowed 'cpu', 'gpu'"), ("", "None"), ("gpu", "gpu"),
])  # fmt: skip
def test_an_unknown_device_is_named(fresh_python, given, told):
    """It had left out the cells of every device."""
    script = "try:\n    from benchmarks._measure import ONLY\n    print(ONLY)\nexcept ValueError as error:\n    print(error)"
    assert fresh_python(script, root=ROOT, RBD_BENCH_DEVICE=given).strip() == told


def test_what_does_not_fit_is_told_with_its_size(measure, monkeypatch):
    monkeypatch.setattr(measure, "available_mib", lambda device: 1000.0)
    measure.fits("a basis", 800)
    with pytest.raises(NotImplementedError, match="does not fit: a basis takes 38,147 MiB, 1,000 MiB are available"):
        measure.fits("a basis", 38147)


def test_available_memory_is_that_of_this_machine(measure):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    assert 100 < measure.available_mib() <= pages


def test_one_cell_does_not_end_the_others(measure):
    def fail(error: Exception):
        raise error

    assert measure.unwrap(measure.attempt(lambda x: x + 1, 2)) == 3
    for error, kind in ((NotImplementedError("no"), NotImplementedError), (ValueError("bad"), RuntimeError),
                        (RuntimeError("device: no kernels for 'cuda', allowed 'cpu'"), NotImplementedError)):  # fmt: skip
        with pytest.raises(kind, match=str(error).split(",")[0]):
            measure.unwrap(measure.attempt(fail, error))


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="peak memory is read on Linux and macOS")
def test_peak_counts_what_was_touched_and_let_go(measure):
    empty, touched = measure.peak_mib("pass"), measure.peak_mib("x = bytearray(200 * 2**20); del x")
    assert 190 < touched - empty < 215  # MiB: 200 and what an allocator rounds up
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        measure.peak_mib("1 / 0")


def test_peak_of_a_step_does_not_grow_with_d(benchmarks, monkeypatch, tmp_path):
    """Within 1 % between d = 10 and d = 10,000; a stored basis of the latter would take 37 GiB, and is not tried.

    Also where no kernel is compiled yet, as in the new environment that asv makes for a commit.
    """
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    memory = benchmarks("memory")
    few, many = (memory.Peak().track_step("cpu", "rademacher", dim) for dim in (10, 10_000))
    assert abs(many - few) < 0.01 * few
    assert memory.track_import() <= few


WAYS = ("normal", "uniform", "rademacher", "countsketch", "stored fp32", "stored bf16", "stored bits", "randn",
        "sklearn gaussian", "sklearn sparse", "stored sketch", "hadamard")  # fmt: skip


def test_the_bare_loop_has_every_pair_of_the_paper_and_the_suites_layout(benchmarks, monkeypatch):
    """A bare loop in the slower layout would flatter the suite's: what each side's networks get has equal strides."""
    loop, models, seen = benchmarks("loop"), importlib.import_module("rbd.suite.models"), []
    pairs = {*paper.TABLE1, ("resnet8", "cifar10"), ("resnet32", "cifar10")}
    assert {tuple(pair.split()) for pair in loop.Loop.params[0]} == pairs - {("fc", "fmnist"), ("cnn", "fmnist")}
    assert set(loop.SECONDS) == set(loop.BATCHES) == set(loop.Loop.params[0])
    real = models.build

    def watch(*given, **named):
        model = real(*given, **named)
        first = next(m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Flatten)))
        first.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0].shape, inputs[0].stride())))
        return model

    monkeypatch.setattr(models, "build", watch)
    for pair in ("fc mnist", "cnn mnist", "cnn cifar10"):
        monkeypatch.setitem(loop.BATCHES, pair, 1)
        sides = []
        for run in (loop._suite_step(pair), loop._bare_epoch(pair)):
            seen.clear()
            run()
            sides.append({found for found in seen if found[0][0] == loop.BATCH})
        assert len(sides[0]) == 1 and sides[0] == sides[1], pair


@pytest.mark.parametrize("way", WAYS)
def test_ways_are_right(benchmarks, way):
    ways, cost = benchmarks("_ways"), benchmarks("_cost")
    assert cost.WAYS == WAYS
    if way.startswith("sklearn"):
        pytest.importorskip("sklearn")
    ways.check_small(way)
    built, (g, c) = ways.build(way, 20, 6000), ways.vectors(20, 6000, "cpu")
    ways.check(way, built, g, c)
    assert built.project(g).shape == (20,) and built.expand(c).shape == (6000,)


@pytest.mark.parametrize("way", ["rademacher", "countsketch", "stored fp32", "stored bf16", "stored bits", "randn",
                                 "stored sketch", "hadamard"])  # fmt: skip
@pytest.mark.parametrize("bug", ["project", "expand", "last column"])
def test_wrong_ways_are_not_timed(benchmarks, monkeypatch, way, bug):
    """A row or a column that is lost or of the other sign is found, in the small check and in that of the timed cell."""
    ways = benchmarks("_ways")
    right = ways.build

    def wrong(*arguments):
        built = right(*arguments)
        names = [name for name in ("project", "expand", "dense", "basis") if hasattr(built, name)]
        made = SimpleNamespace(**{name: getattr(built, name) for name in names})
        if bug == "project":
            made.project = lambda g: (c := built.project(g)) * torch.cat([torch.ones(len(c) - 1), -torch.ones(1)])
        elif bug == "expand":
            made.expand = lambda c: built.expand(c * torch.cat([torch.zeros(1), torch.ones(len(c) - 1)]))
        else:
            made.expand = lambda c: torch.cat([built.expand(c)[:-1], torch.ones(1)])
        return made

    monkeypatch.setattr(ways, "build", wrong)
    with pytest.raises(AssertionError, match=way):
        ways.check_small(way)
    with pytest.raises(AssertionError, match=way):
        ways.check(way, ways.build(way, 20, 6000), *ways.vectors(20, 6000, "cpu"))


def test_packed_words_for_gpus_are_right(benchmarks, monkeypatch):
    """Their arithmetic, on the CPU and not compiled."""
    ways = benchmarks("_ways")
    monkeypatch.setattr(ways.torch, "compile", lambda f, dynamic: f)
    monkeypatch.setattr(ways, "_bits", lambda device: ways.StoredWords)
    ways.check_small("stored bits")
    ways.check("stored bits", ways.build("stored bits", 20, 6000), *ways.vectors(20, 6000, "cpu"))


@pytest.mark.parametrize("dim", [1, 7, 1000])
def test_stored_sketch_is_ours(benchmarks, dim):
    """The same row and sign in every column, so the same products."""
    ways = benchmarks("_ways")
    ours, theirs = ways.build("countsketch", dim, 1000), ways.build("stored sketch", dim, 1000)
    g, c = ways.vectors(dim, 1000, "cpu")
    assert torch.allclose(ours.project(g), theirs.project(g), atol=1e-6)
    assert torch.allclose(ours.expand(c), theirs.expand(c), rtol=1e-6)


def test_hadamard_transform_is_orthogonal_up_to_its_length(benchmarks):
    ways = benchmarks("_ways")
    h = torch.stack([ways._hadamard(x) for x in torch.eye(64)])  # (64, 64)
    assert torch.equal(h.abs(), torch.ones(64, 64)) and torch.equal(h @ h.T, 64 * torch.eye(64))
    every = ways.Hadamard.make(64, 50, "cpu").dense()  # all rows of H
    assert torch.allclose(every.T @ every, 64 / 50 * torch.eye(50).double())


def test_an_older_rbd_has_no_sketch(benchmarks, measure, monkeypatch):
    """Then cells of it are n/a, and others are measured: asv runs old commits by the benchmarks of today."""
    from rbd import distribution

    older = {name: distribution for name, distribution in distribution.DISTRIBUTIONS.items() if name != "countsketch"}
    monkeypatch.setattr(distribution, "DISTRIBUTIONS", older)
    ratios, kernels, step = benchmarks("ratios"), benchmarks("kernels"), benchmarks("step")
    tried = [measure.attempt(kernels._check, "cpu", way) for way in ("countsketch", "stored sketch")]
    tried.append(measure.attempt(ratios._build, "cpu", "countsketch"))
    tried.append(measure.attempt(step._step, "fc", "rbd countsketch", "cpu"))
    for cell in tried:
        assert isinstance(cell, NotImplementedError) and "distribution: got 'countsketch'" in str(cell)
    assert measure.attempt(kernels._check, "cpu", "rademacher") is None


def test_sizes_are_those_of_what_is_stored(benchmarks):
    ways, cost = benchmarks("_ways"), benchmarks("_cost")
    for way in ("stored fp32", "stored bf16"):
        phi = ways.build(way, 8, 4096).phi
        assert phi.element_size() * phi.numel() / 2**20 == cost.stored_mib(way, 8, 4096)
    assert ways.build("stored bits", 8, 4096).bits.nbytes / 2**20 == cost.stored_mib("stored bits", 8, 4096)
    for way in ("stored sketch", "hadamard"):
        kept = [x for x in vars(ways.build(way, 8, 4096)).values() if isinstance(x, torch.Tensor)]
        assert sum(x.nbytes for x in kept) / 2**20 == cost.stored_mib(way, 8, 4096)
    assert all(cost.stored_mib(way, 10**4, 10**8) == 0 for way in cost.ON_DEMAND)


def test_the_rivals_that_do_not_fit_are_not_allocated(benchmarks, monkeypatch):
    ways, measure = benchmarks("_ways"), benchmarks("_measure")
    monkeypatch.setattr(measure, "SET", "slow")
    monkeypatch.setattr(measure, "available_mib", lambda device: 20_000.0)
    with pytest.raises(NotImplementedError, match="stored fp32 of 10,000 x 1,000,000 takes 38,"):
        ways.build("stored fp32", 10_000, 1_000_000)


def test_runner_finds_what_asv_finds(benchmarks):
    """Names, parameters, versions and units; so results saved without asv are those that asv looks for."""
    discovery = pytest.importorskip("asv_runner.discovery")
    ours = {b.name: b for b in benchmarks("run").benchmarks()}
    theirs = {b.name: b for b in discovery.disc_benchmarks(str(ROOT / "benchmarks"))}
    assert set(ours) == set(theirs) and len(ours) >= 15
    for name, b in ours.items():
        assert [[repr(v) for v in values] for values in b.params] == theirs[name].params, name
        assert b.version == theirs[name].version is not None, name
        assert theirs[name].unit != "unit" and theirs[name].type == "track", name


def test_cells_are_looked_up_without_torch(benchmarks, fresh_python):
    """asv starts a process for every cell; where all is measured before, it need not import torch for seconds."""
    measured = sorted({b.module.__name__ for b in benchmarks("run").benchmarks() if hasattr(b.module, "setup_cache")})
    assert measured == [f"benchmarks.{name}" for name in ("generation", "kernels", "ratios", "step", "subspace", "workers")]
    script = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from benchmarks import workers
found = {("step", "alone", 1): 2.0, ("step", "bases", 2): 3.0, ("exchange", "bases", 2): 1.0, ("bytes", "bases", 2): 8.0,
         ("regeneration", "bases", 2): 2.5}
steps, exchange, regeneration = workers.Steps(), workers.Exchange(), workers.Regeneration()
print(steps.track_step(found, "bases", 2), regeneration.track_step(found, "bases", 2))
print(exchange.track_step(found, "bases", 2), exchange.track_bytes(found, "bases", 2))
print(*sorted({"torch", "numpy", "numba", "rbd"} & set(sys.modules)))
"""
    assert fresh_python(script, *measured, root=ROOT).splitlines() == ["1.5 1.25", "0.5 8.0", ""]


def test_large_ratios_are_of_a_gpu(benchmarks, measure, monkeypatch):
    """Both sides at d D = 1e9, where 8 times stored fp32 is the target; here at a size and on a device that are there."""
    ratios = benchmarks("ratios")
    assert ratios.LARGE[0] * ratios.LARGE[1] >= 10**9 and ratios.DENSE == ("normal", "uniform", "rademacher")
    monkeypatch.setattr(ratios, "LARGE", (5, 3000))
    monkeypatch.setattr(ratios, "on_device", lambda name: "cpu")
    monkeypatch.setattr(ratios, "_build", lambda device, way, *shape, real=ratios._build: real("cpu", way, *shape))
    monkeypatch.setattr(ratios, "alternate", lambda ours, theirs, _: SimpleNamespace(ratio=float(ours() is not theirs())))
    monkeypatch.setattr(ratios, "interleave", lambda ours, theirs: None)
    for name in ("RIVALS", "SKETCH_SIZES", "ON_DEMAND"):
        monkeypatch.setattr(ratios, name, ())
    cache = ratios.setup_cache()
    assert list(cache) == [("gpu", way, "stored fp32", 5, 3000) for way in ratios.DENSE]
    for way in ratios.Large.params[0]:
        assert ratios.Large().track_project(cache, way, "stored fp32") == 1
        assert ratios.Large().track_expand(cache, way, "stored fp32") == 1


def test_saved_results_are_read_by_asv_and_by_the_table(benchmarks, tmp_path):
    results = pytest.importorskip("asv.results")
    run, table = benchmarks("run"), benchmarks("table")
    (peak,) = run.benchmarks("memory.Peak")
    (ratio,) = run.benchmarks("ratios.Ratio.track_project")
    half = [0.5 if cell[1:] == ("rademacher", "stored fp32") else math.nan for cell in ratio.cells]
    outcomes = {
        peak: run.Outcome([None, *(float(i) for i in range(1, len(peak.cells)))], [], 1e9, 2.5),
        ratio: run.Outcome(half, [], 1e9, 1.0),
    }
    path = run.save(outcomes, tmp_path, COMMIT, 1_600_000_000)
    machine = json.loads((path.parent / "machine.json").read_text())
    loaded = results.Results.load(str(path), machine_name=machine["machine"])
    assert (loaded.commit_hash, loaded.date) == (COMMIT, 1_600_000_000_000)
    params = [[repr(v) for v in values] for values in peak.params]
    assert loaded.get_result_value("memory.Peak.track_step", params)[:3] == [None, 1.0, 2.0]
    assert loaded._benchmark_version["memory.Peak.track_step"] == peak.version

    (read,) = table.latest(tmp_path)
    assert read.get("memory.Peak.track_step", "cpu", "rademacher", "100") == 1.0
    assert math.isnan(read.get("memory.Peak.track_step", "cpu", "rademacher", "10"))  # it had failed
    text = table.tables(tmp_path)
    assert "| signs | 2.0 × / n/a |" in text and "| entries | stored fp32 |" in text and COMMIT[:8] in text


def test_saving_again_keeps_what_was_measured_before(benchmarks, monkeypatch, tmp_path):
    run = benchmarks("run")
    one, other = run.benchmarks("memory.Peak.track_step")[0], run.benchmarks("ratios.Ratio.track_project")[0]
    for benchmark, value in ((one, 1.0), (other, 2.0), (one, 3.0)):
        path = run.save({benchmark: run.Outcome([value] * len(benchmark.cells), [], 1e9, 1.0)}, tmp_path, COMMIT, 1)
    found = json.loads(path.read_text("utf-8"))["results"]
    assert {name: set(values[0]) for name, values in found.items()} == {one.name: {3.0}, other.name: {2.0}}
    monkeypatch.setattr(run, "benchmarks", lambda _: pytest.fail("it would have measured"))
    with pytest.raises(SystemExit, match="--quick: got --save with .*, allowed a folder without results"):
        run.main(["--quick", "--save", str(tmp_path), "--commit", f"{COMMIT} 1"])
    for damaged, text in product((path, tmp_path / "benchmarks.json"), ("{", "[" * 100_000)):
        damaged.write_text(text)
        with pytest.raises(SystemExit, match=f"--save: {re.escape(str(damaged))} is not a file of results: .*; move it"):
            run.main(["--save", str(tmp_path), "--commit", f"{COMMIT} 1"])
        damaged.write_text('{"results": {}}')


def test_modules_side_by_side_give_what_they_give_in_turn(benchmarks):
    run = benchmarks("run")
    chosen = run.benchmarks("^(data|size.Stored)")
    assert len({b.module for b in chosen}) == 2
    found = dict(run.side_by_side(chosen))
    assert list(found) == chosen and all(None not in outcome.values for outcome in found.values())
    sizes = [b for b in chosen if b.name.startswith("size")]
    assert [found[b].values for b in sizes] == [outcome.values for _, outcome in run.everything(sizes)]


def test_bad_input_of_the_commands_is_refused_in_a_line(benchmarks, tmp_path, monkeypatch, capsys):
    """Before anything is measured, or a rented GPU waits for data."""
    run, file, commit = benchmarks("run"), tmp_path / "file", ["--commit", f"{COMMIT} 1"]
    file.touch()
    monkeypatch.setattr(run, "benchmarks", lambda _: pytest.fail("it would have measured"))
    with pytest.raises(SystemExit, match=r"^--bench: got '\[', allowed a regular expression: "):
        run.main(["--bench", "["])
    with pytest.raises(SystemExit, match=f"^--save: {re.escape(str(file))}: "):
        run.main(["--save", str(file), *commit])
    monkeypatch.setattr(sys, "argv", ["table", "--into", str(tmp_path / "gone.md")])
    with pytest.raises(SystemExit, match=r"^benchmarks.table: .*gone\.md"):
        benchmarks("table").main()
    for words, message in ((["first", "--data", "nowhere"], "--data: nowhere: no such folder"),
                           (["more"], "more: no campaign has begun in "), (["last"], "last: no campaign has begun in ")):
        with pytest.raises(SystemExit):
            benchmarks("gpu_campaign").main([*words, "--work", str(tmp_path / "work")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_results_of_changed_files_are_not_saved_under_the_commit(benchmarks, monkeypatch, tmp_path):
    run = benchmarks("run")
    monkeypatch.setattr(run, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(run, "benchmarks", lambda _: [])
    (tmp_path / "benchmarks").mkdir()
    kept = tmp_path / "benchmarks" / "step.py"
    kept.write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "m"]):
        subprocess.run([*git, *command], check=True)
    assert run.main(["--save", str(tmp_path / "out")]) == 1  # nothing was measured
    kept.write_text("2\n")
    with pytest.raises(SystemExit, match="commit these changes first.*\n M benchmarks/step.py"):
        run.main(["--save", str(tmp_path / "out")])


def test_the_table_takes_each_benchmark_from_the_youngest_commit_that_has_it(benchmarks, tmp_path):
    run, table = benchmarks("run"), benchmarks("table")
    (peak,), (price,), (loop,) = map(run.benchmarks, ("memory.Peak", "step.Price", "loop.Loop"))
    for commit, date, value, measured in (("a" * 40, 1, 1.0, (price, loop)), ("b" * 40, 2, 2.0, (peak, price))):
        run.save({b: run.Outcome([value] * len(b.cells), [], 1e9, 1.0) for b in measured}, tmp_path, commit, date)
    (read,) = table.latest(tmp_path)
    of = [("memory.Peak.track_step", "cpu", "rademacher", "100"), ("loop.Loop.track_against_torch", "fc mnist"),
          ("step.Price.track_against_sgd", "cpu", "fc", "250", "rbd countsketch")]  # fmt: skip
    assert [read.get(*cell) for cell in of] == [2.0, 1.0, 2.0] and read.commits == ("a" * 40, "b" * 40)
    text = table.tables(tmp_path)
    assert "commits aaaaaaaa, bbbbbbbb, n = 1 run" in text and "| the suite's step | 1.00 × |" in text
    assert "| rbd countsketch | 2.0 × |" in text


@pytest.mark.parametrize("first", ["1", "3"])  # torch, by which files are sorted
def test_the_table_takes_the_last_run_of_a_commit(benchmarks, monkeypatch, tmp_path, first):
    run, table = benchmarks("run"), benchmarks("table")
    (loop,) = run.benchmarks("loop.Loop")
    for torchs, value, started in ((first, 1.0, 1e9), ("2", 3.0, 2e9)):
        monkeypatch.setattr(run, "_versions", lambda torchs=torchs: {"torch": torchs})
        run.save({loop: run.Outcome([value] * len(loop.cells), [], started, 1.0)}, tmp_path, COMMIT, 1)
    (read,) = table.latest(tmp_path)
    assert read.get(loop.name, "fc mnist") == 3.0 and read.commits == (COMMIT,)


def test_the_table_of_targets_counts_the_values_that_meet_them(benchmarks, tmp_path):
    """Over all commits; where a benchmark has changed, by its last version alone."""
    run, table = benchmarks("run"), benchmarks("table")
    assert table.targets(tmp_path) == "No results are committed yet."
    (project,), (loop,) = map(run.benchmarks, ("ratios.Ratio.track_project", "loop.Loop"))
    for commit, date, ratio in (("a" * 40, 1, 0.2), ("b" * 40, 2, 0.05)):
        values = {("cpu", "rademacher", "stored fp32"): ratio, ("cpu", "rademacher", "stored bits"): ratio}
        results = {b: run.Outcome([values.get(cell, 10 * ratio) for cell in b.cells], [], 1e9, 1.0) for b in (project, loop)}
        path = run.save(results, tmp_path, commit, date)
        if date == 1:
            older = json.loads(path.read_text("utf-8"))
            older["results"][loop.name][older["result_columns"].index("version")] = "0"
            path.write_text(json.dumps(older))
    told, cells = table.targets(tmp_path), len(loop.cells)
    for line in ("| signs against stored fp32, `project` | ≥ 10 × | 5.0 to 20 × | 1 of 2 |",
                 "| signs against stored bits, `project` | – | 5.0 to 20 × | – of 2 |",
                 "| signs against stored fp32, `expand` | ≥ 6 × | n/a | – |",
                 f"| the suite's step against a bare loop's | ≤ 1.1 × | 0.50 × | {cells} of {cells} |"):  # fmt: skip
        assert line in told, told


def test_targets_of_sketches_have_a_size_and_a_side(benchmarks, tmp_path):
    """At least, at most, or within a factor both ways: a ratio of 0.8 is 1.25."""
    run, table = benchmarks("run"), benchmarks("table")
    values = {("stored sketch", 101_770): 0.5, ("stored sketch", 10**8): 0.2, ("copy", 10**7): 0.7, ("copy", 101_770): 9}
    for what, flat in (("project", 0.8), ("expand", 1.3)):
        (sketch,) = run.benchmarks(f"ratios.Sketch.track_{what}")
        found = [values.get((rival, size), flat if (rival, dim, size) == ("d = 250", 10_000, 101_770) else math.nan)
                 if device == "cpu" else math.nan for device, rival, dim, size in sketch.cells]  # fmt: skip
        run.save({sketch: run.Outcome(found, [], 1e9, 1.0)}, tmp_path, COMMIT, 1)
    told = table.targets(tmp_path)
    for line in ("a stored sketch, d = 250 and 10,000, `expand` | ≥ 3 × | 2.0 × | 0 of 2 |",
                 "a stored sketch, d = 250 and 10,000, D ≥ 1e7, `project` and `expand` | ≥ 3 × | 5.0 × | 4 of 4 |",
                 "longer time over shorter, `project` and `expand` | ≤ 1.25 × | 1.25 to 1.30 × | 1 of 2 |",
                 "250 and 10,000, D ≥ 1e7, `project` and `expand` | ≤ 2.5 × | 0.70 × | 4 of 4 |"):  # fmt: skip
        assert line in told, told


def test_saved_results_are_seen_by_the_notebooks(benchmarks, tmp_path):
    """Which skip what asv's list does not have, or has in another version; the rest of the list stays."""
    run = benchmarks("run")
    (price,) = run.benchmarks("step.Price")
    (ratio,) = run.benchmarks("ratios.Ratio.track_project")
    old = {"name": ratio.name, "version": "0", "params": [], "code": "def f(): pass"}
    (tmp_path / "asv").mkdir()
    (tmp_path / "asv" / "benchmarks.json").write_text(json.dumps({"version": 2, "gone": {"name": "gone"}, ratio.name: old}))
    for benchmark in (price, ratio, price):
        outcome = run.Outcome([1.5] * len(benchmark.cells), [], 1e9, 1.0)
        run.save({benchmark: outcome}, tmp_path / "asv", COMMIT if benchmark is price else COMMIT[::-1], 1_600_000_000)
    known = json.loads((tmp_path / "asv" / "benchmarks.json").read_text())
    assert set(known) == {"version", "gone", price.name, ratio.name} and known[ratio.name]["version"] == ratio.version
    table = load.asv(tmp_path)
    cell = table[(table.benchmark == price.name) & (table.d == 2500) & (table.method == "rbd countsketch")]
    assert set(cell.device) == {"cpu", "gpu"} and set(cell.value) == {1.5} and set(table.unit) == {price.unit, ratio.unit}
    assert len(table) == len(price.cells) + len(ratio.cells)


def test_table_of_workers(benchmarks, tmp_path):
    """Against W, by what was saved; no table where nothing was measured, as on a GPU's machine."""
    run, table = benchmarks("run"), benchmarks("table")
    found = {b.name: b for b in run.benchmarks("workers")}
    values = {
        "workers.Steps.track_step": {("shares", 1): 1.0, ("shares", 4): 25.2},
        "workers.Regeneration.track_step": {("shares", 4): 0.6251},
        "workers.Exchange.track_step": {("shares", 2): 0.251, ("ddp", 3): 2.04, ("all_reduce", 4): 1.5},
        "workers.Exchange.track_bytes": {("shares", 2): 1288.0, ("ddp", 3): 543_621.4},
    }
    run.save({b: run.Outcome([values[name].get(cell, math.nan) for cell in b.cells], [], 1e9, 1.0)
              for name, b in found.items()}, tmp_path, COMMIT, 1_600_000_000)  # fmt: skip
    lines = table.tables(tmp_path).splitlines()
    for line in ("| step of W workers | W = 1 | W = 2 | W = 3 | W = 4 |",
                 "| shares | 1.00 × (n/a) | n/a | n/a | 25 × (0.63 ×) |",
                 "| exchange alone | W = 2 | W = 3 | W = 4 |", "| shares | 0.25 ×, 1,288 B | n/a | n/a |",
                 "| ddp | n/a | 2.0 ×, 543,621 B | n/a |", "| gloo's all-reduce | n/a | n/a | 1.50 × |"):  # fmt: skip
        assert lines.count(line) == 1, line
    run.save({b: run.Outcome([None] * len(b.cells), [], 1e9, 1.0) for b in found.values()}, tmp_path, COMMIT, 1_600_000_000)
    assert "W = 2" not in table.tables(tmp_path)


def test_table_names_a_file_that_is_none_of_asvs(benchmarks, tmp_path):
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "machine.json").write_text("{}")
    whole = {"result_columns": [], "results": {}, "commit_hash": COMMIT, "date": 1, "python": "3.12",
             "params": {"machine": "vm", "cpu": "x", "num_cpu": "1", "ram": "1", "os": "x"}}  # fmt: skip
    bad = [whole | {"results": 3}, whole | {"params": {}}, whole | {"params": whole["params"] | {"ram": ""}}, [], 1]
    for text in ("{", "[" * 100_000, "\xff", *map(json.dumps, bad)):
        (tmp_path / "vm" / "x.json").write_text(text, "latin-1")
        with pytest.raises(ValueError, match=r"x\.json: not a result file of asv"):
            benchmarks("table").tables(tmp_path)
    (tmp_path / "vm" / "x.json").write_text(json.dumps(whole))
    assert benchmarks("table").tables(tmp_path) == "No results are committed yet."


def test_readme_has_the_tables_of_the_committed_results(benchmarks):
    table, readme = benchmarks("table"), (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    assert table.written(readme, ROOT / "results" / "asv") == readme


def test_every_committed_result_is_in_the_list_of_benchmarks():
    """Notebooks and asv's site skip what is not."""
    folder = ROOT / "results" / "asv"
    known = json.loads((folder / "benchmarks.json").read_text("utf-8"))
    measured = {name for path in folder.glob("*/*-*.json") for name in json.loads(path.read_text("utf-8"))["results"]}
    assert len(measured) > 20 and measured <= set(known)


def collect(table, *cells: tuple[str, ...]) -> tuple[list[float], int]:
    """The committed values of some cells (benchmark, parameters), and the number of commits that have one."""
    paths = [p for p in sorted((ROOT / "results" / "asv").glob("*/*-*.json")) if p.name != "machine.json"]
    found = [[x for cell in cells if math.isfinite(x := results.get(*cell))] for results in map(table.load, paths)]
    return [x for values in found for x in values], sum(map(bool, found))


STEP, PRICE = "step.Step.track_against_sgd", "step.Price.track_against_sgd"


@pytest.mark.parametrize(("entries", "words"), [
    ("countsketch", "training step with countsketch, against SGD's"), ("rademacher", "step with signs"),
])  # fmt: skip
def test_readme_quotes_the_range_of_a_step_over_all_commits(benchmarks, entries, words):
    cells = (STEP, "cpu", "fc", f"rbd {entries}"), (PRICE, "cpu", "fc", "250", f"rbd {entries}")
    values, n = collect(benchmarks("table"), *cells)
    told = f"| {words} | {min(values):.1f}–{max(values):.1f} × the time (n = {n}) |"
    assert told in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("entries", "words", "digits"), [
    ("rademacher", "multiplying by signs on demand, against a stored fp32 basis", 0),
    ("normal", "by normal entries, against stored fp32", 1),
])  # fmt: skip
def test_readme_quotes_the_range_of_a_product_over_all_commits(benchmarks, entries, words, digits):
    cells = [(f"ratios.Ratio.track_{product}", "cpu", entries, "stored fp32") for product in ("project", "expand")]
    values, n = collect(benchmarks("table"), *cells)
    span = "–".join(f"{1 / x:.{digits}f}" for x in (max(values), min(values)))
    assert f"| {words} | {span} × as fast (n = {n}) |" in (ROOT / "README.md").read_text("utf-8")


def test_the_page_of_benchmarks_begins_with_the_ranges_of_all_commits(benchmarks):
    page = " ".join((ROOT / "docs" / "results" / "benchmarks.md").read_text("utf-8").split())
    fc = (STEP, "cpu", "fc", "rbd countsketch"), (PRICE, "cpu", "fc", "250", "rbd countsketch")
    values, n = collect(benchmarks("table"), *fc)
    assert f"{min(values):.1f} to {max(values):.1f} times as long as SGD's on the FC net (d = 250, n = {n} commits)" in page
    networks = ("cnn", "resnet8", "resnet32")
    others = [(STEP, "cpu", network, f"rbd countsketch{d}") for network in networks for d in ("", " 10000")]
    values, n = collect(benchmarks("table"), *others)
    assert f"{min(values):.2f} to {max(values):.2f} times on the CNN and the ResNets (n = {n})" in page


def test_tables_say_processor_and_caches(benchmarks, tmp_path):
    run, table, size = benchmarks("run"), benchmarks("table"), benchmarks("size")
    told = [(1, "Data", 32), (1, "Instruction", 32), (2, "Unified", 1024), (3, "Unified", 32768)]
    for index, (level, kind, kib) in enumerate(told):
        place = tmp_path / "cache" / f"index{index}"
        place.mkdir(parents=True)
        for name, value in (("level", level), ("type", kind), ("size", f"{kib}K")):
            (place / name).write_text(f"{value}\n")
    sizes = size.caches(tmp_path / "cache")
    assert sizes == {"L1d": 32, "L2": 1024, "L3": 32768} and size.caches(tmp_path / "none") == {}

    found = {b.name: b for b in run.benchmarks("size.Cache|ratios.Sketch|step.Step")}
    values = {
        "size.Cache.track_size": {(cache,): kib for cache, kib in sizes.items()},
        "ratios.Sketch.track_project": {("cpu", "copy", 250, 10**7): 2.0},
        "ratios.Sketch.track_expand": {("cpu", "copy", 250, 10**7): 0.05},
        "step.Step.track_time": {("cpu", "fc", "rbd countsketch 10000"): 0.6},
        "step.Step.track_against_sgd": {("cpu", "fc", "rbd countsketch 10000"): 1.2},
    }
    for more in ({}, {"size.Cache.track_size": {}}):
        run.save({b: run.Outcome([(values | more)[name].get(cell, math.nan) for cell in b.cells], [], 1e9, 1.0)
                  for name, b in found.items()}, tmp_path / "asv", COMMIT, 1_600_000_000)  # fmt: skip
        text, cpu = table.tables(tmp_path / "asv"), run.this_machine()["cpu"]
        known = "cache sizes were not recorded" if more else "L1d 32 KiB, L2 1 MiB, L3 32 MiB"
        assert text.count(f"CPU, {cpu} ({known}). ") == 2
    assert "| copy | n/a | n/a | 0.50 × / 20 × | n/a | n/a | n/a |" in text
    assert "| 0.6 ms (1.20 ×) |" in text and "rbd countsketch, d = 10,000 |" in text
    (path,) = (tmp_path / "asv").glob("*/0*.json")
    older = json.loads(path.read_text("utf-8"))
    for name in ("step.Step.track_time", "step.Step.track_against_sgd"):
        older["results"][name][older["result_columns"].index("version")] = "1"
    path.write_text(json.dumps(older))
    assert "| 1.20 × |" in (text := table.tables(tmp_path / "asv")) and "0.6 ms" not in text  # times of other blocks


def _bash(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", *command], env={**os.environ, **environment}, capture_output=True, text=True, timeout=100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_on_gpu_says_that_there_is_none(tmp_path):
    done = _bash(str(ROOT / "benchmarks" / "on_gpu"), "--save", str(tmp_path), PYTHON=sys.executable)
    assert done.returncode == 3 and "no GPU" in done.stderr and not list(tmp_path.iterdir())


def test_a_commit_is_asked_for_where_git_is_missing(benchmarks):
    run = benchmarks("run")
    assert run._commit(f"{COMMIT} 1600000000\n") == (COMMIT, 1_600_000_000)
    with pytest.raises(SystemExit, match="--commit: got 'abc'"):
        run._commit("abc")


def test_a_stated_commit_is_taken_where_git_is_missing(benchmarks, monkeypatch, tmp_path):
    run = benchmarks("run")
    monkeypatch.setattr(run, "HERE", tmp_path / "benchmarks")
    with pytest.raises(SystemExit, match="put that into RBD_COMMIT, or a file COMMIT here"):
        run._commit(None)
    (tmp_path / "COMMIT").write_text(f"{COMMIT} 1600000000\n")
    assert run._commit(None) == (COMMIT, 1_600_000_000)
    assert run.main(["--check-commit"]) == 0


def test_what_answers_most_is_measured_first(benchmarks):
    modules = [b.module.__name__.rpartition(".")[2] for b in benchmarks("run").benchmarks()]
    assert list(dict.fromkeys(modules))[:3] == ["ratios", "step", "generation"]
    assert list(dict.fromkeys(modules))[3:] == sorted({*modules} - {"ratios", "step", "generation"})


def test_the_planted_slowdown_finds_its_line():
    script = (ROOT / "benchmarks" / "planted_slowdown").read_text("utf-8")
    line = "    images_cpu.fill(*given, x.numpy())"
    assert line in script and line in (ROOT / "rbd" / "suite" / "images.py").read_text("utf-8")
    assert _bash("-n", str(ROOT / "benchmarks" / "planted_slowdown")).returncode == 0


def test_asv_is_pinned_alike_everywhere():
    """Another asv_runner times in another way: the environments that asv makes have that of the dependency group."""
    (runner,) = re.findall(r'"asv_runner==([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    pinned = json.loads((ROOT / "asv.conf.json").read_text("utf-8"))["matrix"]["req"]
    assert pinned["pip+asv_runner"] == [runner]
    assert all(len(pinned[name]) == 1 and pinned[name][0] for name in ("torch", "numba", "scikit-learn"))


@pytest.mark.parametrize("name", ["normal", "uniform", "rademacher"])
def test_all_tiles_of_the_gpu_give_the_same_bits(benchmarks, name, monkeypatch):
    """And every one is timed once, the constant among them or beside them; limits of registers are those of its tile."""
    from rbd.kernels import gpu

    tiles, distribution, limits = benchmarks("tiles"), DISTRIBUTIONS[name], []
    monkeypatch.setattr(gpu, "_REGISTERS", {name: (72, 96)}, raising=False)

    def clock(call) -> float:
        limits.append(gpu._REGISTERS[name])
        return float(call().isfinite().all())

    found = list(tiles.tiles(distribution, 3, 300, clock))
    for limit, (what, _, now, _) in zip(limits, found, strict=True):
        assert limit == ((None, None) if what in ("rows", "warps") and not now else (72, 96))
    assert [count for what, count, *_ in found if what == "rows"] == list(tiles.ROWS)
    warps = [count for what, count, *_ in found if what == "warps"]
    assert warps == [n for n in tiles.WARPS if 32 * n >= gpu._BLOCKS[name]] and gpu._BLOCKS[name] in (16, 64)
    assert [count for what, count, *_ in found if what == "programs"] == list(tiles.PROGRAMS)
    parts = [count for what, count, *_ in found if what == "parts"]
    assert parts == [n for n in tiles.PARTS if distribution.per_word % n == 0]
    assert all(seconds == 1.0 for *_, seconds in found)


def test_archives_of_the_campaign_are_cut_between_files(benchmarks, tmp_path):
    campaign, files = benchmarks("gpu_campaign"), []
    for number, size in enumerate((5, 5, 1, 30, 2, 8, 1)):
        files.append(tmp_path / str(number))
        files[-1].write_bytes(bytes(size))
    parts = [[path.name for path in part] for part in campaign.split(files, 10)]
    assert parts == [["0", "1"], ["2"], ["3"], ["4", "5"], ["6"]]


def test_a_part_of_the_campaign_is_ended_in_time(benchmarks, tmp_path, monkeypatch):
    """With all that it has started, and what it has said is kept."""
    campaign = benchmarks("gpu_campaign")
    (tmp_path / "benchmarks").mkdir()
    script = tmp_path / "benchmarks" / "on_gpu"
    script.write_text("#!/bin/sh\necho begun $PARTS $1\nsleep 60 & sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    plan = campaign.Plan(tmp_path)
    assert not campaign.check(plan, "tests", 1.0, ["option"])
    assert (tmp_path / "tests.log").read_text() == "begun tests option\n"
    assert campaign.load(campaign.dump(plan)) == plan


def test_training_starts_again_after_a_fault(benchmarks, tmp_path, monkeypatch):
    """A process that fails is followed by another, until one says that all is done."""
    campaign, statuses = benchmarks("gpu_campaign"), [1, 1, 0]
    (tmp_path / "end").write_text("9e9")
    monkeypatch.setattr(campaign.signal, "signal", lambda *_: None)
    pauses = []
    monkeypatch.setattr(campaign.time, "sleep", pauses.append)
    monkeypatch.setattr(campaign.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda _: statuses.pop(0)))
    assert campaign.keep_training(campaign.Plan(tmp_path)) == 0 and not statuses and pauses == [1, 2]


def sleep(*words: str) -> subprocess.Popen:
    """A process with these words in its command."""
    code = "import time; print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
    process.stdout.readline()  # it has its command now
    return process


def test_a_second_training_is_not_started(benchmarks, tmp_path, monkeypatch, capsys):
    campaign = benchmarks("gpu_campaign")
    plan = campaign.Plan(tmp_path)
    with sleep("keep-training", "--plan", campaign.dump(plan)) as training:
        (tmp_path / "pid").write_text(str(training.pid))
        monkeypatch.setattr(campaign.subprocess, "Popen", lambda *_, **__: pytest.fail("a second one"))
        campaign.start(plan)
        assert capsys.readouterr().out == f"training goes on in process {training.pid}\n"
        campaign.stop(plan)
        assert not campaign.is_training(plan)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux tells the command of a process")
def test_a_process_that_got_the_number_of_the_training_is_left_alone(benchmarks, tmp_path):
    campaign = benchmarks("gpu_campaign")
    plan, elsewhere = campaign.Plan(tmp_path), campaign.dump(campaign.Plan(tmp_path / "other"))
    for words in ((), ("keep-training", "--plan", elsewhere), ("report", "--plan", campaign.dump(plan))):
        with sleep(*words) as other:
            (tmp_path / "pid").write_text(str(other.pid))
            assert not campaign.is_training(plan)
            campaign.stop(plan)
            assert other.poll() is None
            other.kill()


SWEEP = """
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment

def runs(profile):
    return [RunConfig(epochs=3, batch_size=500, dim=20, lr=4.0, seed=seed) for seed in range(3)]

EXPERIMENT = Experiment("lanes", "Do lanes survive a fault?", runs)
"""


class Faulty(replay.Eager):
    """A device that some pieces of work break for good, as an illegal access to memory does for a process."""

    queues, pause = True, 1e-9
    left = 20

    def run(self, name, work, count=1):
        Faulty.left -= 1
        if Faulty.left < 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().run(name, work, count)


def test_training_goes_on_from_checkpoints_after_a_fault_of_the_gpu(benchmarks, tmp_path, monkeypatch):
    """It fails all lanes of a process; the next one goes on with them, and leaves the records of runs without a fault."""
    campaign = benchmarks("gpu_campaign")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "lanes.py").write_text(SWEEP)
    (tmp_path / "end").write_text("9e9")
    monkeypatch.setattr(campaign.signal, "signal", lambda *_: None)
    monkeypatch.setattr(replay, "choose", lambda *_: Faulty())
    monkeypatch.setattr(Faulty, "left", 20)
    plan = campaign.Plan(tmp_path, "cpu", "quick", ("lanes",), tmp_path / "scripts", lanes=2)
    plan.results.mkdir()
    assert campaign.train(plan) == 1
    kept = list(plan.results.glob("checkpoints/*.safetensors"))
    assert kept and len(list(plan.results.glob("failures/*"))) == 3
    went_on = []
    real = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path, *more: went_on.append(path) or real(path, *more))
    monkeypatch.setattr(Faulty, "left", 10**6)
    assert campaign.train(plan) == 0 and sorted(went_on) == sorted(kept)
    assert not [*plan.results.glob("failures/*.json"), *plan.results.glob("checkpoints/*.safetensors")]
    made = [record.load(path) for path in plan.results.glob("runs/lanes-quick/*.json")]
    assert len(made) == 3
    for one in made:
        alone = train.train(one.config, threads=one.environment["threads"])
        assert (one.outcome, one.curve) == (alone.outcome, alone.curve)


def test_odd_characters_stay_out_of_the_names_of_results(benchmarks, monkeypatch, tmp_path):
    """As in torch 2.11.0+cu130: a file of such a name does not survive every transfer."""
    run = benchmarks("run")
    monkeypatch.setattr(run, "_versions", lambda: {"torch": "2.11.0+cu130"})
    path = run.save({}, tmp_path, COMMIT, 1_600_000_000)
    assert re.fullmatch(r"[\w.-]+", path.name) and "2.11.0_cu130" in path.name
    assert json.loads(path.read_text("utf-8"))["requirements"] == {"torch": "2.11.0+cu130"}


def test_what_a_gpu_runs_is_selected_by_the_marker():
    """The race of counters, which nothing else can run, is among it; compiling for another machine is not."""
    script, marks = (ROOT / "benchmarks" / "on_gpu").read_text("utf-8"), {}
    (names,) = re.findall(r"rbd/tests/test_\{([\w,]+)\}\.py -q -m gpu", script)
    for path in sorted((ROOT / "rbd" / "tests").glob("test_*.py")):
        module = importlib.import_module(f"rbd.tests.{path.stem}") if "@on_a_gpu" in path.read_text("utf-8") else None
        for name, test in vars(module).items() if module else ():
            marks[name] = {mark.name: mark.kwargs.get("reason") for mark in getattr(test, "pytestmark", ())}
            if marks[name].get("skipif") == "no GPU":
                assert path.stem.removeprefix("test_") in names.split(",") and "gpu" in marks[name]
    assert "gpu" in marks["test_calls_and_graphs_beside_each_other_share_no_counters"]
    assert "gpu" not in marks["test_gpu_kernels_compile_for_hopper"]


def test_readme_says_what_is_pinned_and_what_to_do_where_an_index_lacks_it():
    pinned = json.loads((ROOT / "asv.conf.json").read_text("utf-8"))["matrix"]["req"]
    (told,) = re.findall(r"`asv.conf.json` pins ([^\n.]+),", (ROOT / "benchmarks" / "README.md").read_text("utf-8"))
    names = [name.removeprefix("pip+") for name, versions in pinned.items() if versions != [""]]
    assert told.replace(" and ", ", ").startswith(", ".join(names)), names
