"""project, expand and add on the backend of a tensor's device; a missing backend is an error, there is no fallback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from types import ModuleType

import torch

from rbd.compartment import BasisSpec
from rbd.kernels import compiled, memory
from rbd.kernels.compiled import sum_dtype
from rbd.kernels.in_place import Prepared

BACKENDS = ("reference", "cpu", "gpu")
_OF_DEVICE = {"cpu": "cpu", "cuda": "gpu"}


@cache
def load(backend: str, sparse: bool = False) -> ModuleType:
    """The module of a backend, for dense or for sparse bases, imported when first asked for.

    Raises:
        ValueError: the name is not one of BACKENDS.
        RuntimeError: gpu, and there is no Triton.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, allowed {', '.join(map(repr, BACKENDS))}")
    if sparse and backend != "reference":  # one module defines both there
        return import_module(f"rbd.kernels.countsketch_{backend}")
    return import_module(f"rbd.kernels.{backend}")


def project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor | None = None, backend: str | None = None) -> torch.Tensor:
    """Coordinates of g in the bases of all compartments: c_k = Φ_k g[start:stop].

    Args:
        g: (D,), any real floating-point dtype; float64 is summed in float64, the others in float32 (countsketch: float64).
        spec: names the bases (rbd.compartment).
        out: (d,) of the result's dtype, overwritten.
        backend: one of BACKENDS, by default the device's.

    Returns:
        (d,) float32, or float64 for float64 g.

    Raises:
        TypeError: g or out is not a real floating-point tensor.
        ValueError: g or out has another shape, dtype or device, out is not contiguous, or the backend's name is unknown.
        RuntimeError: there are no kernels for the device, the backend does not work there, or out must not be changed.
    """
    if torch.compiler.is_compiling():
        return _project_operator(g, spec, out if out is None else _check_shape(out, g, spec.dim), backend)
    if memory.is_direct(g, out):
        return _project(g, spec, out, backend)
    x = check_operand("g", g, spec.size)
    return _project_operator(x, spec, out if out is None else _check_out(out, x, spec.dim), backend)


def expand(c: torch.Tensor, spec: BasisSpec, out: torch.Tensor | None = None, backend: str | None = None) -> torch.Tensor:
    """The vector with coordinates c: u[start:stop] = Φ_kᵀ c_k, (d,) -> (D,); arguments and errors as in ``project``."""
    if torch.compiler.is_compiling():
        return _expand_operator(c, spec, out if out is None else _check_shape(out, c, spec.size), backend)
    if memory.is_direct(c, out):
        return _expand(c, spec, out, backend)
    x = check_operand("c", c, spec.dim)
    return _expand_operator(x, spec, out if out is None else _check_out(out, x, spec.size), backend)


@contextmanager
def keep_apart(owner: object, device: torch.device) -> Iterator[None]:
    """GPU products inside this block reuse one set of counters per owner, so they must not run concurrently.

    Safe for an optimizer, whose steps never overlap.
    """
    if _OF_DEVICE.get(device.type) != "gpu":
        yield
        return
    variable = load("gpu").OWNER
    token = variable.set(owner)
    try:
        yield
    finally:
        variable.reset(token)


@torch.compiler.disable  # it writes through addresses, which a compiler cannot trace
def add(c: torch.Tensor, spec: BasisSpec, params: Sequence[torch.Tensor], backend: str | None = None) -> None:
    """params += the vector with coordinates c, cut into their shapes; values are in row-major order for any strides.

    No temporary of length D is made if all are contiguous (not channels-last, say) and of one dtype, on a CPU that of c.

    Args:
        c: (d,) coordinates.
        spec, backend: as in ``project``.
        params: floating-point tensors on c's device, D values in all, updated in place.

    Raises:
        TypeError, ValueError: params are not such tensors, or what ``expand`` raises.
        RuntimeError: one of them must not be changed in place; then none has been changed.
    """
    x = check_operand("c", c, spec.dim)
    _check_params(params, spec.size, x.device)
    if memory.is_under_transform() or compiled.has_tangent(c, *params):
        raise NotImplementedError("transforms of torch.func and forward-mode derivatives do not support additions to "
                                  "parameters in place: use expand, and add what it returns")  # fmt: skip
    if not memory.is_direct(x, *params):
        return _copy(shift(c, spec, params, backend), params)
    module = _module_for(x.device, backend, spec)
    if not all(p.is_contiguous() and p.dtype == params[0].dtype and not p.is_neg() for p in params):
        return _copy(shift(c, spec, params, backend), params)
    memory.check_memory("c", x)
    memory.check_memory("params", *params)
    memory.count_change(*params)
    module.add(_apart(x.to(sum_dtype(x.dtype)), *params), _spec_for(module, spec), params)


