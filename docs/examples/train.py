"""Train a small network on the 7,000 MNIST images of the package with RBD, and print its accuracy."""

from importlib.resources import files

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rbd import RBD

with np.load(files("rbd") / "suite" / "embedded" / "mnist.npz") as stored:
    images = torch.from_numpy(stored["images"]).float().div(255).sub(0.5)  # (7000, 28, 28)
    labels = torch.from_numpy(stored["labels"]).long()  # (7000,)
train, test = slice(0, 5000), slice(5000, 7000)

torch.manual_seed(0)
batches = [(images[train][i], labels[train][i]) for _ in range(2) for i in torch.randperm(5000).split(32)]  # two epochs

# ten lines
layers = torch.nn.Flatten(), torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
model = torch.nn.Sequential(*layers)
optimizer = RBD(model.parameters(), lr=0.4, dim=10_000, distribution="countsketch")  # new directions at every step
for x, y in batches:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
# end of ten lines

with torch.no_grad():
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
print(f"accuracy on {len(labels[test])} images that were not trained on: {accuracy:.0%}")
assert accuracy > 0.7
