"""Mean angular distance between the paired representations of each sample."""

from __future__ import annotations

import numpy as np

from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.statistics.moments import PairStatistics


def angular_distance(stats: PairStatistics) -> np.ndarray:
    """Mean over samples of arccos(cos(xᵢ, yᵢ)) / π, in [0, 1]; (c,).

    Gromov et al. 2024, "The Unreasonable Ineffectiveness of the Deeper Layers", eq. (6); ShortGPT (Men et al. 2024)
    averages 1 − cos instead. Rows are not centred. A metric on representations up to a positive scale per sample;
    invariant under one rotation of both sides.
    """
    return (stats.angular.total / stats.angular.weight).cpu().numpy()


ANGULAR = Metric("angular", "angular", angular_distance, frozenset({"angular"}), min_samples=1)
