"""Angles between paired rows, summed over samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class AngularSums:
    """Sum over rows of the angle between x and y as a fraction of a half turn, in [0, 1] each. `total`: (c,)."""

    weight: float
    total: Tensor

    @classmethod
    def empty(cls, candidates: int, device: torch.device) -> AngularSums:
        """Returns the sums over no rows."""
        return cls(0.0, torch.zeros(candidates, dtype=torch.float64, device=device))

    def absorb(self, x: Tensor, y: Tensor) -> None:
        """Adds rows in place. x: (b, d), y: (c, b, d)."""
        self.total += row_angles(x.double(), y.double()).sum(dim=1) / torch.pi
        self.weight += len(x)

    def add(self, other: AngularSums, weight: float) -> None:
        """Adds another's rows in place, each counted `weight` times."""
        self.total += other.total * weight
        self.weight += other.weight * weight


def row_angles(x: Tensor, y: Tensor) -> Tensor:
    """Angle in radians between paired rows, in [0, π]; 0 between two zero rows, π/2 where only one is zero.

    x: (b, d), y: (c, b, d); returns (c, b). Kahan's formula: unlike the arccosine of a cosine it keeps its digits
    at small angles, and is exactly zero for equal rows.
    """
    norm_x, norm_y = x.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
    left, right = x * norm_y, y * norm_x
    angle = 2 * torch.atan2((left - right).norm(dim=-1), (left + right).norm(dim=-1))
    one_is_zero = ((norm_x == 0) ^ (norm_y == 0)).squeeze(-1)
    return angle.masked_fill(one_is_zero, torch.pi / 2)
