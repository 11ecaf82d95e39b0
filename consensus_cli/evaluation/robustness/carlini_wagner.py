"""Carlini & Wagner's attack on any device."""

from __future__ import annotations

import torchattacks
from torch import Tensor


class CarliniWagner(torchattacks.CW):
    """torchattacks' CW, whose versions before 3.4 look labels that are on a GPU up in a table on the CPU, and fail."""

    def f(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Returns how far each image is from being misclassified, (b,), from logits (b, k) and labels (b,)."""
        # Labels on the CPU find their rows in a table anywhere.
        return super().f(outputs, labels.cpu())
