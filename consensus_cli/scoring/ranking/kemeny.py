"""The order with the fewest pairwise disagreements (Kemeny 1959), exact near the decision.

Finding it is NP-hard. A dynamic programme over subsets (Held and Karp 1962) is exact for a dozen blocks; longer orders
are improved by moving single blocks, then the dozen least important ones are put in their exact order.
"""

from __future__ import annotations

import numpy as np

#: Blocks ordered exactly: the programme visits 2^n subsets of n blocks, 4,096 for twelve.
EXACT_BLOCKS = 12


def fewest_disagreements(disagreements: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Returns the position (c,) of every block, 1 = first, in the order with the least sum of disagreements.

    Exact for up to `EXACT_BLOCKS` blocks. Neighbours that could change places at no cost share their mean position.

    Args:
        disagreements: (c, c) weight that speaks against block i before block j.
        start: (c,) the order to start from; of equally good orders the one nearest to it is found.
    """
    order = np.asarray(start)
    if len(order) > EXACT_BLOCKS:
        order = _move_single_blocks(disagreements, order)
    head = order[:EXACT_BLOCKS]
    order = np.concatenate([head[_exact_order(disagreements[np.ix_(head, head)])], order[EXACT_BLOCKS:]])
    return _positions(disagreements, order)


def _exact_order(disagreements: np.ndarray) -> np.ndarray:
    """Returns the best order of n blocks: the best order of a subset ends in the block that leaves the best rest."""
    n = len(disagreements)
    subsets = np.arange(2**n)
    contains = (subsets[:, None] >> np.arange(n) & 1).astype(bool)  # (2^n, n)
    last_cost = contains @ disagreements  # (2^n, n): block j placed after the blocks of the subset
    best_cost = np.zeros(2**n)
    best_last = np.zeros(2**n, dtype=np.int64)
    for size in range(1, n + 1):
        chosen = subsets[contains.sum(axis=1) == size]
        without = chosen[:, None] & ~(1 << np.arange(n))  # (s, n)
        cost = best_cost[without] + last_cost[without, np.arange(n)]
        cost[~contains[chosen]] = np.inf
        # The last of equal minima: of tied blocks the one that starts later stays later.
        best_last[chosen] = n - 1 - np.argmin(cost[:, ::-1].round(9), axis=1)
        best_cost[chosen] = cost[np.arange(len(chosen)), best_last[chosen]]
    order = np.empty(n, dtype=np.int64)
    subset = 2**n - 1
    for position in range(n - 1, -1, -1):
        order[position] = best_last[subset]
        subset &= ~(1 << int(best_last[subset]))
    return order


def _move_single_blocks(disagreements: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Moves one block at a time to its best place until no move lowers the sum."""
    improved = True
    while improved:
        improved = False
        for block in order.copy():
            rest = order[order != block]
            before, after = disagreements[rest, block], disagreements[block, rest]
            # cost[p]: the block stands after the first p of the others.
            cost = np.concatenate([[0.0], np.cumsum(before - after)])
            here = int(np.flatnonzero(order == block)[0])
            place = int(np.argmin(cost))
            if cost[place] < cost[here] - 1e-9:
                order = np.insert(rest, place, block)
                improved = True
    return order


def _positions(disagreements: np.ndarray, order: np.ndarray) -> np.ndarray:
    tied = np.isclose(disagreements, disagreements.T)
    positions = np.empty(len(order))
    begin = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or not tied[order[begin:end], order[end]].all():
            positions[order[begin:end]] = (begin + 1 + end) / 2
            begin = end
    return positions
