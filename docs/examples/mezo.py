"""MeZO: training by forward passes alone (Malladi et al. 2023, arXiv 2305.17333), in bfloat16, with seeded perturbations.

Step t compares the losses at θ + ε z and θ - ε z. Its direction z is the only row of Basis(1, D, step=t): one name for all
tensors together, so that no two of them get the same numbers and every worker makes its part alone. Both points start from
float32 base weights, so nothing drifts; the T numbers in `moves` are the whole run, and replaying them gives its weights bit
for bit.
"""

import torch
from torch.nn.functional import cross_entropy

from rbd import Basis

STEPS, EPSILON, LR = 300, 0.3, 20.0  # EPSILON and LR: for directions of unit length

generator = torch.Generator().manual_seed(0)
x = torch.randn(512, 8, generator=generator)  # points of eight classes: the octant that the first three numbers are in
y = (x[:, :3] > 0).long() @ torch.tensor([1, 2, 4])
angles = 0.2 * torch.randn(8, 8, generator=generator)
turned = (x @ torch.linalg.matrix_exp(angles - angles.T)).bfloat16()  # the new task


def pretrain() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(50):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.bfloat16().requires_grad_(False)


def basis(t: int) -> Basis:
    return Basis(1, size, step=t)


def loss_at(length: float, t: int) -> float:
    """Of the model with the parameters base + length z_t, each rounded once."""
    for p, b in zip(params, base):
        p.copy_(b)
    basis(t).add_(params, torch.tensor([length]))
    return cross_entropy(model(turned).float(), y).item()


model = pretrain()
params = list(model.parameters())
size = sum(p.numel() for p in params)
base = [p.float() for p in params]  # copies
start, moves, before = [b.clone() for b in base], [], loss_at(0.0, 0)
for t in range(STEPS):
    slope = (loss_at(EPSILON, t) - loss_at(-EPSILON, t)) / (2 * EPSILON)
    moves.append(-LR * slope)
    basis(t).add_(base, torch.tensor(moves[-1:]))
after = loss_at(0.0, 0)

for t, move in enumerate(moves):  # elsewhere, from the pretrained weights and the T numbers
    basis(t).add_(start, torch.tensor([move]))
assert all(map(torch.equal, start, base))
print(f"loss on the turned points: {before:.3f} before, {after:.3f} after {STEPS} steps of MeZO")
assert after < 0.8 * before
