"""Train without gradients: NES evaluates the loss along each direction."""

import torch

from rbd import NES

torch.manual_seed(0)
model = torch.nn.Linear(10, 1)
x, y = torch.randn(64, 10), torch.randn(64, 1)
before = torch.nn.functional.mse_loss(model(x), y).item()

optimizer = NES(model.parameters(), lr=0.17, dim=11)


def closure():
    return torch.nn.functional.mse_loss(model(x), y)  # no backward


for _ in range(50):
    optimizer.step(closure)  # calls it dim times

assert closure().item() < before
