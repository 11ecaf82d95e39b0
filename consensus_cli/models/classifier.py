"""A network together with its input normalisation: what attacks, export, latency and users all see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Per-channel normalisation `(x − mean) / std` of images in [0, 1].

    Mean and deviation describe the data, not the weights: they are no part of the state dict, so that the
    state-dict names of the network stay those of torchvision.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (n, c, h, w) in [0, 1] to normalised ones; a single channel spreads over those of the mean."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Normalisation as the first layer, then the user's own network.

    Attributes:
        normalize: maps images in [0, 1] to what the network was trained on.
        network: the module that is pruned; block names and state-dict names are relative to it.
    """

    def __init__(self, normalize: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (n, c, h, w) in [0, 1] to logits (n, num_classes)."""
        return self.network(self.normalize(x))
