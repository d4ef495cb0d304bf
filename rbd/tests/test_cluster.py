"""rbd.suite.cluster: a sweep on a real Ray cluster of two nodes on this machine, one of which is killed while it works."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import made_up
import pytest

import rbd
from rbd.suite import executor, job, store
from rbd.suite.cluster import Cluster
from rbd.suite.config import RunConfig

ROOT = Path(rbd.__file__).parents[1]
SCRIPT = '''from rbd.suite.config import RunConfig
from rbd.suite.experiment import Experiment

def runs(profile):
    yield from [RunConfig(method="sgd", epochs=20, batch_size=500, seed=seed) for seed in range(4)]
    yield RunConfig(dim=101771, epochs=1)

EXPERIMENT = Experiment("demo", "Does it work elsewhere?", runs)
'''


@pytest.fixture
def cluster(monkeypatch):
    """A head and another node, of one core each."""
    utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the workers
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = utils.Cluster(initialize_head=True, head_node_args=size)
    try:
        yield made
    finally:
        made.shutdown()


@pytest.mark.timeout(590)
def test_sweep_goes_on_when_a_node_dies(cluster, tmp_path):
    """All runs end, with the curves that they have on this machine; what raises is a failure as it is here."""
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    (tmp_path / "demo.py").write_text(SCRIPT)
    words = [sys.executable, "-m", "rbd", "sweep", "demo", "--sweeps-dir", ".", "--ray", cluster.address]
    with subprocess.Popen(words, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        while len(list(tmp_path.rglob("checkpoints/*.safetensors"))) < 2 and running.poll() is None:  # a run on each node
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        out, err = running.communicate(timeout=500)
    assert running.returncode == 1 and out.count("finished after 20 epochs") == 4, out + err
    assert out.count("failed: ValueError: dim: got 101771, allowed 1 ... 101770") == 1
    made = made_up.load_all(tmp_path / "results" / "runs" / "demo-quick")
    assert sorted(r.config.seed for r in made) == [0, 1, 2, 3]
    again = job.run(made[0].config, tmp_path / "here", tmp_path / "here", threads=1)
    assert made[0].curve == again.curve and made[0].environment["cpu"] == again.environment["cpu"]
    assert [*(tmp_path / "results" / "locks").iterdir(), *(tmp_path / "results" / "checkpoints").iterdir()] == []


def test_without_ray_the_message_says_what_to_install(tmp_path):
    (tmp_path / "demo.py").write_text(SCRIPT)
    (tmp_path / "ray.py").write_text("raise ImportError('no ray')")  # shadows the real one
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [sys.executable, "-m", "rbd", "sweep", "demo", "--sweeps-dir", ".", "--ray", "auto"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "rbd: error: Ray is not installed: run `pip install 'ray>=2.54'`" in done.stderr


def test_remote_uses_checkpoints_only_on_a_shared_disk(tmp_path, monkeypatch):
    from rbd.suite import cluster

    seen = []
    monkeypatch.setattr("rbd.suite.train.train", lambda config, checkpoints, **options: seen.append((checkpoints, options)))
    for folder in (tmp_path, tmp_path / "elsewhere"):
        cluster.remote(RunConfig(), str(folder), {"threads": 1})
    assert seen == [(str(tmp_path), {"threads": 1}), (None, {"threads": 1})]


class Ray:
    """Stands for Ray on a cluster of one core, whose tasks run until they are cancelled."""

    class exceptions:
        RayTaskError = KeyError

    def __init__(self) -> None:
        self.sent: list[threading.Event] = []
        self.left = False

    def init(self, **options) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, *task):
        if not task or callable(task[0]):  # the decorator
            return self
        self.sent.append(threading.Event())
        return self.sent[-1]

    def options(self, **options):
        return self

    def get(self, ref: threading.Event):
        ref.wait()
        raise RuntimeError("cancelled")

    def cancel(self, ref: threading.Event, force: bool) -> None:
        ref.set()
        time.sleep(0.3)  # a call over the network: what falls free meanwhile takes up new work

    def shutdown(self) -> None:
        self.left = True


def stopped(made) -> bool:
    """Whether stop comes back within seconds; what it may wait for without end is left to a daemon."""
    thread = threading.Thread(target=made.stop, daemon=True)
    thread.start()
    thread.join(executor.PATIENCE + 10)
    return not thread.is_alive()


@pytest.fixture
def fake(monkeypatch):
    made = Ray()
    monkeypatch.setitem(sys.modules, "ray", made)
    yield made
    for _ in range(100):  # lets go of whatever a failed test left behind
        for ref in made.sent:
            ref.set()
        time.sleep(0.001)


def test_stop_starts_none_of_the_runs_that_queue(fake, tmp_path):
    """With more jobs than places: a place that falls free takes the next one."""
    cluster = Cluster("auto", 1, 0.0)
    assert cluster.places == 1
    runs = [cluster.submit(RunConfig(seed=seed), tmp_path / "runs" / "x", tmp_path, 0.0, {}) for seed in range(4)]
    while not fake.sent:
        time.sleep(0.01)
    assert stopped(cluster) and fake.left and len(fake.sent) == 1
    assert isinstance(runs[0].result(), job.Failure) and all(run.cancelled() for run in runs[1:])


def test_stop_does_not_wait_for_the_run_of_another_process(fake, tmp_path):
    cluster = Cluster("auto", 1, 0.0)
    (tmp_path / "locks").mkdir()
    with store.claim(RunConfig(), tmp_path):
        waits = cluster.submit(RunConfig(), tmp_path / "runs" / "x", tmp_path, executor.PATIENCE, {})
        time.sleep(0.3)
        assert not waits.done() and stopped(cluster) and waits.result() is None and fake.sent == []


def test_a_run_that_gets_its_turn_while_the_cluster_stops_is_cancelled(fake, tmp_path):
    cluster = Cluster("auto", 1, 0.0)
    cluster.stopped = True  # and stop has gone through what had been sent
    ended = cluster.submit(RunConfig(), tmp_path / "runs" / "x", tmp_path, 0.0, {}).result(20)
    assert isinstance(ended, job.Failure) and fake.sent[0].is_set()
