"""Who removes what: the orders of all criteria and of the oracles, read from the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consensus_cli.pruning.blocks import Block
from study.accuracies import Key, answers
from study.criteria import metric_orders
from study.plan import Plan
from study.rows import Rows, split


@dataclass(frozen=True)
class Decisions:
    """The orders in which blocks go.

    Attributes:
        orders: criterion or oracle -> one order per draw, the first block to go first.
    """

    orders: dict[str, list[tuple[str, ...]]]

    #: who knows the accuracy of networks, on the selection images
    oracles = ("oracle_single", "oracle_greedy")

    @classmethod
    def read(cls, folder: Path, plan: Plan, candidates: Sequence[Block]) -> Decisions:
        """Reads what `oneshot.measure` has written before it measures sets."""
        orders = metric_orders(Rows(folder, "scores").read(), plan.decisive_samples_per_class)
        for criterion, rows in Rows(folder, "orders").read().groupby("criterion", sort=False):
            orders[str(criterion)] = [split(order) for order in rows.sort_values("draw")["order"]]
        names = [block.name for block in candidates]
        orders["oracle_single"] = [best_first(answers(Rows(folder, "accuracy").read()), names, "recalibrated")]
        paths = Rows(folder, "paths").read()
        greedy = paths[paths["criterion"] == "oracle_greedy"].sort_values("step")
        orders["oracle_greedy"] = [tuple(greedy["removed"])]
        return cls(orders)


def best_first(known: Mapping[Key, np.ndarray], names: Sequence[str], treatment: str) -> tuple[str, ...]:
    """Returns blocks by the accuracy on the selection images after their removal alone, the highest first."""
    accuracy = np.array([known[treatment, "selection", (name,)].mean() for name in names])
    return tuple(names[position] for position in np.argsort(-accuracy, kind="stable"))
