"""The network of the paper's authors, as `reference/README.md` describes it, with its images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

from consensus_cli.pruning.blocks import Block

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no reference network at {REFERENCE}")

#: candidate number -> stage
CANDIDATES = {number: number // 9 for number in range(27) if number % 9}


class AuthorsBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.shrinks = in_channels != channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=1 + self.shrinks, padding=0 if self.shrinks else 1)
        self.bn1 = nn.BatchNorm2d(channels, eps=1e-3)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3)
        self.short = nn.Conv2d(in_channels, channels, 1, stride=2) if self.shrinks else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(pad(x, (0, 1, 0, 1)) if self.shrinks else x)
        out = self.bn2(self.conv2(self.bn1(out).relu()))
        return (out + self.short(x)).relu()


class AuthorsResNet56(nn.Module):
    """Takes images in [0, 1] minus the mean image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16, eps=1e-3)
        widths = [16] + [16] * 9 + [32] * 9 + [64] * 9
        self.blocks = nn.Sequential(*(AuthorsBlock(*widths[i : i + 2]) for i in range(27)))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.bn(self.conv(x)).relu()).mean((2, 3)))


def authors_network() -> tuple[AuthorsResNet56, Tensor]:
    """Returns the trained network and the mean image that its input lacks, (3, 32, 32)."""
    state = load_file(REFERENCE / "resnet56_reference.safetensors")
    mean_image = state.pop("mean_image")
    network = AuthorsResNet56()
    network.load_state_dict(state, strict=False)
    missing = set(network.state_dict()) - set(state)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert not set(state) - set(network.state_dict())
    return network, mean_image


def authors_blocks() -> list[Block]:
    return [
        Block(f"blocks.{number}", stage, (16 << stage,) + (32 >> stage,) * 2, True)
        for number, stage in CANDIDATES.items()
    ]


def golden_images(per_class: int, mean_image: Tensor) -> Tensor:
    """Returns the first images of each class in [0, 1], class after class, minus the mean image."""
    with np.load(REFERENCE / "cifar10_subset.npz") as subset:
        images, labels = subset["x_train"], subset["y_train"]
    index = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(10)])
    return torch.from_numpy(images[index]).permute(0, 3, 1, 2) / 255 - mean_image
