"""A script that torchrun may restart: join the workers by rbd.distributed.join, and go on from a checkpoint."""

import os

import torch

from rbd import RBD
from rbd.distributed import join

with join(int(os.environ["WORLD_SIZE"])):  # in place of init_process_group; its timeout is 60 s
    torch.manual_seed(0)
    model = torch.nn.Linear(784, 10)
    optimizer = RBD(model.parameters(), lr=1.0, dim=250, variant="common")
    done = 0
    if os.path.exists("checkpoint.pt"):
        saved = torch.load("checkpoint.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["done"]
    for step in range(done, 10):
        x, y = torch.rand(32, 784), torch.randint(10, (32,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if torch.distributed.get_rank() == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": step + 1}, "new.pt")
            os.replace("new.pt", "checkpoint.pt")  # whole or not at all
