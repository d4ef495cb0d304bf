"""rbd.suite.replay and streams: chunks of steps, batches made on the device, runs that take turns; on a GPU, as graphs."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import rbd.suite.train as loop
from rbd import kernels, optim
from rbd.suite import batches, checkpoint, datasets, models, record, replay, streams
from rbd.suite.config import RunConfig
from rbd.suite.record import Record
from rbd.suite.replay import Chunk, Eager, schedule
from rbd.tests.conftest import INTERPRETED, on_a_gpu

ROOT = Path(loop.__file__).parents[2]
SMALL = RunConfig(epochs=2, batch_size=100, dim=20, lr=4.0, seed=7)  # 50 steps an epoch


@pytest.fixture(autouse=True)
def one_thread(set_threads) -> None:
    """Operations here are small: on a busy machine a second thread costs more than it gives."""
    set_threads(1)


def config_of(method: str, **changes) -> RunConfig:
    """SMALL by another method."""
    fields = {"epochs": 2, "batch_size": 100, "seed": 7, "lr": {"rbd": 4.0, "fpd": 4.0}.get(method, 0.1)}
    return RunConfig(method=method, **fields | ({} if method == "sgd" else {"dim": 20}) | changes)


class Queue(Eager):
    """Calls the work, with optimizers and batches as for graphs."""

    queues, pause = True, 1e-9


@pytest.fixture
def queued(monkeypatch) -> None:
    monkeypatch.setattr(replay, "choose", lambda device, workers: Queue())


def same(a: Record, b: Record) -> None:
    assert (a.config, a.outcome, repr(a.curve)) == (b.config, b.outcome, repr(b.curve))


# ---------------------------------------------------------------- chunks


@pytest.mark.parametrize("config", [
    RunConfig(), RunConfig(method="sgd", data="mnist"), RunConfig(batch_size=5000), RunConfig(batch_size=77, epochs=3),
    RunConfig(method="sgd", data="cifar10"), RunConfig(method="nes", epochs=7), RunConfig(method="nes", dim=3, epochs=2),
    RunConfig(batch_size=100, epochs=1),
], ids=str)  # fmt: skip
def test_chunks_are_the_steps_of_all_epochs(config):
    """In their order, each once, never over an epoch's end; a sampled step alone, the others by falling powers of two."""
    images = {"mnist": 50_000, "cifar10": 40_000}.get(config.data, 5000)
    allowed = loop.budget(config, images)
    is_sampled = allowed.is_sampled if config.method != "nes" else lambda step: False
    done = 0
    for stretch in allowed.stretches(0):
        chunks = list(schedule(stretch, is_sampled))
        assert [step for chunk in chunks for step in chunk.steps] == list(stretch)
        for chunk in chunks:
            assert len(chunk.steps) in (1, 2, 4, 8, 16, 32)
            assert [is_sampled(step) for step in chunk.steps] == [chunk.is_sampled] * len(chunk.steps)
        for one, two in zip(chunks, chunks[1:]):
            assert one.is_sampled or two.is_sampled or len(one.steps) > len(two.steps) or len(one.steps) == 32
        done = stretch[-1]
    assert done == allowed.steps


def test_a_stretch_of_an_epoch():
    made = list(schedule(range(1, 80), lambda step: step % 50 == 1))
    assert made == [Chunk(range(1, 2), True), Chunk(range(2, 34)), Chunk(range(34, 50)), Chunk(range(50, 51)),
                    Chunk(range(51, 52), True), Chunk(range(52, 68)), Chunk(range(68, 76)),
                    Chunk(range(76, 80))]  # fmt: skip
    assert [len(chunk.steps) for chunk in schedule(range(5, 10), lambda step: False, longest=1)] == [1] * 5


# ---------------------------------------------------------------- batches


