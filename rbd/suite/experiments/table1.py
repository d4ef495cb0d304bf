"""How accurate are NES, FPD, RBD and SGD on each pair of network and data (table 1)?"""

from __future__ import annotations

from rbd.suite.sweep import table1_configs as configs

__all__ = ["configs"]
