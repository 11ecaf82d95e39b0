"""How far a ranking depends on the samples: a bootstrap over chunks of them, from moments, without a new pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from consensus_cli.scoring.metrics import compute, families_of
from consensus_cli.scoring.ranking.consensus import RankStability, decide
from consensus_cli.scoring.statistics.moments import PairStatistics

INTERVAL_PERCENT = (2.5, 97.5)


def resampled_distances(
    parts: Sequence[PairStatistics], metrics: Sequence[str], *, resamples: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Draws the chunks of samples again and again, with replacement; returns every draw's distances (c,) by metric.

    Percentile bootstrap (Efron & Tibshirani 1993, chapter 13) with a chunk as the unit of drawing: the chunks should
    each be a random share of the samples, and there should be some tens of them. The draws depend on the seed and the
    number of chunks alone, so that blocks measured one after the other see the same ones.

    Args:
        parts: statistics of disjoint chunks of the samples.
        metrics: names of the metrics that vote.
        resamples: how many draws; each computes every metric once.
        seed: of the draws.

    Raises:
        ValueError: fewer than two chunks, or no resample.
    """
    if len(parts) < 2 or resamples < 1:
        raise ValueError(f"a bootstrap needs 2 chunks and 1 resample, got {len(parts)} and {resamples}")
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), size=resamples)
    return [compute(metrics, PairStatistics.combine(parts, times_drawn.tolist())) for times_drawn in draws]


def rank_stability(
    blocks: Sequence[str],
    resampled: Sequence[Mapping[str, np.ndarray]],
    *,
    weights: Mapping[str, float],
    aggregation: str = "rank_sum",
) -> RankStability:
    """Decides anew for the distances of each resample.

    Args:
        blocks: names of the c candidates.
        resampled: each draw's distances (c,) by metric.
        weights: metric -> weight, as in `decide`.
        aggregation: a name in `AGGREGATIONS`.
    """
    families = families_of(weights)
    positions = np.empty((len(resampled), len(blocks)))
    for draw, distances in zip(positions, resampled, strict=True):
        order = decide(blocks, distances, families=families, aggregation=aggregation, weights=weights).order
        draw[order] = np.arange(1, len(blocks) + 1)
    low, high = np.percentile(positions, INTERVAL_PERCENT, axis=0)
    return RankStability(low, high, (positions == 1).mean(axis=0), len(resampled))
