"""A network as attacks see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class AttackedNetwork(nn.Module):
    """Counts its forward passes, and gives gradients in the default memory format, which some attacks need.

    Args:
        model: network that maps images in [0, 1] to logits.
        on_pass: called after each forward pass: the only sign of life of an attack that takes minutes.
    """

    def __init__(self, model: nn.Module, on_pass: Callable[[], None]) -> None:
        super().__init__()
        self.model = model
        self._on_pass = on_pass

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of images (b, c, h, w)."""
        logits: Tensor = self.model(_RowMajorGradient.apply(x))
        self._on_pass()
        return logits


class _RowMajorGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()
