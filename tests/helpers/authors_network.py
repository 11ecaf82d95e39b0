"""The network of ../shared/reference, written from its description: a residual network that is not ours."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from consensus_cli.pruning.blocks import Block

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no reference network at {REFERENCE}")
CANDIDATES = [*range(1, 9), *range(10, 18), *range(19, 27)]


class AuthorsBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if in_channels == channels else 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, self.stride, padding=1 if self.stride == 1 else 0)
        self.bn1 = nn.BatchNorm2d(channels, eps=1e-3)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3)
        if self.stride == 2:
            self.short = nn.Conv2d(in_channels, channels, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        padded = x if self.stride == 1 else nn.functional.pad(x, (0, 1, 0, 1))
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(padded)))))
        return torch.relu(out + (x if self.stride == 1 else self.short(x)))


class AuthorsNetwork(nn.Module):
    """Takes images in [0, 1]; `features` is the representation, `forward` the logits."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16] + [16] * 9 + [32] * 9 + [64] * 9
        self.register_buffer("mean_image", torch.zeros(3, 32, 32))
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16, eps=1e-3)
        self.blocks = nn.Sequential(*(AuthorsBlock(a, b) for a, b in pairwise(widths)))
        self.fc = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.blocks(torch.relu(self.bn(self.conv(x - self.mean_image)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def trained() -> AuthorsNetwork:
    network = AuthorsNetwork()
    state = load_file(REFERENCE / "resnet56_reference.safetensors")
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("num_batches_tracked" in name for name in missing)
    return network.eval()


def authors_blocks() -> list[Block]:
    """The candidates, with stage and shape."""
    return [
        Block(f"blocks.{number}", number // 9, (16 << number // 9,) + (32 >> number // 9,) * 2, True)
        for number in CANDIDATES
    ]


def golden_images(per_class: int) -> Tensor:
    """Returns the first training images of each class, class after class, in [0, 1]."""
    with np.load(REFERENCE / "cifar10_subset.npz") as subset:
        images, labels = subset["x_train"], subset["y_train"]
    index = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(10)])
    return torch.from_numpy(images[index]).permute(0, 3, 1, 2) / 255
