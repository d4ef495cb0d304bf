"""rbd.suite.executor: many runs side by side, in real processes that are killed, interrupted, and set against each other."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import made_up
import pytest
from tqdm import tqdm

import rbd
from rbd.suite import cost, executor, experiment, job, models, record, store
from rbd.suite.config import SIZES, RunConfig
from rbd.suite.experiment import Plan
from rbd.suite.record import Point, Record

ROOT = Path(rbd.__file__).parents[1]
RUN = RunConfig(method="sgd", epochs=1, batch_size=500)
SCRIPT = '''from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment

def runs(profile):
    return [RunConfig(method="sgd", epochs={epochs}, batch_size=500, seed=seed) for seed in range({runs})]{more}

EXPERIMENT = Experiment("demo", "Does it work?", runs)
'''


def made(config: RunConfig, outcome: str = "finished", seconds: float = 1.0) -> Record:
    return Record(config, outcome, (Point(config.epochs, 10, 5000, 10, 2.0, 50.0, None),), (seconds,), {})


class Workers:
    """Finishes tasks at once, as told: "done", "busy", "raise", or "die"."""

    def __init__(self, **fates: list[str]) -> None:
        self.fates, self.calls, self.stopped = {int(k[1:]): v for k, v in fates.items()}, [], False

    def submit(self, config, directory, results, wait, options) -> Future:
        self.calls.append((config.seed, wait))
        fate, future = (self.fates.get(config.seed) or ["done"]).pop(0), Future()
        if fate == "die":
            future.set_exception(BrokenProcessPool("gone"))
        else:
            failure = job.Failure(config, "ValueError: no", "Traceback ...")
            future.set_result({"done": made(config), "busy": None, "raise": failure}[fate])
        return future

    def is_over(self) -> bool:
        return False

    def stop(self) -> None:
        self.stopped = True


def run_all(workers, results: Path, runs: int = 3, jobs: int = 2) -> tuple[list, list]:
    told: list = []
    configs = [replace(RUN, seed=seed) for seed in range(runs)]
    failures = executor.run_all(configs, results / "runs" / "x", results, jobs, workers, {}, lambda *end: told.append(end))
    return failures, told


# ---------------------------------------------------------------- the loop


def test_all_are_run_once_and_told_of(tmp_path):
    workers = Workers()
    failures, told = run_all(workers, tmp_path, runs=5)
    assert failures == [] and sorted(workers.calls) == [(seed, False) for seed in range(5)]
    assert sorted(c.seed for c, _ in told) == list(range(5))


@pytest.mark.parametrize(("fate", "message"), [
    ("raise", "ValueError: no"), ("die", "BrokenProcessPool: the process died: gone"),
])  # fmt: skip
def test_failure_is_noted_the_others_go_on_and_success_clears_it(fate, message, tmp_path):
    failures, told = run_all(Workers(s1=[fate]), tmp_path)
    assert [(f.config.seed, f.message) for f in failures] == [(1, message)] and len(told) == 3
    (path,) = (tmp_path / "failures").iterdir()
    kept = json.loads(path.read_text())
    assert kept["message"] == message and RunConfig.from_dict(RunConfig.complete(kept["config"])) == replace(RUN, seed=1)
    assert run_all(Workers(), tmp_path)[0] == [] and not path.exists()


def test_a_full_disk_is_told_with_the_failure_that_cannot_be_noted(tmp_path, monkeypatch):
    """And the others go on."""

    def refuse(path, content, what):
        raise OSError(errno.ENOSPC, f"cannot save {what}: {os.strerror(errno.ENOSPC)}", str(path.parent))

    monkeypatch.setattr(store, "write", refuse)
    failures, told = run_all(Workers(s0=["raise"]), tmp_path)
    assert len(told) == 3 and [f.config.seed for f in failures] == [0]
    assert failures[0].message.startswith("ValueError: no; [Errno 28] cannot save a failure: No space left on device")


def test_a_run_that_succeeds_needs_nothing_removed_from_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("there is nothing to remove"))
    assert run_all(Workers(), tmp_path)[0] == []


def test_what_another_process_is_at_comes_last_and_is_waited_for(tmp_path):
    workers = Workers(s0=["busy", "done"])
    failures, told = run_all(workers, tmp_path, jobs=1)
    patience = executor.PATIENCE
    assert failures == [] and workers.calls == [(0, 0), (1, 0), (2, 0), (0, patience)] and len(told) == 3


def test_what_another_process_is_at_is_asked_for_again_and_again(tmp_path):
    """No worker waits without end for a lock: one that waits can be stopped within seconds."""
    assert 0 < executor.PATIENCE <= 10  # s
    workers = Workers(s0=["busy", "busy", "busy", "done"])
    failures, told = run_all(workers, tmp_path, runs=1)
    assert failures == [] and len(workers.calls) == 4 and len(told) == 1


def test_lock_of_another_process_is_waited_for_no_longer_than_said(tmp_path, monkeypatch):
    (tmp_path / "locks").mkdir()
    with store.claim(RUN, tmp_path):
        began = time.monotonic()
        assert job.attempt(RUN, tmp_path / "runs" / "x", tmp_path, 0.3, {}) is None
        assert 0.3 <= time.monotonic() - began < 20


def test_as_many_at_a_time_as_there_are_jobs(tmp_path):
    class Slow(Workers):
        pool, now, counts = ThreadPoolExecutor(8), 0, []

        def submit(self, config, *task) -> Future:
            self.now += 1
            self.counts.append(self.now)
            return self.pool.submit(self.work, config)

        def work(self, config) -> Record:
            time.sleep(0.05)
            self.now -= 1
            return made(config)

    workers = Slow()
    run_all(workers, tmp_path, runs=6, jobs=2)
    assert len(workers.counts) == 6 and max(workers.counts) == 2


# ---------------------------------------------------------------- workers that cannot start, or die


@pytest.mark.parametrize(("error", "told"), [
    (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; semaphores stand in /dev/shm: it must be"),
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; semaphores stand in /dev/shm: it must be"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe; it ended at once; its output above may say why"),
    (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "temporarily unavailable; see `ulimit -a` and the limits"),
    (RuntimeError("can't start new thread"), "can't start new thread; see `ulimit -a`"),
    (ImportError("no sem_open"), "no sem_open; see `ulimit -a`"),
])  # fmt: skip
@pytest.mark.parametrize("when", ["made", "used"])
def test_a_worker_that_cannot_be_started_fails_its_run_and_says_why(error, told, when, tmp_path, monkeypatch, capsys):
    class Pool:
        def __init__(self, *_) -> None:
            if when == "made":
                raise error

        def submit(self, *_) -> Future:
            raise error

    monkeypatch.setattr(executor, "ProcessPoolExecutor", Pool)
    planned = Plan("demo-quick", tuple(replace(RUN, seed=seed) for seed in range(2)))
    failures = executor.run_missing(planned, planned.configs, tmp_path, executor.Resources(jobs=1))
    assert [f.config.seed for f in failures] == [0, 1]
    assert all(f.message.startswith("OSError: no worker process could be started: ") and told in f.message for f in failures)
    assert "seed=1: failed: OSError: no worker process" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "told"), [
    (-9, "killed by SIGKILL, as the kernel or a container does when memory runs out: try fewer --jobs"),
    (-7, "killed by SIGBUS, as when /dev/shm or a disk is full"), (-11, "killed by SIGSEGV"), (3, "exit status 3"),
    (None, "abruptly"),
])  # fmt: skip
def test_a_worker_that_died_says_what_of(code, told, monkeypatch):
    process = type("Process", (), {"exitcode": code, "join": lambda self, timeout: None})()
    states, inner, outer = [set(), {process}], Future(), Future()
    monkeypatch.setattr(executor, "ProcessPoolExecutor", lambda *_: type("Pool", (), {"submit": lambda *_: inner})())
    monkeypatch.setattr(executor, "active_children", lambda: states.pop(0))
    executor.Worker().submit(outer, job.attempt)
    inner.set_exception(BrokenProcessPool("terminated abruptly"))
    assert isinstance(outer.exception(), BrokenProcessPool) and told in str(outer.exception())


# ---------------------------------------------------------------- cost and time


def test_sizes_are_those_of_the_networks():
    assert len(SIZES) == 12
    for (name, channels), size in SIZES.items():
        shape = {1: (1, 28, 28), 3: (3, 32, 32)}[channels]
        assert sum(p.numel() for p in models.build(name, shape, 0).parameters()) == size


def test_cost_by_hand():
    """156 batches of 32 in an epoch of 5,000; an RBD step generates 2 × 250 × 101,770 signs."""
    sgd = cost.estimate(RunConfig(method="sgd", epochs=2))
    assert sgd == pytest.approx(2 * 156 * cost.BATCH["fc"][0])
    rbd = RunConfig(epochs=2, distribution="rademacher")
    entries = 2 * 156 * 2 * 250 * 101_770
    assert cost.estimate(rbd) == pytest.approx(sgd + entries * cost.ENTRY["rademacher"])
    assert cost.estimate(replace(rbd, partition="even:10")) == pytest.approx(sgd + entries / 10 * cost.ENTRY["rademacher"])
    ratio = RunConfig(epochs=2, partition="by_ratio:100", distribution="rademacher")  # as many rows of D / 100 values
    assert cost.estimate(ratio) == pytest.approx(sgd + 2 * 156 * 2 * 1017.7**2 * cost.ENTRY["rademacher"])
    nes = RunConfig(method="nes", epochs=2, distribution="rademacher")  # a row to disturb and one to move, for each batch
    assert cost.estimate(nes) == pytest.approx(0.4 * sgd + 2 * 156 * 2 * 101_770 * cost.ENTRY["rademacher"])
    assert cost.estimate(replace(nes, method="rbd-nes", sigma=None)) == pytest.approx(250 * cost.estimate(nes))


def test_cost_is_corrected_by_what_runs_of_the_kind_took():
    sgd, rbd = RunConfig(method="sgd", epochs=2), RunConfig(epochs=2)
    assert cost.calibrate([])(sgd) == cost.estimate(sgd)
    seconds = cost.calibrate([made(sgd, seconds=factor * cost.estimate(sgd)) for factor in (1, 3, 50)])
    assert seconds(replace(sgd, epochs=7)) == pytest.approx(3 * cost.estimate(replace(sgd, epochs=7)))  # the median
    assert seconds(rbd) == pytest.approx(3 * cost.estimate(rbd))  # nothing better is known
    both = cost.calibrate([made(sgd, seconds=3 * cost.estimate(sgd)), made(rbd, seconds=5 * cost.estimate(rbd))])
    assert both(rbd) == pytest.approx(5 * cost.estimate(rbd))
    assert cost.calibrate([made(sgd, "diverged", 1e9)])(sgd) == cost.estimate(sgd)


def test_cost_of_a_switch_is_that_of_both_parts():
    """The released reading, sgd throughout, was short of all the entries that rbd generates."""
    sgd, rbd = RunConfig(method="sgd", epochs=5), RunConfig(epochs=15, distribution="rademacher")
    switched = RunConfig(method="sgd", epochs=20, switch=5, distribution="rademacher")
    assert cost.estimate(switched) == pytest.approx(cost.estimate(sgd) + cost.estimate(rbd))
    records = [made(sgd, seconds=3 * cost.estimate(sgd)), made(rbd, seconds=5 * cost.estimate(rbd))]
    spoilt = made(switched, seconds=1e6 * cost.estimate(switched))  # of two kinds at once: says nothing of either
    expected = 3 * cost.estimate(sgd) + 5 * cost.estimate(rbd)
    assert cost.calibrate([*records, spoilt])(switched) == pytest.approx(expected)


def test_cost_on_cores_is_taken_from_runs_on_cores():
    """And of as many workers."""
    sgd = RunConfig(method="sgd", epochs=2)
    on_gpu = replace(made(sgd, seconds=1e6), environment={"device": "NVIDIA H100", "cpu": "EPYC"})
    assert cost.calibrate([on_gpu])(sgd) == cost.estimate(sgd)
    four = replace(sgd, workers=4)
    both = cost.calibrate([made(four, seconds=9 * cost.estimate(four)), made(sgd, seconds=2 * cost.estimate(sgd))])
    assert (both(sgd), both(four)) == (pytest.approx(2 * cost.estimate(sgd)), pytest.approx(9 * cost.estimate(four)))


@pytest.mark.parametrize("limit", [{"LOKY_MAX_CPU_COUNT": "1"}, {}])
def test_cores_are_those_that_a_process_may_use(fresh_python, limit):
    """By its affinity or by a limit; a container's quota is a limit too, but needs a container."""
    alone = not limit and hasattr(os, "sched_setaffinity") and "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    script = f"import os\n{alone or None}\nfrom rbd.suite import cost\nprint(cost.count_cores())"
    assert int(fresh_python(script, **limit)) == (1 if limit or alone else os.cpu_count())