def _copy(values: Sequence[torch.Tensor], params: Sequence[torch.Tensor]) -> None:
    for p, new in zip(params, values):
        p.copy_(new)


def shift(c: torch.Tensor, spec: BasisSpec, params: Sequence[torch.Tensor],
          backend: str | None = None) -> list[torch.Tensor]:  # fmt: skip
    """params + the vector with coordinates c, cut into their shapes, in new tensors of their dtypes and strides.

    Every value is summed in float32, or in float64 if c or it is float64, and rounded once. Errors as in ``expand``.
    """
    x = check_operand("c", c, spec.dim)
    if (values := sum(p.numel() for p in params)) != spec.size:
        raise ValueError(f"params: got {values} values, allowed {spec.size}")
    direct = memory.is_direct(x, *params)
    if direct and hasattr(module := _module_for(x.device, backend, spec), "Prepared"):
        made = module.Prepared(_spec_for(module, spec), [p.numel() for p in params]).shift(x, params)
        if made is not None:
            return made
    parts = expand(x, spec, None, backend).split([p.numel() for p in params])
    wide = (v.view(p.shape).to(torch.promote_types(v.dtype, p.dtype)) for p, v in zip(params, parts))
    sums = (v.add_(p) if direct else v + p for p, v in zip(params, wide))  # a wrapper may add each of its parts
    return [torch.empty_like(p).copy_(total) for p, total in zip(params, sums)]


def prepare(spec: BasisSpec, sizes: Sequence[int], device: torch.device) -> Prepared | None:
    """Products with less to look up in every call, or None for backends that have no class ``Prepared``.

    Args:
        spec: names the bases.
        sizes: of the tensors that make up the vector, D in all.
        device: theirs.
    """
    if device.type not in _OF_DEVICE:
        return None
    module = _module_for(device, None, spec)
    return module.Prepared(_spec_for(module, spec), sizes) if hasattr(module, "Prepared") else None


def _project(g: torch.Tensor, spec: BasisSpec, out: torch.Tensor | None, backend: str | None) -> torch.Tensor:
    x = check_operand("g", g, spec.size)
    module = _module_for(x.device, backend, spec)
    memory.check_memory("g", x)
    c = _result(out, x, spec.dim)
    if x.dtype != c.dtype and not _is_gpu(module):  # the gpu kernels convert numbers as they read them
        x = x.to(c.dtype)
    module.project(_apart(x, c), _spec_for(module, spec), c)
    return c


def _expand(c: torch.Tensor, spec: BasisSpec, out: torch.Tensor | None, backend: str | None) -> torch.Tensor:
    x = check_operand("c", c, spec.dim)
    module = _module_for(x.device, backend, spec)
    memory.check_memory("c", x)
    u = _result(out, x, spec.size)
    x = x if x.dtype == u.dtype else x.to(u.dtype)
    module.expand(_apart(x, u), _spec_for(module, spec), u)
    return u


def _apart(x: torch.Tensor, *written: torch.Tensor) -> torch.Tensor:
    """x, or a copy if a kernel is about to write to its memory: parts of the work would read what others have written."""
    return x.clone() if any(memory.share_memory(x, y) for y in written) else x


_project_operator = compiled.register("project", _project, compiled.flat_dim, "expand")
_expand_operator = compiled.register("expand", _expand, compiled.flat_size, "project")


def differentiable_project(g: torch.Tensor, spec: BasisSpec) -> torch.Tensor:
    """``project`` for autograd: in reverse and in forward mode, and in the transforms of torch.func."""
    if _goes_by_operator(spec):
        return _project_operator(g, spec)
    return compiled.Linear.apply(g, partial(project, spec=spec), partial(expand, spec=spec))


def differentiable_expand(c: torch.Tensor, spec: BasisSpec) -> torch.Tensor:
    """``expand`` for autograd, as in ``differentiable_project``."""
    if _goes_by_operator(spec):
        return _expand_operator(c, spec)
    return compiled.Linear.apply(c, partial(expand, spec=spec), partial(project, spec=spec))


def _goes_by_operator(spec: BasisSpec) -> bool:
    """Whether to use the operators: for torch.compile, and as they raise if a step in memory changes before backward."""
    return torch.compiler.is_compiling() or isinstance(spec.step, torch.Tensor) or spec.first_row is not None


