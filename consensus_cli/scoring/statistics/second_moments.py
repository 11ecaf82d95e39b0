"""Means and centred second moments of paired rows, streamed and merged in float64.

Every second moment is held about its own mean and merged pairwise (Chan, Golub and LeVeque 1983), so that features
whose mean is large beside their spread lose no digits. The original representation X is the same for all candidates:
what concerns X alone is held once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Weight, means and centred second moments of X and of c representations Y, float64.

    `mean_x: (d,)`, `mean_y: (c, d)`, `xx: (d, d)`, `yy: (c, d, d)`, `xy: (c, d, d)` or None where it is not kept.
    `weight` is the number of rows, or the sum of their weights.
    """

    weight: float
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor | None

    @classmethod
    def empty(cls, candidates: int, features: int, device: torch.device, *, cross: bool) -> Moments:
        """Returns the moments of no rows; `cross`: whether X and Y are tracked together."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        square = (candidates, features, features)
        return cls(
            weight=0.0,
            mean_x=zeros(features),
            mean_y=zeros(candidates, features),
            xx=zeros(features, features),
            yy=zeros(*square),
            xy=zeros(*square) if cross else None,
        )

    def absorb(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Adds rows in place. x: (b, d), y: (c, b, d), weights: (b,), one each where absent."""
        if not x.shape[0]:
            return
        x, y = x.double(), y.double()
        row_weights = x.new_ones(x.shape[0]) if weights is None else weights
        added = float(row_weights.sum())
        share = row_weights / added
        step_x = share @ x - self.mean_x
        step_y = share @ y - self.mean_y
        # The shift of the mean enters as one more row, so that the whole update is one product per matrix.
        bridge = (self.weight * added / (self.weight + added)) ** 0.5
        scale = row_weights.sqrt()[:, None]
        rows_x = torch.cat([(x - (self.mean_x + step_x)) * scale, bridge * step_x[None]])
        rows_y = torch.cat([(y - (self.mean_y + step_y)[:, None]) * scale, bridge * step_y[:, None]], dim=1)
        self.xx.addmm_(rows_x.T, rows_x)
        self.yy.baddbmm_(rows_y.mT, rows_y)
        if self.xy is not None:
            self.xy.baddbmm_(rows_x.T.expand(len(y), -1, -1), rows_y)
        self.weight += added
        self.mean_x += step_x * (added / self.weight)
        self.mean_y += step_y * (added / self.weight)

    def add(self, other: Moments, weight: float = 1.0) -> None:
        """Adds the rows behind another's moments in place, each counted `weight` times."""
        added = other.weight * weight
        if not added:
            return
        step_x, step_y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        total = self.weight + added
        bridge = self.weight * added / total
        self.xx.add_(other.xx, alpha=weight).addr_(step_x, step_x, alpha=bridge)
        self.yy.add_(other.yy, alpha=weight).add_(step_y[:, :, None] * step_y[:, None, :], alpha=bridge)
        if self.xy is not None and other.xy is not None:
            self.xy.add_(other.xy, alpha=weight).add_(step_x[:, None] * step_y[:, None, :], alpha=bridge)
        self.weight = total
        self.mean_x += step_x * (added / total)
        self.mean_y += step_y * (added / total)

    def pair(self, candidate: int) -> PairMoments:
        """Returns the moments of X and one candidate."""
        if self.xy is None:
            raise ValueError("these moments hold no cross products")
        return PairMoments(
            self.weight, self.mean_x, self.mean_y[candidate], self.xx, self.xy[candidate], self.yy[candidate]
        )


@dataclass(frozen=True)
class PairMoments:
    """Centred second moments of X and one candidate's Y over `weight` rows. `xx`, `xy`, `yy`: (d, d)."""

    weight: float
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def about(self, center_x: Tensor, center_y: Tensor) -> PairMoments:
        """Returns the second moments about other centres than the means, (d,) each."""
        step_x, step_y = self.mean_x - center_x, self.mean_y - center_y
        return PairMoments(
            weight=self.weight,
            mean_x=center_x,
            mean_y=center_y,
            xx=torch.addr(self.xx, step_x, step_x, alpha=self.weight),
            xy=torch.addr(self.xy, step_x, step_y, alpha=self.weight),
            yy=torch.addr(self.yy, step_y, step_y, alpha=self.weight),
        )

    def joined(self, other: PairMoments) -> PairMoments:
        """Returns the moments of the rows of both."""
        weight = self.weight + other.weight
        share = other.weight / weight if weight else 0.0
        mean_x = torch.lerp(self.mean_x, other.mean_x, share)
        mean_y = torch.lerp(self.mean_y, other.mean_y, share)
        a, b = self.about(mean_x, mean_y), other.about(mean_x, mean_y)
        return PairMoments(weight, mean_x, mean_y, a.xx + b.xx, a.xy + b.xy, a.yy + b.yy)


def row_limit(features: int, *, cross: bool) -> int:
    """Returns from how many rows on second moments are held instead of the rows.

    A candidate has two second moments, or one without cross products: either way float32 rows weigh at most half of
    what replaces them.
    """
    return (2 if cross else 1) * features


class FactoredMoments:
    """Rows as they are while they are fewer than `row_limit`, means and second moments from then on.

    With d = 2,048 features a second moment takes as much memory as 4,096 float32 rows: a few rows are the smaller
    half of that, and the second moment of fewer rows than features is singular in any case.
    """

    def __init__(self, candidates: int, features: int, device: torch.device, *, cross: bool) -> None:
        self.candidates, self.features, self.device, self.cross = candidates, features, device, cross
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.moments: Moments | None = None

    @property
    def weight(self) -> float:
        """Returns the number of samples, or the sum of their weights."""
        return self.moments.weight if self.moments else sum(float(w.sum()) for _, _, w in self.rows)

    def absorb(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Adds rows in place. x: (b, d), y: (c, b, d), weights: (b,), one each where absent."""
        if self.moments:
            self.moments.absorb(x, y, weights)
            return
        if weights is None:
            weights = torch.ones(len(x), dtype=torch.float64, device=self.device)
        self.rows.append((x, y, weights))
        if sum(len(x) for x, _, _ in self.rows) >= row_limit(self.features, cross=self.cross):
            self._condensed()

    def _condensed(self) -> Moments:
        if not self.moments:
            self.moments = Moments.empty(self.candidates, self.features, self.device, cross=self.cross)
            while self.rows:
                self.moments.absorb(*self.rows.pop(0))
        return self.moments

    def rows_of(self, candidates: slice | None) -> tuple[Tensor, Tensor]:
        """Returns the rows held so far, float64, and their weights (n,): (c, n, d) of some candidates, (n, d) of X."""
        rows = [x if candidates is None else y[candidates] for x, y, _ in self.rows]
        return torch.cat(rows, dim=-2).double(), torch.cat([weights for _, _, weights in self.rows])

    def pair(self, candidate: int) -> PairMoments:
        """Returns the moments of X and one candidate."""
        if self.moments:
            return self.moments.pair(candidate)
        moments = Moments.empty(1, self.features, self.device, cross=self.cross)
        if self.rows:
            y, weights = self.rows_of(slice(candidate, candidate + 1))
            moments.absorb(self.rows_of(None)[0], y, weights)
        return moments.pair(0)

    def add(self, other: FactoredMoments, weight: float) -> None:
        """Adds another's samples in place, each counted `weight` times."""
        if other.moments:
            self._condensed().add(other.moments, weight)
        for x, y, w in other.rows:
            self.absorb(x, y, w * weight)
