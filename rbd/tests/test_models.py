from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rbd.suite import models

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
SIZES = [  # D as the paper states it; a ResNet stem of 1 channel has 2 · 9 · 16 = 288 kernel entries less
    ("fc", MNIST, 101_770), ("fc", CIFAR, 394_634), ("cnn", MNIST, 93_322), ("cnn", CIFAR, 122_570),
    ("resnet8", CIFAR, 78_330), ("resnet32", CIFAR, 467_194), ("resnet8", MNIST, 78_042), ("resnet32", MNIST, 466_906),
    ("fc200", MNIST, 199_210), ("fc200", CIFAR, 656_810), ("lenet", MNIST, 44_426), ("lenet", CIFAR, 62_006),
]
EVERY = pytest.mark.parametrize("name, shape", [(name, shape) for name, shape, _ in SIZES])


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])  # (D,)


@pytest.mark.parametrize("name, shape, size", SIZES)
def test_parameter_count(name, shape, size):
    assert flat(models.build(name, shape, 0)).shape == (size,)


@EVERY
def test_forward_backward(name, shape):
    model = models.build(name, shape, 0)
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))
    logits = model(images)
    assert logits.shape == (4, 10) and logits.dtype == torch.float32 and model.training
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


@EVERY
def test_initialisation_law(name, shape):
    for module in models.build(name, shape, 3).modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            w = module.weight.detach()
            area = w[0, 0].numel()
            limit = math.sqrt(6 / ((w.shape[0] + w.shape[1]) * area))
            assert w.abs().max() <= limit
            assert w.abs().max() > limit * (1 - 20 / w.numel())  # misses the top 20/n of n draws with probability e^-20
            assert abs(w.mean()) < 6 * limit / math.sqrt(3 * w.numel())  # 6 standard errors of U(-limit, limit)
            # var(w²) = 4/45 limit⁴; 6 standard errors of the second moment limit²/3
            assert abs(w.square().mean() - limit**2 / 3) < 6 * limit**2 * math.sqrt(4 / 45 / w.numel())
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
            assert not module.running_mean.any() and (module.running_var == 1).all() and module.num_batches_tracked == 0


def test_kernels_are_independent():
    kernels = [p.detach().flatten() for p in models.build("resnet8", CIFAR, 0).parameters() if p.numel() > 1000]
    correlation = torch.corrcoef(torch.stack([w[:1000] for w in kernels])) - torch.eye(len(kernels))
    assert correlation.abs().max() < 6 / math.sqrt(1000)


def test_seed_decides_and_global_generator_is_untouched():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = flat(models.build("resnet8", CIFAR, 5))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    assert torch.equal(first, flat(models.build("resnet8", CIFAR, 5)))
    assert not torch.equal(first, flat(models.build("resnet8", CIFAR, 6)))


def test_shortcuts_are_projected_once_per_stage():
    blocks = [m for m in models.build("resnet32", CIFAR, 0) if isinstance(m, models.Block)]
    assert [not isinstance(b.shortcut, nn.Identity) for b in blocks] == [True, False, False, False, False] * 3


def test_resnet_halves_odd_sides_upwards():
    trunk = models.build("resnet8", (1, 29, 27), 0)[:-3]
    assert trunk(torch.zeros(2, 1, 29, 27)).shape == (2, 64, 8, 7)


def test_smallest_cnn():
    assert models.build("cnn", (1, 18, 18), 0)(torch.zeros(1, 1, 18, 18)).shape == (1, 10)


@pytest.mark.parametrize("arguments, parts", [
    (("vgg", MNIST, 0), ("name", "'vgg'", "resnet32")),
    (("fc", (28, 28), 0), ("shape", "(28, 28)", "(C, H, W)")),
    (("fc", (0, 28, 28), 0), ("shape", "(0, 28, 28)", "positive")),
    (("cnn", (1, 17, 28), 0), ("shape", "(1, 17, 28)", "18")),
    (("fc", MNIST, -1), ("seed", "-1", "4294967295")),
    (("fc", MNIST, 2**32), ("seed", "4294967296", "4294967295")),
    (("fc", MNIST, 0.5), ("seed", "0.5", "integer")),
])
def test_bad_arguments(arguments, parts):
    with pytest.raises(ValueError) as error:
        models.build(*arguments)
    assert all(part in str(error.value) for part in parts), error.value