def _module_for(device: torch.device, backend: str | None, spec: BasisSpec) -> ModuleType:
    kind = device.type
    if backend is None and kind not in _OF_DEVICE:
        raise RuntimeError(f"device: no kernels for {kind!r}, allowed {', '.join(map(repr, _OF_DEVICE))}")
    name = _OF_DEVICE[kind] if backend is None else backend
    module = load(name, spec.distribution.sparse)
    works_on = module.DEVICE if name == "gpu" else "cpu"
    if kind != works_on:
        raise RuntimeError(f"device: backend {name!r} works on {works_on!r}, got a tensor on {kind!r}")
    return module


def _is_gpu(module: ModuleType) -> bool:
    return module.__name__.endswith("gpu")


def _spec_for(module: ModuleType, spec: BasisSpec) -> BasisSpec:
    """Backends other than gpu need step as a 32-bit integer and first_row added to the rows."""
    if (type(spec.step) is int and 0 <= spec.step < 2**32 and spec.first_row is None) or _is_gpu(module):
        return spec
    first = 0 if spec.first_row is None else int(spec.first_row)
    moved = (replace(k, row=k.row + first) for k in spec.compartments)
    return replace(spec, compartments=tuple(moved), step=int(spec.step) % 2**32, first_row=None)


def check_operand(name: str, x: torch.Tensor, length: int) -> torch.Tensor:
    """x as the kernels need it: one-dimensional, contiguous.

    Raises:
        TypeError, ValueError: x is not a real floating-point tensor of shape (length,).
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name}: got {got}, allowed a real floating-point tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: got layout {x.layout}, allowed torch.strided")
    if x.shape != (length,):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, allowed ({length},)")
    return x.detach().contiguous().resolve_neg()


def _check_params(params: Sequence[torch.Tensor], size: int, device: torch.device) -> None:
    if bad := [p for p in params if not _takes_sums(p) or p.device != device]:
        got = ", ".join(_describe(p) for p in bad)
        raise TypeError(f"params: got {got}, allowed strided floating-point tensors of 16 to 64 bits on {device}")
    if (values := sum(p.numel() for p in params)) != size:
        raise ValueError(f"params: got {values} values, allowed {size}")
    if len({id(p) for p in params}) < len(params):  # with other strides or dtypes, the last sum would replace the first
        raise ValueError("params: got a tensor that is in the list twice, allowed each once")
    memory.check_writable("params", params)


def _takes_sums(x: object) -> bool:
    """Whether torch can add to a tensor's values in place: it cannot in 8 bits, nor in most layouts."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.layout != torch.strided:
        return False
    return torch.finfo(x.dtype).bits >= 16


def _describe(x: object) -> str:
    if not isinstance(x, torch.Tensor):
        return type(x).__name__
    layout = "" if x.layout == torch.strided else f" with layout {x.layout}"
    return f"{x.dtype} {tuple(x.shape)} on {x.device}{layout}"


def _result(out: torch.Tensor | None, x: torch.Tensor, length: int) -> torch.Tensor:
    """out, about to be overwritten, or a new tensor, for a result made from x."""
    if out is None:
        return torch.empty(length, dtype=sum_dtype(x.dtype), device=x.device)
    _check_out(out, x, length)
    memory.check_memory("out", out)
    memory.count_change(out)
    return out


def _check_shape(out: torch.Tensor, x: torch.Tensor, length: int) -> torch.Tensor:
    """out, if its shape, dtype and strides are those of a result made from x; torch.compile can trace these checks."""
    dtype = sum_dtype(x.dtype)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out: got {type(out).__name__}, allowed a {dtype} tensor")
    allowed = f"{dtype} ({length},) on {x.device}"
    if (out.shape, out.dtype, out.device) != ((length,), dtype, x.device):
        raise ValueError(f"out: got {out.dtype} {tuple(out.shape)} on {out.device}, allowed contiguous {allowed}")
    if not out.is_contiguous():
        raise ValueError(f"out: got a tensor that is not contiguous (stride {out.stride()}), allowed contiguous {allowed}")
    return out


def _check_out(out: torch.Tensor, x: torch.Tensor, length: int) -> torch.Tensor:
    """out, if a result made from x may be written there."""
    if _check_shape(out, x, length).is_neg():
        allowed = f"{out.dtype} ({length},) on {x.device}"
        raise ValueError(f"out: got a lazily negated view, allowed a tensor that holds its values itself: {allowed}")
    memory.check_writable("out", [out])
    return out
