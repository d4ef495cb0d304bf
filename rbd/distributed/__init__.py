"""Workers that share seeds: any worker can regenerate the basis of any other, so only coordinates are sent.

The fourth claim of arXiv 2011.04720 on torch.distributed (gloo on CPUs, NCCL on GPUs). W workers, d directions over D
parameters; Φ_r and g_r are worker r's basis and the gradient on its batch:

    variant      batch  basis               θ ← θ - η u                values a worker sends in a step
    common       own    one, Φ              u = Φᵀ (1/W) Σ_r Φ g_r     2 d (W-1)/W
    bases        own    own, Φ_r            u = Σ_r Φ_rᵀ Φ_r g_r       d (W-1)
    directions   same   own, Φ_r            u = Σ_r Φ_rᵀ Φ_r g         d (W-1)
    shares       same   rows R_r of one, Φ  u = Σ_r Φ[R_r]ᵀ Φ[R_r] g   ⌈d/W⌉ (W-1)
    sharded      own    columns of one, Φ   u = Φᵀ Σ_r Φ[:, r] g[r]    2 d (W-1)/W, and what FSDP2 sends
    ddp          own    none                u = (1/W) Σ_r g_r          2 D (W-1)/W

An own basis has stream = the worker's number; shares and columns are parts of one basis. Every sum is taken in the order of
the workers, so W processes, and one process that does the same in turn, agree bit for bit.
"""

from __future__ import annotations

import warnings

from rbd.distributed.ddp_hook import CoordinatesState, coordinates_hook, ordered_hook
from rbd.distributed.exchange import CHECK, Alone, Workers, digest
from rbd.distributed.fsdp import (
    Columns,
    columns,
    expand_columns,
    is_sharded,
    local_pieces,
    project_columns,
    sharded_directions,
    sharded_workers,
)
from rbd.distributed.launch import TIMEOUT, is_launched, join, launch
from rbd.distributed.variants import (
    OWN_BASIS,
    OWN_BATCH,
    VARIANTS,
    Direction,
    Part,
    expand,
    in_turn,
    ordered_sum,
    project,
    update,
    worker_rows,
)

__all__ = [
    "CHECK", "OWN_BASIS", "OWN_BATCH", "TIMEOUT", "VARIANTS", "Alone", "Columns", "CoordinatesState", "Direction", "Part",
    "Workers", "columns", "coordinates_hook", "digest", "expand", "expand_columns", "in_turn", "is_launched", "is_sharded",
    "join", "joined", "launch", "launched", "local_pieces", "ordered_hook", "ordered_sum", "project", "project_columns",
    "sharded_directions", "sharded_workers", "update", "worker_rows",
]  # fmt: skip

launched = is_launched  # its name in rbd 0.1


def joined(workers: int, timeout: float = TIMEOUT, device: str = "cpu"):
    """``join`` by its name in rbd 0.1."""
    warnings.warn("rbd.distributed.joined is deprecated, use rbd.distributed.join", DeprecationWarning, stacklevel=2)
    return join(workers, timeout, device)
