"""Threads for a product: torch's own where they are free, else a pool."""

import _thread
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rbd import Basis
from rbd.kernels import countsketch_cpu, team

NAMES = ("normal", "uniform", "rademacher", "countsketch")
MAPS = Path("/proc/self/maps")  # the libraries of this process, torch's own among them
HAS_GNU = MAPS.exists() and re.search(r"/torch(/lib|\.libs)/libgomp", MAPS.read_text()) is not None
borrows = pytest.mark.skipif(not HAS_GNU, reason="this torch does not use GNU OpenMP")


@pytest.fixture(autouse=True)
def two_threads(set_threads, monkeypatch) -> Iterator[None]:
    set_threads(2)
    monkeypatch.setattr(team, "_resting", 0.0)
    monkeypatch.setattr(team, "_late", 0)
    yield


@pytest.fixture(params=[pytest.param("openmp", marks=borrows), "pool"])
def either(request, monkeypatch) -> None:
    if request.param == "pool":
        monkeypatch.setattr(team, "_openmp", lambda: None)
    else:
        monkeypatch.setattr(team, "LATE", 3600.0)  # however busy the machine is
        monkeypatch.setattr(team, "_ask_pool", None)


def meet(each: Callable[[], None] = lambda: None) -> set[int]:
    """Who took part in work that needs two: their identities."""
    both, seen = threading.Barrier(2), set[int]()

    def work() -> None:
        both.wait(30)
        seen.add(threading.get_ident())
        each()

    team.share(work, 2)
    return seen


def test_two_threads_work_at_once(either):
    for _ in range(100):
        assert len(meet()) == 2


@borrows
def test_torchs_threads_are_the_ones(fresh_python):
    """Torch starts a third, and a product on three threads no more; one on fewer than torch has asks a pool."""
    printed = fresh_python("""
import threading
import torch
from pathlib import Path
from rbd import Basis
from rbd.kernels import team

def use_torch(threads):
    torch.set_num_threads(threads)
    torch.ones(10_000_000).add_(1)

def use_basis():
    Basis(250, 400_000).project(torch.ones(400_000))
    return len(list(Path("/proc/self/task").iterdir()))

team.LATE = 3600
use_torch(2)
before = use_basis()
use_torch(3)
print(use_basis() - before, threading.active_count())
team.set_threads(2)
use_basis()
print(threading.active_count())
""")
    assert printed.split() == ["1", "1", "2"]


def raise_in(main: bool) -> None:
    if (threading.current_thread() is threading.main_thread()) == main:
        raise OSError("of main" if main else "of the other")


@pytest.mark.parametrize("main", [True, False])
def test_an_error_of_either_thread_is_raised(either, main):
    with pytest.raises(OSError, match="of main" if main else "of the other"):
        meet(lambda: raise_in(main))
    assert len(meet()) == 2  # and the next call is as ever


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_other_has_ended_when_an_error_is_raised(either, interrupted):
    """Also if Ctrl-C arrives while this thread waits: the memory that the other writes to may be freed afterwards."""
    both, ended = threading.Barrier(2), []

    def work() -> None:
        both.wait(30)
        raise_in(True)
        time.sleep(0.2)
        ended.append(None)

    timer = threading.Timer(0.1, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt if interrupted else OSError):
        if interrupted:
            timer.start()
        team.share(work, 2)
    assert ended


def test_a_thread_that_comes_after_an_error_does_nothing():
    called = []
    job = team._Job(lambda: called.append(None))
    job.end()
    job.end()  # again, as after a Ctrl-C in the first
    job.run()
    job.end()
    assert not called


def test_the_pool_does_not_grow_without_end(monkeypatch):
    """A job is withdrawn if the caller is done before the helper wakes, who is not idle then at the next call."""
    monkeypatch.setattr(team, "_openmp", lambda: None)
    monkeypatch.setattr(team, "_idle", [])
    monkeypatch.setattr(team, "_started", 0)
    before = threading.active_count()
    for _ in range(3000):
        team.share(lambda: None, 4)
    assert threading.active_count() - before <= team.MOST
    monkeypatch.setattr(team, "MOST", 0)
    monkeypatch.setattr(team, "_idle", [])
    called: list[None] = []
    team.share(lambda: called.append(None), 4)
    assert called == [None]  # by this thread alone


