"""Communication hooks for DistributedDataParallel: coordinates in place of gradients, or a mean in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from rbd.basis import WORD, check_integer, check_word
from rbd.compartment import BasisSpec
from rbd.distributed.exchange import CHECK, Workers, digest, gather_single
from rbd.distributed.variants import Part, project, update
from rbd.distribution import distribution as distribution_of
from rbd.partition import by_tensor, check_ordered
from rbd.philox import STREAM_VERSION


class CoordinatesState:
    """State of ``coordinates_hook``: a basis for each tensor of a model, drawn anew every ``redraw`` steps.

    A step here is a backward pass in which DistributedDataParallel synchronises. Where you accumulate gradients, use its
    ``no_sync()`` for all but the last micro-batch; otherwise each micro-batch counts as a step.

    Args:
        params: ``model.parameters()``, in the order that all workers have; those that need no gradient are left out.
        dim: total number of random directions, at least one a tensor, apportioned by size.
        distribution, seed, redraw: as in RBD.
        process_group: the one given to DistributedDataParallel; None: the default one.

    Attributes:
        step: number of synchronised backward passes so far, on which the next bases depend. Save it in your checkpoints, and
            set it when you resume.

    Raises:
        TypeError, ValueError: an argument is out of its range.
        RuntimeError: torch.distributed is not initialised, or the workers were given different arguments; from a backward
            pass, on all workers, if their steps or parameters differ (compared in the first step and every 100 steps).
    """

    def __init__(self, params: Iterable[Tensor], dim: int = 250, distribution: str = "rademacher", seed: int = 0,
                 redraw: int = 1, process_group: dist.ProcessGroup | None = None):  # fmt: skip
        check_ordered(params)
        params = list(params)
        if bad := [type(p).__name__ for p in params if not isinstance(p, Tensor)]:
            raise TypeError(f"params must be tensors, as of model.parameters(), but one is a {bad[0]}")
        dim, kept = check_integer("dim", dim), [p for p in params if p.requires_grad]
        if not any(p.numel() for p in kept):
            raise ValueError("params: got no values that require a gradient: is it a generator that has been used before?")
        cut = by_tensor(tuple(("", p.numel()) for p in kept), dim).compartments
        self.params = [p for p in kept if p.numel()]
        self.compartments = {id(p): k for p, k in zip(self.params, cut)}
        self.distribution, self.seed = distribution_of(distribution), check_word("seed", seed)
        self.redraw, self.step, self._calls = check_word("redraw", redraw), 0, 0
        self.workers = Workers("common", process_group)
        self.workers.agree({"stream_version": STREAM_VERSION, "dim": dim, "distribution": distribution, "seed": self.seed,
                            "redraw": self.redraw, "shapes": [tuple(p.shape) for p in kept]})  # fmt: skip

    def advance(self) -> None:
        """Go on to the next step; in the first and every CHECK steps, compare step and parameters of all workers."""
        if self._calls % CHECK == 0:
            self.workers.agree({"step": self.step, "parameters": digest(self.params)})
        self._calls, self.step = self._calls + 1, self.step + 1


def coordinates_hook(state: CoordinatesState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Send coordinates in place of gradients: g becomes Φᵀ (1/W) Σ_r Φ g_r, tensor by tensor.

    For ``DistributedDataParallel.register_comm_hook``, whatever optimizer is used; with plain SGD it is RBD with
    partition="by_tensor" and variant="common". Directions have unit expected norm and E[Φᵀ Φ g] = (d / D) g, so SGD
    needs RBD's learning rates; Adam cancels that factor. How DDP cuts its buckets does not matter: bases are named by
    tensors. A worker sends its d coordinates to each other one, d (W-1) values in a step, while the rest of the backward
    pass goes on.

    Raises:
        ValueError: from the backward pass: a parameter is not the state's, or needed no gradient when the state was made.
        RuntimeError: from the backward pass: the exchange failed, as when another worker died, left, or kept this one
            waiting for longer than the group's timeout; or as in CoordinatesState.
    """
    g, at, compartments = bucket.buffer(), 0, []
    for p in bucket.parameters():
        if p.numel():
            if id(p) not in state.compartments:
                raise ValueError(f"a parameter of shape {tuple(p.shape)} is not in the CoordinatesState: give it all "
                                 f"parameters of the model that require a gradient")  # fmt: skip
            compartments.append(replace(state.compartments[id(p)], start=at, stop=at + p.numel()))
        at += p.numel()
    drawn = state.step // state.redraw % WORD if state.redraw else 0
    if bucket.is_last():
        state.advance()
    if not compartments:  # empty tensors alone, such as one of another dtype than all others
        return fulfil(g)
    part = Part(g, BasisSpec(tuple(compartments), state.distribution, state.seed, 0, drawn))
    c = project(part, "common", state.workers.rank, state.workers.size)
    everyone = c.new_empty(state.workers.size * len(c))
    work = state.workers.attempt(lambda: gather_single(everyone, c, state.workers.group, async_op=True))

    def finish(arrived: torch.futures.Future) -> Tensor:
        state.workers.attempt(arrived.wait)
        return g.copy_(update(part, "common", list(everyone.view(state.workers.size, len(c)))))

    return work.get_future().then(finish)


def ordered_hook(workers: Workers, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's mean of gradients, but summed in the order of the workers, so that one process can follow bit for bit."""
    return fulfil(bucket.buffer().copy_(workers.mean(bucket.buffer())))


def fulfil(result: Tensor) -> torch.futures.Future[Tensor]:
    """A future that has its result."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(result)
    return done


if dist.is_available():  # DDP compares annotations with the types themselves, not with their names
    for _hook in (coordinates_hook, ordered_hook):
        _hook.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}
