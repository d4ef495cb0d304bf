"""Subspace: a model whose parameters are θ = θ0 + Φᵀ c, so that any torch optimizer trains the d coordinates c."""

from __future__ import annotations

import json
import os
import struct
import threading
import weakref
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rbd import kernels
from rbd.basis import check_word
from rbd.compartment import BasisSpec
from rbd.distributed.exchange import digest
from rbd.distributed.fsdp import is_sharded
from rbd.distribution import distribution as distribution_of
from rbd.kernels.compiled import sum_dtype
from rbd.partition import partition as partition_of
from rbd.philox import STREAM_VERSION


class _Theta(torch.autograd.Function):
    """θ = θ0 + Φᵀ c as tensors; backward projects all their gradients at once."""

    @staticmethod
    def forward(ctx: Any, c: Tensor, spec: BasisSpec, start: list[Tensor]) -> tuple[Tensor, ...]:
        ctx.spec, ctx.dtype, ctx.device, ctx.sizes = spec, c.dtype, c.device, [p.numel() for p in start]
        ctx.set_materialize_grads(False)
        return tuple(_move(kernels.expand(c, spec), start))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        if torch.is_grad_enabled():  # create_graph=True
            g = torch.cat([
                torch.zeros(n, dtype=ctx.dtype, device=ctx.device) if v is None else v.reshape(-1).to(ctx.dtype)
                for v, n in zip(grads, ctx.sizes)
            ])  # fmt: skip
            return kernels.differentiable_project(g, ctx.spec), None, None
        g = torch.empty(sum(ctx.sizes), dtype=ctx.dtype, device=ctx.device)  # (D,)
        for part, v in zip(g.split(ctx.sizes), grads):
            part.zero_() if v is None else part.view(v.shape).copy_(v)
        return kernels.project(g, ctx.spec), None, None


def _move(u: Tensor, start: Sequence[Tensor]) -> list[Tensor]:
    """θ0 + u in the shapes, dtypes and strides of θ0; where it can be, in the memory of u (D,)."""
    moves = [v.view(p.shape) for v, p in zip(u.split([p.numel() for p in start]), start)]
    if all(p.dtype == u.dtype and p.is_contiguous() for p in start):
        torch._foreach_add_(moves, start)
        return moves
    return [torch.empty_like(p).copy_(v.add_(p)) for v, p in zip(moves, start)]  # summed in u's dtype


