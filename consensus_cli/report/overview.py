"""What was run, what came of it, and what a reader must know before trusting it: a few sentences each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from consensus_cli.evaluation.cost.cost_comparison import DISTURBING_PCT
from consensus_cli.report import tradeoff
from consensus_cli.report.formatting import fixed, interval
from consensus_cli.report.runs import Runs, attacks

#: below this many images, the 95 % interval of an accuracy is wider than ±3 pp (binomial, at 50 %)
FEW_IMAGES = 1000
#: criteria that a sentence names
_MOST_NAMES = 8


def overview(runs: Runs, points: pd.DataFrame) -> list[str]:
    """Returns what was run and the best point of each task."""
    days = sorted(set(runs.rows["started_at"].str[:10]) - {""})
    period = f", on {days[0]}" if len(days) == 1 else f", from {days[0]} to {days[-1]}" if days else ""
    found = [f"{_count(len(runs.rows), 'run')}, {len(runs.finished)} finished{period}."]
    for task, group in points.groupby("task"):
        low, high = group["seeds"].min(), group["seeds"].max()
        seeds = f"{_count(high, 'seed')} each" if low == high else f"{low} to {high} seeds each"
        found.append(
            f"{task}: {_listed(list(group['series'].unique()))}; {_count(int(group['runs'].sum()), 'run')} at "
            f"{_count(group['ratio'].nunique(), 'ratio')}, {seeds}."
        )
    good = tradeoff.best(points)
    for _, point in good.iterrows():
        change = interval(point["accuracy_delta_pp"], point["accuracy_delta_pp_ci95"], 2, "pp", sign=True)
        found.append(
            f"{point['task']}: {point['series']} saves {fixed(point['macs_reduction_pct'], 1, '%')} of the MACs at "
            f"{change} accuracy, the most within {tradeoff.TOLERATED_LOSS_PP:g} pp of the baseline."
        )
    for task in sorted(set(points["task"]) - set(good["task"])):
        found.append(f"{task}: no point stays within {tradeoff.TOLERATED_LOSS_PP:g} pp of the baseline.")
    return found


def caveats(runs: Runs, points: pd.DataFrame) -> list[str]:
    """Returns the warnings about these runs, one sentence each, the notes of reading them last."""
    return [*_about_runs(runs.rows, points), *_about_measures(runs.finished), *_mixture(runs.finished), *runs.notes]


def _about_runs(rows: pd.DataFrame, points: pd.DataFrame) -> Iterator[str]:
    counts = rows.loc[~rows["finished"], "status"].value_counts()
    if not counts.empty:
        parts = " and ".join(f"{count} {status}" for status, count in counts.items())
        yield f"{parts} of {len(rows)} runs: they are in the table of runs and in nothing else."
    if single := int((points["seeds"] < 2).sum()):
        which = "Every point is" if single == len(points) else f"{single} of {len(points)} points are"
        yield f"{which} from a single seed: without an interval, a difference between criteria may be chance."


def _about_measures(finished: pd.DataFrame) -> Iterator[str]:
    estimated = (finished["energy_estimated"] == "True") | finished["energy_source"].str.contains("estimate")
    if estimated.any():
        yield (
            f"The energy of {int(estimated.sum())} of {len(finished)} runs is an estimate from processor load, not a "
            "counter's reading: it says little more than time does."
        )
    measured = {"test_images": "measured"} | ({"attacked_images": "attacked"} if attacks(finished) else {})
    for column, what in measured.items():
        few = finished.loc[finished[column] < FEW_IMAGES, column]
        if not few.empty:
            yield (
                f"Accuracy is {what} on as few as {few.min():.0f} images in {len(few)} of {len(finished)} runs: "
                f"below {FEW_IMAGES:,} images, chance moves it by more than 3 pp."
            )
    left_out = finished[~finished["macs_uncounted"].isin(["", "nothing"])]
    for model, uncounted in left_out[["model", "macs_uncounted"]].drop_duplicates().itertuples(index=False):
        yield f"{model}: MACs leave out {uncounted}."


def _mixture(finished: pd.DataFrame) -> Iterator[str]:
    for task, group in finished.groupby("task"):
        devices = sorted(set(group["device"]) - {""})
        if len(devices) > 1:
            yield f"{task}: latency and energy come from different devices ({', '.join(devices)})."
        if group["threads"].nunique() > 1:
            yield f"{task}: latency was measured with different numbers of threads."
        if (group["other_load_pct"] > DISTURBING_PCT).any():
            yield f"{task}: other programs ran while latency and energy were measured, see `other_load_pct`."
        if group["energy_source"].nunique() > 1:
            yield f"{task}: energy was read in different ways, see the section on energy."
    versions = sorted(set(finished["version"]) - {""})
    if len(versions) > 1:
        yield f"The runs come from different versions of the program: {', '.join(versions)}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + rest
