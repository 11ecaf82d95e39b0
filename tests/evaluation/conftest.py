from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from consensus_cli.data.memory import ImageTensors


@pytest.fixture
def brightness_split() -> ImageTensors:
    """20 flat grey images of 3×8×8 around the middle: levels 110, 112, … with class 1 above 127.5."""
    levels = torch.arange(108, 148, 2)
    images = levels.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return ImageTensors(images, (levels > 127.5).long())


@pytest.fixture
def noise_split() -> Callable[[int, int], ImageTensors]:
    def make(images: int, classes: int) -> ImageTensors:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (images, 3, 8, 8), generator=generator, dtype=torch.uint8)
        return ImageTensors(pixels, torch.arange(images) % classes)

    return make
