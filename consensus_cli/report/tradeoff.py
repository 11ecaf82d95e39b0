"""What was given up for what was saved: means and intervals over seeds, the Pareto front, the best trade-offs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from consensus_cli.report.runs import attacks

#: accuracy that a network may lose and still count as a good trade-off
TOLERATED_LOSS_PP = 1.0
_POINT = ["task", "series", "ratio"]


@dataclass(frozen=True)
class Cost:
    """Something that pruning saves: `column` holds the saving in percent of the baseline, higher = saves more."""

    name: str
    column: str
    label: str


COSTS = (
    Cost("macs", "macs_reduction_pct", "MACs"),
    Cost("params", "params_reduction_pct", "parameters"),
    Cost("latency_b1", "latency_b1_reduction_pct", "latency, batch 1"),
    Cost("latency_b128", "latency_b128_reduction_pct", "latency, batch 128"),
    Cost("energy_inference", "energy_inference_reduction_pct", "energy of inference"),
    Cost("energy_epoch", "energy_epoch_reduction_pct", "energy of a training epoch"),
)


def points(finished: pd.DataFrame) -> pd.DataFrame:
    """Returns one line per task, series and ratio, over its seeds.

    Runs of one seed are averaged first, so that repeating a run makes no interval narrower.

    Returns:
        `task`, `series`, `ratio`, `criterion`, `control`, `ratio_unit`, `runs`, `seeds`, and for each measure its mean
        and, as `<measure>_ci95`, half the width of its 95 % interval (Student's t over seeds; NaN for a single seed);
        `pareto` is whether no other point of the task is better in accuracy and MACs.
    """
    from scipy.stats import t as student_t

    names = ("accuracy", *attacks(finished), "clean")
    outcomes = [f"{name}_{end}" for name in names for end in ("base_pct", "pruned_pct", "delta_pp")]
    measures = [cost.column for cost in COSTS] + [name for name in outcomes if name in finished]
    per_seed = finished.groupby([*_POINT, "seed"], dropna=False)[measures].mean().reset_index()
    groups = per_seed.groupby(_POINT, dropna=False)
    mean, seeds = groups[measures].mean(), groups[measures].count()
    quantile = pd.DataFrame(student_t.ppf(0.975, np.maximum(seeds - 1, 1)), mean.index, mean.columns)
    half = groups[measures].std() * quantile / seeds.where(seeds > 1) ** 0.5
    named = finished.groupby(_POINT, dropna=False)
    table = pd.concat(
        [
            named[["criterion", "control", "ratio_unit"]].first(),
            named.size().rename("runs"),
            named["seed"].nunique().rename("seeds"),
            mean,
            half.add_suffix("_ci95"),
        ],
        axis=1,
    ).reset_index()
    return table.assign(pareto=pareto(table))


def pareto(table: pd.DataFrame) -> pd.Series:
    """Returns for each point whether none of its task has both more accuracy and fewer MACs; ties stay.

    Controls are no choices: none is on the front, and none keeps a point from it.
    """
    saved, kept = table["macs_reduction_pct"], table["accuracy_pruned_pct"]
    on_front = pd.Series(False, index=table.index)
    for _, group in table[saved.notna() & kept.notna() & (table["control"] == "")].groupby("task"):
        x, y = saved[group.index].to_numpy(), kept[group.index].to_numpy()
        # dominated[i, j]: point j is no worse than point i in both, and better in one
        no_worse = (x >= x[:, None]) & (y >= y[:, None])
        better = (x > x[:, None]) | (y > y[:, None])
        on_front.loc[group.index] = ~np.any(no_worse & better, axis=1)
    return on_front


def front(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the points of the Pareto front, task by task, the smallest saving first."""
    return table[table["pareto"]].sort_values(["task", "macs_reduction_pct"], kind="stable")


def best(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the point of each task that saves most MACs among those that lose at most `TOLERATED_LOSS_PP`."""
    good = table[(table["accuracy_delta_pp"] >= -TOLERATED_LOSS_PP) & table["macs_reduction_pct"].notna()]
    good = good[good["control"] == ""]
    order = good.sort_values(["macs_reduction_pct", "accuracy_delta_pp"], ascending=False, kind="stable")
    return order.drop_duplicates("task").sort_values("task")


def drawn(table: pd.DataFrame, most: int) -> list[str]:
    """Returns the series of one task that a chart shows, at most so many: more would hide one another.

    Those on the Pareto front come first, then the consensus, then the others by the accuracy they keep.
    """
    kept = table.groupby("series").agg(front=("pareto", "any"), accuracy=("accuracy_delta_pp", "mean")).reset_index()
    kept["consensus"] = kept["series"].str.startswith("consensus")
    order = kept.sort_values(["front", "consensus", "accuracy"], ascending=False, kind="stable")
    return list(order["series"][:most])


def is_main(cost: Cost, outcome: str) -> bool:
    """Whether a chart is of accuracy against MACs, which has the Pareto front and the published points."""
    return outcome == "accuracy" and cost.name == "macs"


def beside(published: pd.DataFrame | None, cost: Cost, outcome: str) -> pd.DataFrame:
    """Returns the published points that belong on a chart: all on that of accuracy against MACs, else none."""
    if published is None or not is_main(cost, outcome):
        return pd.DataFrame(columns=["macs_reduction_pct", "accuracy_pct", "text"])
    return published


def accuracy_range(values_pct: Iterable[float]) -> list[float]:
    """Returns the ends of an axis that shows these accuracies in percent; intervals may run over them.

    The interval of two seeds may be wider than 0 to 100 %, which would leave no room for the points. Beyond 0 and 100 %
    there is room for half a point's mark and no more.
    """
    finite = [value for value in values_pct if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = max(0.15 * (high - low), 0.5)
    return [max(low - room, -0.5), min(high + room, 100.5)]
