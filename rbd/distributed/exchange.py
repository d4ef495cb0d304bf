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

from rbd.distributed.variants import OWN_BASIS, Part, expand, ordered_sum, project, split_by_part, update

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
        ValueError: this process is not in the group.
        RuntimeError: torch.distributed is not initialised; from any method: a worker died, left, or kept the others waiting
            for longer than the group's timeout.
    """

    def __init__(self, variant: str, group: dist.ProcessGroup | None = None):
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("torch.distributed is not initialised: call torch.distributed.init_process_group() first, "
                               "in a script started by torchrun")  # fmt: skip
        self.variant, self.group = variant, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process does not belong to process_group")

    def __deepcopy__(self, memo: dict) -> Workers:
        return self

    def directions(self, parts: Sequence[Part]) -> list[tuple[Tensor, list[Tensor]]]:
        """u (D,) and the coordinates it is made of, the same on all workers, for every parameter group.

        The coordinates of all groups travel together. With own bases, a worker expands its own coordinates while those of
        the others arrive.
        """
        mine = [project(part, self.variant, self.rank, self.size) for part in parts]
        if self.variant == "common":
            means = split_by_part(self.mean(torch.cat(mine)), parts, [len(c) for c in mine])
            return [(expand(part, c), [c]) for part, c in zip(parts, means)]
        lengths = [[self._length(part, r) for part in parts] for r in range(self.size)]  # (W, groups)
        arrived = self.gather(torch.cat(mine), [sum(each) for each in lengths])
        own = [expand(part, c, self.rank) for part, c in zip(parts, mine)] if self.variant in OWN_BASIS else []
        theirs = [split_by_part(c, parts, each) for c, each in zip(arrived(), lengths)]
        found = []
        for i, part in enumerate(parts):
            c = [of_worker[i] for of_worker in theirs]
            found.append((self._update(part, c, own[i] if own else None), c))
        return found

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
        """(1/W) Σ_r x_r, (n,)."""
        return self.sum(x) / self.size

    def tell(self, value: T) -> T:
        """Worker 0's value, on all workers."""
        box = [value]
        self.attempt(lambda: dist.broadcast_object_list(box, group=self.group, group_src=0))
        return box[0]

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with worker 0's."""
        for tensor in tensors:
            self.attempt(partial(dist.broadcast, tensor, group=self.group, group_src=0))

    def agree(self, facts: dict[str, Any]) -> None:
        """Return if the facts are the same on all workers.

        Raises:
            RuntimeError: they are not; names the first that differs and who has which.
        """
        everyone: list[dict[str, Any]] = [{}] * self.size
        self.attempt(lambda: dist.all_gather_object(everyone, facts, self.group))
        for name in dict.fromkeys(name for each in everyone for name in each):
            values: dict[str, list[int]] = {}
            for r, each in enumerate(everyone):
                values.setdefault(repr(each.get(name)), []).append(r)
            if len(values) > 1:
                got = ", ".join(f"{value} on worker {_numbers(who)}" for value, who in values.items())
                raise RuntimeError(f"workers differ in {name}: {got}")

    def attempt(self, exchange: Callable[[], T]) -> T:
        """What an exchange returns; its errors say which worker saw them."""
        try:
            return exchange()
        except RuntimeError as error:
            raise RuntimeError(f"worker {self.rank} of {self.size}: an exchange failed: another worker died, left or kept "
                               f"the others waiting beyond the timeout ({_first_line(error)})") from error  # fmt: skip


class Alone:
    """One process without a process group: the methods of ``Workers``, with nothing to exchange."""

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
