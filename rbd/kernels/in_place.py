"""Products that read and write tensors where they are, for a vector that is cut into several: no copy of length D."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from rbd.compartment import BasisSpec
from rbd.kernels.memory import ORDINARY, count_change, find_obstacle, is_watched, share_memory

DTYPES: dict[torch.dtype, np.dtype] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class Name(NamedTuple):
    """What names the words of a basis, for a kernel."""

    seed: int
    stream: int
    step: int
    row: int  # the first one


def name_of(spec: BasisSpec) -> Name:
    return Name(spec.seed, spec.stream, spec.step, spec.row)  # type: ignore[arg-type]  # no tensors for these backends


class Prepared(ABC):
    """Products with the bases of one spec, for a vector that is cut into tensors of the same sizes in every call.

    ``expand``, ``shift`` and ``project`` return None for tensors that the kernels cannot read or write in place: use the
    function of the same name in ``rbd.kernels`` then. ``project_at`` and ``add_at`` take another step of the basis, and
    addresses from ``find_read`` and ``find_written``. A backend's own class looks its plans up once, and defines
    ``read_from``, ``write_to`` and ``is_finite``.
    """

    def __init__(self, spec: BasisSpec, sizes: Sequence[int]):
        self.spec, self.sizes, self.bounds = spec, sizes, list(accumulate(sizes, initial=0))
        self._dim, self._size, self._name = spec.dim, spec.size, name_of(spec)

    @abstractmethod
    def read_from(self, places: list[int], name: Name, out: torch.Tensor) -> None:
        """out = the coordinates of the vector whose tensors are at these addresses."""

    @abstractmethod
    def is_finite(self, c: torch.Tensor) -> bool:
        """Whether no value of c, (d,) contiguous, is NaN or infinite.

        After a product torch's code is no longer in the caches: a sum in torch takes about twice as long as this.
        """

    @abstractmethod
    def write_to(self, targets: list[int], sources: list[int], name: Name, c: torch.Tensor, alpha: float = 1.0) -> None:
        """Write the vector with coordinates c to tensors at these addresses.

        If there are sources, alpha times the vector is added to the tensors there, and every sum is rounded once.
        """

    def _name_at(self, step: int) -> Name:
        return Name(self._name.seed, self._name.stream, int(step) % 2**32, self._name.row)

    def expand(self, c: torch.Tensor, u: torch.Tensor | None = None) -> torch.Tensor | None:
        """The vector with coordinates c, (d,) -> (D,); u, if given, is overwritten by it."""
        if is_watched() or (u is not None and find_obstacle(u)):
            return None
        made = torch.empty(self._size, dtype=c.dtype, device="cpu") if u is None else u
        if _addresses((c, made), (self._dim, self._size), c.dtype) is None or share_memory(c, made):
            return None
        if u is not None:
            count_change(u)
        self._fill(made, c)
        return made

    def _fill(self, u: torch.Tensor, c: torch.Tensor) -> None:
        first, width = u.data_ptr(), u.element_size()
        self.write_to([first + place * width for place in self.bounds[:-1]], [], self._name, c)

    def shift(self, c: torch.Tensor, params: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """params + the vector with coordinates c, in new tensors: one pass."""
        if is_watched() or c.shape != (self._dim,) or _addresses((c,), (self._dim,), c.dtype) is None:
            return None
        sources = _addresses(params, self.sizes, c.dtype)
        if sources is None:
            return None
        made = [torch.empty_like(p) for p in params]
        self.write_to([p.data_ptr() for p in made], sources, self._name, c)
        return made

    def find_read(self, parts: Sequence[torch.Tensor | None], dtype: torch.dtype) -> list[int] | None:
        """Addresses for ``project_at``; None if one is not a contiguous CPU tensor of that dtype and of its size."""
        return _addresses(parts, self.sizes, dtype)

    def find_written(self, params: Sequence[torch.Tensor], dtype: torch.dtype) -> list[int] | None:
        """Addresses for ``add_at``; None also where torch would refuse to change one in place, or would round twice."""
        places = _addresses(params, self.sizes, dtype) if _is_add_fused(dtype) else None
        if places is None or _overlap(places, self.sizes, dtype.itemsize) or any(find_obstacle(p) for p in params):
            return None
        return places

    def project_at(self, places: list[int], step: int, out: torch.Tensor) -> torch.Tensor:
        """out, (d,), overwritten by the coordinates of the vector whose tensors are at these addresses."""
        self.read_from(places, self._name_at(step), out)
        return out

    def add_at(self, places: list[int], params: Sequence[torch.Tensor], c: torch.Tensor, alpha: float, step: int) -> None:
        """params, at these addresses, += alpha times the vector with coordinates c: one pass, bits as of torch's add."""
        count_change(*params)
        self.write_to(places, places, self._name_at(step), c, alpha)

    def add_any(self, c: torch.Tensor, params: Sequence[torch.Tensor]) -> None:
        """params += the vector with coordinates c: see ``reference.add``. Only params of another dtype need a vector."""
        places = [p.data_ptr() for p in params]
        if params[0].dtype == c.dtype and not _overlap(places, self.sizes, c.dtype.itemsize):
            return self.write_to(places, places, self._name, c)
        u = torch.empty(self._size, dtype=c.dtype, device=c.device)
        self._fill(u, c)
        torch._foreach_add_(list(params), [v.view_as(p) for p, v in zip(params, u.split(list(self.sizes)))])

    def project(self, parts: Sequence[torch.Tensor | None], dtype: torch.dtype,
                out: torch.Tensor | None = None) -> torch.Tensor | None:  # fmt: skip
        """Coordinates, (d,) of that dtype, of the vector cut into these parts; out, if given, is overwritten by them."""
        if is_watched() or (places := _addresses(parts, self.sizes, dtype)) is None:
            return None
        if out is None:
            out = torch.empty(self._dim, dtype=dtype, device="cpu")  # not torch's default device
        else:
            if find_obstacle(out) or _addresses((out,), (self._dim,), dtype) is None:
                return None
            if any(p is not None and share_memory(p, out) for p in parts):
                return None
            count_change(out)
        self.read_from(places, self._name, out)
        return out