def test_time_left_is_estimated_from_the_records_of_all_sweeps(tmp_path):
    other = replace(RUN, seed=9)
    record.save(made(other, seconds=7 * cost.estimate(other)), tmp_path / "runs" / "other")
    (tmp_path / "runs" / "other" / "damaged.json").write_text("{")  # told of by the sweep that asks for it
    with executor.show_progress(Plan("demo-quick", (RUN, other)), (RUN,), tmp_path, jobs=2) as progress:
        assert progress.seconds(RUN) == progress.left == pytest.approx(7 * cost.estimate(RUN))
        assert progress.remaining(0.0) == pytest.approx(progress.left)  # one run, on one of the two cores


class Here(Workers):
    """Runs in this process, at once."""

    def submit(self, *task) -> Future:
        self.calls.append(task[0].seed)
        future: Future = Future()
        future.set_result(job.attempt(*task, train=lambda config, *rest, **options: made(config)))
        return future


def test_a_damaged_record_is_a_failure_and_the_others_go_on(tmp_path, monkeypatch):
    """No sooner than its run would have been, and never overwritten."""
    planned = Plan("demo-quick", tuple(replace(RUN, seed=seed) for seed in range(3)))
    path = planned.directory(tmp_path) / f"{planned.configs[1].id}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    monkeypatch.setattr(executor, "Processes", Here)
    (failure,) = executor.run_missing(planned, planned.configs, tmp_path, executor.Resources(jobs=1))
    assert failure.config.seed == 1 and f"{path}: not a valid record, file not touched" in failure.message
    assert store.failure_path(failure.config, tmp_path).exists() and path.read_text() == "{"
    assert [r.config.seed for r in planned.look(tmp_path)[0]] == [0, 2]


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (7200, "2.0 h"), (200_000, "2.3 days"),
])  # fmt: skip
def test_duration(seconds, text):
    assert cost.format_duration(seconds) == text


