"""A model of a step's time on W machines, from latency and bandwidth. A model: nothing in here was measured on W machines.

Messages go around as gloo and the exchanges of rbd.distributed send them, one after another: W - 1 of them in an
all-gather (each the coordinates of one worker), twice as many of 1/W of the length in a mean. See the table there.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOAT = 4  # bytes
VARIANTS = ("common", "bases", "directions", "shares", "ddp")


@dataclass(frozen=True)
class Machine:
    """What one worker needs alone, and how it reaches the others."""

    gradient: float  # seconds, forward and backward on its batch
    project: float  # seconds, of d directions on D values
    expand: float  # seconds, the same way back
    latency: float  # seconds, of an empty message
    bandwidth: float  # bytes / second
    cores: float = float("inf")  # that all workers share: beyond so many they take turns; infinity: a machine each


def messages(variant: str, workers: int, dim: int, size: int) -> tuple[int, float]:
    """How many messages a worker sends one after another in a step, and of how many bytes each."""
    if variant in ("common", "ddp"):  # every worker averages a W-th of the values, then sends it to all
        return 2 * (workers - 1), FLOAT * (dim if variant == "common" else size) / workers
    return workers - 1, FLOAT * (-(-dim // workers) if variant == "shares" else dim)


def exchange_seconds(variant: str, workers: int, dim: int, size: int, machine: Machine) -> float:
    """n (latency + bytes / bandwidth)"""
    count, length = messages(variant, workers, dim, size)
    return count * (machine.latency + length / machine.bandwidth)


def step_seconds(variant: str, workers: int, dim: int, size: int, machine: Machine) -> float:
    """gradient + project + exchange + expand; with own bases the first of W expansions overlaps the exchange."""
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}, allowed {', '.join(VARIANTS)}")
    turns = max(1.0, workers / machine.cores)
    exchange = exchange_seconds(variant, workers, dim, size, machine)
    gradient, project, expand = (turns * s for s in (machine.gradient, machine.project, machine.expand))
    if variant == "ddp":
        return gradient + exchange
    if variant in ("bases", "directions"):
        return gradient + project + max(exchange, expand) + (workers - 1) * expand
    return gradient + (project / workers if variant == "shares" else project) + exchange + expand
