"""Many runs on one GPU by one process: they take turns by chunks of steps, each on a stream of its own, up to a deadline."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import torch

from rbd.suite import train
from rbd.suite.config import RunConfig
from rbd.suite.job import attempt
from rbd.suite.record import Record
from rbd.suite.replay import Ready
from rbd.suite.train import Turns

PAUSE = 1e-4  # s, where no run can go on


@dataclass
class Lane:
    """A run among those that take turns."""

    turns: Turns
    settings: Callable[[], AbstractContextManager[None]]  # that hold in its turns
    ended: Future[Record]
    is_ready: Ready | None = None  # None: its first turn, after which it can be interrupted

    def go_on(self, is_over: bool) -> bool:
        """Have a turn, or the last one; returns whether there was anything to do."""
        if self.is_ready and not is_over and not self.is_ready():
            return False
        try:
            with self.settings():
                if self.is_ready and is_over:
                    self.ended.set_result(train.interrupt(self.turns))
                else:
                    self.is_ready = next(self.turns)
        except StopIteration as end:
            self.ended.set_result(end.value)
        except BaseException as error:  # of this run: the others go on
            self.ended.set_exception(error)
        return True


def take_turns(arriving: SimpleQueue[Lane | None], is_over: Callable[[], bool]) -> None:
    """Continue all runs in turn, and those that arrive meanwhile; return when None has arrived and all have ended.

    Args:
        is_over: whether runs are to end now, at their last full epoch.
    """
    lanes: list[Lane] = []
    is_open = True
    while is_open or lanes:
        try:
            while is_open:
                arrived = arriving.get(block=not lanes)
                is_open = arrived is not None
                lanes += [arrived] if arrived else []
        except Empty:
            pass
        busy = [lane.go_on(is_over()) for lane in lanes]
        lanes = [lane for lane in lanes if not lane.ended.done()]
        if lanes and not any(busy):
            time.sleep(PAUSE)


class Streams:
    """Does runs in this process, a thread for all of them; what each needs beside its steps has a thread of its own.

    Args:
        lanes: runs at a time.
        deadline: seconds from now after which runs end at their last full epoch and no other begins; None: never.
    """

    def __init__(self, lanes: int, deadline: float | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:  # fmt: skip
        self.lanes, self.clock = lanes, clock
        self.end = math.inf if deadline is None else clock() + deadline
        self.arriving: SimpleQueue[Lane | None] = SimpleQueue()
        self.waiting = ThreadPoolExecutor(lanes)
        self.driver = Thread(target=take_turns, args=(self.arriving, self.is_over), daemon=True)
        self.driver.start()

    def is_over(self) -> bool:
        return self.clock() >= self.end

    def submit(self, config: RunConfig, directory: Path, results: Path, wait: float, options: dict) -> Future:
        """The future result of `attempt`."""
        return self.waiting.submit(attempt, config, directory, results, wait, options, self._train)

    def _train(self, config: RunConfig, checkpoints: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None,
               device: str = "cpu", threads: int | None = None) -> Record:  # fmt: skip
        train.check_place(device, threads)
        if config.workers:  # processes of their own
            return train.train(config, checkpoints, data_dir, device, threads)
        count = threads or torch.get_num_threads()
        turns = train.begin(config, checkpoints, data_dir, device, count, lanes=self.lanes)
        ended: Future[Record] = Future()
        self.arriving.put(Lane(turns, partial(train.settings, config, device, count), ended))
        return ended.result()

    def stop(self) -> None:
        """End all runs at their last full epoch."""
        self.end = -math.inf
        self.waiting.shutdown(cancel_futures=True)
        self.arriving.put(None)
        self.driver.join()
