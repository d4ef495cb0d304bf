"""A distribution of your own: four levels, two random bits an entry. The reference backend multiplies by it as it is."""

import numpy as np
import torch

from rbd import kernels
from rbd.compartment import BasisSpec, Compartment
from rbd.distribution import Distribution

levels = np.array([-3, -1, 1, 3], dtype=np.float32)  # symmetric about 0; indexed by the two bits
quarters = Distribution("quarters", bits=2, levels=levels, deviation=float(np.sqrt((levels.astype(float) ** 2).mean())))

whole = Compartment(number=0, start=0, stop=10_000, dim=200)
spec = BasisSpec((whole,), quarters, seed=1, stream=0, step=0)
g = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
c = kernels.project(g, spec, backend="reference")  # (200,)
u = kernels.expand(c, spec, backend="reference")  # (10000,)

lengths = c.double().square().mean() / (g.double().square().mean())  # 1 for directions of unit expected length
assert 0.7 < lengths < 1.3
assert torch.isclose(torch.dot(u.double(), g.double()), c.double().square().sum(), rtol=1e-4)  # ⟨Φᵀ Φ g, g⟩ = |Φ g|²
