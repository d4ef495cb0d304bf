"""Batches of 32 images prepared for training, and of 1,000 for evaluation; images are noise: no data set is needed."""

from __future__ import annotations

from benchmarks._measure import DEVICES, alone, on_device
from benchmarks._suite import suite

SHAPES = {"grey 28x28": (1, 28, 28), "colour 32x32": (3, 32, 32)}
IMAGES, BATCH = 2048, 32


class Batches:
    """An epoch of 2,048 images: shuffled, cropped, colour ones mirrored and standardised."""

    params = (DEVICES, tuple(SHAPES), ("training", "evaluation"))
    param_names = ("device", "images", "what")
    unit = "ms an epoch of 2,048"
    version = "1"

    def setup(self, device: str, images: str, what: str) -> None:
        on_device(device)

    def track_time(self, device: str, images: str, what: str) -> float:
        import torch

        data = suite("batches")
        device, generator = on_device(device), torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (IMAGES, *SHAPES[images]), dtype=torch.uint8, generator=generator)
        split = data.Split(pixels, torch.randint(10, (IMAGES,), generator=generator)).to(device)

        def epoch() -> int:
            made = data.batches(split, BATCH, 0, 0) if what == "training" else data.evaluation(split)
            return sum(len(x) for x, _ in made)

        assert epoch() == IMAGES
        return 1000 * alone(epoch, device)
