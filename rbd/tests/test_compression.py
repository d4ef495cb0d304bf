"""rbd.suite.experiments.compression: what a step sends, error feedback, and the search for a rate."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from rbd.distributed import launch
from rbd.suite import datasets
from rbd.suite.experiments import compression
from rbd.suite.experiments.compression import HOOKS, Memory, Way, choose, search

SIZE, STEPS = 40, 3


class Bucket:
    """What a hook reads of a GradBucket."""

    def __init__(self, g):
        self.g = g

    def buffer(self):
        return self.g


def draw(rank, step):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(10 * step + rank))


def send(hook, count):
    """Updates of some steps, and what every worker has kept after them."""
    memory = Memory(count, 1, "countsketch")
    updates = [hook(memory, Bucket(draw(dist.get_rank(), step))).wait().clone() for step in range(STEPS)]
    kept = torch.empty(dist.get_world_size(), SIZE)
    dist.all_gather(list(kept), memory.kept)
    return torch.stack(updates), kept


def train_ways(ways):
    """Two epochs of ten steps each, since the first one's bytes may hold what DDP sent before it began."""
    sets, compression.EPOCHS = datasets.load("mnist-embedded"), 2
    few = SimpleNamespace(
        train=datasets.Split(sets.train.images[:1280], sets.train.labels[:1280]), validation=sets.validation
    )
    return {way.name: compression.train(way, compression.guess_rate(way), 0, few) for way in ways}


def work():
    """What this file looks at, in one start of the workers."""
    ways = [Way("ddp"), Way("bf16"), Way("topk", 250), Way("randomk", 250), Way("rbd", 250, "countsketch"),
            Way("kept", 250, "countsketch")]  # fmt: skip
    updates = {name: {count: send(hook, count) for count in (5, SIZE)} for name, hook in HOOKS.items()}
    return updates, train_ways(ways)


@pytest.fixture(scope="module")
def done():
    return launch(work, compression.WORKERS)


@pytest.fixture(scope="module")
def sent(done):
    return done[0]


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_what_a_worker_does_not_send_it_keeps(sent, hook):
    """Updates and the mean of what is kept add up to the mean of the gradients."""
    updates, kept = sent[hook][5]
    whole = torch.stack([draw(rank, step) for rank in range(compression.WORKERS) for step in range(STEPS)])
    torch.testing.assert_close(updates.sum(0) + kept.mean(0), whole.sum(0) / compression.WORKERS)
    most = {"topk": 5 * compression.WORKERS, "randomk": 5, "kept": SIZE}[hook]
    assert all(0 < int(u.count_nonzero()) <= most for u in updates)


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_all_entries_are_the_mean_of_the_gradients(sent, hook):
    updates, kept = sent[hook][SIZE]
    for step, u in enumerate(updates):
        torch.testing.assert_close(u, torch.stack([draw(r, step) for r in range(compression.WORKERS)]).mean(0))
    torch.testing.assert_close(kept, torch.zeros_like(kept))


def test_the_largest_entries_are_sent_first(sent):
    updates, _ = sent["topk"][5]
    wanted = torch.zeros(SIZE)
    for rank in range(compression.WORKERS):
        g = draw(rank, 0)
        at = g.abs().argsort(descending=True)[:5]
        wanted[at] += g[at] / compression.WORKERS
    torch.testing.assert_close(updates[0], wanted)


def test_a_search_goes_on_until_the_best_rate_lies_inside():
    asked = []

    def measure(lr):
        asked.append(lr)
        return -abs(math.log2(lr) - 5)  # best at 32

    tried = search(measure, 1.0)
    assert choose(tried) == 32 and sorted(tried) == asked == [2.0**k for k in range(-1, 7)]
    assert choose(search(lambda lr: -abs(math.log2(lr) + 3), 1.0)) == 1 / 8
    assert len(search(lambda lr: lr, 1.0)) == compression.MOST + 1, "a search ends"
    assert choose({2.0: 10.0, 1.0: 10.0, 4.0: 9.0}) == 1.0, "the smallest of equal ones"


def test_every_way_trains(done):
    runs = done[1]
    assert abs(runs["ddp"].accuracy - runs["bf16"].accuracy) < 5 and runs["ddp"].accuracy > 15  # chance: 10


def test_every_way_sends_what_it_says(done):
    """D = 101,770: all gradients take 2 D (W-1)/W floats, bf16 half of it, d coordinates d (W-1)."""
    runs = done[1]
    if math.isnan(runs["ddp"].bytes_per_step):
        pytest.skip("bytes on the wire are counted on Linux alone: rbd.suite.wire")
    D = 101_770
    floats = {"ddp": 2 * D * 3 / 4, "bf16": D * 3 / 4, "topk": 2 * 250 * 3, "randomk": 2 * 250 * 3 / 4, "rbd": 250 * 3,
              "kept": 2 * 250 * 3 / 4}  # fmt: skip
    for name, values in floats.items():  # gloo's headers come on top
        assert 4 * values <= runs[name].bytes_per_step <= 1.1 * 4 * values + 3_000, name


def test_where_bytes_are_not_counted_nothing_is_trained(monkeypatch):
    def refuse():
        raise OSError("bytes on the wire are read from TCP_INFO")

    monkeypatch.setattr("rbd.suite.wire.count_bytes", refuse)
    monkeypatch.setattr("rbd.distributed.launch", lambda *_: pytest.fail("it trained"))
    with pytest.raises(OSError, match="TCP_INFO"):
        compression.measure(Way("ddp"), "quick")
