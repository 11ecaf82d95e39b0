"""What a metric is: a named distance between representations, as a function of their statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from consensus_cli.scoring.statistics.moments import PairStatistics


@dataclass(frozen=True)
class Metric:
    """A distance between the original representation X and each candidate's Y: 0 = same, larger = further apart.

    Attributes:
        name: letters, digits and underscores.
        family: metrics that measure nearly the same; each family can have one vote.
        compute: maps the statistics of c candidates to their distances (c,), float64.
        needs: groups of statistics that it reads, of `GROUPS`.
        min_samples, min_samples_per_class: fewest samples for which it is defined.
        fit_rows_cover_features: whether it needs as many samples that are not held out as there are features.
    """

    name: str
    family: str
    compute: Callable[[PairStatistics], np.ndarray]
    needs: frozenset[str]
    min_samples: int = 2
    min_samples_per_class: int = 0
    fit_rows_cover_features: bool = False
