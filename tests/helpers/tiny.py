"""A problem and a network that train in milliseconds."""

from __future__ import annotations

import torch
from torch import nn

from consensus_cli.data.memory import ImageTensors

CPU = torch.device("cpu")


def bright_or_dark(count: int = 128) -> ImageTensors:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 1, 4, 4), generator=generator) + 150 * labels[:, None, None, None]
    return ImageTensors(images.to(torch.uint8), labels)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))
