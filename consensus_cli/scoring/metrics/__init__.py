"""The registry of metrics: a new one is one file beside this one and one line below, or `register_metric`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from consensus_cli.errors import UserError
from consensus_cli.scoring.metrics.angular import ANGULAR
from consensus_cli.scoring.metrics.bures import BURES
from consensus_cli.scoring.metrics.cka import CKA, DEBIASED_CKA
from consensus_cli.scoring.metrics.gaussian import GAUSSIAN_ALPHA0, GAUSSIAN_ALPHA1, GAUSSIAN_ALPHA2
from consensus_cli.scoring.metrics.linear import LINEAR_ALPHA0, LINEAR_ALPHA1
from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.metrics.permutation import PERMUTATION
from consensus_cli.scoring.metrics.procrustes import PROCRUSTES
from consensus_cli.scoring.metrics.wasserstein import WASSERSTEIN
from consensus_cli.scoring.registry import Registry
from consensus_cli.scoring.statistics.moments import HOLDOUT_PERIOD, PairStatistics


def _problem(name: str, metric: object) -> str:
    if not isinstance(metric, Metric):
        return f"is a {type(metric).__name__}, not a Metric"
    return "" if metric.name == name else f"calls itself '{metric.name}'"


METRICS: Registry[Metric] = Registry(
    "metric",
    "consensus_cli.metrics",
    {
        metric.name: metric
        for metric in (
            CKA,
            LINEAR_ALPHA0,
            LINEAR_ALPHA1,
            PERMUTATION,
            GAUSSIAN_ALPHA0,
            GAUSSIAN_ALPHA1,
            GAUSSIAN_ALPHA2,
            WASSERSTEIN,
            DEBIASED_CKA,
            ANGULAR,
            PROCRUSTES,
            BURES,
        )
    },
    _problem,
)
#: those of the consensus paper (arXiv 2411.14345)
PAPER = (
    "cka",
    "linear_alpha0",
    "linear_alpha1",
    "permutation",
    "gaussian_alpha0",
    "gaussian_alpha1",
    "gaussian_alpha2",
    "wasserstein",
)


def register_metric(metric: Metric) -> None:
    """Makes a metric of your own known by its name: `metrics.weights.NAME=1` in a run, `metrics="NAME"` in Python.

    Raises:
        UserError: the name is taken or cannot be used.
    """
    METRICS.register(metric.name, metric)


def families_of(names: Iterable[str]) -> dict[str, str]:
    """Returns metric -> family. Raises UserError, with the valid names, where there is no such metric."""
    return {name: METRICS[name].family for name in names}


def compute(names: Sequence[str], stats: PairStatistics) -> dict[str, np.ndarray]:
    """Returns the distances (c,), float64, of each named metric; 0 = same, larger = further apart."""
    return {name: METRICS[name].compute(stats) for name in names}


def statistics_needed(names: Sequence[str]) -> frozenset[str]:
    """Returns the groups of statistics that the named metrics read: `PairStatistics(keep=...)`."""
    return frozenset().union(*(METRICS[name].needs for name in names))


def check_requirements(names: Sequence[str], *, samples: int, per_class: int, features: int | None) -> list[UserError]:
    """Returns one error per metric that is not defined for so few samples, `per_class` in the smallest class.

    `features` is None where they are not known yet.
    """
    fit_rows = samples - samples // HOLDOUT_PERIOD
    problems = []
    for name in names:
        metric = METRICS[name]
        if per_class < metric.min_samples_per_class:
            needed, got = f"{metric.min_samples_per_class} samples per class", f"{per_class}"
        elif samples < metric.min_samples:
            needed, got = f"{metric.min_samples} samples", f"{samples}"
        elif features is not None and metric.fit_rows_cover_features and fit_rows < features:
            needed = f"at least as many fit samples (four fifths) as features, {features}"
            got = f"{fit_rows} of {samples}"
        else:
            continue
        problems.append(
            UserError(
                f"metric '{name}' needs {needed}, got {got}",
                "give more images per class: metrics.samples_per_class, or a longer loader",
            )
        )
    return problems
