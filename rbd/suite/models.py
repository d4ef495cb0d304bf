"""The paper's networks (arXiv 2011.04720), and two of Li et al. (arXiv 1804.08838), as plain modules with 10 classes.

    build("resnet8", (3, 32, 32), seed=0)       # D = 78,330

Dense and convolution kernels are Glorot-uniform, biases and β zero, γ one. Strided 3×3 convolutions pad one pixel on
every side, where TensorFlow's 'same' pads even inputs only at the bottom and right: shapes and D are equal, the windows
sit one pixel apart. Batch norm keeps PyTorch's ε and momentum (the paper's are not known to us). The networks of Li et al.
begin like the others here; their released code draws kernels from He's normal distribution instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

CLASSES = 10
CNN_MIN = 18  # px; the smallest side that leaves the last 3×3 convolution of the CNN one output
LENET_MIN = 16  # px; the smallest side that leaves LeNet one pixel to its dense layers


def fc(shape: tuple[int, int, int]) -> nn.Sequential:
    """Flatten, dense 128, dense 10. D = 101,770 on 1×28×28 and 394,634 on 3×32×32."""
    channels, height, width = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def fc200(shape: tuple[int, int, int]) -> nn.Sequential:
    """Flatten, dense 200, dense 200, dense 10. D = 199,210 on 1×28×28 (Li et al. 2018)."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * height * width, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(),
        nn.Linear(200, CLASSES),
    )


def cnn(shape: tuple[int, int, int]) -> nn.Sequential:
    """Three valid 3×3 convolutions (32, 64, 64), dense 64, dense 10. D = 93,322 on 1×28×28 and 122,570 on 3×32×32."""
    channels, height, width = shape
    if min(height, width) < CNN_MIN:
        raise ValueError(f"shape: got {shape}, allowed height and width of at least {CNN_MIN} px for 'cnn'")
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * _cnn_side(height) * _cnn_side(width), 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )


def _cnn_side(side: int) -> int:
    return ((side - 2) // 2 - 2) // 2 - 2  # px


def lenet(shape: tuple[int, int, int]) -> nn.Sequential:
    """Two valid 5×5 convolutions (6, 16), each with a maxpool 2; dense 120, 84, 10. D = 44,426 on 1×28×28 (as Li et al.)."""
    channels, height, width = shape
    if min(height, width) < LENET_MIN:
        raise ValueError(f"shape: got {shape}, allowed height and width of at least {LENET_MIN} px for 'lenet'")
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * _lenet_side(height) * _lenet_side(width), 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES),
    )


def _lenet_side(side: int) -> int:
    return ((side - 4) // 2 - 4) // 2  # px


class Block(nn.Module):
    """Basic residual block, (N, fan_in, H, W) -> (N, fan_out, ⌈H/stride⌉, ⌈W/stride⌉).

    relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); the shortcut is bn(1×1 conv) if `project`, else the identity.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, project: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU(),
            nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False), nn.BatchNorm2d(fan_out),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 1, stride, bias=False), nn.BatchNorm2d(fan_out),
        ) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(shape: tuple[int, int, int], blocks: int) -> nn.Sequential:
    """Stem of 16 channels, stages of 16, 32, 64 with `blocks` basic blocks each, global average pool, dense 10.

    The first block of every stage projects its shortcut, 16 → 16 too. On 3 channels D = 78,330 with 1 block per stage
    (ResNet-8) and 467,194 with 5 (ResNet-32); on 1 channel 288 less.
    """
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for fan_in, fan_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers.append(Block(fan_in, fan_out, stride, project=True))
        layers += [Block(fan_out, fan_out, 1, project=False) for _ in range(blocks - 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


NETWORKS: dict[str, Callable[[tuple[int, int, int]], nn.Module]] = {
    "fc": fc, "cnn": cnn, "resnet8": partial(resnet, blocks=1), "resnet32": partial(resnet, blocks=5), "fc200": fc200,
    "lenet": lenet,
}
NAMES = tuple(NETWORKS)
DENSE = ("fc", "fc200")  # those without a convolution


def initialise(model: nn.Module, seed: int) -> None:
    """Fill parameters and buffers: Glorot-uniform kernels in module order from one generator, constants elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight, generator=generator)  # U(±√(6 / (fan_in + fan_out)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # γ = 1, β = 0, running mean 0 and variance 1; draws nothing


def build(name: str, shape: tuple[int, int, int], seed: int) -> nn.Module:
    """The network `name` (one of NAMES) for images of `shape` (C, H, W), float32 on the CPU, in training mode.

    Maps (N, C, H, W) to logits (N, 10). The same seed (0 ... 2**32-1) gives the same parameters; PyTorch's global
    generator is neither read nor advanced. Raises ValueError for an unknown name, a bad seed, or a shape that the
    network cannot take.
    """
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}, allowed {', '.join(NAMES)}")
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"shape: got {shape}, allowed three positive integers (C, H, W)")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: got {seed!r}, allowed an integer 0 ... {2**32 - 1}")
    with torch.device("meta"):  # allocates and draws nothing, so that torch's own initialisation is skipped
        model = NETWORKS[name](shape)
    model.to_empty(device="cpu")
    initialise(model, seed)
    return model
