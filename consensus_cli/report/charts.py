"""The interactive charts: the data of each, put into its Vega-Lite specification (`templates/*.vl.json.j2`).

The page adds a tooltip and the colours of its theme. A datum carries what its tooltip shows: `t` is that text, or `r`
the number of the run whose text the page composes from its table. Text is data in Vega and never markup.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from consensus_cli.report import tradeoff
from consensus_cli.report.energy import PHASES
from consensus_cli.report.formatting import interval, ratio_text, significant
from consensus_cli.report.palette import NEUTRAL, PHASE_COLOURS, Style, curve_styles
from consensus_cli.report.tradeoff import Cost

Chart = dict[str, Any]
_ROW_HEIGHT_PX = 26
_COLUMN_WIDTH_PX = 36
#: a heat map with more columns gets a line of the page for itself, and scrolls where that is too narrow
_MOST_NARROW_COLUMNS = 8


@functools.cache
def templates() -> Environment:
    """Returns the templates of the report, which escape text for HTML."""
    return Environment(
        loader=PackageLoader("consensus_cli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def datasets(points: pd.DataFrame, finished: pd.DataFrame, outcomes: Sequence[str]) -> dict[str, list[Chart]]:
    """Returns the data that every trade-off chart of a task draws from: `runs`, and `means` over seeds.

    Args:
        points: means over seeds, of the task.
        finished: its runs; their index is what the page finds their text by.
        outcomes: the accuracies on vertical axes, such as `accuracy` or `pgd`.

    Returns:
        Each datum has its series as `s`, a number per cost by its name, and a number per outcome; a mean has the ends
        of the outcome's interval as `<outcome>_low` and `<outcome>_high` and its text as `<outcome>_t`.
    """
    runs = [{"r": index, "s": run["series"], **_numbers(run, outcomes)} for index, run in _records(finished)]
    means = []
    for _, point in _records(points.sort_values(["series", "ratio"])):
        mean = {"s": point["series"], "front": bool(point["pareto"]), **_numbers(point, outcomes)}
        for outcome in outcomes:
            y, half = point[f"{outcome}_pruned_pct"], point[f"{outcome}_pruned_pct_ci95"]
            mean[f"{outcome}_low"], mean[f"{outcome}_high"] = number(y - half), number(y + half)
            mean[f"{outcome}_t"] = (
                f"{point['series']}\n{ratio_text(point['ratio'], point['ratio_unit'])} removed\n"
                f"accuracy {interval(y, half, 2, '%')}\nmean of {point['seeds']} seeds"
            )
        means.append(mean)
    return {"runs": runs, "means": means}


def tradeoff_chart(
    points: pd.DataFrame,
    finished: pd.DataFrame,
    cost: Cost,
    outcome: str,
    styles: dict[str, Style],
    *,
    published: pd.DataFrame | None = None,
) -> Chart | None:
    """Returns what the runs of one task kept (an accuracy such as `pgd`) against what they saved; None without both.

    The specification lacks its `datasets`, which `datasets` returns from the same points and runs. `published` are
    points of papers, drawn as marks of their own where the chart is of accuracy against MACs.
    """
    x, y = cost.column, f"{outcome}_pruned_pct"
    shown = points[points[x].notna() & points[y].notna()]
    if shown.empty:
        return None
    base = points[f"{outcome}_base_pct"].mean()
    marks = tradeoff.beside(published, cost, outcome)
    low, high = tradeoff.accuracy_range(
        [*finished.loc[finished[x].notna(), y], *shown[y], base, *marks["accuracy_pct"]]
    )
    return _chart(
        "tradeoff",
        cost=cost,
        outcome=outcome,
        low=low,
        high=high,
        base=number(base),
        base_text=f"baseline {base:.2f} %",
        ringed=tradeoff.is_main(cost, outcome),
        marks=[
            {"x": number(mark["macs_reduction_pct"]), "y": number(mark["accuracy_pct"]), "t": mark["text"]}
            for _, mark in marks.iterrows()
        ],
        series=list(styles),
        looks={
            "color": [style.colour for style in styles.values()],
            "shape": [style.shape for style in styles.values()],
            "strokeDash": [style.dashes_px for style in styles.values()],
        },
    )


def phase_chart(phases: pd.DataFrame) -> Chart | None:
    """Returns the energy of a run by phase, a bar per series; None where no run has it."""
    if phases.empty:
        return None
    values = [
        {"s": str(series), "x": number(wh), "phase": phase, "i": i, "t": f"{series}\n{phase}: {significant(wh)} Wh"}
        for series, used in phases.iterrows()
        for i, (phase, wh) in enumerate(used.items())
        if np.isfinite(wh)
    ]
    height = _ROW_HEIGHT_PX * len(phases)
    colours = [colour for phase, colour in zip(PHASES.values(), PHASE_COLOURS, strict=True) if phase in phases]
    return _chart("phases", values=values, height=height, phases=list(phases), colours=colours)


def curve_chart(curve: pd.DataFrame) -> Chart:
    """Returns accuracy under one attack over epsilon, a line per network, from `robustness.curves`."""
    looks = curve_styles(curve)
    values = [
        {
            "s": line["line"],
            "x": number(line["eps255"]),
            "y": number(line["accuracy_pct"]),
            "t": f"{line['line']}\n{line['attack']} {line['eps255']:g}/255: {line['accuracy_pct']:.2f} %",
        }
        for _, line in _records(curve[curve["line"].isin(looks)])
    ]
    return _chart(
        "curve",
        values=values,
        series=list(looks),
        colours=[style.colour for style in looks.values()],
        shapes=[style.shape for style in looks.values()],
        dashes=[style.dashes_px for style in looks.values()],
    )


def heat_chart(table: pd.DataFrame, unit: str) -> Chart:
    """Returns a table of numbers, whose index has several levels, as a heat map with the values written in it."""
    columns = table.shape[1]
    values = [
        {
            "x": str(column),
            "y": row,
            "z": number(value),
            "v": f"{value:.1f}",
            "t": f"{row}\n{column}: {value:.2f} {unit}",
        }
        for row, (_, line) in zip(map(", ".join, table.index), table.iterrows(), strict=True)
        for column, value in line.items()
        if np.isfinite(value)
    ]
    return _chart(
        "heat",
        values=values,
        unit=unit,
        columns=columns,
        width=_COLUMN_WIDTH_PX * columns if columns > _MOST_NARROW_COLUMNS else "container",
        height=_ROW_HEIGHT_PX * len(table),
        middle=number((np.nanmin(table.to_numpy()) + np.nanmax(table.to_numpy())) / 2),
    )


def number(value: float) -> float | None:
    """Returns a number as JSON knows it: None for NaN, six significant digits."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _chart(name: str, **values: object) -> Chart:
    specification: Chart = json.loads(templates().get_template(f"{name}.vl.json.j2").render(neutral=NEUTRAL, **values))
    return specification


def _records(table: pd.DataFrame) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the index and the values of each line: a plain dict is read much faster than a Series."""
    for index, record in zip(table.index, table.to_dict("records"), strict=True):
        yield int(index), {str(name): value for name, value in record.items()}


def _numbers(line: dict[str, Any], outcomes: Sequence[str]) -> dict[str, float | None]:
    saved = {cost.name: number(line[cost.column]) for cost in tradeoff.COSTS}
    return saved | {outcome: number(line[f"{outcome}_pruned_pct"]) for outcome in outcomes}
