"""Which tensors the kernels may read and write through their addresses, past torch's dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch


def _find(name: str, *args: str) -> Callable[[], Any]:
    """A function of torch._C with its arguments, all by name, or one that gives None where torch has it no more."""
    try:
        function, *given = (attrgetter(path)(torch._C) for path in (name, *args))
    except AttributeError:
        return lambda: None
    return partial(function, *given) if given else function


ORDINARY = torch.Tensor.__torch_dispatch__  # of tensors whose operations torch itself does, on memory of their own
_modes = _find("_len_torch_dispatch_stack")  # FakeTensorMode, make_fx, FlopCounterMode, ...
_transform = _find("_functorch.peek_interpreter_stack")  # torch.func's vmap, grad, jvp, functionalize, ...
_trace = _find("_get_tracing_state")  # torch.jit.trace
_modes_before = _find("_dispatch_tls_is_dispatch_key_included", "DispatchKey.PreDispatch")  # make_fx(pre_dispatch=True)


def is_watched() -> bool:
    """Whether something follows torch's operations, so that it would miss what kernels do.

    torch.compile is not asked for: ``torch.compiler.is_compiling``.
    """
    return bool(_modes() or _transform() is not None or _trace() is not None or _modes_before())


def is_under_transform() -> bool:
    """Whether a transform of torch.func is under way."""
    return _transform() is not None


def is_ordinary(x: Any) -> bool:
    """Whether a tensor has values at an address: FakeTensor, DTensor, other wrappers and tensors of implied zeros do not.

    What is not a tensor counts as ordinary; it is refused elsewhere.
    """
    return not isinstance(x, torch.Tensor) or (type(x).__torch_dispatch__ is ORDINARY and not x._is_zerotensor())


def is_direct(*tensors: Any) -> bool:
    """Whether kernels may use these tensors; if not, a product has to go through its operator. None counts as a tensor."""
    if is_watched():
        return False
    for x in tensors:  # noqa: SIM110  # a generator takes longer than the rest
        if x is not None and not is_ordinary(x):
            return False
    return True


def check_memory(name: str, *tensors: torch.Tensor) -> None:
    """Raise ValueError if an ordinary tensor's memory was freed, as FSDP does between passes."""
    for x in tensors:
        if not x.data_ptr() and x.numel():
            raise ValueError(f"{name}: got a tensor whose memory was freed (its storage has no bytes)")


def find_obstacle(x: torch.Tensor) -> str | None:
    """Why x must not be changed in place without autograd's knowing, or None: what torch's own operations refuse too."""
    if x.requires_grad and torch.is_grad_enabled():
        return "a tensor that requires a gradient, which cannot be overwritten unless under torch.no_grad()"
    if x.is_inference() and not torch.is_inference_mode_enabled():
        return "an inference tensor, which cannot be changed outside of torch.inference_mode(): clone it"
    if x._is_zerotensor():
        return "zeros without memory (from forward-mode derivatives), which cannot be changed: clone them"
    return None


def check_writable(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Raise RuntimeError if one of the tensors must not be changed in place."""
    for x in tensors:
        if reason := find_obstacle(x):
            raise RuntimeError(f"{name}: got {reason}")


def count_change(x: torch.Tensor) -> None:
    """Tell autograd that x is changed: kernels that write through addresses do not."""
    if not x.is_inference():  # which has no counter
        torch.autograd.graph.increment_version(x)


def share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have one storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
