"""Bugs to be planted in this process, each with the case and the measure of accuracy.py that have to notice it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rbd import kernels, optim
from rbd.compartment import BasisSpec
from rbd.partition import Partition
from rbd.suite import train as loop

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """Its key in BUGS says what is wrong."""

    case: str
    shown_by: str  # the measure that has to notice
    plant: Plant

    @contextmanager
    def planted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            self.plant(patch)
            yield


def _use_vectors(patch: pytest.MonkeyPatch) -> None:
    """Steps by `rbd_direction`, where bugs can be planted, and not in place (the same bits: test_in_place.py)."""
    patch.setattr(kernels, "prepare", lambda *_: None)


def directions(change: Callable[[Tensor, Partition], Tensor]) -> Plant:
    """The direction u (D,) of a step is changed after it was made."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        _use_vectors(patch)
        real = optim.rbd_direction

        def direction(g, partition, *name):
            u, c = real(g, partition, *name)
            return change(u, partition), c

        patch.setattr(optim, "rbd_direction", direction)

    return plant


def drawn(stream_and_step: Callable[[int, int], tuple[int, int]]) -> Plant:
    """The basis of a product is another one than its stream and step name."""

    def renamed(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def other(x, spec, *rest, **named):
            stream, step = stream_and_step(spec.stream, spec.step)
            return product(x, replace(spec, stream=stream, step=step), *rest, **named)

        return other

    def plant(patch: pytest.MonkeyPatch) -> None:
        _use_vectors(patch)
        patch.setattr(kernels, "project", renamed(kernels.project))
        patch.setattr(kernels, "expand", renamed(kernels.expand))

    return plant


def afresh(patch: pytest.MonkeyPatch) -> None:
    """A new basis at every step, which is one project and one expand, whatever the optimizer asks for."""
    products = count()
    drawn(lambda stream, step: (stream, next(products) // 2))(patch)


def by_size(u: Tensor, partition: Partition) -> Tensor:
    """1/√D of the whole network in each compartment, as in the released code, instead of 1/√D_k: u_k D_k/D."""
    parts = [u[k.start : k.stop] * ((k.stop - k.start) / partition.size) for k in partition.compartments]
    return torch.cat(parts)


def biased(patch: pytest.MonkeyPatch) -> None:
    """Entries 0.5 and -1.5, as in the released code, instead of signs: Φ - 1/(2√D) everywhere."""
    _use_vectors(patch)
    real = optim.rbd_direction

    def direction(g, partition, *name):
        shift = 0.5 / math.sqrt(partition.size)
        u, c = real(g, partition, *name)
        c = c - shift * g.sum()  # (Φ - s 1) g
        distribution, *rest = name[:4]  # without out
        spec = BasisSpec(partition.compartments, optim.distribution_of(distribution), *rest)
        u = kernels.expand(c, spec) - shift * c.sum()  # (Φ - s 1)ᵀ c
        return u, c

    patch.setattr(optim, "rbd_direction", direction)


def ranks(change: Callable[[Tensor], Tensor]) -> Plant:
    """The coordinates of nes are changed."""
    real = optim.centred_ranks
    return lambda patch: patch.setattr(optim, "centred_ranks", lambda losses, dtype: change(real(losses, dtype)))


def ignored_lr(patch: pytest.MonkeyPatch) -> None:
    real = loop.build_optimizer
    patch.setattr(loop, "build_optimizer", lambda config, model, **given: real(replace(config, lr=1.0), model, **given))


def other_batch(patch: pytest.MonkeyPatch) -> None:
    """The loss is that of the batch, the gradient that of the batch before, at the present parameters."""
    last: list[Any] = []

    def loss(model, x, y):
        own, (x_before, y_before) = cross_entropy(model(x), y), last.pop() if last else (x, y)
        last.append((x, y))
        before = cross_entropy(model(x_before), y_before)
        return before + (own - before).detach()

    patch.setattr(loop, "_loss", loss)


def added_up(patch: pytest.MonkeyPatch) -> None:
    """Gradients of all batches so far, never set to zero."""
    patch.setattr(torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=True: None)


# Workers in processes of their own are not here: test_distributed.py holds them to the same in turn bit for bit (a worker
# that takes another stream than its number stops all of them), and that to dense matrices (stream 0 for all fails there).
BUGS: dict[str, Bug] = {
    "wrong sign": Bug("rbd signs", "cosine", directions(lambda u, _: -u)),
    "wrong sign, fpd": Bug("fpd signs", "cosine", directions(lambda u, _: -u)),
    "scale √2": Bug("rbd normal", "length", directions(lambda u, _: u * math.sqrt(2))),
    "scale 1.05": Bug("rbd signs", "length", directions(lambda u, _: u * 1.05)),
    "variance a third, released uniform": Bug("rbd uniform", "length", directions(lambda u, _: u / 3)),
    "scale K in compartments": Bug("rbd by_layer", "length", directions(lambda u, p: u * len(p.compartments))),
    "scale 1/√D in compartments, released code": Bug("rbd even:10", "length", directions(by_size)),
    "the same in layers": Bug("rbd by_layer", "length", directions(by_size)),
    "entries of mean -0.5, released signs": Bug("rbd signs", "length", biased),
    "basis not redrawn": Bug("rbd signs", "overlap", drawn(lambda stream, step: (stream, 0))),
    "basis redrawn at every step, not at every tenth": Bug("rbd redraw 10", "overlap", afresh),
    "fpd redrawn": Bug("fpd signs", "overlap", afresh),
    "workers share a basis": Bug("4 workers", "length", drawn(lambda stream, step: (0, step))),
    "workers replay, released seeds": Bug("4 workers", "overlap", drawn(lambda stream, step: (0, step + stream))),
    "lr ignored": Bug("rbd signs", "length", ignored_lr),
    "lr ignored, sgd": Bug("sgd mnist", "length", ignored_lr),
    "lr ignored, nes": Bug("rbd-nes signs", "length", ignored_lr),
    "gradient of another batch": Bug("rbd signs", "cosine", other_batch),
    "gradient of another batch, fpd": Bug("fpd signs", "cosine", other_batch),
    "gradient of another batch, sgd": Bug("sgd fmnist", "cosine", other_batch),
    "gradients added up": Bug("rbd signs", "length", added_up),
    "wrong sign, nes": Bug("rbd-nes signs", "cosine", ranks(torch.neg)),
    "scale √2, nes": Bug("rbd-nes signs", "length", ranks(lambda c: c * math.sqrt(2))),
    "basis not redrawn, nes": Bug("rbd-nes signs", "overlap", drawn(lambda stream, step: (stream, 0))),
}
