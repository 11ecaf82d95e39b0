"""`scores.csv`: what the criterion said of every candidate before each removal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from consensus_cli.scoring.ranking.consensus import Ranking
from consensus_cli.storage.atomic import write_atomic


def score_table(scoring: int, ranking: Ranking) -> pd.DataFrame:
    """Returns one line per block and metric; `sum` is the importance by which the criterion decided.

    With a bootstrap, three more columns describe the block's place in the order of removal: the ends of its 95 %
    interval, and the share of the resamples in which the block is the first to go.

    Args:
        scoring: number of the scoring in its run, from 1; the column `step`.
        ranking: its result.
    """
    lines = []
    for i, block in enumerate(ranking.blocks):
        for metric in ranking.distances:
            line = {
                "step": scoring,
                "block": block,
                "metric": metric,
                "distance": ranking.distances[metric][i],
                "rank": ranking.ranks[metric][i],
                "sum": ranking.importance[i],
            }
            if ranking.stability is not None:
                line |= {
                    "place_low": ranking.stability.low[i],
                    "place_high": ranking.stability.high[i],
                    "first_share": ranking.stability.least_share[i],
                }
            lines.append(line)
    return pd.DataFrame(lines)


def write_scores(path: Path, scores: pd.DataFrame) -> None:
    """Writes the lines of all scorings so far."""
    write_atomic(path, scores.to_csv(index=False))


def read_all(path: Path) -> pd.DataFrame | None:
    """Returns every line with every digit; None where the file is missing or damaged."""
    try:
        scores = pd.read_csv(path, dtype={"block": str, "metric": str}, float_precision="round_trip")
        return scores.astype({"step": int})
    except (OSError, ValueError, KeyError):
        return None
