"""Modules of the experiment suite by name, also in commits from before it had a folder: asv measures those too."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

BEFORE = {"batches": "data", "datasets": "data"}  # module -> the one that it was a part of before


def suite(name: str) -> ModuleType:
    """rbd.suite.<name>; in an old commit rbd.<name>."""
    try:
        return import_module(f"rbd.suite.{name}")
    except ModuleNotFoundError:
        return import_module(f"rbd.{BEFORE.get(name, name)}")