def test_time_left_is_in_proportion_to_cost(capsys, monkeypatch):
    cheap, dear = RUN, replace(RUN, seed=1)
    costs, clock = {cheap.id: 60.0, dear.id: 90.0}, [100.0]
    monkeypatch.setattr(executor, "perf_counter", lambda: clock[0])
    with tqdm(total=2, disable=True) as bar:
        progress = executor.Progress({cheap.id: 1, dear.id: 2}, lambda c: costs[c.id], 2, 150.0, bar)
        assert progress.remaining(100.0) == 75.0  # s: 150 s of cost on 2 cores
        progress.begin(cheap), progress.begin(dear)
        assert progress.remaining(110.0) == 65.0
        clock[0] = 280.0
        progress.tell(cheap, made(cheap, seconds=180.0))
        assert progress.remaining(280.0) == 0  # 180 s for 60 + TRUST: twice the cost, all of it spent
        assert progress.remaining(190.0) == pytest.approx(90.0)  # of 180, one run left, on one core
        progress.tell(dear, job.Failure(dear, "ValueError: no"))
        assert progress.remaining(280.0) == 0
    begun, _, *lines = capsys.readouterr().out.splitlines()
    assert begun.endswith("seed=0: begun; 75 s left")
    assert lines[0].startswith("[1/2] fc mnist-embedded sgd batch_size=500 epochs=1 seed=0: finished after 1 epoch: 50.00")
    assert re.match(r"\[2/2\] .* seed=1: failed: ValueError: no; 0 s left", lines[1])


