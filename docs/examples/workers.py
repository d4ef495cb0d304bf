"""Workers that share a seed exchange coordinates: d numbers in place of D. Start it with torchrun."""

from datetime import timedelta

import torch
import torch.distributed as dist

from rbd import RBD

dist.init_process_group("gloo", timeout=timedelta(seconds=60))  # "nccl" on GPUs; collective timeout
torch.manual_seed(0)  # the same parameters on all workers
model = torch.nn.Linear(784, 10)
optimizer = RBD(model.parameters(), lr=1.0, dim=250, variant="common")
torch.manual_seed(1 + dist.get_rank())  # batches of its own for each
for _ in range(10):
    x, y = torch.rand(32, 784), torch.randint(10, (32,))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
dist.destroy_process_group()
