"""What a reader must know before trusting the figures."""

from __future__ import annotations

import pandas as pd

from consensus_cli.evaluation.cost.cost_comparison import DISTURBING_PCT
from consensus_cli.report.source import Runs, attacks

#: below this many images, the 95 % interval of an accuracy is wider than ±3 pp (binomial, at 50 %)
FEW_IMAGES = 1000


def caveats(runs: Runs, points: pd.DataFrame) -> list[str]:
    """Returns the warnings about these runs, one sentence each, the notes of reading them last."""
    found = [*_unfinished(runs.rows), *_seeds(points), *_energy(runs.finished), *_images(runs.finished)]
    return [*found, *_macs(runs.finished), *_mixture(runs.finished), *runs.notes]


def _unfinished(rows: pd.DataFrame) -> list[str]:
    counts = rows.loc[~rows["finished"], "status"].value_counts()
    if counts.empty:
        return []
    parts = " and ".join(f"{count} {status}" for status, count in counts.items())
    return [f"{parts} of {len(rows)} runs: they are in the table of runs and in nothing else."]


def _seeds(points: pd.DataFrame) -> list[str]:
    single = int((points["seeds"] < 2).sum())
    if not single:
        return []
    which = "Every point is" if single == len(points) else f"{single} of {len(points)} points are"
    return [f"{which} from a single seed: without an interval, a difference between criteria may be chance."]


def _energy(finished: pd.DataFrame) -> list[str]:
    estimated = (finished["energy_estimated"] == "True") | finished["energy_source"].str.contains("estimate")
    if not estimated.any():
        return []
    return [
        f"The energy of {int(estimated.sum())} of {len(finished)} runs is an estimate from processor load, not a "
        "counter's reading: it says little more than time does."
    ]


def _macs(finished: pd.DataFrame) -> list[str]:
    left_out = finished[~finished["macs_uncounted"].isin(["", "nothing"])]
    return [
        f"{model}: MACs leave out {uncounted}."
        for model, uncounted in left_out[["model", "macs_uncounted"]].drop_duplicates().itertuples(index=False)
    ]


def _images(finished: pd.DataFrame) -> list[str]:
    found = []
    for column, what in (("test_images", "measured"), ("attacked_images", "attacked")):
        if column == "attacked_images" and not attacks(finished):
            continue
        few = finished.loc[finished[column] < FEW_IMAGES, column]
        if not few.empty:
            found.append(
                f"Accuracy is {what} on as few as {few.min():.0f} images in {len(few)} of {len(finished)} runs: "
                f"below {FEW_IMAGES:,} images, chance moves it by more than 3 pp."
            )
    return found


def _mixture(finished: pd.DataFrame) -> list[str]:
    found = []
    for task, group in finished.groupby("task"):
        devices = sorted(set(group["device"]) - {""})
        if len(devices) > 1:
            found.append(f"{task}: latency and energy come from different devices ({', '.join(devices)}).")
        if group["threads"].nunique() > 1:
            found.append(f"{task}: latency was measured with different numbers of threads.")
        if (group["other_load_pct"] > DISTURBING_PCT).any():
            found.append(f"{task}: other programs ran while latency and energy were measured, see `other_load_pct`.")
        if group["energy_source"].nunique() > 1:
            found.append(f"{task}: energy was read in different ways, see the section on energy.")
    versions = sorted(set(finished["version"]) - {""})
    if len(versions) > 1:
        found.append(f"The runs come from different versions of the program: {', '.join(versions)}.")
    return found