def images(name: str) -> datasets.Split:
    if name == "grey":
        split = datasets.load("mnist-embedded").train
        return datasets.Split(split.images[:330], split.labels[:330])
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(256, (330, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return datasets.Split(made, torch.randint(10, (330,), generator=generator))


@pytest.mark.parametrize("augment", [None, "none", "crop"])
@pytest.mark.parametrize("name", ["grey", "colour"])
def test_batches_of_the_table_are_the_batches(name, augment):
    """Bit for bit, from any batch on, over the ends of epochs, filled in pieces."""
    split, seed = images(name), 5
    table = batches.Table(split, 32, seed, augment, most=13)
    whole = [batch for epoch in range(4) for batch in batches.batches(split, 32, seed, epoch, augment=augment)]
    for first, count in ((0, 10), (10, 10), (7, 13), (25, 13), (39, 1)):
        table.fill(first, count)
        for (x, y), (a, b) in zip(islice(table, count), whole[first:], strict=False):
            assert torch.equal(x, a) and torch.equal(y, b) and x.dtype == a.dtype and y.dtype == b.dtype


@pytest.mark.parametrize("config", [RunConfig(), RunConfig(method="nes", epochs=7), RunConfig(method="nes", dim=3, epochs=2),
                                    RunConfig(batch_size=333)], ids=str)  # fmt: skip
def test_the_table_has_room_for_every_epoch(config):
    run = replace(loop._set_up(config, None, None, "cpu", 1, None), runner=Queue())
    table = loop._supply(run, 0)
    most = max(len(stretch) for stretch in run.budget.stretches(0)) * run.budget.batches
    assert len(table.draws.order) >= most * config.batch_size


# ---------------------------------------------------------------- the loop


def loss_of(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return cross_entropy(model(x), y)


@pytest.mark.parametrize("method", ["sgd", "rbd", "fpd", "nes"])
def test_chunks_are_single_capturable_steps(method, queued, tmp_path):
    """Bit for bit: parameters, losses and accuracies of two epochs, and of their steps one after another here."""
    config = config_of(method, **({"dim": 5} if method == "nes" else {}))
    made = loop.train(config, tmp_path, threads=1)
    model = models.build("fc", (1, 28, 28), 7)
    sets = datasets.load("mnist-embedded")
    if method == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), config.lr)
    else:
        kind = {"rbd": optim.RBD, "fpd": optim.FPD, "nes": optim.NES}[method]
        more = {"sigma": config.sigma} if method == "nes" else {}  # rounded to three digits
        optimizer = kind(model.parameters(), config.lr, dim=config.dim, seed=7, capturable=True, **more)
    for epoch in range(2):
        losses, stream = [], iter(batches.batches(sets.train, 100, 7, epoch))
        for _ in range(10 if method == "nes" else 50):  # of five batches, or of one
            if method == "nes":
                losses.append(optimizer.step(lambda stream=stream: loss_of(model, *next(stream))))
                continue
            optimizer.zero_grad()
            loss = loss_of(model, *next(stream))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        assert next(stream, None) is None
        assert made.curve[epoch].loss == float(torch.stack(losses).double().mean())
        assert made.curve[epoch].accuracy == loop.accuracy(model, sets.validation)
    kept = load_file(tmp_path / f"{config.id}.safetensors")
    assert all(torch.equal(kept[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("changes", [
    {"method": "rbd"}, {"method": "nes", "dim": 3}, {"method": "rbd-nes", "dim": 2, "epochs": 1},
    {"method": "sgd", "switch": 1, "then_lr": 4.0, "dim": 20}, {"augment": "crop", "distribution": "countsketch"},
], ids=str)  # fmt: skip
def test_queued_runs_are_those_of_the_cpu_to_rounding(changes, monkeypatch):
    config = config_of(**{"method": "rbd"} | changes)
    plain = loop.train(config, threads=1)
    monkeypatch.setattr(replay, "choose", lambda device, workers: Queue())
    made = loop.train(config, threads=1)
    assert [point.loss for point in made.curve] == pytest.approx([point.loss for point in plain.curve], rel=1e-3)
    assert [(p.step, p.images, p.forward_passes) for p in made.curve] == [
        (p.step, p.images, p.forward_passes) for p in plain.curve]  # fmt: skip


@pytest.mark.parametrize(("method", "lr"), [("sgd", 1e6), ("rbd", 1e30), ("nes", 1e30)])
def test_a_queued_run_that_diverges_says_so_at_the_epochs_end(method, lr, queued):
    config = config_of(method, lr=lr, **({} if method == "sgd" else {"dim": 5}))
    made = loop.train(config, threads=1)
    assert made.outcome == "diverged" and len(made.curve) == (method == "sgd")


def test_a_queued_run_goes_on_from_its_checkpoint(queued, tmp_path, monkeypatch):
    """Written by the thread or at the end, also by a run without chunks; bit for bit."""
    config = replace(SMALL, epochs=3)
    whole, count = loop.train(config, threads=1), []
    with monkeypatch.context() as patch:
        real = loop._count_right
        patch.setattr(loop, "_count_right", lambda *a: (count.append(1), real(*a) if len(count) < 3 else interrupt())[1])
        broken = loop.train(config, tmp_path, threads=1)
    assert broken.outcome == "interrupted" and len(broken.curve) == 2
    same(loop.train(config, tmp_path, threads=1), whole)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["rbd", "nes"])
def test_a_queued_run_reads_once_an_epoch(method, tmp_path, monkeypatch):
    """And writes checkpoints by a thread, seconds apart, with the last one at the end."""
    reads, written = [], []

    class Counted(Queue):
        pause = 1e9

        def read(self, *groups):
            reads.append(len(groups))
            return (yield from super().read(*groups))

    real = checkpoint.State.write
    monkeypatch.setattr(checkpoint.State, "write", lambda state, path: written.append(real(state, path)))
    monkeypatch.setattr(replay, "choose", lambda device, workers: Counted())
    made = loop.train(config_of(method, dim=5, epochs=4), tmp_path, threads=1)
    assert (len(made.curve), reads, len(written)) == (4, [4] * 4, 1)


def test_checkpoints_keep_their_distance(tmp_path, monkeypatch):
    """By a clock that ends of epochs turn on by 8 seconds: at 24, 48, 72 and at the end, if they are to be 20 apart."""
    now, written = [0.0], []
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(checkpoint.State, "of", lambda *_: SimpleNamespace(write=lambda path, at=now[0]: written.append(at)))
    keeper = checkpoint.Keeper(tmp_path / "x", SMALL, replay.PAUSE)
    with keeper:
        for _ in range(10):
            now[0] += 8
            keeper.take(*[None] * 3)
            keeper.writing.result()
    assert written == [24, 48, 72, 80]


class NoReads(TorchDispatchMode):
    """Raises where the host would wait for a value of the device."""

    READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.READS:
            raise AssertionError(f"{function} reads from the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["sgd", "rbd", "nes"])
def test_nothing_is_read_within_a_chunk(method, monkeypatch):
    """A capture forbids it. The kernels are those of the GPU, in Triton's interpreter where there is none."""
    seen = []

    class Watched(Queue):
        def run(self, name, work, count=1):
            seen.append(name)
            with NoReads():
                return super().run(name, work, count)

    monkeypatch.setattr(replay, "choose", lambda device, workers: Watched())
    monkeypatch.setattr(kernels, "_OF_DEVICE", {"cpu": "gpu"} if INTERPRETED else kernels._OF_DEVICE)
    sketch = {} if method == "sgd" else {"dim": 3, "distribution": "countsketch"}  # the interpreter takes minutes for others
    config = config_of(method, epochs=3 if method == "nes" else 1, batch_size=2500, **sketch)
    assert loop.train(config, device="cpu" if INTERPRETED else "cuda").outcome == "finished"
    assert set(seen) == {"update", "validate", *(["begin", "evaluate"] if method == "nes" else ["compare"])}


def test_the_mode_sees_reads():
    with NoReads(), pytest.raises(AssertionError, match="reads from the device"):
        float(torch.ones(1) * 2)


# ---------------------------------------------------------------- graphs, as far as they go without a GPU


@pytest.fixture
def graphs(monkeypatch) -> list:
    """CUDA graphs made up: capturing does not do the work, replaying does, into the tensors that the capture left."""
    made, seen, real, empty = [], {}, Eager.run, torch.empty

    class Graph:
        now = None

        def capture_begin(self, pool, capture_error_mode):
            assert (pool, Graph.now) == ("pool", None)
            Graph.now = self
            made.append(self)

        def capture_end(self):
            Graph.now, self.replays = None, 0

        def replay(self):
            self.replays += 1
            for left, value in zip(self.left, real(None, *self.task), strict=True):
                left.copy_(value)

    def run(self, name, work, count=1):
        if Graph.now:
            Graph.now.task, Graph.now.left = (name, work, count), [torch.zeros_like(x) for x in seen[name, count]]
            return Graph.now.left
        seen[name, count] = real(self, name, work, count)
        return seen[name, count]

    event = SimpleNamespace(query=lambda: True)
    stream = SimpleNamespace(record_event=lambda: event, wait_stream=lambda other: None)
    for name, fake in {"Stream": lambda: stream, "CUDAGraph": Graph, "graph_pool_handle": lambda: "pool",
                       "current_stream": lambda: stream, "stream": lambda _: nullcontext()}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **more: empty(*a, **more))
    monkeypatch.setattr(Eager, "run", run)
    return made


@pytest.mark.parametrize("changes", [{"method": "rbd"}, {"method": "sgd", "switch": 1, "then_lr": 4.0, "dim": 20},
                                     {"method": "nes", "dim": 7}, {"method": "rbd-nes", "dim": 5}], ids=str)  # fmt: skip
def test_captured_chunks_are_the_called_ones(changes, graphs, tmp_path, monkeypatch):
    """Each kind and length is called the first time, captured the second, and replayed from then on."""
    config = config_of(**{"epochs": 3} | changes)
    monkeypatch.setattr(replay, "choose", lambda device, workers: Queue())
    called = loop.train(config, threads=1)
    monkeypatch.setattr(replay, "choose", lambda device, workers: replay.Captured())
    made = loop.train(config, tmp_path, threads=1)
    same(made, called)
    assert made.outcome == "finished" and len(list(tmp_path.iterdir())) == 1
    kinds = [graph.task[::2] for graph in graphs]  # what, and how many
    special = ["begin", "evaluate"] if "nes" in config.method else ["compare"]
    assert {name for name, _ in kinds} == {"update", "validate", *special}
    assert all(graph.replays for graph in graphs) and (len(set(kinds)) == len(kinds) or config.switch)


def test_a_failed_capture_ends(graphs):
    runner = replay.Captured()
    runner.graphs["work", 1] = None
    with pytest.raises(KeyError):
        runner.run("work", lambda: (torch.ones(()),))  # never called before: this stand-in does not know its shape
    assert gc.isenabled() and type(graphs[0]).now is None


# ---------------------------------------------------------------- turns


def lane(turns, ended: Future | None = None) -> streams.Lane:
    return streams.Lane(turns, nullcontext, ended or Future())


def drive(lanes: list[streams.Lane], is_over: Callable[[], bool] = lambda: False) -> None:
    arriving = SimpleQueue()
    for one in (*lanes, None):
        arriving.put(one)
    streams.take_turns(arriving, is_over)


def test_runs_take_turns():
    """One that waits for the device gives way; one that raises leaves the others alone."""
    log, polls = [], iter([False, False, True])

    def count(name: str, turns: int, ready: Callable[[], bool] = lambda: True):
        for turn in range(turns):
            log.append(f"{name}{turn}")
            yield ready
        return name

    def fails():
        yield lambda: True
        raise ValueError("this one")

    lanes = [lane(count("a", 3)), lane(fails()), lane(count("b", 2, lambda: next(polls, True))), lane(count("c", 1))]
    drive(lanes)
    assert log == ["a0", "b0", "c0", "a1", "a2", "b1"]
    assert [one.ended.result() for one in (lanes[0], *lanes[2:])] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="this one"):
        lanes[1].ended.result()


def test_the_deadline_ends_runs_at_their_last_epoch():
    """By a clock that counts turns: each has its first turn, and is interrupted when the time has come."""
    now = iter(range(100))

    def run(turns: int):
        done = 0
        try:
            while done < turns:
                done += 1
                yield lambda: True
        except KeyboardInterrupt:
            return f"interrupted after {done}"
        return "finished"

    lanes = [lane(run(2)), lane(run(50)), lane(run(50))]
    drive(lanes, lambda: next(now) >= 10)
    assert [one.ended.result() for one in lanes] == ["finished", "interrupted after 4", "interrupted after 3"]
    late = lane(run(50))
    drive([late], lambda: True)
    assert late.ended.result() == "interrupted after 1"


@pytest.mark.parametrize("queues", [False, True])
def test_runs_in_lanes_are_the_runs(queues, tmp_path, monkeypatch):
    if queues:
        monkeypatch.setattr(replay, "choose", lambda device, workers: Queue())
    configs = [replace(SMALL, seed=1), replace(SMALL, seed=2), config_of("sgd", data="fmnist-embedded")]
    alone = [loop.train(config, threads=1) for config in configs]
    crew = streams.Streams(2)
    try:
        options = {"data_dir": None, "device": "cpu", "threads": 1}
        made = [crew.submit(config, tmp_path / "runs" / "x", tmp_path, -1, options) for config in configs]
        for one, theirs in zip(alone, made):
            same(one, theirs.result())
            assert theirs.result().environment["lanes"] == 2
    finally:
        crew.stop()
    assert len(list((tmp_path / "runs" / "x").glob("*.json"))) == 3


def test_after_the_deadline_a_run_goes_on_where_it_was(tmp_path):
    clock, config = [0.0], replace(SMALL, epochs=4)
    crew = streams.Streams(1, deadline=10, clock=lambda: clock[0])
    options, place = {"device": "cpu", "threads": 1}, (tmp_path / "runs" / "x", tmp_path)
    try:
        coming = crew.submit(config, *place, -1, options)
        limit = time.monotonic() + 60
        while not list(tmp_path.glob("checkpoints/*.safetensors")) and time.monotonic() < limit:
            time.sleep(0.001)
        assert not crew.is_over()
        clock[0] = 10.0
        assert crew.is_over() and coming.result().outcome == "interrupted" and 1 <= len(coming.result().curve) < 4
    finally:
        crew.stop()
    same(loop.train(config, tmp_path / "checkpoints", threads=1), loop.train(config, threads=1))


SWEEP = """
from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment

def runs(profile):
    return [RunConfig(epochs=6, batch_size=100, dim=20, lr=4.0, seed=seed) for seed in range(3)]

EXPERIMENT = Experiment("lanes", "Do lanes survive a kill?", runs)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_lanes_survive_kill_9(tmp_path):
    """Killed when two runs have checkpoints, the same command continues from them; the records are those of runs alone."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "lanes.py").write_text(SWEEP)
    command = [sys.executable, "-m", "rbd", "sweep", "lanes", "--sweeps-dir", "scripts", "--lanes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    limit = time.monotonic() + 100
    while len(list(tmp_path.glob("results/checkpoints/*.safetensors"))) < 2 and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = len(list(tmp_path.glob("results/checkpoints/*.safetensors")))
    assert kept >= 1
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in (tmp_path / "results" / "runs" / "lanes-quick").glob("*.json"):
        made = record.load(path)
        same(made, loop.train(made.config, threads=made.environment["threads"]))
    assert len(list((tmp_path / "results" / "runs" / "lanes-quick").glob("*.json"))) == 3


def test_a_sweep_tells_what_the_deadline_left(tmp_path, monkeypatch, capsys):
    from rbd.suite.cli import main

    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "lanes.py").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "lanes", "--sweeps-dir", "scripts", "--lanes", "1", "--deadline", "0.01"]) == 1
    assert "before 3 of 3 runs had ended; run the same command again to continue" in capsys.readouterr().err
    assert main(["sweep", "lanes", "--sweeps-dir", "scripts", "--deadline", "1"]) == 2
    assert "deadline: needs --lanes" in capsys.readouterr().err


