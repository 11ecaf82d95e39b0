"""Bures distance between covariances, without alignment (Bhatia, Jain and Lim 2019)."""

from __future__ import annotations

import numpy as np
import torch

from consensus_cli.scoring.metrics.algebra import root
from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.statistics.moments import PairStatistics


def bures_distance(stats: PairStatistics) -> np.ndarray:
    """√(tr Σ_X + tr Σ_Y − 2 tr (Σ_X^½ Σ_Y Σ_X^½)^½), ≥ 0, in the unit of the features; (c,).

    Σ are the pooled covariances (n − 1). Bhatia, Jain and Lim 2019, eq. (1). A metric on covariances; invariant under
    translation of either side and under one rotation of both sides.
    """
    squares = []
    for m in stats.pooled():
        overlap = torch.linalg.svdvals(root(m.xx) @ root(m.yy).mT).sum()
        squares.append(float(m.xx.trace() + m.yy.trace() - 2 * overlap) / (m.weight - 1))
    return np.sqrt(np.maximum(squares, 0.0))


BURES = Metric("bures", "bures", bures_distance, frozenset({"pooled"}))
