"""project and expand on the backend that a tensor's device asks for; a missing one raises, none replaces another."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch

from rbd.distribution import Distribution, distribution

BACKENDS = ("reference", "cpu", "gpu")
FIELDS = 7  # of a compartment
_OF_DEVICE = {"cpu": "cpu", "cuda": "gpu"}


def load(backend: str) -> ModuleType:
    """The module of a backend, imported when first asked for.

    Raises:
        ValueError: the name is not one of BACKENDS.
        RuntimeError: gpu, and there is no Triton.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, allowed {', '.join(map(repr, BACKENDS))}")
    return import_module(f"rbd.kernels.{backend}")


def _backend(backend: str | None, device: torch.device) -> ModuleType:
    if backend is None and device.type not in _OF_DEVICE:
        raise RuntimeError(f"device: no kernels for {device.type!r}, allowed {', '.join(map(repr, _OF_DEVICE))}")
    name = _OF_DEVICE[device.type] if backend is None else backend
    module = load(name)
    works_on = module.DEVICE if name == "gpu" else "cpu"
    if device.type != works_on:
        raise RuntimeError(f"device: backend {name!r} works on {works_on!r}, got a tensor on {device.type!r}")
    return module


def _operand(name: str, x: torch.Tensor, length: int) -> torch.Tensor:
    """x as the kernels take it: one-dimensional, contiguous."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name}: got {got}, allowed a real floating-point tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: got layout {x.layout}, allowed torch.strided")
    if x.shape != (length,):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, allowed ({length},)")
    return x.detach().contiguous().resolve_neg()


def summed(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are summed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _result(out: torch.Tensor | None, x: torch.Tensor, length: int) -> torch.Tensor:
    dtype = summed(x.dtype)
    if out is None:
        return torch.empty(length, dtype=dtype, device=x.device)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out: got {type(out).__name__}, allowed a {dtype} tensor")
    if (out.shape, out.dtype, out.device) != ((length,), dtype, x.device) or not out.is_contiguous():
        raise ValueError(
            f"out: got {out.dtype} {tuple(out.shape)} on {out.device}, "
            f"allowed contiguous {dtype} ({length},) on {x.device}"
        )
    return out


def project(g: torch.Tensor, compartments: tuple, distribution: Distribution, seed: int, stream: int,
            step: int | torch.Tensor, out: torch.Tensor | None = None,
            backend: str | None = None) -> torch.Tensor:  # fmt: skip
    """Coordinates of g in the bases of all compartments: c_k = Φ_k g[start:stop].

    Args:
        g: (D,), any real floating-point dtype; float64 is summed in float64, the others in float32.
        compartments: tuples (number, start, stop, dim, row, before, after) that cover 0 ... D in order: rows from row on
            and, of a direction's before + (stop - start) + after columns, those of the values start ... stop - 1.
        distribution, seed, stream, step: the rest of the names of the bases; on a GPU step may be a tensor of one int64
            there, read when the kernel runs, as CUDA graphs need.
        out: (sum of dims,) of the result's dtype, overwritten; backend: one of BACKENDS, by default the device's.

    Returns:
        (sum of dims,) float32, or float64 for float64 g.
    """
    if torch.compiler.is_compiling():
        name = (_flat(compartments), distribution.name, seed, stream, *_split(step))
        return _copied(_compiled_project(g, *name, backend), out)
    x = _operand("g", g, compartments[-1][2])
    module = _backend(backend, x.device)
    c = _result(out, x, sum(k[3] for k in compartments))
    if module.__name__ != "rbd.kernels.gpu":  # which widens numbers as it reads them
        x = x.to(c.dtype)
    module.project(x, compartments, distribution, seed, stream, _number(module, step), c)
    return c


def expand(c: torch.Tensor, compartments: tuple, distribution: Distribution, seed: int, stream: int,
           step: int | torch.Tensor, out: torch.Tensor | None = None,
           backend: str | None = None) -> torch.Tensor:  # fmt: skip
    """The vector with coordinates c: u[start:stop] = Φ_kᵀ c_k, (sum of dims,) -> (D,); arguments as in ``project``."""
    if torch.compiler.is_compiling():
        name = (_flat(compartments), distribution.name, seed, stream, *_split(step))
        return _copied(_compiled_expand(c, *name, backend), out)
    x = _operand("c", c, sum(k[3] for k in compartments))
    module = _backend(backend, x.device)
    u = _result(out, x, compartments[-1][2])
    module.expand(x.to(u.dtype), compartments, distribution, seed, stream, _number(module, step), u)
    return u


@torch.compiler.disable  # it writes through addresses, which a compiler could not follow
def add(c: torch.Tensor, compartments: tuple, distribution: Distribution, seed: int, stream: int,
        step: int | torch.Tensor, params: Sequence[torch.Tensor], backend: str | None = None) -> None:  # fmt: skip
    """params += the vector with coordinates c, cut into their shapes; on a GPU without a temporary of length D.

    Args:
        params: contiguous tensors of one floating-point dtype on c's device, D values in all; the others as in ``expand``.

    Raises:
        TypeError, ValueError: params are other tensors than that, or what ``expand`` raises.
    """
    x = _operand("c", c, sum(k[3] for k in compartments))
    bad = [p for p in params if not p.is_contiguous() or p.dtype != params[0].dtype or p.device != x.device]
    if bad or not params[0].is_floating_point():
        got = ", ".join(f"{p.dtype} {tuple(p.shape)} {tuple(p.stride())} on {p.device}" for p in bad or params[:1])
        raise TypeError(f"params: got {got}, allowed contiguous tensors of one floating-point dtype on {x.device}")
    if (size := sum(p.numel() for p in params)) != compartments[-1][2]:
        raise ValueError(f"params: got {size} values, allowed {compartments[-1][2]}")
    module = _backend(backend, x.device)
    module.add(x.to(summed(x.dtype)), compartments, distribution, seed, stream, _number(module, step), params)
    torch.autograd.graph.increment_version(list(params))  # kernels that write through addresses do not


def _number(module: ModuleType, step: int | torch.Tensor) -> int | torch.Tensor:
    return step if module.__name__ == "rbd.kernels.gpu" else int(step) % 2**32


# Under torch.compile the kernels are opaque operators: integers that change from step to step must not trace again. Their
# tables outlive a call, which Inductor's own CUDA graphs do not allow: it is told to leave them out.


def _flat(compartments: tuple) -> list[int]:
    return [int(field) for k in compartments for field in k]


def _nested(flat: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(flat[i : i + FIELDS]) for i in range(0, len(flat), FIELDS))


def _split(step: int | torch.Tensor) -> tuple[int, torch.Tensor | None]:
    return (0, step) if isinstance(step, torch.Tensor) else (step, None)


def _copied(made: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return made if out is None else out.copy_(made)


@torch.library.custom_op("rbd::project", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _compiled_project(g: torch.Tensor, compartments: Sequence[int], law: str, seed: int, stream: int, step: int,
                      counter: torch.Tensor | None, backend: str | None) -> torch.Tensor:  # fmt: skip
    name = (_nested(compartments), distribution(law), seed, stream, step if counter is None else counter)
    return project(g, *name, backend=backend)


@_compiled_project.register_fake
def _(g, compartments, law, seed, stream, step, counter, backend):
    return g.new_empty(sum(compartments[3::FIELDS]), dtype=summed(g.dtype))


@torch.library.custom_op("rbd::expand", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _compiled_expand(c: torch.Tensor, compartments: Sequence[int], law: str, seed: int, stream: int, step: int,
                     counter: torch.Tensor | None, backend: str | None) -> torch.Tensor:  # fmt: skip
    name = (_nested(compartments), distribution(law), seed, stream, step if counter is None else counter)
    return expand(c, *name, backend=backend)


@_compiled_expand.register_fake
def _(c, compartments, law, seed, stream, step, counter, backend):
    return c.new_empty(compartments[2 - FIELDS], dtype=summed(c.dtype))
