"""The table of runs: what it shows of each, and by what number it sorts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from consensus_cli.report.formatting import duration, fixed, ratio_text, significant
from consensus_cli.report.robustness import attack_label
from consensus_cli.report.runs import attacks


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        heading: above it.
        cells: of each run its text, and the number by which it sorts (None: by its text; "" where there is none).
        hover: whether a chart shows it when one points at a run.
    """

    heading: str
    cells: list[tuple[str, str | None]]
    hover: bool

    @property
    def is_numeric(self) -> bool:
        """Whether it sorts by number."""
        return any(sort is not None for _, sort in self.cells)


def columns(rows: pd.DataFrame) -> list[Column]:
    """Returns the columns that are worth showing of these runs, a cell per row."""

    def text(heading: str, cells: pd.Series, *, hover: bool = False) -> Column:
        return Column(heading, [(cell, None) for cell in cells], hover)

    def number(heading: str, name: str, texts: Iterable[str], *, hover: bool = False) -> Column:
        sort = rows[name].map(lambda value: "" if pd.isna(value) else f"{value:.10g}")
        return Column(heading, list(zip(texts, sort, strict=True)), hover)

    def decimal(heading: str, name: str, digits: int = 2, *, sign: bool = False, hover: bool = False) -> Column:
        return number(heading, name, [fixed(value, digits, sign=sign) for value in rows[name]], hover=hover)

    found = [
        text("run", rows["run_id"], hover=True),
        *(text(name, rows[name], hover=name == "criterion") for name in ("status", "model", "dataset", "criterion")),
        *([text("control", rows["control"], hover=True)] if (rows["control"] != "").any() else []),
        number("ratio", "ratio", map(ratio_text, rows["ratio"], rows["ratio_unit"]), hover=True),
        decimal("seed", "seed", 0, hover=True),
        decimal("blocks removed", "blocks_removed", 0),
        decimal("accuracy before (%)", "accuracy_base_pct"),
        decimal("accuracy after (%)", "accuracy_pruned_pct", hover=True),
        decimal("change (pp)", "accuracy_delta_pp", sign=True),
        decimal("MACs saved (%)", "macs_reduction_pct", 1, hover=True),
        decimal("parameters saved (%)", "params_reduction_pct", 1),
        decimal("latency saved (%), batch 1", "latency_b1_reduction_pct", 1),
        decimal("inference energy saved (%)", "energy_inference_reduction_pct", 1),
        *(decimal(f"{attack_label(name, rows)} (%)", f"{name}_pruned_pct") for name in attacks(rows)),
        number("energy of the run (Wh)", "energy_run_kwh", map(significant, 1000 * rows["energy_run_kwh"])),
        number("duration", "duration_s", map(duration, rows["duration_s"])),
        text("started (UTC)", rows["started_at"].str[:16].str.replace("T", " ")),
    ]
    return [*found, text("error", rows["error"])] if (rows["error"] != "").any() else found
