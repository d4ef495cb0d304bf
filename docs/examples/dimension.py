"""How many dimensions does a task need? Train in growing d, and compare with training in all dimensions."""

from importlib.resources import files

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rbd import Subspace

with np.load(files("rbd") / "suite" / "embedded" / "mnist.npz") as stored:
    images = torch.from_numpy(stored["images"]).float().div(255).sub(0.5)[:, ::2, ::2].flatten(1)  # (7000, 196)
    labels = torch.from_numpy(stored["labels"]).long()  # (7000,)


def accuracy(dim: int | None, seed: int) -> float:
    """Of a linear model on 2,000 images, after training on the other 5,000 in dim coordinates; None: in all dimensions."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(196, 10)  # D = 1,970
    trained = model if dim is None else Subspace(model, dim=dim, seed=seed)
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.03)
    for _ in range(2):
        for i in torch.randperm(5000).split(50):
            optimizer.zero_grad()
            cross_entropy(trained(images[i]), labels[i]).backward()
            optimizer.step()
    with torch.no_grad():
        return (trained(images[5000:]).argmax(1) == labels[5000:]).float().mean().item()


reached = {dim: accuracy(dim, seed=0) for dim in (10, 50, 200, 1000)}
everything = accuracy(None, seed=0)
for dim, value in reached.items():
    print(f"d = {dim}: {value:.1%}, {value / everything:.0%} of training in all dimensions")
print("d90:", min((dim for dim, value in reached.items() if value >= 0.9 * everything), default="above all of these"))
assert reached[10] < reached[1000]