@pytest.mark.parametrize(("waited", "ended"), [
    (1.0, made(RUN, seconds=9000.0)),  # it went on from its last epochs
    (90_000.0, made(RUN, seconds=9000.0)),  # another process did it, and was waited for
    (1.0, made(RUN, "diverged", seconds=1.0)),
    (1.0, job.Failure(RUN, "ValueError: no")),
], ids=["resumed", "elsewhere", "diverged", "failed"])  # fmt: skip
def test_the_pace_is_that_of_whole_runs(waited, ended, monkeypatch):
    """9,000 s of cost take 9,000 s, whatever this process saw of them."""
    other, clock = replace(RUN, seed=1), [0.0]
    monkeypatch.setattr(executor, "perf_counter", lambda: clock[0])
    with tqdm(total=2, disable=True) as bar:
        progress = executor.Progress({RUN.id: 1, other.id: 2}, lambda _: 9000.0, 1, 18_000.0, bar)
        progress.begin(RUN)
        clock[0] += waited
        progress.tell(RUN, ended)
        assert progress.remaining(clock[0]) == 9000.0


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_begins_has_a_line_where_there_is_no_bar(terminal, tmp_path, monkeypatch, capsys):
    """In a log, a long run would else be silence."""
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(executor, "Processes", Here)
    planned = Plan("demo-quick", (RUN, replace(RUN, seed=1)))
    executor.run_missing(planned, planned.configs, tmp_path, executor.Resources(jobs=1))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    states = [re.match(r"\[(\d/2)\] .*?: (begun|finished).* left$", line).groups() for line in lines]
    begun = [] if terminal else ["begun"]
    assert states == [(f"{i}/2", state) for i in (1, 2) for state in (*begun, "finished")]


