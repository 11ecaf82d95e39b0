"""Moments of squared norms: what the unbiased estimator of HSIC needs beside second moments."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from consensus_cli.scoring.statistics.second_moments import Moments


class NormMoments:
    """Moments of squared norms about the mean, over s = 1 + c streams of which stream 0 is X.

    With p_j the centred rows of stream j and q_j = ‖p_j‖², sums over rows: `total` Σ q_j (s,); `by_norm_x` Σ q_0 p_j,
    `by_norm_y` Σ q_j p_0 and `by_own_norm` Σ q_j p_j (s, d); `cross` Σ q_0 q_j and `own` Σ q_j² (s,).
    """

    def __init__(self, candidates: int, features: int, device: torch.device) -> None:
        streams = candidates + 1
        self.second = Moments.empty(streams, features, device, cross=True)
        vectors = torch.zeros(3, streams, features, dtype=torch.float64, device=device)
        self.by_norm_x, self.by_norm_y, self.by_own_norm = vectors
        scalars = torch.zeros(3, streams, dtype=torch.float64, device=device)
        self.total, self.cross, self.own = scalars

    def absorb(self, x: Tensor, y: Tensor) -> None:
        """Adds rows in place. x: (b, d), y: (c, b, d)."""
        streams = torch.cat([x[None], y]).double()
        batch = NormMoments(len(y), x.shape[1], x.device)
        batch.second.absorb(streams[0], streams)
        p = streams - batch.second.mean_y[:, None]
        q = p.square().sum(dim=2)
        batch.total, batch.cross, batch.own = q.sum(dim=1), q @ q[0], q.square().sum(dim=1)
        batch.by_norm_x = torch.einsum("b,sbd->sd", q[0], p)
        batch.by_norm_y = q @ p[0]
        batch.by_own_norm = torch.einsum("sb,sbd->sd", q, p)
        self.add(batch, 1)

    def add(self, other: NormMoments, weight: float) -> None:
        """Adds another's rows in place, each counted `weight` times."""
        added = other.second.weight * weight
        if not added:
            return
        share = added / (self.second.weight + added)
        step = other.second.mean_y - self.second.mean_y
        self._move(step * share)
        # Its sums are replaced, not changed in place; the second moments are shared.
        other_moved = copy.copy(other)
        other_moved._move(step * (share - 1))
        self.second.add(other.second, weight)
        for own, others in zip(self._sums(), other_moved._sums(), strict=True):
            own.add_(others, alpha=weight)

    def _move(self, step: Tensor) -> None:
        """Takes the sums about mean + step, (s, d), instead of about the mean."""
        n, first = self.second.weight, step[0]
        assert self.second.xy is not None
        reach = step.square().sum(dim=1)
        by_cross = torch.einsum("sde,se->sd", self.second.xy, step)
        by_own = torch.einsum("sde,se->sd", self.second.yy, step)
        crossed = torch.einsum("d,sde->se", first, self.second.xy)
        self.cross = (
            self.cross
            - 2 * (step * self.by_norm_x).sum(dim=1)
            - 2 * self.by_norm_y @ first
            + 4 * by_cross @ first
            + reach * self.total[0]
            + reach[0] * self.total
            + n * reach[0] * reach
        )
        self.own = (
            self.own
            - 4 * (step * self.by_own_norm).sum(dim=1)
            + 4 * (step * by_own).sum(dim=1)
            + 2 * reach * self.total
            + n * reach.square()
        )
        grown = self.total + n * reach
        self.by_norm_x = self.by_norm_x - grown[0] * step - 2 * crossed
        self.by_norm_y = self.by_norm_y - grown[:, None] * first - 2 * by_cross
        self.by_own_norm = self.by_own_norm - grown[:, None] * step - 2 * by_own
        self.total = grown

    def _sums(self) -> list[Tensor]:
        return [self.by_norm_x, self.by_norm_y, self.by_own_norm, self.total, self.cross, self.own]
