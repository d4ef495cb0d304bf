"""rbd.cluster: a sweep on a real Ray cluster of two nodes on this machine, one of which is killed while it works."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rbd
from rbd import record, sweep
from rbd.config import RunConfig

ROOT = Path(rbd.__file__).parents[1]
SCRIPT = '''"""Does it work elsewhere?"""
from rbd.config import RunConfig

def configs(profile, tuned):
    runs = [RunConfig(method="sgd", epochs=20, batch_size=500, seed=seed) for seed in range(4)]
    return [*runs, RunConfig(dim=101771, epochs=1)]
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
    made = record.load_all(tmp_path / "results" / "runs" / "demo-quick")
    assert sorted(r.config.seed for r in made) == [0, 1, 2, 3]
    again = sweep.run(made[0].config, tmp_path / "here", tmp_path / "here", threads=1)
    assert made[0].curve == again.curve and made[0].environment["cpu"] == again.environment["cpu"]
    assert [*(tmp_path / "results" / "locks").iterdir(), *(tmp_path / "results" / "checkpoints").iterdir()] == []


def test_without_ray_the_message_says_what_to_install(tmp_path):
    (tmp_path / "demo.py").write_text(SCRIPT)
    (tmp_path / "ray.py").write_text("raise ImportError('no ray')")  # shadows the real one
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [sys.executable, "-m", "rbd", "sweep", "demo", "--sweeps-dir", ".", "--ray", "auto"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "rbd: error: ray: got 'auto', allowed only with Ray: pip install 'rbd[r" in done.stderr


def test_remote_uses_checkpoints_only_on_a_shared_disk(tmp_path, monkeypatch):
    from rbd import cluster

    seen = []
    monkeypatch.setattr("rbd.train.train", lambda config, checkpoints, **options: seen.append((checkpoints, options)))
    for folder in (tmp_path, tmp_path / "elsewhere"):
        cluster.remote(RunConfig(), str(folder), {"threads": 1})
    assert seen == [(str(tmp_path), {"threads": 1}), (None, {"threads": 1})]
