"""Training in random low-dimensional bases that are never stored.

The public names: the optimizers ``RBD``, ``FPD`` and ``NES``, the ``Basis`` they use, ``Subspace``, which trains
coordinates with any optimizer of torch, and ``__version__``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbd.basis import Basis
    from rbd.optim import FPD, NES, RBD
    from rbd.subspace import Subspace

__version__ = "0.2.0"
__all__ = ["FPD", "NES", "RBD", "Basis", "Subspace", "__version__"]

_HOME = {"Basis": "rbd.basis", "RBD": "rbd.optim", "FPD": "rbd.optim", "NES": "rbd.optim",
         "Subspace": "rbd.subspace"}  # fmt: skip


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name in _HOME:  # on first use, so that `rbd --help` need not wait for torch
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rbd' has no attribute {name!r}")
