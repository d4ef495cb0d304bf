"""Runs on a Ray cluster: the same loop, locks, checkpoints and records as here, only the training happens on a node."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rbd.suite.config import RunConfig
from rbd.suite.job import attempt
from rbd.suite.record import Record

RETRIES = 5  # of a run whose node or process died


def remote(config: RunConfig, checkpoints: str, options: dict) -> Record:
    """On a node, which needs rbd installed: train, with checkpoints if the driver's directory is there (a shared disk)."""
    from rbd.suite.train import train

    return train(config, checkpoints if Path(checkpoints).is_dir() else None, **options)


class Cluster:
    """Workers on the Ray cluster at an address, each with `threads` cores and a fraction of a GPU.

    Raises:
        ValueError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
    """

    def __init__(self, address: str, threads: int, gpus: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("Ray is not installed: run `pip install 'ray>=2.54'`") from error
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        self.ray, self.refs = ray, set[Any]()
        self.task = ray.remote(remote).options(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)
        there = ray.cluster_resources()
        self.places = max(1, int(min(there.get("CPU", 0) / threads, there.get("GPU", 0) / gpus if gpus else 1e6)))
        self.waiting, self.stopped = ThreadPoolExecutor(self.places), False  # its threads hold locks, and save records

    def submit(self, config: RunConfig, directory: Path, results: Path, wait: float, options: dict) -> Future:
        """The future result of `attempt`; one over `places` waits here."""
        return self.waiting.submit(attempt, config, directory, results, wait, options, self._train)

    def _train(self, config: RunConfig, checkpoints: str | os.PathLike[str], **options) -> Record:
        ref = self.task.remote(config, str(Path(checkpoints).resolve()), options)
        self.refs.add(ref)
        try:
            if self.stopped:  # between the lock and here: stop may not have seen it
                self.ray.cancel(ref, force=True)
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error  # what train raised
        finally:
            self.refs.discard(ref)

    def is_over(self) -> bool:
        return self.stopped

    def stop(self) -> None:
        """Cancel the runs under way and leave the cluster."""
        self.stopped = True
        self.waiting.shutdown(wait=False, cancel_futures=True)  # first, or places that fall free would take up new runs
        for ref in list(self.refs):
            self.ray.cancel(ref, force=True)
        self.waiting.shutdown()  # soon: none trains, and none waits longer than executor.PATIENCE for a lock
        self.ray.shutdown()
