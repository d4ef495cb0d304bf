"""Does FPD change when it keeps its coordinates between steps, as the preset of the paper's released code does?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rbd.suite.experiment import Experiment
from rbd.suite.paper import LEARNING_RATES

DATA = {"quick": "mnist-embedded", "paper": "mnist"}
EPOCHS = {"quick": 20, "paper": 30}  # without a schedule of the rate, equal epochs compare
KEPT = {"quick": (True, False), "paper": (True,)}  # plain FPD at full scale: runs of paper_rates and augmentation
LR, DIM, BATCH, SEED = LEARNING_RATES["fc", "mnist"]["fpd"], 250, 32, 0  # those of the runs to compare with


def parts(profile: str) -> list[dict[str, Any]]:
    """With augmentation and without: a run each."""
    return [{"augment": augment, "kept": kept} for augment in (None, "none") for kept in KEPT[profile]]


def measure(part: dict[str, Any], profile: str, data_dir=None) -> dict[str, Any]:
    """Validation accuracy (%) after every epoch.

    The released code stores c = Φ g, moves by θ ← θ - η Φᵀ c, and evaluates the network at θ + Φᵀ c. Its preset for FPD
    does not set c to zero in between, so the next gradient is taken at θ + Φᵀ c, against the direction of the last move;
    at η = 1 that is the point before it. Initial parameters, batches and basis are those of the suite's run of FPD.
    """
    from rbd.suite import datasets

    sets = datasets.load(DATA[profile], data_dir)
    about = {"model": "fc", "data": DATA[profile], "lr": LR, "dim": DIM, "seed": SEED}
    return {**about, **part, "accuracy": train(sets, EPOCHS[profile], **part)}


def cost(profile: str) -> float:
    """Seconds: 2.5 ms a step."""
    return 2 * len(KEPT[profile]) * EPOCHS[profile] * {"quick": 156, "paper": 1562}[profile] * 2.5e-3


def train(sets, epochs: int, augment: str | None, kept: bool) -> list[float]:
    import torch
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    from rbd.suite import batches, models
    from rbd.suite.train import accuracy

    model, found = models.build("fc", (1, 28, 28), SEED), []
    theta = parameters_to_vector(model.parameters()).detach().clone()  # (D,)
    u = torch.zeros_like(theta)  # (D,) Φᵀ c of the step before
    for epoch in range(epochs):
        descend(model, theta, u, batches.batches(sets.train, BATCH, SEED, epoch, augment=augment), kept)
        vector_to_parameters(theta, model.parameters())
        found.append(accuracy(model, sets.validation))
    return found


def descend(model, theta, u, stream: Iterable, kept: bool) -> None:
    """A step for each mini-batch; θ and u = Φᵀ c, both (D,), are overwritten."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    from rbd import FPD
    from rbd.optim import rbd_direction

    parameters = list(model.parameters())
    partition = FPD(parameters, LR, DIM).partition()
    for x, y in stream:
        vector_to_parameters(theta + u if kept else theta, parameters)
        g = parameters_to_vector(torch.autograd.grad(cross_entropy(model(x), y), parameters))  # (D,)
        rbd_direction(g, partition, seed=SEED, out=u)
        theta.sub_(u, alpha=LR)


EXPERIMENT = Experiment("as_released", __doc__, measure=measure, parts=parts, cost=cost)
