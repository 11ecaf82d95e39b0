"""Ridge regression from sums over positions, in memory that does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Moments:
    """Sums over positions (pixels, tokens) of features x and of what is to be foretold from them, d.

    Attributes:
        inputs, outputs: number of features p and of values to foretell c.
        count: positions.
        x, d: sums, (p,) and (c,) float64.
        xx, xd: sums of the outer products x xᵀ and x dᵀ, (p, p) and (p, c).
        dd: sums of squares of d, (c,).
    """

    inputs: int
    outputs: int
    count: int = 0
    x: Tensor = field(init=False)
    d: Tensor = field(init=False)
    xx: Tensor = field(init=False)
    xd: Tensor = field(init=False)
    dd: Tensor = field(init=False)

    def __post_init__(self) -> None:
        p, c = self.inputs, self.outputs
        self.x, self.xx, self.xd = (torch.zeros(*shape, dtype=torch.float64) for shape in ((p,), (p, p), (p, c)))
        self.d, self.dd = (torch.zeros(c, dtype=torch.float64) for _ in range(2))

    def update(self, x: Tensor, d: Tensor) -> None:
        """Adds positions, (m, p) and (m, c); their products are computed in the precision that they have."""
        self.count += len(x)
        for name, more in (("x", x.sum(0)), ("d", d.sum(0)), ("dd", (d * d).sum(0)), ("xx", x.T @ x), ("xd", x.T @ d)):
            getattr(self, name).add_(more.cpu())

    def __add__(self, other: Moments) -> Moments:
        total = Moments(self.inputs, self.outputs, self.count + other.count)
        for name in ("x", "d", "dd", "xx", "xd"):
            getattr(total, name).add_(getattr(self, name)).add_(getattr(other, name))
        return total

    def fit(self, ridge: float, *, per_channel: bool = False, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Returns W and b of the d ≈ W x + b that fits best.

        Args:
            ridge: penalty on the squares of W, in units of the mean variance of the features.
            per_channel: foretell each d from the x of the same number alone; W is (c,) then, else (c, p).
            intercept: whether there is a b; without, it is 0.
        """
        mean_x, mean_d = (total / self.count * intercept for total in (self.x, self.d))
        xx = self.xx / self.count - torch.outer(mean_x, mean_x)
        xd = self.xd / self.count - torch.outer(mean_x, mean_d)
        penalty = (ridge * xx.diagonal().mean()).clamp_min(1e-12)
        if per_channel:
            weight = xd.diagonal() / (xx.diagonal() + penalty)
            return weight, mean_d - weight * mean_x
        weight = torch.linalg.solve(xx + penalty * torch.eye(self.inputs, dtype=torch.float64), xd).T
        return weight, mean_d - weight @ mean_x

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Returns the mean over positions of |d − W x − b|²; with W = 0 and b = 0 it is the mean of |d|²."""
        w = torch.diag(weight) if weight.ndim == 1 else weight
        squares = self.dd.sum() - 2 * (w * self.xd.T).sum() + (w * (w @ self.xx)).sum()
        linear = 2 * torch.dot(bias, w @ self.x - self.d) + self.count * torch.dot(bias, bias)
        return float((squares + linear) / self.count)


@dataclass
class HeldOut:
    """Moments of two sets of positions: a fit on the first is tried on the second, and made on both if it helps."""

    fitting: Moments
    held_out: Moments

    @classmethod
    def of(cls, inputs: int, outputs: int) -> HeldOut:
        """Returns empty moments."""
        return cls(Moments(inputs, outputs), Moments(inputs, outputs))

    def update(self, x: Tensor, d: Tensor, held_out: Tensor) -> None:
        """Adds images, (n, m, p) and (n, m, c) at m positions each, of which some ((n,) bool) are held out."""
        for moments, chosen in ((self.fitting, ~held_out), (self.held_out, held_out)):
            if chosen.any():
                moments.update(x[chosen].flatten(0, 1), d[chosen].flatten(0, 1))

    def fit(self, ridge: float, *, per_channel: bool = False, intercept: bool = True) -> tuple[Tensor, Tensor, float]:
        """Returns W and b, fitted on all positions, and what the first fit leaves of the held-out |d|², as a share.

        Below 1 it helps. Without positions to hold out nobody knows, and the share is 1.
        """
        left = 1.0
        if self.held_out.count and self.fitting.count:
            weight, bias = self.fitting.fit(ridge, per_channel=per_channel, intercept=intercept)
            without = self.held_out.error(torch.zeros_like(weight), torch.zeros_like(bias))
            left = self.held_out.error(weight, bias) / without if without else 1.0
        return *self.total.fit(ridge, per_channel=per_channel, intercept=intercept), left

    @property
    def total(self) -> Moments:
        """The moments of all positions."""
        return self.fitting + self.held_out
