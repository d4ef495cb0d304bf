"""Partitions, parameter groups, a schedule, and going on from a checkpoint."""

import torch

from rbd import FPD, RBD

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 4))
x, y = torch.randn(64, 20), torch.randint(4, (64,))


def train(optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


# a basis for each layer: pass the names of the parameters
train(RBD(model.named_parameters(), lr=0.5, dim=20, partition="by_layer"))

# the sparse basis: a step costs the same for every dim
train(RBD(model.parameters(), lr=0.5, dim=200, distribution="countsketch"))

# a basis that is kept for 10 steps, and one that is drawn once
train(RBD(model.parameters(), lr=0.5, dim=20, redraw=10))
train(FPD(model.parameters(), lr=0.5, dim=20))

# parameter groups with settings of their own
groups = [{"params": model[0].parameters(), "dim": 20}, {"params": model[2].parameters(), "dim": 10, "lr": 0.1}]
train(RBD(groups, lr=0.5))

# any scheduler of torch
optimizer = RBD(model.parameters(), lr=0.5, dim=20)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
train(optimizer)
schedule.step()

# a checkpoint is the model and a few numbers; going on is exact, bit for bit
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "checkpoint.pt")
saved = torch.load("checkpoint.pt", weights_only=True)
train(optimizer)
expected = [p.detach().clone() for p in model.parameters()]
model.load_state_dict(saved["model"])
resumed = RBD(model.parameters(), lr=0.5, dim=20)
resumed.load_state_dict(saved["optimizer"])
train(resumed)
assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected))
