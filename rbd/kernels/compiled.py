"""Operators for autograd and torch.compile: rbd::project and rbd::expand, opaque, each the derivative of the other.

Integer arguments (seed, step, ...) may change between calls without recompilation.

The tables of the GPU kernels outlive a call, which Inductor's own CUDA graphs do not allow: a tag excludes the operators
from these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad

from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import distribution as distribution_of
from rbd.kernels.memory import is_under_transform

_FIELDS = [field.name for field in fields(Compartment) if field.init]  # of a compartment, in their order

Product = Callable[..., torch.Tensor]  # takes x, a spec, out and a backend


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are summed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def register(name: str, product: Product, length: Callable[[Sequence[int]], int], adjoint: str) -> Product:
    """Register a product as the operator rbd::<name>; returns a product that calls the operator.

    Args:
        product: run by the operator, without out.
        length: of the result, from compartments as ``flatten`` makes them.
        adjoint: name of the operator that multiplies by the transposed basis, which is this one's derivative.
    """

    @torch.library.custom_op(f"rbd::{name}", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
    def operator(x: torch.Tensor, compartments: Sequence[int], distribution: str, seed: int, stream: int, step: int,
                 counter: torch.Tensor | None, first_row: torch.Tensor | None,
                 backend: str | None) -> torch.Tensor:  # fmt: skip
        number = step if counter is None else counter
        spec = BasisSpec(unflatten(compartments), distribution_of(distribution), seed, stream, number, first_row)
        return product(x, spec, None, backend)

    @operator.register_fake
    def _(x, compartments, distribution, seed, stream, step, counter, first_row, backend):
        return x.new_empty(length(compartments), dtype=sum_dtype(x.dtype))

    def setup_context(ctx, inputs, output):
        x, *ctx.basis, counter, first_row, ctx.backend = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(counter, first_row)  # torch then raises if they are changed before backward

    def backward(ctx, grad):
        made = getattr(torch.ops.rbd, adjoint)(grad, *ctx.basis, *ctx.saved_tensors, ctx.backend)
        return made.to(ctx.dtype), *[None] * 8

    operator.register_autograd(backward, setup_context=setup_context)
    _register_tangent(name)

    @operator.register_vmap
    def _(info, dims, x, *basis):
        return _stack(lambda row: operator(row, *basis), x.movedim(dims[0], 0)), 0

    def call(x: torch.Tensor, spec: BasisSpec, out: torch.Tensor | None = None, backend: str | None = None) -> torch.Tensor:
        step, counter = (0, spec.step) if isinstance(spec.step, torch.Tensor) else (spec.step, None)
        made = operator(
            x, flatten(spec.compartments), spec.distribution.name, spec.seed, spec.stream, step, counter, spec.first_row,
            backend,
        )
        return made if out is None else out.copy_(made)

    _CALLS[name] = call
    return call


_CALLS: dict[str, Product] = {}  # by name, what ``register`` returned
is_batched: Callable[[torch.Tensor], bool] = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda x: False)
"""Whether a tensor is one of ``autograd.grad(..., is_grads_batched=True)``, which can loop over operators alone."""


def _register_tangent(name: str) -> None:
    """Give an operator that is linear in x its derivative in forward mode, for torch.func.jvp under torch.compile.

    torch.library has no function for this, and an operator without one drops tangents silently. Kernels of a device's own
    stand in front of the one that ``custom_op`` has registered for all devices, and call it.
    """
    operator = getattr(torch.ops.rbd, name).default
    for key in ("AutogradCPU", "AutogradCUDA", "AutogradMeta"):
        _LIBRARY.impl(operator, _with_tangent(operator, torch.library.get_kernel(operator, key)), key, with_keyset=True)


_LIBRARY = torch.library.Library("rbd", "IMPL")


def _with_tangent(operator: Callable[..., torch.Tensor], kernel: Any) -> Callable[..., torch.Tensor]:
    def call(keys: Any, x: torch.Tensor, *basis: Any) -> torch.Tensor:
        primal, tangent = forward_ad.unpack_dual(x, level=0)  # the only level that torch has
        if tangent is None:
            return kernel.call_boxed(keys, x, *basis)
        return forward_ad.make_dual(operator(primal, *basis), operator(tangent, *basis), level=0)

    return call


class Linear(torch.autograd.Function):
    """A product with derivatives in reverse and forward mode, also in torch.func's transforms; operators lack some of these.

    It is linear in x: its tangent is the product of x's tangent, its gradient is the adjoint's product. product and adjoint
    are functions of ``rbd.kernels`` with a spec bound to them.
    """

    @staticmethod
    def forward(x: torch.Tensor, product: partial, adjoint: partial) -> torch.Tensor:
        return _CALLS[product.func.__name__](x, **product.keywords) if is_batched(x) else product(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
        x, ctx.product, ctx.adjoint = inputs
        ctx.dtype = x.dtype

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        return Linear.apply(grad, ctx.adjoint, ctx.product).to(ctx.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *_: None) -> torch.Tensor:
        return Linear.apply(tangent, ctx.product, ctx.adjoint)

    @staticmethod
    def vmap(info: Any, dims: tuple, x: torch.Tensor, product: partial, adjoint: partial) -> tuple[torch.Tensor, int]:
        return _stack(lambda row: Linear.apply(row, product, adjoint), x.movedim(dims[0], 0)), 0


def _stack(product: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """The product of each row, for vmap; of none, a result of the right shape."""
    made = [product(row) for row in rows] or [product(rows.new_zeros(rows.shape[1:]))]
    return torch.stack(made)[: len(rows)]


def is_transformed(x: torch.Tensor) -> bool:
    """Whether x has a tangent or a transform of torch.func is active; False in torch.compile, which handles both itself."""
    if torch.compiler.is_compiling():
        return False
    return is_under_transform() or has_tangent(x)


def has_tangent(*tensors: torch.Tensor) -> bool:
    """Whether forward-mode differentiation is under way, and one of the tensors has a tangent."""
    open_level = getattr(forward_ad, "_current_level", 0)  # a private name; -1: none
    return open_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def flatten(compartments: Sequence[Compartment]) -> list[int]:
    """The fields of all compartments, one after another: operators take lists of integers."""
    return [int(value) for k in compartments for value in k.fields]


def unflatten(flat: Sequence[int]) -> tuple[Compartment, ...]:
    """The compartments from the list that ``flatten`` made of them."""
    return tuple(Compartment(*flat[i : i + len(_FIELDS)]) for i in range(0, len(flat), len(_FIELDS)))


def flat_dim(flat: Sequence[int]) -> int:
    """d of flattened compartments, whose integers may be symbolic."""
    return sum(flat[_FIELDS.index("dim") :: len(_FIELDS)])


def flat_size(flat: Sequence[int]) -> int:
    """D of flattened compartments: where the last one stops."""
    return flat[_FIELDS.index("stop") - len(_FIELDS)]
