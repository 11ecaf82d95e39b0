"""A network as attacks see it, and how far they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.evaluation.mode import Progress


class AttackedNetwork(nn.Module):
    """Tells of every forward pass, and gives gradients in the default memory format.

    Some attacks flatten gradients with `view`, which needs that format. A long attack says nothing of itself for
    minutes; its forward passes are the only sign of life.

    Args:
        model: network that maps images in [0, 1] to logits.
        on_pass: called after each forward pass; None: nobody wants to know.
    """

    def __init__(self, model: nn.Module, on_pass: Callable[[], None] | None) -> None:
        super().__init__()
        self.model = model
        self._on_pass = on_pass

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of images (b, c, h, w)."""
        logits: Tensor = self.model(_RowMajorGradient.apply(x))
        if self._on_pass is not None:
            self._on_pass()
        return logits


class AttackProgress:
    """The bar of one attack: images done, and forward passes so far, which move while a batch takes its time."""

    def __init__(self, progress: Progress, name: str, images: int) -> None:
        self._progress = progress
        self._name = name
        self._images = images
        self._done = 0
        self._passes = 0

    def passed(self) -> None:
        """Counts a forward pass."""
        self._passes += 1
        self._tell()

    def attacked(self, images: int) -> None:
        """Counts images that are done with."""
        self._done += images
        self._tell()

    def _tell(self) -> None:
        self._progress(f"attacking: {self._name}, {self._passes} passes", self._done, self._images)


class _RowMajorGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()
