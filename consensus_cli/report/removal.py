"""What a run did to its network: which block went when, and how the metrics had ranked it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from consensus_cli.report.runs import Runs
from consensus_cli.scoring.ranking.consensus import kendall_tau
from consensus_cli.storage.rundir import RunDir

#: networks drawn block by block: the page stays small however many runs there are
MOST_NETWORKS = 12
_COLUMNS = {"step": int, "block": str, "metric": str, "distance": float, "rank": float, "sum": float}


@dataclass(frozen=True)
class Step:
    """The scores before one removal.

    Attributes:
        importance: block -> importance, the lowest goes first; the blocks that could still go.
        ranks: blocks × metrics, 1 = least important.
        tau: metrics × metrics, Kendall's τ-b in [−1, 1] between their rankings; NaN for a constant metric.
        removed: the blocks that went in this step.
    """

    importance: pd.Series
    ranks: pd.DataFrame
    tau: pd.DataFrame
    removed: tuple[str, ...]


@dataclass(frozen=True)
class Removal:
    """The pruning of one network: every block that could go, in its order, and those that went, in theirs.

    `steps` has the scores before each removal, and is empty where they are lost.
    """

    title: str
    blocks: tuple[str, ...]
    removed: tuple[str, ...]
    steps: tuple[Step, ...]


def removal(row: pd.Series, scores: pd.DataFrame | None) -> Removal:
    """Puts the order of removal of a run and the scores of every step together; see `read_scores` for the columns."""
    title = f"{row['task']}, {row['series']}, seed {row['seed']:g}"
    removed = tuple(filter(None, row["removed_blocks"].split(";")))
    if scores is None:
        return Removal(title, removed, removed, ())
    blocks = tuple(dict.fromkeys([*scores["block"], *removed]))
    return Removal(title, blocks, removed, tuple(_steps(scores, removed)))


def read_scores(file: Path) -> pd.DataFrame | None:
    """Returns the scores of a run (step, block, metric, distance, rank, sum), None where they are lost or damaged."""
    try:
        texts = {"block": str, "metric": str}
        scores = pd.read_csv(file, usecols=list(_COLUMNS), dtype=texts, float_precision="round_trip").astype(_COLUMNS)
    except (OSError, ValueError):
        return None
    complete = not scores.isna().to_numpy().any() and not scores.duplicated(["step", "block", "metric"]).any()
    return scores if complete and len(scores) else None


def chosen(runs: Runs, most: int) -> tuple[list[Removal], int]:
    """Returns the longest removal of each series, one whose scores are there if any, and how many runs were left out.

    There are at most `most`, by task, the consensus first.
    """
    longest = runs.finished[(runs.finished["removed_blocks"] != "") & (runs.finished["control"] == "")]
    longest = longest.sort_values(["blocks_removed", "started_at"], ascending=False, kind="stable")
    longest = longest.assign(other=~longest["series"].str.startswith("consensus"))
    groups = [group for _, group in longest.groupby(["task", "other", "series"])]
    found = [_with_scores(runs, group) for group in groups[:most]]
    return found, len(longest) - len(found)


def _with_scores(runs: Runs, group: pd.DataFrame) -> Removal:
    for _, row in group.iterrows():
        folder = runs.folder(row)
        if folder and (scores := read_scores(RunDir(folder).scores)) is not None:
            return removal(row, scores)
    return removal(group.iloc[0], None)


def _steps(scores: pd.DataFrame, removed: tuple[str, ...]) -> Iterator[Step]:
    last_seen = scores.groupby("block")["step"].max()
    for number, lines in scores.groupby("step"):
        blocks, metrics = list(dict.fromkeys(lines["block"])), list(dict.fromkeys(lines["metric"]))
        table = lines.pivot(index="block", columns="metric", values=["rank", "distance"]).loc[blocks]
        yield Step(
            importance=lines.groupby("block")["sum"].first().loc[blocks],
            ranks=pd.DataFrame(table["rank"])[metrics],
            tau=kendall_tau({metric: table["distance"][metric].to_numpy() for metric in metrics}),
            # A block that may stay because its stage would become too short leaves the scores as well.
            removed=tuple(name for name in removed if name in blocks and last_seen[name] == number),
        )
