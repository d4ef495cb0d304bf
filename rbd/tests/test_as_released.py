"""rbd.suite.experiments.as_released: plain FPD is the suite's own, kept coordinates shift the point of the gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rbd import FPD
from rbd.optim import rbd_direction
from rbd.suite import batches, datasets, models
from rbd.suite.config import RunConfig
from rbd.suite.experiments import as_released
from rbd.suite.train import train


def few():
    """The network, its parameters and two batches, as a run begins."""
    sets = datasets.load("mnist-embedded")
    stream = list(itertools.islice(batches.batches(sets.train, as_released.BATCH, as_released.SEED, 0), 2))
    model = models.build("fc", (1, 28, 28), as_released.SEED)
    theta = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    return model, theta, stream


def direct(model, theta, x, y):
    """Φᵀ Φ g at θ, (D,)."""
    nn.utils.vector_to_parameters(theta, model.parameters())
    g = nn.utils.parameters_to_vector(torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters())))
    return rbd_direction(g, FPD(model.parameters(), 1.0, as_released.DIM).partition(), seed=as_released.SEED)[0]


def test_fpd_without_kept_coordinates_is_the_suites_own():
    config = RunConfig(method="fpd", lr=as_released.LR, epochs=1, seed=as_released.SEED)
    mine = as_released.train(datasets.load("mnist-embedded"), 1, None, kept=False)
    assert mine == [p.accuracy for p in train(config, threads=1).curve]


@pytest.mark.parametrize("lr", [1.0, 0.25])
def test_kept_coordinates_shift_the_point_of_the_gradient_against_the_last_move(monkeypatch, lr):
    """The second gradient is taken at θ₁ + Φᵀ c₀, which is θ₀ where η = 1; the first, with c = 0, at θ₀."""
    monkeypatch.setattr(as_released, "LR", lr)
    model, theta, ((x, y), (x2, y2)) = few()
    start = theta.clone()
    u = torch.zeros_like(theta)
    as_released.descend(model, theta, u, [(x, y), (x2, y2)], kept=True)
    first = direct(model, start, x, y)
    second = direct(model, start + (1 - lr) * first, x2, y2)
    torch.testing.assert_close(theta, start - lr * (first + second), rtol=0, atol=1e-6)
    torch.testing.assert_close(u, second, rtol=0, atol=1e-6)
    assert (second - direct(model, start - lr * first, x2, y2)).abs().max() > 1e-4  # plain FPD's differs