def test_bar_shows_runs_done_running_and_to_come_and_the_time_left(tmp_path, monkeypatch):
    """Of five runs one is there, and two are done at a time."""
    planned = Plan("demo-quick", tuple(replace(RUN, seed=seed) for seed in range(5)))
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    with executor.show_progress(planned, planned.configs[1:], tmp_path, jobs=2) as progress:
        for config in planned.configs[1:4]:
            progress.begin(config)
            progress.tell(config, made(config))
    shown = re.findall(r"demo-quick: (\d/5) done .*?(\d running, \d to come), [\d.]+ \w+ left", screen.getvalue())
    states = ["1/5", "2 running, 2 to come"], ["2/5", "2 running, 1 to come"], ["3/5", "2 running, 0 to come"]
    assert [list(s) for s in dict.fromkeys(shown)] == [*states, ["4/5", "1 running, 0 to come"]]


def test_describe_leaves_out_what_is_usual():
    assert executor.describe(RunConfig(lr=4, dim=9, seed=3)) == "fc mnist-embedded rbd dim=9 lr=4 seed=3"


# ---------------------------------------------------------------- real processes


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "rbd", "sweep", "demo", "--sweeps-dir", "scripts", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe)


@pytest.fixture
def demo(tmp_path):
    """Writes the script of a sweep into a folder; returns the folder."""

    def write(runs: int, epochs: int = 2, more: str = "") -> Path:
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts" / "demo.py").write_text(SCRIPT.format(runs=runs, epochs=epochs, more=more))
        return tmp_path

    return write


