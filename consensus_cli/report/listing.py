"""The table of runs: what is shown of each, and what it sorts by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from consensus_cli.report.numerals import duration, fixed, significant
from consensus_cli.report.robustness import attack_label
from consensus_cli.report.series import command, ratio_text
from consensus_cli.report.source import attacks


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, the text of a row, and its number where it sorts as one.

    Columns with `hover` are what a chart shows of a single run.
    """

    heading: str
    text: Callable[[pd.Series], str]
    number: Callable[[pd.Series], float] | None = None
    hover: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: what is shown, and the number by which it sorts (None: by its text; "" where the number is missing)."""

    text: str
    sort: str | None


@dataclass(frozen=True)
class Line:
    """A run in the table: the number by which charts know it, its status, its cells, and its command."""

    index: int
    status: str
    cells: tuple[Cell, ...]
    command: str


def columns(rows: pd.DataFrame) -> list[Column]:
    """Returns the columns that tell something about these runs."""
    found = [
        Column("run", lambda row: row["run_id"], hover=True),
        Column("status", lambda row: row["status"]),
        Column("model", lambda row: row["model"]),
        Column("dataset", lambda row: row["dataset"]),
        Column("criterion", lambda row: row["criterion"], hover=True),
        Column("ratio", lambda row: ratio_text(row["ratio"], row["ratio_unit"]), lambda row: row["ratio"], hover=True),
        _numeric("seed", "seed", 0, hover=True),
        _numeric("blocks removed", "blocks_removed", 0),
        _numeric("accuracy before (%)", "accuracy_base_pct"),
        _numeric("accuracy after (%)", "accuracy_pruned_pct", hover=True),
        _numeric("change (pp)", "accuracy_delta_pp", sign=True),
        _numeric("MACs saved (%)", "macs_reduction_pct", 1, hover=True),
        _numeric("parameters saved (%)", "params_reduction_pct", 1),
        _numeric("latency saved (%), batch 1", "latency_b1_reduction_pct", 1),
        _numeric("inference energy saved (%)", "energy_inference_reduction_pct", 1),
    ]
    found += [_numeric(f"{attack_label(name, rows)} (%)", f"{name}_pruned_pct") for name in attacks(rows)]
    found += [
        Column("energy of the run (Wh)", _run_energy, lambda row: row["energy_run_kwh"]),
        Column("duration", lambda row: duration(row["duration_s"]), lambda row: row["duration_s"]),
        Column("started (UTC)", lambda row: row["started_at"][:16].replace("T", " ")),
        Column("error", lambda row: row["error"]),
    ]
    return [column for column in found if column.heading != "error" or (rows["error"] != "").any()]


def lines(rows: pd.DataFrame, shown: list[Column]) -> list[Line]:
    """Returns the runs as lines of the table, the latest first."""
    ordered = rows.sort_values("started_at", ascending=False, kind="stable")
    return [
        Line(int(str(index)), row["status"], tuple(_cell(row, column) for column in shown), command(row["overrides"]))
        for index, row in ordered.iterrows()
    ]


def _cell(row: pd.Series, column: Column) -> Cell:
    if column.number is None:
        return Cell(column.text(row), None)
    number = column.number(row)
    return Cell(column.text(row), f"{number:.10g}" if math.isfinite(number) else "")


def _numeric(heading: str, name: str, digits: int = 2, *, sign: bool = False, hover: bool = False) -> Column:
    return Column(heading, lambda row: fixed(row[name], digits, sign=sign), lambda row: row[name], hover)


def _run_energy(row: pd.Series) -> str:
    return significant(1000 * row["energy_run_kwh"])
