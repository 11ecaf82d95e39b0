"""Centred kernel alignment with linear kernels (Kornblith et al. 2019), and its unbiased estimator."""

from __future__ import annotations

import numpy as np
import torch

from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.statistics.moments import PairStatistics


def cka_distance(stats: PairStatistics) -> np.ndarray:
    """1 − ‖X̃ᵀỸ‖²_F / (‖X̃ᵀX̃‖_F ‖ỸᵀỸ‖_F) with centred columns, in [0, 1]; (c,).

    Kornblith et al. 2019, eq. (3) with linear kernels. Invariant under rotation and isotropic scaling of either side.
    Two constant representations are the same (0), a constant one and any other have nothing in common (1).
    """
    distances = []
    for m in stats.pooled():
        norm_x, norm_y = m.xx.norm(), m.yy.norm()
        if norm_x and norm_y:
            distances.append(1.0 - float((m.xy.norm() / norm_x) * (m.xy.norm() / norm_y)))
        else:
            distances.append(float(bool(norm_x) != bool(norm_y)))
    return np.clip(distances, 0.0, 1.0)


def debiased_cka_distance(stats: PairStatistics) -> np.ndarray:
    """1 − HSIC₁(X, Y) / √(HSIC₁(X, X) HSIC₁(Y, Y)) with the unbiased estimator HSIC₁; (c,), 0 for the same.

    HSIC₁: Song et al. 2012, eq. (5), as used for CKA by Nguyen et al. 2021. With rows centred, it is
    (‖X̃ᵀỸ‖²_F − n/(n−2) Σ ‖x̃ᵢ‖²‖ỹᵢ‖² + Σ‖x̃ᵢ‖² Σ‖ỹᵢ‖² / ((n−1)(n−2))) / (n(n−3)). The estimator is unbiased, so
    values may exceed 1 where nothing is shared. Invariant under rotation and isotropic scaling of either side. Where
    an estimate of HSIC(X, X) or HSIC(Y, Y) is not positive the alignment counts as none (1).
    """
    norms, n = stats.norms, stats.norms.second.weight
    second = norms.second
    if second.xy is None:
        raise ValueError("norm moments hold no cross products")

    def hsic(squared_norm: torch.Tensor, products: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
        return squared_norm - products * n / (n - 2) + totals / ((n - 1) * (n - 2))

    cross = hsic(second.xy.square().sum(dim=(1, 2)), norms.cross, norms.total[0] * norms.total)
    own = hsic(second.yy.square().sum(dim=(1, 2)), norms.own, norms.total.square())
    scale = own[0] * own
    positive = (own > 0) & (own[0] > 0)
    distances = torch.where(positive, 1 - cross / scale.clamp(min=torch.finfo(torch.float64).tiny).sqrt(), 1.0)
    return distances[1:].clamp(min=0.0).cpu().numpy()


CKA = Metric("cka", "cka", cka_distance, frozenset({"pooled"}))
DEBIASED_CKA = Metric("debiased_cka", "cka", debiased_cka_distance, frozenset({"norms"}), min_samples=4)