# ---------------------------------------------------------------- on a GPU


@on_a_gpu
@pytest.mark.parametrize("changes", [
    {"method": "sgd"}, {"method": "rbd"}, {"distribution": "countsketch", "dim": 1000}, {"method": "nes"},
    {"model": "cnn", "partition": "by_layer"}, {"model": "resnet8", "data": "fmnist-embedded"},
], ids=str)  # fmt: skip
def test_graphs_are_the_steps(changes, monkeypatch):
    """Bit for bit: the same run by graphs, again by graphs, and by calls of the same steps."""
    config = config_of(**{"method": "rbd", "batch_size": 50} | changes)
    graphs = [loop.train(config, device="cuda") for _ in range(2)]
    monkeypatch.setattr(replay, "choose", lambda device, workers: Queue())
    for other in (graphs[1], loop.train(config, device="cuda")):
        same(graphs[0], other)
    assert not graphs[0].environment["tf32"] and graphs[0].environment["deterministic"]


@on_a_gpu
@pytest.mark.parametrize("changes", [{}, {"model": "cnn", "lr": 1.0}])
def test_a_gpu_trains_as_the_cpu_does(changes):
    """Ten steps to 1e-4, two epochs to within 3 points; a standard error of the accuracy is 1.1."""
    config = config_of("rbd", **{"batch_size": 500, "dim": 250} | changes)
    there, here = (loop.train(config, device=device) for device in ("cuda", "cpu"))
    assert there.curve[0].loss == pytest.approx(here.curve[0].loss, rel=1e-4)
    assert abs(there.curve[-1].accuracy - here.curve[-1].accuracy) < 3


@on_a_gpu
def test_lanes_of_a_gpu_are_runs_alone(tmp_path):
    configs = [config_of(method, seed=seed) for seed in range(4) for method in ("sgd", "rbd")]
    crew = streams.Streams(8)
    try:
        made = [crew.submit(config, tmp_path / "runs" / "x", tmp_path, -1, {"device": "cuda"}) for config in configs]
        for config, one in zip(configs, made):
            same(one.result(), loop.train(config, device="cuda"))
    finally:
        crew.stop()


def test_settings_of_a_gpu_are_put_back(monkeypatch):
    before = [torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()]
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with replay.reproducible("cuda"):
        assert not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
        assert torch.are_deterministic_algorithms_enabled() and not torch.utils.deterministic.fill_uninitialized_memory
    assert before == [torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()]
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
