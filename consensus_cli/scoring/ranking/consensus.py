"""From distances to a decision: every metric ranks the blocks, the rankings are combined into one order.

The paper's rule (arXiv 2411.14345, section 3) is `rank_sum`: the block whose ranks add up to the least is the one that
the metrics agree to miss least. The other rules answer what a sum of ranks leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.scoring.ranking.kemeny import fewest_disagreements

#: (ranks per metric (c,), weight per metric, family per metric) -> importance (c,), the lowest is removed first
Aggregation = Callable[[Mapping[str, np.ndarray], Mapping[str, float], Mapping[str, str]], np.ndarray]


@dataclass(frozen=True)
class RankStability:
    """Where resamples put each of c blocks in the order of removal; every array follows the blocks.

    Attributes:
        low: (c,) lower end of the 95 % percentile interval of the position, 1 = removed first.
        high: (c,) its upper end.
        least_share: (c,) share of the resamples, in [0, 1], in which the block is the least important; sums to 1.
        resamples: number of resamples.
    """

    low: np.ndarray
    high: np.ndarray
    least_share: np.ndarray
    resamples: int


@dataclass(frozen=True)
class Ranking:
    """What the metrics, or a criterion, measured of c candidate blocks and the order that follows; prints as a table.

    Every array follows `blocks`; only `order` holds positions in it.

    Attributes:
        blocks: names of the candidates, in the order of the network.
        distances: metric -> (c,) distance between the network and the network without the block.
        ranks: metric -> (c,) rank of the distance, 1 = least important.
        importance: (c,) aggregate of the ranks; lower = less important.
        order: (c,) indices into `blocks`, least important first.
        stability: where resamples of the images put each block; None without a bootstrap.
        passes: passes over the images that it took.
    """

    blocks: tuple[str, ...]
    distances: dict[str, np.ndarray]
    ranks: dict[str, np.ndarray]
    importance: np.ndarray
    order: np.ndarray
    stability: RankStability | None = None
    passes: int = 0

    @property
    def least_important(self) -> str:
        """The block to remove first."""
        return self.blocks[self.order[0]]

    def __str__(self) -> str:
        """Returns a table, the least important block first: importance, its place in resamples, distances."""
        columns = {"importance": self.importance}
        if self.stability is not None:
            columns |= {"place_low": self.stability.low, "place_high": self.stability.high}
        table = pd.DataFrame(columns | self.distances, index=pd.Index(self.blocks, name="block"))
        return table.iloc[self.order].to_string(float_format=lambda value: f"{value:.4g}")


def rank(distances: np.ndarray) -> np.ndarray:
    """Returns the ascending ranks of (c,) distances: 1 = smallest = least important; ties share their mean rank.

    Element i is the rank of block i: ranks stay in the order of the blocks.

    Raises:
        ValueError: the distances are not a non-empty vector of finite numbers.
    """
    distances = np.asarray(distances, dtype=np.float64)
    if distances.ndim != 1 or distances.size == 0:
        raise ValueError(f"distances must be a non-empty vector, got shape {distances.shape}")
    if not np.isfinite(distances).all():
        raise ValueError(f"distances must be finite, got {distances}")
    from scipy.stats import rankdata

    return rankdata(distances, method="average")


def rank_sum(ranks: Mapping[str, np.ndarray], weights: Mapping[str, float], families: Mapping[str, str]) -> np.ndarray:
    """Returns the weighted sum of ranks (c,), in [Σw, c Σw]: the paper's consensus, known elsewhere as Borda count."""
    return np.sum([weights[name] * ranks[name] for name in ranks], axis=0)


def family_rank_sum(
    ranks: Mapping[str, np.ndarray], weights: Mapping[str, float], families: Mapping[str, str]
) -> np.ndarray:
    """Returns the sum over families of the family's mean rank (c,), in [f, c f] for f families.

    Each family has one vote, however many metrics it holds; weights act inside a family, and a family whose metrics
    all weigh nothing has no vote.
    """
    votes: dict[str, list[str]] = {}
    for name in ranks:
        if weights[name] > 0:
            votes.setdefault(families[name], []).append(name)
    means = [
        np.average([ranks[name] for name in names], axis=0, weights=[weights[name] for name in names])
        for names in votes.values()
    ]
    return np.sum(means, axis=0)


def median_rank(
    ranks: Mapping[str, np.ndarray], weights: Mapping[str, float], families: Mapping[str, str]
) -> np.ndarray:
    """Returns the weighted median of every block's ranks (c,), in [1, c]; the two middle ranks count half each."""
    votes = np.stack(list(ranks.values()))  # (m, c)
    by_rank = np.argsort(votes, axis=0, kind="stable")
    share = np.cumsum(np.array([weights[name] for name in ranks])[by_rank], axis=0)
    share /= share[-1]
    ascending = np.take_along_axis(votes, by_rank, axis=0)
    # Weights are decimal fractions: without a tolerance their sum would miss the half by a rounding error.
    lower = np.argmax(share > 0.5 - 1e-9, axis=0)
    upper = np.argmax(share > 0.5 + 1e-9, axis=0)
    columns = np.arange(votes.shape[1])
    return (ascending[lower, columns] + ascending[upper, columns]) / 2


