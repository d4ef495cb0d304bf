"""How does the loss change along random directions around a trained network, and along its gradient?"""

from __future__ import annotations

from typing import Any

from rbd.suite.experiment import Experiment
from rbd.suite.paper import LEARNING_RATES

DATA = {"quick": "mnist-embedded", "paper": "mnist"}
EPOCHS = {"quick": 5, "paper": 20}
DIRECTIONS = {"quick": 20, "paper": 100}
DISTANCES = tuple(round(-12 + 0.5 * i, 1) for i in range(49))  # ‖Δθ‖
SEED = 100
IMAGES = 2000  # of the training set, for the loss


def measure(profile: str, data_dir=None) -> dict[str, Any]:
    """The loss at θ + a φ, for distances a and directions φ of length 1: (directions, distances), and along the gradient.

    θ is the FC net (D = 101,770), at the start and after SGD of 5 epochs of the embedded MNIST, or 20 of the whole, at the
    paper's rate.
    """
    from rbd.suite import datasets, models

    sets = datasets.load(DATA[profile], data_dir)
    model = models.build("fc", (1, 28, 28), SEED)
    start = look_around(model, sets, DIRECTIONS[profile])
    train(model, sets, EPOCHS[profile])
    after = look_around(model, sets, DIRECTIONS[profile])
    common = {"model": "fc", "data": DATA[profile], "seed": SEED, "images": IMAGES, "epochs": EPOCHS[profile]}
    return {**common, "n": DIRECTIONS[profile], "distances": DISTANCES, "start": start, "trained": after}


def cost(profile: str) -> float:
    """Seconds: 12 ms for the loss of 2,000 images, 1 ms for a step of SGD."""
    steps = {"quick": 156, "paper": 1562}[profile]  # an epoch
    return 2 * (DIRECTIONS[profile] + 1) * len(DISTANCES) * 0.012 + EPOCHS[profile] * steps * 1e-3


def train(model, sets, epochs: int) -> None:
    """SGD at the paper's rate."""
    import torch
    from torch.nn.functional import cross_entropy

    from rbd.suite import batches

    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATES["fc", "mnist"]["sgd"])
    for epoch in range(epochs):
        for x, y in batches.batches(sets.train, 32, SEED, epoch):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()


def look_around(model, sets, count: int) -> dict[str, Any]:
    """Losses along `count` random directions and along the negative gradient; norms of θ and of the gradient."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    from rbd import Basis
    from rbd.suite import batches

    x, y = next(batches.evaluation(sets.train, IMAGES))
    theta = parameters_to_vector(model.parameters()).detach()  # (D,)
    g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(cross_entropy(model(x), y), model.parameters())])  # (D,)

    def losses(direction):
        found = []
        with torch.no_grad():
            for distance in DISTANCES:
                vector_to_parameters(theta + distance * direction / direction.norm(), model.parameters())
                found.append(round(float(cross_entropy(model(x), y)), 6))
            vector_to_parameters(theta, model.parameters())
        return found

    rows = [Basis(1, len(theta), "normal", SEED, row=i).expand(torch.ones(1)) for i in range(count)]  # (D,) each
    return {"random": [losses(row) for row in rows], "descent": losses(-g), "norm": float(theta.norm()),
            "gradient_norm": float(g.norm())}  # fmt: skip


EXPERIMENT = Experiment("landscape", __doc__, measure=measure, cost=cost)
