"""`consensus compare`: runs side by side on screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from consensus_cli.errors import UserError
from consensus_cli.report.measures import arrow, changes
from consensus_cli.report.numerals import NONE, duration, fixed
from consensus_cli.report.series import ratio_text
from consensus_cli.report.source import complete, load


@dataclass(frozen=True)
class Comparison:
    """A table: the heading of each column, first that of the labels, and the rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Returns settings, measures and order of removal of two or more runs, a column per run.

    Args:
        paths: run directories.

    Raises:
        UserError: fewer than two, or one of them holds no row of a single run.
    """
    if len(paths) < 2:
        raise UserError("comparing takes two or more runs", "consensus compare outputs/runs/A outputs/runs/B")
    rows, _ = complete(pd.concat([_row(path) for path in paths], ignore_index=True))
    runs = [row for _, row in rows.iterrows()]
    table = [
        ("status", *(row["status"] for row in runs)),
        ("model", *(row["model"] or NONE for row in runs)),
        ("dataset", *(row["dataset"] or NONE for row in runs)),
        ("criterion", *(row["criterion"] or NONE for row in runs)),
        ("to remove", *(ratio_text(row["ratio"], row["ratio_unit"]) for row in runs)),
        ("seed", *(fixed(row["seed"], 0) for row in runs)),
        ("device", *(row["device"] or NONE for row in runs)),
        ("blocks removed", *(fixed(row["blocks_removed"], 0) for row in runs)),
        *_measures(runs, rows),
        ("duration", *(duration(row["duration_s"]) for row in runs)),
        ("removed, in order", *(row["removed_blocks"].replace(";", " ") or NONE for row in runs)),
    ]
    return Comparison(("", *(row["run_id"] for row in runs)), tuple(table))


def _measures(runs: list[pd.Series], rows: pd.DataFrame) -> list[tuple[str, ...]]:
    per_run = [changes(row, rows) for row in runs]
    lines = [(same[0].label, *(arrow(change) for change in same)) for same in zip(*per_run, strict=True)]
    return [line for line in lines if set(line[1:]) != {NONE}]


def _row(path: Path) -> pd.DataFrame:
    rows = load(path).rows
    if len(rows) != 1:
        raise UserError(f"'{path}' holds {len(rows)} runs, not one", "give run directories: outputs/runs/…")
    return rows