class _Place:
    """Where a model's parameters stand: θ0, or for the time of a forward or backward pass θ."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while a model runs: forward passes in several threads take turns
        self.owners: list[tuple[nn.Module, str, int]] = []
        self.start: list[Tensor] = []
        self.theta: _Moved | None = None  # None: θ0

    def put(self, owners: list[tuple[nn.Module, str, int]], start: list[Tensor], theta: _Moved) -> None:
        self.restore()
        self.owners, self.start, self.theta = owners, start, theta
        _install(owners, theta.tensors)

    def restore(self) -> None:
        """Put θ0 back, but where another has put a tensor of its own since."""
        if self.theta is not None:
            tensors = self.theta.tensors
            mine = [(m, name, i) for m, name, i in self.owners if m._parameters.get(name) is tensors[i]]
            _install(mine, self.start)
            self.owners, self.start, self.theta = [], [], None


class _Moved:
    """θ of one forward pass."""

    def __init__(self, tensors: Sequence[Tensor], of: tuple):
        self.tensors, self.of = tensors, of


_PLACES: weakref.WeakKeyDictionary[nn.Module, _Place] = weakref.WeakKeyDictionary()


def _install(owners: Sequence[tuple[nn.Module, str, int]], tensors: Sequence[Tensor]) -> None:
    for module, name, i in owners:
        module._parameters[name] = tensors[i]  # type: ignore[assignment]
        if isinstance(module, nn.RNNBase):  # which keeps a list of its own
            module._flat_weights = [getattr(module, key, None) for key in module._flat_weights_names]


class Subspace(nn.Module):
    """A model with the parameters θ = θ0 + Φᵀ c, of which only the d coordinates c are trained (arXiv 1804.08838).

        sub = Subspace(model, dim=10_000)
        optimizer = torch.optim.Adam(sub.parameters(), lr=0.01)  # any optimizer, of d numbers
        criterion(sub(x), y).backward()                          # coordinates.grad = Φ g

    Φ is made anew whenever it is used and never stored. It is the basis that FPD has with the same arguments; its rows have
    unit expected norm, so θ moves about as far as c. The model is not copied: its parameters are θ0, frozen, and they are θ
    during a forward pass and the backward pass of it. Buffers, as of batch norm, stay the model's and are not saved here.

    Args:
        model: any module with real floating-point parameters on one device.
        dim: d, number of coordinates, 1 ... D.
        seed, distribution, partition: as in RBD, but for the default distribution: with "countsketch" a forward pass costs
            the same for every d; the dense ones take d D random numbers in each forward and each backward pass.
        params: names of the parameters to move, or patterns such as "head.*"; None: all floating-point ones. The others are
            frozen where they are.

    Attributes:
        coordinates: c, (d,) float32, or float64 if a moved parameter is: the only entry of ``parameters()``.
        model: the module, with θ0.

    Raises:
        TypeError, ValueError: an argument is out of its range, or the model has nothing to move.
    """

    def __init__(self, model: nn.Module, dim: int | None, seed: int = 0, distribution: str = "countsketch",
                 partition: str = "whole", params: Iterable[str] | None = None):  # fmt: skip
        super().__init__()
        _check_model(model)
        self._patterns = None if params is None else [params] if isinstance(params, str) else list(params)
        self._names = _choose(model, self._patterns)  # of every parameter, all those that tied weights have
        start = [model.get_parameter(names[0]) for names in self._names]
        layout = tuple((names[0], p.numel()) for names, p in zip(self._names, start))
        if dim is not None:
            dim = check_word("dim", dim)
        cut = partition_of(partition, layout, dim)
        self._spec = BasisSpec(cut.compartments, distribution_of(distribution), check_word("seed", seed), 0, 0)
        self._partition, self._shapes = partition, [p.shape for p in start]
        self.model = model.requires_grad_(False)
        self.training = model.training
        wide = any(p.dtype == torch.float64 for p in start)
        dtype = torch.float64 if wide else torch.float32
        self.coordinates = nn.Parameter(torch.zeros(cut.dim, dtype=dtype, device=start[0].device))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives with the parameters θ.

        Raises:
            RuntimeError: the model's parameters have other shapes or another device than when it was wrapped.
            ValueError: the model returns one of its parameters.
        """
        owners, start = self._start()
        if torch.compiler.is_compiling():
            theta = self._theta(start)
            named = {names[0]: p for names, p in zip(self._names, theta)}
            return torch.func.functional_call(self.model, named, args, kwargs)
        place = _PLACES.setdefault(self.model, _Place())
        with place.lock:
            moved = _Moved(_Theta.apply(self.coordinates, self._spec, start), (self.coordinates, self.coordinates._version))
            place.put(owners, start, moved)
            try:
                out = self.model(*args, **kwargs)
            finally:
                place.restore()
        return out

    def _theta(self, start: list[Tensor]) -> list[Tensor]:
        """θ by differentiable operations that a compiler can follow."""
        u = kernels.differentiable_expand(self.coordinates, self._spec)
        parts = u.split([p.numel() for p in start])
        return [(p + v.view(p.shape)).to(p.dtype) for p, v in zip(start, parts)]

    def _start(self) -> tuple[list[tuple[nn.Module, str, int]], list[Tensor]]:
        """Modules that own moved parameters, with names in them and numbers among θ0; and θ0."""
        owners, start = [], []
        for i, names in enumerate(self._names):
            for path in names:
                module, _, name = path.rpartition(".")
                owners.append((self.model.get_submodule(module), name, i))
            start.append(owners[-1][0]._parameters[owners[-1][1]])
        return owners, start

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True):
        """The coordinates alone: the model's parameters are frozen."""
        yield (f"{prefix}." if prefix else "") + "coordinates", self.coordinates


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, allowed a torch.nn.Module")
    if any(isinstance(m, Subspace) for m in model.modules()):
        raise TypeError("model: it is or has a Subspace already; wrap the model inside (its .model) instead")


def _choose(model: nn.Module, patterns: list[str] | None) -> list[tuple[str, ...]]:
    """Names of the parameters to move, in the model's order; tied weights have several each."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return [tuple(of) for of in names.values()]
