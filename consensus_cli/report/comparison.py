"""The original and the pruned network side by side, as text: of one run, or of several in columns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from consensus_cli.errors import UserError
from consensus_cli.report.formatting import NONE, duration, fixed, ratio_text
from consensus_cli.report.robustness import attack_label
from consensus_cli.report.runs import attacks, complete, load


@dataclass(frozen=True)
class Measure:
    """A pair of columns, `{}` in their names standing for `base` and `pruned`; a value times `scale` is in `unit`.

    `reduction` is the column with the reduction in percent, where it was measured in turn and is steadier than the
    ratio of the two values.
    """

    label: str
    columns: str
    scale: float
    unit: str
    digits: int = 2
    reduction: str = ""


@dataclass(frozen=True)
class Change:
    """A measure of one run as text; `relative_pct` is 100 × pruned / original, NaN where either is missing."""

    label: str
    before: str
    after: str
    change: str
    relative_pct: float


_SIZE = (
    Measure("accuracy", "accuracy_{}_pct", 1, "%"),
    Measure("MACs", "macs_{}", 1e-6, "M"),
    Measure("parameters", "params_{}", 1e-3, "k", digits=1),
    Measure("file size", "file_size_{}_mib", 1, "MiB"),
)
_ENERGY = tuple(
    Measure(f"{name}, {work}", f"{column}_{kind}_{{}}_{unit}", 1e6, shown, reduction=f"energy_{kind}_reduction_pct")
    for name, column, unit, shown in (("energy", "energy", "kwh", "mWh"), ("CO2", "co2", "kg", "mg"))
    for kind, work in (("inference", "1,000 images"), ("epoch", "training epoch"))
)
#: columns that results of older versions lack
_NEWER = ("file_size_", "peak_memory_")


def run_changes(row: Mapping[str, object]) -> tuple[pd.Series, list[Change]]:
    """Returns the row of one run with every column that the report reads, and its changes."""
    rows, _ = complete(pd.DataFrame([dict(row)]))
    return rows.iloc[0], changes(rows.iloc[0], rows)


def changes(row: pd.Series, rows: pd.DataFrame) -> list[Change]:
    """Returns every measure of a run, then its accuracy under each attack.

    An attack that any of `rows`, the runs to compare, knows has a line in all.
    """
    attacked = [Measure(attack_label(name, rows), name + "_{}_pct", 1, "%") for name in attacks(rows)]
    return [_with_interval(_change(row, measure), measure, row) for measure in (*_measures(rows), *attacked)]


def compare_runs(paths: Sequence[Path]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns settings, measures and order of removal of two or more run directories: headings, a column per run; rows.

    Raises:
        UserError: fewer than two, or one of them holds no row of a single run.
    """
    if len(paths) < 2:
        raise UserError("comparing takes two or more runs", "consensus compare outputs/runs/A outputs/runs/B")
    rows, _ = complete(pd.concat([_single_row(path) for path in paths], ignore_index=True))
    runs = [row for _, row in rows.iterrows()]
    per_run = [changes(row, rows) for row in runs]
    measured = [(same[0].label, *map(_arrow, same)) for same in zip(*per_run, strict=True)]
    table = [
        ("status", *(row["status"] for row in runs)),
        *((name, *(row[name] or NONE for row in runs)) for name in ("model", "dataset", "criterion")),
        ("to remove", *(ratio_text(row["ratio"], row["ratio_unit"]) for row in runs)),
        ("seed", *(fixed(row["seed"], 0) for row in runs)),
        ("device", *(row["device"] or NONE for row in runs)),
        ("blocks removed", *(fixed(row["blocks_removed"], 0) for row in runs)),
        *(line for line in measured if set(line[1:]) != {NONE}),
        ("duration", *(duration(row["duration_s"]) for row in runs)),
        ("removed, in order", *(row["removed_blocks"].replace(";", " ") or NONE for row in runs)),
    ]
    return ("", *(row["run_id"] for row in runs)), table


def _measures(rows: pd.DataFrame) -> list[Measure]:
    """Returns what the rows hold of both networks beside attacks, with a line for each batch size that was timed."""
    timed = (re.fullmatch(r"latency_b(\d+)_base_ms", str(name)) for name in rows)
    sizes = sorted(int(match[1]) for match in timed if match)
    latency = [
        Measure(f"latency, batch {n}", f"latency_b{n}_{{}}_ms", 1, "ms", reduction=f"latency_b{n}_reduction_pct")
        for n in sizes
    ]
    memory = [Measure(f"peak memory, batch {n}", f"peak_memory_b{n}_{{}}_mib", 1, "MiB") for n in sizes]
    return [
        measure
        for measure in (*_SIZE, *latency, *memory, *_ENERGY)
        if measure.columns.format("base") in rows or not measure.columns.startswith(_NEWER)
    ]


def _change(row: pd.Series, measure: Measure) -> Change:
    before, after = (measure.scale * row.get(measure.columns.format(name), math.nan) for name in ("base", "pruned"))
    relative_pct = 100 * after / before if before else math.nan
    reduction_pct = row.get(measure.reduction, math.nan)
    if math.isfinite(relative_pct) and math.isfinite(reduction_pct):
        relative_pct = 100 - reduction_pct
    difference, unit = (after - before, "pp") if measure.unit == "%" else (relative_pct - 100, "%")
    old, new = (fixed(value, measure.digits, measure.unit) for value in (before, after))
    return Change(measure.label, old, new, fixed(difference, 2, unit, sign=True), relative_pct)


def _with_interval(change: Change, measure: Measure, row: pd.Series) -> Change:
    """Adds the 95 % interval of the change, where the row has it: of a reduction, if that is what was measured."""
    name = measure.columns.partition("_{}")[0]
    ends = [row.get(f"{name}_ci95_{end}", math.nan) for end in ("low", "high")]
    if not all(map(math.isfinite, ends)):
        return change
    low, high = (fixed(end, 1, sign=True) for end in ([-end for end in reversed(ends)] if measure.reduction else ends))
    return replace(change, change=f"{change.change} [{low}, {high}]")


def _arrow(change: Change) -> str:
    if change.before == change.after == NONE:
        return NONE
    return f"{change.before} → {change.after} ({change.change})"


def _single_row(path: Path) -> pd.DataFrame:
    rows = load(path).rows
    if len(rows) != 1:
        raise UserError(f"'{path}' holds {len(rows)} runs, not one", "give run directories: outputs/runs/…")
    return rows