def kemeny(ranks: Mapping[str, np.ndarray], weights: Mapping[str, float], families: Mapping[str, str]) -> np.ndarray:
    """Returns the positions (c,), 1 = least important, in the order with the fewest pairwise disagreements.

    A disagreement is a metric that ranks two blocks the other way round, counted with the metric's weight (Kemeny
    1959). The search starts from the order of the rank sum.
    """
    votes = np.stack(list(ranks.values()))  # (m, c)
    # disagreements[i, j]: weight of the metrics that contradict block i before block j.
    disagreements = np.einsum(
        "m,mij->ij", [weights[name] for name in ranks], votes[:, :, None] > votes[:, None, :], dtype=np.float64
    )
    start = np.argsort(rank_sum(ranks, weights, families), kind="stable")
    return fewest_disagreements(disagreements, start)


AGGREGATIONS: dict[str, Aggregation] = {
    "rank_sum": rank_sum,
    "family_rank_sum": family_rank_sum,
    "median_rank": median_rank,
    "kemeny": kemeny,
}


def aggregation_of(name: str) -> Aggregation:
    """Returns the aggregation of a name. Raises UserError, with the valid names, where there is none."""
    if name not in AGGREGATIONS:
        raise unknown_name("aggregation", name, AGGREGATIONS)
    return AGGREGATIONS[name]


def decide(
    blocks: Sequence[str],
    distances: Mapping[str, np.ndarray],
    *,
    families: Mapping[str, str],
    aggregation: str = "rank_sum",
    weights: Mapping[str, float],
) -> Ranking:
    """Ranks the blocks by every metric and combines the rankings.

    Ties in importance go to the block with the smaller mean over metrics (weighted as the ranks are) of the distances
    scaled to [0, 1] over the blocks, then to the one that comes first in the network.

    Args:
        blocks: names of the c candidates.
        distances: metric -> (c,) distances in the order of `blocks`.
        families: metric -> family, for `family_rank_sum`.
        aggregation: a name in `AGGREGATIONS`.
        weights: metric -> weight; a metric that is not named weighs 1.

    Raises:
        UserError: unknown aggregation or metric, a negative weight, or weights that leave no metric.
        ValueError: distances that are not finite or not one per block.
    """
    combine = aggregation_of(aggregation)
    weights = complete_weights(weights, distances)
    for name, values in distances.items():
        if np.shape(values) != (len(blocks),):
            raise ValueError(f"metric '{name}' has distances of shape {np.shape(values)} for {len(blocks)} blocks")
    ranks = {name: rank(values) for name, values in distances.items()}
    importance = combine(ranks, weights, families)
    scaled = np.average([_scaled(distances[name]) for name in ranks], axis=0, weights=[weights[name] for name in ranks])
    # Rounded, because sums of the same ranks in another order of decimal weights differ in their last bits.
    order = np.lexsort((np.arange(len(blocks)), scaled, importance.round(9)))
    return Ranking(
        blocks=tuple(blocks),
        distances={name: np.asarray(values, dtype=np.float64) for name, values in distances.items()},
        ranks=ranks,
        importance=importance,
        order=order,
    )


def kendall_tau(distances: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Returns Kendall's τ-b in [−1, 1] between the metrics' rankings, metrics × metrics; NaN for a constant metric."""
    return pd.DataFrame(distances).corr(method="kendall")


def complete_weights(weights: Mapping[str, float], metrics: Collection[str]) -> dict[str, float]:
    """Returns a weight for each of the metrics, 1 where none is given.

    Raises:
        UserError: an unknown metric, a weight that is negative or not finite, or none above 0.
    """
    for name, weight in weights.items():
        if name not in metrics:
            raise unknown_name("metric in metrics.weights", name, metrics)
        if not (np.isfinite(weight) and weight >= 0):
            raise UserError(f"the weight of metric '{name}' is {weight}", "a weight is a finite number, 0 or more")
    complete = {name: float(weights[name]) if name in weights else 1.0 for name in metrics}
    if not any(complete.values()):
        raise UserError("every metric weighs 0", "give at least one metric a weight above 0")
    return complete


def _scaled(distances: np.ndarray) -> np.ndarray:
    spread = np.ptp(distances)
    return np.zeros(len(distances)) if spread == 0 else (distances - np.min(distances)) / spread
