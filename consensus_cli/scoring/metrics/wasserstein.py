"""Wasserstein-1 distance between the bags of all feature values."""

from __future__ import annotations

import numpy as np

from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.statistics.moments import PairStatistics


def wasserstein_distance(stats: PairStatistics) -> np.ndarray:
    """W₁ = ∫ |F_X − F_Y| between the distributions of all n·d values of X and Y, in the unit of the features; (c,).

    A metric on bags of values: invariant under any permutation of samples and features (alike or not on the two
    sides), not under rotation or scaling. Beyond `PairStatistics.exact_samples` samples it is computed from a
    histogram and falls short of the exact value by at most the width of a bin, `stats.values.histogram.width`.
    """
    return stats.values.distances().cpu().numpy()


WASSERSTEIN = Metric("wasserstein", "wasserstein", wasserstein_distance, frozenset({"quantiles"}), min_samples=1)
