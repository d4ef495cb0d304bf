"""Keep your own optimizer under DistributedDataParallel, and send coordinates in place of gradients."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rbd.distributed import CoordinatesState, coordinates_hook

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(784, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
replica = DistributedDataParallel(model)
state = CoordinatesState(model.parameters(), dim=250)
replica.register_comm_hook(state, coordinates_hook)
optimizer = torch.optim.Adam(model.parameters())
torch.manual_seed(1 + dist.get_rank())
for _ in range(10):
    x, y = torch.rand(32, 784), torch.randint(10, (32,))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(replica(x), y).backward()  # gradients arrive as Φᵀ (1/W) Σ Φ g
    optimizer.step()
assert state.step == 10  # it names the next bases: keep it in your checkpoints
dist.destroy_process_group()
