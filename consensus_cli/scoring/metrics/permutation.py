"""The best matching of features one to one (Li et al. 2015; Williams et al. 2021)."""

from __future__ import annotations

import numpy as np

from consensus_cli.scoring.metrics.algebra import angle
from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.statistics.moments import PairStatistics


def permutation_distance(stats: PairStatistics) -> np.ndarray:
    """Angle in radians between X̃ and ỸP, P the permutation of columns that maximises ⟨X̃, ỸP⟩; (c,), in [0, π/2].

    Columns are centred. Williams et al. 2021, section 2.2. A metric on representations up to relabelled features and
    isotropic scaling.
    """
    # Late: it takes a third of a second.
    from scipy.optimize import linear_sum_assignment

    distances = []
    for m in stats.pooled():
        overlap = m.xy.cpu().numpy()
        rows, columns = linear_sum_assignment(overlap, maximize=True)
        distances.append(angle(float(overlap[rows, columns].sum()), float(m.xx.trace()), float(m.yy.trace())))
    return np.array(distances)


PERMUTATION = Metric("permutation", "permutation", permutation_distance, frozenset({"pooled"}))