def _overlap(places: list[int], sizes: Sequence[int], width: int) -> bool:
    """Whether contiguous tensors at these addresses share memory: threads would add to the same values at once."""
    spans = sorted(zip(places, sizes))
    return any(first + size * width > following for (first, size), (following, _) in zip(spans, spans[1:]))


@cache
def _is_add_fused(dtype: torch.dtype) -> bool:
    """Whether torch.add(x, y, alpha=a) rounds x + a y once on this machine: in vectors, in what is left, and alone."""
    tiny = 2.0 ** (-27 if dtype == torch.float64 else -12)
    y = 1 + tiny  # the last bit of y**2 = 1 + 2 tiny + tiny**2 has no room beside the first
    ones = [torch.ones(count, dtype=dtype, device="cpu") for count in (1, 45)]  # not on torch's default device
    sums = [x.neg().add_(y * x, alpha=y) for x in ones]
    return all(bool((x == 2 * tiny + tiny**2).all()) for x in sums)


def _addresses(tensors: Sequence[torch.Tensor | None], sizes: Sequence[int], dtype: torch.dtype) -> list[int] | None:
    """Addresses of the tensors' values; None if one is not a contiguous CPU tensor of that dtype and size."""
    found = []
    for x, size in zip(tensors, sizes):
        if x is None or x.dtype != dtype or x.layout != torch.strided or not x.is_contiguous() or x.is_neg():
            return None
        if x.numel() != size or not x.is_cpu or type(x).__torch_dispatch__ is not ORDINARY:
            return None
        if size and not x.data_ptr():  # torch has tensors of zeros without memory
            return None
        found.append(x.data_ptr())
    return found if dtype in DTYPES else None
