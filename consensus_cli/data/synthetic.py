"""Made-up images, for trying out what needs images of no particular dataset."""

from __future__ import annotations

from pathlib import Path

import torch

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Request
from consensus_cli.data.source import SPLIT_SEED, ImageData, divide
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import UserError

CLASSES = 10
IMAGES = {"train": 1000, "test": 200}
_IMAGE_SIZE = 32


class Synthetic:
    """Noise around a colour of the image's class, three channels: learnable, and meaning nothing (a `Source`)."""

    streams = False

    def check(self, request: Request, cache_dir: Path) -> list[UserError]:
        """Finds nothing wrong: no file is read."""
        return []

    def read(self, request: Request, cache_dir: Path) -> ImageData:
        """Returns the same images for every seed, as large as asked for."""
        size, generator = request.image_size or _IMAGE_SIZE, torch.Generator().manual_seed(SPLIT_SEED)
        colours = torch.randint(64, 192, (CLASSES, 3, 1, 1), generator=generator)
        splits = {}
        for name, count in IMAGES.items():
            labels = torch.arange(count) % CLASSES
            noise = torch.randint(-64, 65, (count, 3, size, size), generator=generator)
            splits[name] = ImageTensors((colours[labels] + noise).to(torch.uint8), labels)
        classes = tuple(f"class {number}" for number in range(CLASSES))
        note = "the images are synthetic: accuracy and robustness on them mean nothing"
        return ImageData("synthetic", *divide(splits, request.val_fraction), classes, Augmentation(), notes=(note,))
