"""project and expand on the backend that a tensor's device asks for; a missing one raises, none replaces another."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch

from rbd.distribution import Distribution

BACKENDS = ("reference", "cpu")
_OF_DEVICE = {"cpu": "cpu"}


def load(backend: str) -> ModuleType:
    """The module of a backend, imported when first asked for.

    Raises:
        ValueError: the name is not one of BACKENDS.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, allowed {', '.join(map(repr, BACKENDS))}")
    return import_module(f"rbd.kernels.{backend}")


def _backend(backend: str | None, device: torch.device) -> ModuleType:
    if backend is None and device.type not in _OF_DEVICE:
        raise RuntimeError(f"device: no kernels for {device.type!r}, allowed {', '.join(map(repr, _OF_DEVICE))}")
    if backend is not None and device.type != "cpu":
        raise RuntimeError(f"device: backend {backend!r} works on 'cpu', got a tensor on {device.type!r}")
    return load(_OF_DEVICE[device.type] if backend is None else backend)


def _operand(name: str, x: torch.Tensor, length: int) -> torch.Tensor:
    """x as the kernels take it: one-dimensional, contiguous, float64 if it was, else float32."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name}: got {got}, allowed a real floating-point tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: got layout {x.layout}, allowed torch.strided")
    if x.shape != (length,):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, allowed ({length},)")
    return x.detach().to(x.dtype if x.dtype == torch.float64 else torch.float32).contiguous().resolve_neg()


def _result(out: torch.Tensor | None, x: torch.Tensor, length: int) -> torch.Tensor:
    if out is None:
        return torch.empty(length, dtype=x.dtype, device=x.device)
    if not isinstance(out, torch.Tensor):
        raise TypeError(f"out: got {type(out).__name__}, allowed a {x.dtype} tensor")
    if (out.shape, out.dtype, out.device) != ((length,), x.dtype, x.device) or not out.is_contiguous():
        raise ValueError(
            f"out: got {out.dtype} {tuple(out.shape)} on {out.device}, "
            f"allowed contiguous {x.dtype} ({length},) on {x.device}"
        )
    return out


def project(g: torch.Tensor, compartments: tuple, distribution: Distribution, seed: int, stream: int, step: int,
            out: torch.Tensor | None = None, backend: str | None = None) -> torch.Tensor:  # fmt: skip
    """Coordinates of g in the bases of all compartments: c_k = Φ_k g[start:stop].

    Args:
        g: (D,), any real floating-point dtype; float64 is summed in float64, the others in float32.
        compartments: tuples (index, start, stop, dim, row) that cover 0 ... D in order.
        distribution, seed, stream, step: the rest of the names of the bases.
        out: (sum of dims,) of the result's dtype, overwritten; backend: one of BACKENDS, by default the device's.

    Returns:
        (sum of dims,) float32, or float64 for float64 g.
    """
    x = _operand("g", g, compartments[-1][2])
    module = _backend(backend, x.device)
    c = _result(out, x, sum(k[3] for k in compartments))
    module.project(x, compartments, distribution, seed, stream, step, c)
    return c


def expand(c: torch.Tensor, compartments: tuple, distribution: Distribution, seed: int, stream: int, step: int,
           out: torch.Tensor | None = None, backend: str | None = None) -> torch.Tensor:  # fmt: skip
    """The vector with coordinates c: u[start:stop] = Φ_kᵀ c_k, (sum of dims,) -> (D,); arguments as in ``project``."""
    x = _operand("c", c, sum(k[3] for k in compartments))
    module = _backend(backend, x.device)
    u = _result(out, x, compartments[-1][2])
    module.expand(x, compartments, distribution, seed, stream, step, u)
    return u
