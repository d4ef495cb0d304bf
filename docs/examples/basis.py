"""Multiply by a random basis that is not stored."""

import torch

from rbd import Basis

g = torch.randn(101_770)
basis = Basis(dim=250, size=101_770, seed=7, step=3)  # names a basis; no matrix is stored
c = basis.project(g)  # Φ g, (101770,) -> (250,)
u = basis.expand(c)  # Φᵀ c, (250,) -> (101770,)

again = Basis(dim=250, size=101_770, seed=7, step=3)
assert torch.equal(again.project(g), c)  # the same name, the same entries
other = Basis(dim=250, size=101_770, seed=7, step=4)
assert not torch.equal(other.project(g), c)  # another step, another basis
