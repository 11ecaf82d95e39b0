"""What is measured of the baseline and of the pruned network, as text: before, after, change."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import pandas as pd

from consensus_cli.report.numerals import NONE, fixed
from consensus_cli.report.robustness import attack_label
from consensus_cli.report.source import attacks


@dataclass(frozen=True)
class Measure:
    """A pair of columns.

    Attributes:
        label: what it is called.
        columns: their names, `{}` for `base` and `pruned`.
        scale: what turns a value into `unit`.
        unit: of what is shown.
        digits: decimals that tell something.
        reduction: column with the reduction in percent, where it was measured in turn and is steadier than the
            ratio of the two values; empty where there is none.
    """

    label: str
    columns: str
    scale: float
    unit: str
    digits: int
    reduction: str = ""


@dataclass(frozen=True)
class Change:
    """A measure of one run as text; `relative_pct` is 100 × pruned / baseline, NaN where either is missing."""

    label: str
    before: str
    after: str
    change: str
    relative_pct: float


SIZE = (
    Measure("accuracy", "accuracy_{}_pct", 1, "%", 2),
    Measure("MACs", "macs_{}", 1e-6, "M", 2),
    Measure("parameters", "params_{}", 1e-3, "k", 1),
    Measure("file size", "file_size_{}_mib", 1, "MiB", 2),
)
ENERGY = (
    Measure("energy, 1,000 images", "energy_inference_{}_kwh", 1e6, "mWh", 2, "energy_inference_reduction_pct"),
    Measure("energy, training epoch", "energy_epoch_{}_kwh", 1e6, "mWh", 2, "energy_epoch_reduction_pct"),
    Measure("CO2, 1,000 images", "co2_inference_{}_kg", 1e6, "mg", 2, "energy_inference_reduction_pct"),
    Measure("CO2, training epoch", "co2_epoch_{}_kg", 1e6, "mg", 2, "energy_epoch_reduction_pct"),
)
#: columns that results of older versions lack
_NEWER = ("file_size_", "peak_memory_")


def measures(rows: pd.DataFrame) -> list[Measure]:
    """Returns what the rows hold of both networks beside attacks, with a line for each batch size that was timed."""
    found = (re.fullmatch(r"latency_b(\d+)_base_ms", str(name)) for name in rows)
    batch_sizes = sorted(int(match[1]) for match in found if match)
    latency = [
        Measure(f"latency, batch {n}", f"latency_b{n}_{{}}_ms", 1, "ms", 2, f"latency_b{n}_reduction_pct")
        for n in batch_sizes
    ]
    memory = [Measure(f"peak memory, batch {n}", f"peak_memory_b{n}_{{}}_mib", 1, "MiB", 2) for n in batch_sizes]
    return [
        measure
        for measure in (*SIZE, *latency, *memory, *ENERGY)
        if measure.columns.format("base") in rows or not measure.columns.startswith(_NEWER)
    ]


def changes(row: pd.Series, rows: pd.DataFrame) -> list[Change]:
    """Returns every measure of a run, then its accuracy under each attack.

    Args:
        row: a line of `rows`.
        rows: the runs to compare: an attack that any of them knows has a line in all.
    """
    found = [_change(row, measure) for measure in measures(rows)]
    for name in attacks(rows):
        label = attack_label(name, rows)
        found.append(_with_interval(_change(row, Measure(label, name + "_{}_pct", 1, "%", 2)), row, name))
    return found


def _with_interval(change: Change, row: pd.Series, attack: str) -> Change:
    """Adds the 95 % interval of the change in accuracy under an attack, where the row has one."""
    ends = [row.get(f"{attack}_ci95_{end}", math.nan) for end in ("low", "high")]
    if not all(map(math.isfinite, ends)):
        return change
    low, high = (fixed(end, 1, sign=True) for end in ends)
    return replace(change, change=f"{change.change} [{low}, {high}]")


def _change(row: pd.Series, measure: Measure) -> Change:
    columns = [measure.columns.format(network) for network in ("base", "pruned")]
    before, after = (measure.scale * row[column] if column in row else math.nan for column in columns)
    relative_pct = 100 * after / before if before else math.nan
    reduction_pct = row.get(measure.reduction, math.nan)
    if math.isfinite(relative_pct) and math.isfinite(reduction_pct):
        relative_pct = 100 - reduction_pct
    shift = (
        fixed(after - before, 2, "pp", sign=True)
        if measure.unit == "%"
        else fixed(relative_pct - 100, 2, "%", sign=True)
    )
    old, new = (fixed(value, measure.digits, measure.unit) for value in (before, after))
    return Change(measure.label, old, new, shift, relative_pct)


def arrow(change: Change) -> str:
    """Returns `before → after (change)` on one line."""
    if change.before == change.after == NONE:
        return NONE
    return f"{change.before} → {change.after} ({change.change})"