def test_no_thread_is_started_while_the_process_ends(monkeypatch):
    """Python 3.11 would wait for it for ever: the calling thread does all the work."""
    monkeypatch.setattr(team.sys, "is_finalizing", lambda: True)
    monkeypatch.setattr(team, "_idle", [])
    monkeypatch.setattr(team, "_Helper", None)  # a call would raise
    basis, g = Basis(250, 101_770), torch.ones(101_770)
    c = basis.project(g)
    monkeypatch.setattr(team, "_count", 1)
    assert torch.equal(c, basis.project(g))


def test_many_callers_have_threads_of_their_own(monkeypatch):
    """Which go on waiting for the next job, and are not started anew."""
    monkeypatch.setattr(team, "_openmp", lambda: None)
    monkeypatch.setattr(team, "_idle", [])
    monkeypatch.setattr(team, "_started", 0)
    for _ in range(2):
        callers = [threading.Thread(target=lambda: [meet() for _ in range(50)]) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    deadline = time.monotonic() + 30
    while len(team._idle) < 1 and time.monotonic() < deadline:  # the last one may not be back yet
        time.sleep(0.01)
    assert 1 <= len(team._idle) <= 8 and all(helper.is_alive() for helper in team._idle)


@pytest.mark.parametrize(("name", "size"), [("rademacher", 101_770), ("countsketch", 2**20)])
def test_interrupts_arrive_and_spoil_nothing(either, name, size):
    """Ctrl-C at any time: KeyboardInterrupt, and the next product is right."""
    basis, g = Basis(250, size, name), torch.arange(size) % 7 - 3.0
    expected, caught = basis.project(g), 0
    for delay in range(20):
        timer = threading.Timer(0.002 + delay / 1e4, _thread.interrupt_main)
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            for _ in itertools.count():
                basis.project(g)
        caught += 1
        assert torch.equal(basis.project(g), expected)
    assert caught == 20


@borrows
def test_after_three_late_starts_openmp_is_left_alone(monkeypatch):
    """For a hundred times the wait: another process has the cores, and OpenMP would wait for them again."""
    asked = []
    monkeypatch.setattr(team, "_ask_pool", lambda work, threads: asked.append(threads))
    for wait in (0.5, 0.5, 1e-5, 0.5, 0.5):
        team._rest(wait)
    monkeypatch.setattr(team, "LATE", 3600.0)
    team.share(lambda: None, 2)
    assert not asked
    monkeypatch.setattr(team, "LATE", 2e-4)
    for _ in range(3):
        team._rest(0.5)
    assert 49 < team._resting - time.perf_counter() <= 50
    team.share(lambda: None, 2)
    assert asked == [2]
    monkeypatch.setattr(team, "_resting", time.perf_counter())
    team.share(lambda: None, 2)
    assert asked == [2]


@borrows
def test_a_wait_for_the_others_counts(monkeypatch):
    """Only what exceeds this thread's own time: the last piece of another may take as long."""
    waits = []
    monkeypatch.setattr(team, "_rest", waits.append)

    def late() -> None:
        time.sleep(0.5 if threading.current_thread() is not threading.main_thread() else 0.02)

    team.share(late, 2)
    assert 0.04 < waits[0] < 10


def test_no_scratch_is_made_anew(either, monkeypatch):
    """For Python, an OpenMP thread is new in every call, so memory kept by thread would be allocated in every call."""
    basis, g = Basis(250, 1_200_000, "countsketch"), torch.ones(1_200_000)
    one, other = (countsketch_cpu._take_scratch(np.dtype("f")) for _ in range(2))
    monkeypatch.setattr(countsketch_cpu, "_free", {"f": [one, other]})
    monkeypatch.setattr(countsketch_cpu, "_aligned", None)
    for _ in range(3):
        basis.project(g)
    assert {id(s) for s in countsketch_cpu._free["f"]} == {id(one), id(other)}


@pytest.mark.parametrize("name", NAMES)
def test_openmp_and_pool_give_the_same_bits(name, monkeypatch):
    size = 1_200_000 if name == "countsketch" else 101_770
    basis, g = Basis(250, size, name, seed=3), torch.sin(torch.arange(0.0, size))
    torch.set_num_threads(1)
    alone = basis.project(g), basis.expand(torch.ones(250))
    torch.set_num_threads(2)
    for library in (team._openmp, lambda: None):
        monkeypatch.setattr(team, "_openmp", library)
        assert torch.equal(basis.project(g), alone[0]) and torch.equal(basis.expand(torch.ones(250)), alone[1])
