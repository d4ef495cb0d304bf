"""Which tensors the kernels may read and write through their addresses, bypassing torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch


def _find(name: str, *args: str) -> Callable[[], Any]:
    """A function of torch._C by name, arguments bound; if this torch lacks it, one that returns None."""
    try:
        function, *given = (attrgetter(path)(torch._C) for path in (name, *args))
    except AttributeError:
        return lambda: None
    return partial(function, *given) if given else function


ORDINARY = torch.Tensor.__torch_dispatch__  # that of tensors without a dispatch of their own, which have values in memory
_modes = _find("_len_torch_dispatch_stack")  # FakeTensorMode, make_fx, FlopCounterMode, ...
_transform = _find("_functorch.peek_interpreter_stack")  # torch.func's vmap, grad, jvp, functionalize, ...
_trace = _find("_get_tracing_state")  # torch.jit.trace
_modes_before = _find("_dispatch_tls_is_dispatch_key_included", "DispatchKey.PreDispatch")  # make_fx(pre_dispatch=True)


def is_watched() -> bool:
    """Whether a dispatch mode, transform or trace records torch's operations; kernels called directly would not be recorded.

    Does not cover torch.compile (``torch.compiler.is_compiling``).
    """
    return bool(_modes() or _transform() is not None or _trace() is not None or _modes_before())


def is_under_transform() -> bool:
    """Whether a transform of torch.func is under way."""
    return _transform() is not None


def is_ordinary(x: Any) -> bool:
    """Whether a tensor has values at an address: FakeTensor, DTensor, other wrappers and zero tensors (ZeroTensor) do not.

    True for what is not a tensor; other checks refuse it.
    """
    return not isinstance(x, torch.Tensor) or (type(x).__torch_dispatch__ is ORDINARY and not x._is_zerotensor())


def is_direct(*tensors: Any) -> bool:
    """Whether kernels may use these tensors directly; if not, call the registered operator. None is skipped."""
    if is_watched():
        return False
    for x in tensors:  # noqa: SIM110  # a generator in all() takes longer than the whole loop
        if x is not None and not is_ordinary(x):
            return False
    return True


def check_memory(name: str, *tensors: torch.Tensor) -> None:
    """Raise ValueError if the memory of an ordinary tensor was freed, as FSDP frees it between passes."""
    for x in tensors:
        if not x.data_ptr() and x.numel():
            raise ValueError(f"{name}: got a tensor whose memory was freed (its storage has no bytes)")


def find_obstacle(x: torch.Tensor) -> str | None:
    """Why torch's own operations would refuse to change x in place, worded for an error message; None if they would not."""
    if x.requires_grad and torch.is_grad_enabled():
        return "a tensor that requires a gradient, which cannot be overwritten unless under torch.no_grad()"
    if x.is_inference() and not torch.is_inference_mode_enabled():
        return "an inference tensor, which cannot be changed outside of torch.inference_mode(): clone it"
    if x._is_zerotensor():
        return "zeros without memory (from forward-mode derivatives), which cannot be changed: clone them"
    if is_expanded(x):
        return "a tensor (expanded?) of which several values have one place in memory: clone it"
    return None


def is_expanded(x: torch.Tensor) -> bool:
    """Whether several values have one place in memory, along a dimension of stride 0."""
    return not x.is_contiguous() and any(step == 0 and size > 1 for size, step in zip(x.shape, x.stride()))


def check_writable(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Raise RuntimeError if one of the tensors must not be changed in place."""
    for x in tensors:
        if reason := find_obstacle(x):
            raise RuntimeError(f"{name}: got {reason}")


def count_change(*tensors: torch.Tensor) -> None:
    """Increment autograd's version counters, which kernels that write through addresses bypass."""
    torch.autograd.graph.increment_version([x for x in tensors if not x.is_inference()])  # those have no counter


def share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two contiguous tensors have an address in common, also if each has a storage of its own (as from NumPy)."""
    first, second = a.data_ptr(), b.data_ptr()
    return first < second + b.nbytes and second < first + a.nbytes
