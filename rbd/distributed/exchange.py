"""Exchanges between workers: ``Workers`` for one of several processes, ``Alone`` for a process without others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from rbd.distributed.variants import (
    OWN_BASIS,
    VARIANTS,
    Direction,
    Part,
    expand,
    find_by_dtype,
    ordered_sum,
    project,
    update,
)

CHECK = 100  # steps between two comparisons of the workers' parameters, too slow for every step

T = TypeVar("T")


def gather_single(everything: Tensor, mine: Tensor, group: dist.ProcessGroup | None, async_op: bool = False) -> Any:
    """``dist.all_gather_single``, by whatever name this torch has it: all_gather_into_tensor warns where both exist."""
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    return getattr(dist, name)(everything, mine, group, async_op)


class Workers:
    """This process as one of the workers of a group, and its exchanges with the others.

    Args:
        variant: one of VARIANTS, or "sharded" or "ddp", which use some of the methods.
        group: a torch.distributed process group; None: the default one.

    Raises:
        ValueError: this process is not in the group, or the variant is unknown.
        RuntimeError: torch.distributed is not initialised; from any method: the exchange failed, as when a worker died,
            left, or kept the others waiting for longer than the group's timeout.
    """

    def __init__(self, variant: str, group: dist.ProcessGroup | None = None):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("torch.distributed is not initialised: call torch.distributed.init_process_group() first, "
                               "in a script started by torchrun")  # fmt: skip
        if variant not in (allowed := (*VARIANTS, "sharded", "ddp")):
            raise ValueError(f"variant: got {variant!r}, allowed {', '.join(map(repr, allowed))}")
        self.variant, self.group = variant, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process does not belong to process_group")

    def __deepcopy__(self, memo: dict) -> Workers:
        return self

    def directions(self, parts: Sequence[Part]) -> list[Direction]:
        """The update u (D,) of every parameter group, and the coordinates (d,) it is made of; the same on all workers.

        Args:
            parts: gradient and bases of each parameter group.

        The coordinates of all groups of one dtype are exchanged together. With own bases, a worker expands its own while
        those of the others arrive.
        """
        return find_by_dtype(self._common_directions if self.variant == "common" else self._gathered_directions, parts)

    def _common_directions(self, parts: Sequence[Part]) -> list[Direction]:
        mine = [project(part, self.variant, self.rank, self.size) for part in parts]
        means = self.mean(torch.cat(mine)).split([len(c) for c in mine])
        return [Direction(expand(part, c), [c]) for part, c in zip(parts, means)]

    def _gathered_directions(self, parts: Sequence[Part]) -> list[Direction]:
        mine = [project(part, self.variant, self.rank, self.size) for part in parts]
        lengths = [[self._length(part, r) for part in parts] for r in range(self.size)]  # (W, groups)
        wait = self.gather(torch.cat(mine), [sum(each) for each in lengths])
        own = [expand(part, c, self.rank) if self.variant in OWN_BASIS else None for part, c in zip(parts, mine)]
        theirs = zip(*(c.split(each) for c, each in zip(wait(), lengths)))  # (groups, W)
        return [Direction(self._update(part, list(c), u), list(c)) for part, c, u in zip(parts, theirs, own)]

    def _length(self, part: Part, worker: int) -> int:
        d = part.spec.dim
        return (worker + 1) * d // self.size - worker * d // self.size if self.variant == "shares" else d

    def _update(self, part: Part, c: list[Tensor], own: Tensor | None) -> Tensor:
        """``update``, given this worker's own summand if it has been computed."""
        if own is None:
            return update(part, self.variant, c)
        return ordered_sum(own if r == self.rank else expand(part, c_r, r) for r, c_r in enumerate(c))

    def gather(self, x: Tensor, lengths: Sequence[int]) -> Callable[[], list[Tensor]]:
        """Send x, (lengths[rank],), to all; the function returned waits for all and returns theirs, in their order."""
        if self.size == 1:
            return lambda: [x]
        longest = max(lengths)
        everything = x.new_empty(self.size * longest)
        sent = pad(x, (0, longest - len(x)))
        work = self.attempt(lambda: gather_single(everything, sent, self.group, async_op=True))

        def wait() -> list[Tensor]:
            self.attempt(work.wait)
            return [row[:n] for row, n in zip(everything.view(self.size, longest), lengths)]

        return wait

    def sum(self, x: Tensor) -> Tensor:
        """Σ_r x_r, (n,), in the order of the workers: every worker adds up its part of the places and sends the sums.

        Not an all-reduce, whose order of summation is up to the backend; it sends as many bytes as the best all-reduce.
        """
        if self.size == 1:
            return x
        places = -(-len(x) // self.size)
        sent = pad(x, (0, self.size * places - len(x)))
        got, sums = torch.empty_like(sent), torch.empty_like(sent)
        self.attempt(lambda: dist.all_to_all_single(got, sent, group=self.group))
        part = ordered_sum(got.view(self.size, places))
        self.attempt(lambda: gather_single(sums, part, self.group))
        return sums[: len(x)]

    def mean(self, x: Tensor) -> Tensor:
        """(1/W) Σ_r x_r, (n,), in the order of the workers."""
        return self.sum(x) / self.size

    def tell(self, value: T) -> T:
        """Worker 0's value (anything that can be pickled), on all workers."""
        box = [value]
        self.attempt(lambda: dist.broadcast_object_list(box, group=self.group, group_src=0))
        return box[0]

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with worker 0's."""
        for tensor in tensors:
            self.attempt(partial(dist.broadcast, tensor, group=self.group, group_src=0))

    def agree(self, facts: dict[str, Any]) -> None:
        """Compare facts (name to value) with those of all other workers.

        Raises:
            RuntimeError: they differ; names the first fact that does, and which workers have which value.
        """
        everyone: list[dict[str, Any]] = [{}] * self.size
        self.attempt(lambda: dist.all_gather_object(everyone, facts, self.group))
        for name in dict.fromkeys(name for each in everyone for name in each):
            place, values = _first_difference(name, [each.get(name) for each in everyone])
            workers: dict[str, list[int]] = {}  # that have a value
            for r, value in enumerate(values):
                workers.setdefault(value, []).append(r)
            if len(workers) > 1:
                got = ", ".join(f"{value} on worker {_numbers(who)}" for value, who in workers.items())
                raise RuntimeError(f"workers differ in {place}: {got}")

    def attempt(self, exchange: Callable[[], T]) -> T:
        """What an exchange returns; its errors say which worker saw them."""
        try:
            return exchange()
        except RuntimeError as error:
            cause = _first_line(error).rstrip(".")
            raise RuntimeError(f"worker {self.rank} of {self.size}: exchange failed: {cause}. If the cause is a lost "
                               f"connection or a timeout, another worker died or hung") from error  # fmt: skip


class Alone:
    """One process without a process group: the exchanges of ``Workers`` that a training loop uses.

    ``sum``, ``mean`` and ``tell`` return their argument, ``gather`` a function that returns it in a list; ``copy`` and
    ``agree`` do nothing.
    """

    rank, size, variant = 0, 1, None

    def gather(self, x: Tensor, lengths: Sequence[int]) -> Callable[[], list[Tensor]]:
        """A function that returns [x]."""
        return lambda: [x]

    def sum(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def tell(self, value: T) -> T:
        """value."""
        return value

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Leave the tensors as they are."""

    def agree(self, facts: dict[str, Any]) -> None:
        """Return: one process always agrees with itself."""


def _first_difference(name: str, values: list[Any]) -> tuple[str, list[str]]:
    """Name of a fact and each worker's value of it as text; of lists, only the first place where two of them differ."""
    if all(isinstance(value, (list, tuple)) for value in values):
        for i in range(max(map(len, values))):
            items = [repr(value[i]) if i < len(value) else "nothing" for value in values]
            if len(set(items)) > 1:
                return f"{name}[{i}]", items
    return name, [repr(value) for value in values]


def _numbers(workers: list[int]) -> str:
    shown = ", ".join(map(str, workers[:8]))
    return shown if len(workers) <= 8 else f"{shown} and {len(workers) - 8} more"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def digest(tensors: Iterable[Tensor]) -> str:
    """Checksum of the bits of tensors, 16 hexadecimal digits."""
    sum = blake2b(digest_size=8)
    for tensor in tensors:
        sum.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sum.hexdigest()
