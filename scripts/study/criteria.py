"""From distances to the order in which every criterion removes the blocks, and from orders to sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from consensus_cli.pruning import schedule
from consensus_cli.pruning.blocks import Block
from consensus_cli.scoring.metrics import families_of
from consensus_cli.scoring.ranking.consensus import decide
from study.plan import METRICS, VOTES


def order_of(criterion: str, blocks: Sequence[str], distances: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns the blocks, the least important first, by a criterion of `VOTES`.

    Args:
        criterion: its name.
        blocks: names of the c candidates.
        distances: metric -> (c,), for at least the metrics that vote.
    """
    names, aggregation = VOTES[criterion]
    voting = {name: distances[name] for name in names}
    ranking = decide(blocks, voting, families=families_of(voting), aggregation=aggregation, weights={})
    return tuple(ranking.blocks[position] for position in ranking.order)


def draws_of(scores: pd.DataFrame, samples_per_class: int) -> Iterator[tuple[int, list[str], dict[str, np.ndarray]]]:
    """Yields (draw, blocks, metric -> distances (c,)) for every draw of one size in the rows `scores`."""
    chosen = scores[scores["samples_per_class"] == samples_per_class]
    for draw, rows in chosen.groupby("draw", sort=True):
        yield int(str(draw)), rows["block"].tolist(), {name: rows[name].to_numpy(float) for name in METRICS}


def metric_orders(scores: pd.DataFrame, samples_per_class: int) -> dict[str, list[tuple[str, ...]]]:
    """Returns criterion -> order per draw, for all of `VOTES`."""
    orders: dict[str, list[tuple[str, ...]]] = {criterion: [] for criterion in VOTES}
    for _, blocks, distances in draws_of(scores, samples_per_class):
        for criterion in VOTES:
            orders[criterion].append(order_of(criterion, blocks, distances))
    return orders


def allowed_order(order: Sequence[str], blocks: Sequence[Block], min_blocks_per_stage: int) -> tuple[str, ...]:
    """Returns an order without the blocks that their stage can no longer lose when their turn comes."""
    removed: list[str] = []
    for name in order:
        if name in {block.name for block in schedule.allowed(blocks, removed, min_blocks_per_stage)}:
            removed.append(name)
    return tuple(removed)
