"""Fine-tune a network in d = 1,000 coordinates with Adam, save 4 kB, and load them elsewhere.

A small CNN learns digits with all its parameters; then its weights stay as they are, and 1,000 coordinates teach it clothes.
"""

import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from rbd import Subspace
from rbd.suite import batches, datasets, models

DIM = 1000


def train(model: torch.nn.Module, data: datasets.Dataset, lr: float, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        for x, y in batches.batches(data.train, 50, seed=0, epoch=epoch):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: datasets.Dataset) -> float:
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches.evaluation(data.validation))
    return right / len(data.validation)


digits, clothes = datasets.load("mnist-embedded"), datasets.load("fmnist-embedded")
model = models.build("cnn", (1, 28, 28), seed=0)
train(model, digits, lr=0.001, epochs=1)
pretrained = {name: p.clone() for name, p in model.state_dict().items()}

sub = Subspace(model, dim=DIM, seed=0)  # model's weights are frozen now
before = accuracy(sub, clothes)
train(sub, clothes, lr=0.02, epochs=3)
after = accuracy(sub, clothes)

file = Path(tempfile.mkdtemp()) / "clothes.safetensors"
sub.save(file)

elsewhere = models.build("cnn", (1, 28, 28), seed=1)
elsewhere.load_state_dict(pretrained)
loaded = Subspace.load(file, elsewhere)
assert torch.equal(loaded.coordinates, sub.coordinates) and accuracy(loaded, clothes) == after
assert accuracy(loaded.merge(), clothes) == after  # a plain module again

print(f"accuracy on clothes: {before:.3f} before, {after:.3f} in {DIM} coordinates; {file.stat().st_size} bytes")
assert after > 0.6 and file.stat().st_size < 4500
