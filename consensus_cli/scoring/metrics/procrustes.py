"""Procrustes size-and-shape distance (Kendall 1989; Williams et al. 2021)."""

from __future__ import annotations

import numpy as np
import torch

from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.statistics.moments import PairStatistics


def size_and_shape_distance(stats: PairStatistics) -> np.ndarray:
    """min over rotations Q of ‖X̃ − ỸQ‖_F / √n, in the unit of the features, ≥ 0; (c,).

    = √((‖X̃‖² + ‖Ỹ‖² − 2 ‖X̃ᵀỸ‖_*) / n) with centred columns: the root mean square distance between aligned samples.
    A metric; invariant under rotation, reflection and translation of either side, not under scaling.
    """
    squares = []
    for m in stats.pooled():
        overlap = torch.linalg.svdvals(m.xy).sum()
        squares.append(float(m.xx.trace() + m.yy.trace() - 2 * overlap) / m.weight)
    return np.sqrt(np.maximum(squares, 0.0))


PROCRUSTES = Metric("procrustes_size_shape", "procrustes", size_and_shape_distance, frozenset({"pooled"}))
