"""The table of runs: what it shows of each, and by what number it sorts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from consensus_cli.report.formatting import command, duration, fixed, ratio_text, significant
from consensus_cli.report.robustness import attack_label
from consensus_cli.report.runs import attacks


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, the text of a row, and the column of the rows whose number it sorts by.

    Columns with `hover` are what a chart shows of a single run.
    """

    heading: str
    text: Callable[[pd.Series], str]
    sorts_by: str | None = None
    hover: bool = False


@dataclass(frozen=True)
class Line:
    """A run in the table.

    Attributes:
        index: the number by which charts know it.
        status: of the run.
        cells: text, and the number by which it sorts (None: by its text; "" where the number is missing).
        command: that repeats the run.
    """

    index: int
    status: str
    cells: tuple[tuple[str, str | None], ...]
    command: str


def columns(rows: pd.DataFrame) -> list[Column]:
    """Returns the columns that are worth showing of these runs."""
    found = [
        _text("run", "run_id", hover=True),
        _text("status"),
        _text("model"),
        _text("dataset"),
        _text("criterion", hover=True),
        Column("ratio", lambda row: ratio_text(row["ratio"], row["ratio_unit"]), "ratio", hover=True),
        _number("seed", "seed", 0, hover=True),
        _number("blocks removed", "blocks_removed", 0),
        _number("accuracy before (%)", "accuracy_base_pct"),
        _number("accuracy after (%)", "accuracy_pruned_pct", hover=True),
        _number("change (pp)", "accuracy_delta_pp", sign=True),
        _number("MACs saved (%)", "macs_reduction_pct", 1, hover=True),
        _number("parameters saved (%)", "params_reduction_pct", 1),
        _number("latency saved (%), batch 1", "latency_b1_reduction_pct", 1),
        _number("inference energy saved (%)", "energy_inference_reduction_pct", 1),
        *(_number(f"{attack_label(name, rows)} (%)", f"{name}_pruned_pct") for name in attacks(rows)),
        Column("energy of the run (Wh)", lambda row: significant(1000 * row["energy_run_kwh"]), "energy_run_kwh"),
        Column("duration", lambda row: duration(row["duration_s"]), "duration_s"),
        Column("started (UTC)", lambda row: row["started_at"][:16].replace("T", " ")),
    ]
    return [*found, _text("error")] if (rows["error"] != "").any() else found


def lines(rows: pd.DataFrame, shown: list[Column]) -> list[Line]:
    """Returns the runs as lines of the table, the latest first."""
    ordered = rows.sort_values("started_at", ascending=False, kind="stable")
    return [
        Line(
            int(str(index)),
            row["status"],
            tuple((column.text(row), _sort_key(row, column.sorts_by)) for column in shown),
            command(row["overrides"]),
        )
        for index, row in ordered.iterrows()
    ]


def _sort_key(row: pd.Series, name: str | None) -> str | None:
    if name is None:
        return None
    return f"{row[name]:.10g}" if math.isfinite(row[name]) else ""


def _text(heading: str, name: str = "", *, hover: bool = False) -> Column:
    return Column(heading, lambda row: row[name or heading], hover=hover)


def _number(heading: str, name: str, digits: int = 2, *, sign: bool = False, hover: bool = False) -> Column:
    return Column(heading, lambda row: fixed(row[name], digits, sign=sign), name, hover)