def wait_for(what, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Processes that are workers of a sweep, by their command."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(p) for p in (task / "children").read_text().split()]
    return [p for p in found if "spawn_main" in Path(f"/proc/{p}/cmdline").read_text()]


def alive(pid: int) -> bool:
    """There, and no zombie."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and bool(path.read_bytes())


LINUX = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")


def test_a_signal_that_another_thread_gets_ends_the_wait(fresh_python):
    """As when a sweep was suspended: after SIGCONT the main thread may not be the one that gets it."""
    script = """
import signal, threading, time
from concurrent.futures import Future
from rbd.suite import executor

def send():
    time.sleep(1)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    time.sleep(60)

threading.Thread(target=send, daemon=True).start()
try:
    executor.wait_for_one([Future()])
except KeyboardInterrupt:
    print("ended")
"""
    assert fresh_python(script) == "ended\n"


def test_sweep_runs_in_processes_and_a_failure_does_not_stop_it(demo):
    here = demo(3, more=" + [RunConfig(dim=101771, epochs=1)]")
    first = start(here, "--jobs", "2")
    out, err = first.communicate(timeout=280)
    assert first.returncode == 1 and "demo-quick: 4 runs, 4 to do, records in results/runs/demo-quick" in out
    assert len(re.findall(r"finished after 2 epochs", out)) == 3
    assert "failed: ValueError: dim: got 101771, allowed 1 ... 101770" in out
    assert "failed: fc mnist-embedded rbd dim=101771" in err and "results/failures/" in err
    made = made_up.load_all(here / "results" / "runs" / "demo-quick")
    assert sorted(r.config.seed for r in made) == [0, 1, 2]
    assert {r.environment["threads"] for r in made} == {1}
    (noted,) = (here / "results" / "failures").iterdir()
    assert "apportion(dim, [size])" in json.loads(noted.read_text())["traceback"]
    manifest = json.loads((here / "results" / "sweeps" / "demo-quick.json").read_text())
    assert manifest["question"] == "Does it work?" and {r.config.id for r in made} < {r["id"] for r in manifest["runs"]}
    assert [*(here / "results" / "locks").iterdir(), *(here / "results" / "checkpoints").iterdir()] == []
    again = start(here)
    out, _ = again.communicate(timeout=280)
    assert again.returncode == 1 and "4 runs, 1 to do" in out and out.count("[") == 2  # the failed one again: begun, ended


@LINUX
def test_killed_worker_costs_its_own_run_only(demo):
    here = demo(2, epochs=40)
    running = start(here, "--jobs", "1")
    wait_for(lambda: list(here.rglob("checkpoints/*.safetensors")))
    (worker,) = children(running.pid)
    os.kill(worker, signal.SIGKILL)
    out, err = running.communicate(timeout=280)
    assert running.returncode == 1 and out.count("the process died") == 1 and out.count("finished after") == 1
    assert re.search(r"^failed: fc mnist-embedded sgd .* the process died: killed by SIGKILL, as", err, re.MULTILINE)
    out, _ = (again := start(here)).communicate(timeout=280)
    assert again.returncode == 0 and "2 runs, 1 to do" in out


@LINUX
def test_stopped_sweep_ends_its_workers_and_goes_on_from_the_last_epoch(demo):
    """Killed, then interrupted, then terminated; it ends with the curves of undisturbed runs, bit for bit."""
    here = demo(2, epochs=120)
    statuses = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
    for number, status in statuses.items():
        before = {path: path.stat().st_mtime_ns for path in checkpoints(here)}
        running = start(here, "--jobs", "2")
        wait_for(lambda before=before: sum(path.stat().st_mtime_ns != before.get(path) for path in checkpoints(here)) == 2)
        workers = children(running.pid)
        assert len(workers) == 2
        os.kill(running.pid, number)
        out, err = running.communicate(timeout=280)
        assert running.returncode == status
        assert ("run the same command again" in err) == (status > 0) and "Traceback" not in err
        assert status < 0 or "leaked" not in err
        wait_for(lambda workers=workers: not any(alive(pid) for pid in workers))
        assert len(checkpoints(here)) == 2 and not list((here / "results" / "runs").rglob("*.json"))
    out, _ = (again := start(here)).communicate(timeout=280)
    assert again.returncode == 0 and "2 runs, 2 to do" in out
    for found in made_up.load_all(here / "results" / "runs" / "demo-quick"):
        assert found.curve == job.run(found.config, here / "whole" / "runs", here / "whole", threads=1).curve


def checkpoints(here: Path) -> list[Path]:
    return list((here / "results" / "checkpoints").glob("*.safetensors"))


def test_two_sweeps_at_once_share_the_work(demo):
    here = demo(4, epochs=10)
    both = [start(here, "--jobs", "1") for _ in range(2)]
    said = [one.communicate(timeout=280) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    made = made_up.load_all(here / "results" / "runs" / "demo-quick")
    assert len(made) == 4 and all(r.outcome == "finished" for r in made)
    for out, _ in said:
        assert out.count("finished after 10 epochs") == 4  # each tells of all
    assert not list((here / "results").rglob("*.tmp")) and not list((here / "results" / "locks").iterdir())


def test_a_sweep_that_is_done_writes_nothing(tmp_path, monkeypatch, capsys):
    """Its results may be read-only; and a list that has changed is written."""
    wanted = experiment.Experiment("done", "Is it?", runs=lambda profile: [RUN])
    record.save(made(RUN), tmp_path / "runs" / "done-quick")
    given = "quick", tmp_path, executor.Resources()
    list(executor.perform(wanted, *given))

    def refuse(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(store, "write", refuse)
    assert list(executor.perform(wanted, *given)) == [] and "1 run, 0 to do" in capsys.readouterr().out
    with pytest.raises(OSError, match="Read-only"):
        list(executor.perform(replace(wanted, question="Another?"), *given))
