"""The interactive charts, as Vega-Lite specifications: the page adds a tooltip and the colours of its theme.

A datum carries what its tooltip says: `t` is that text, or `r` the number of the run whose text the page composes from
its table. Text is data in Vega and never markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from consensus_cli.report import tradeoff
from consensus_cli.report.energy import STAGE_LABELS
from consensus_cli.report.numerals import interval, significant
from consensus_cli.report.palette import NEUTRAL, STAGE_COLOURS, Style
from consensus_cli.report.series import ratio_text
from consensus_cli.report.tradeoff import Cost

Chart = dict[str, Any]
_ROW_HEIGHT_PX = 26
_COLUMN_WIDTH_PX = 36
_NUMBER_WIDTH_PX = 28
#: a heat map with more columns gets a line of the page for itself, and scrolls where that is too narrow
_MOST_NARROW_COLUMNS = 8
#: the page sets the signal to the one series to show, or to null for all
_ISOLATED = {"filter": "isolated === null || datum.s === isolated"}


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
    points: pd.DataFrame, finished: pd.DataFrame, cost: Cost, outcome: str, styles: dict[str, Style]
) -> Chart | None:
    """Returns what the runs of one task kept against what they saved; None where no run has both.

    Args:
        points: means over seeds, of the task.
        finished: its runs.
        cost: what pruning saved.
        outcome: the accuracy on the vertical axis, such as `accuracy` or `pgd`.
        styles: look of each series.

    Returns:
        A specification without data, to be completed with what `datasets` returns as its `datasets`.
    """
    x, y = cost.column, f"{outcome}_pruned_pct"
    shown = points[points[x].notna() & points[y].notna()]
    if shown.empty:
        return None
    base = points[f"{outcome}_base_pct"].mean()
    low, high = tradeoff.accuracy_range([*finished.loc[finished[x].notna(), y], *shown[y], base])
    layers = [_baseline(base)] if np.isfinite(base) else []
    if outcome == "accuracy" and cost.name == "macs":
        # Below the points: a ring on top of one would keep the pointer from it.
        layers.append(_front_layer())
    # On top: seeds lie close to their mean, and each is to be found by the pointer.
    layers += [*_mean_layers(outcome, (low, high)), _run_layer()]
    axis_x = {"field": cost.name, "title": f"saving in {cost.label} (%)", "scale": {"zero": False}}
    axis_y = {"field": outcome, "title": "accuracy (%)", "scale": {"domain": [low, high]}}
    axes = {name: axis | {"type": "quantitative"} for name, axis in (("x", axis_x), ("y", axis_y))}
    return {
        "width": "container",
        "height": 280,
        "params": [{"name": "isolated", "value": None}],
        "encoding": axes | _looks(styles),
        "layer": layers,
    }


def stage_chart(stages: pd.DataFrame) -> Chart | None:
    """Returns the energy of a run by stage, a bar per series; None where no run tells it."""
    if stages.empty:
        return None
    values = [
        {"s": str(series), "x": number(wh), "stage": stage, "i": i, "t": f"{series}\n{stage}: {significant(wh)} Wh"}
        for series, used in stages.iterrows()
        for i, (stage, wh) in enumerate(used.items())
        if np.isfinite(wh)
    ]
    return {
        "width": "container",
        "height": _ROW_HEIGHT_PX * len(stages),
        "data": {"values": values},
        "mark": {"type": "bar", "tooltip": True, "stroke": NEUTRAL, "strokeWidth": 0.5},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "stack": True, "title": "energy per run (Wh)"},
            "y": {"field": "s", "type": "nominal", "title": None, "sort": None},
            "order": {"field": "i"},
            "color": {
                "field": "stage",
                "type": "nominal",
                "scale": {"domain": list(STAGE_LABELS), "range": list(STAGE_COLOURS)},
                "legend": {"orient": "top", "title": None, "columns": 2},
            },
        },
    }


def heat_chart(table: pd.DataFrame, unit: str) -> Chart:
    """Returns a table of numbers as a heat map with the values written in it."""
    rows = [", ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in table.index]
    values = [
        {
            "x": str(column),
            "y": row,
            "z": number(value),
            "v": f"{value:.1f}",
            "t": f"{row}\n{column}: {value:.2f} {unit}",
        }
        for row, (_, line) in zip(rows, table.iterrows(), strict=True)
        for column, value in line.items()
        if np.isfinite(value)
    ]
    middle = (np.nanmin(table.to_numpy()) + np.nanmax(table.to_numpy())) / 2
    ink = {"condition": {"test": f"datum.z < {middle:.6g}", "value": "#ffffff"}, "value": "#000000"}
    # On a phone numbers would cover one another; the tooltip has them.
    readable = f"width / {table.shape[1]} >= {_NUMBER_WIDTH_PX} ? 1 : 0"
    wide = table.shape[1] > _MOST_NARROW_COLUMNS
    return {
        "width": _COLUMN_WIDTH_PX * table.shape[1] if wide else "container",
        "height": _ROW_HEIGHT_PX * len(table),
        "data": {"values": values},
        "encoding": {
            "x": {"field": "x", "type": "nominal", "title": None, "sort": None},
            "y": {"field": "y", "type": "nominal", "title": None, "sort": None},
        },
        "layer": [
            {
                "mark": {"type": "rect", "tooltip": True},
                "encoding": {
                    "color": {
                        "field": "z",
                        "type": "quantitative",
                        "scale": {"scheme": "cividis", "zero": False},
                        "legend": {"title": unit},
                    }
                },
            },
            {
                "mark": {"type": "text", "tooltip": True, "opacity": {"expr": readable}},
                "encoding": {"text": {"field": "v"}, "color": ink},
            },
        ],
    }


def number(value: float) -> float | None:
    """Returns a number as JSON knows it: None for NaN, six significant digits."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _looks(styles: dict[str, Style]) -> Chart:
    """Returns how a series is told from others: by colour, and in grey by marker and dash."""
    domain = list(styles)
    looks = {
        "color": [style.colour for style in styles.values()],
        "shape": [style.shape for style in styles.values()],
        "strokeDash": [list(style.dashes_px) for style in styles.values()],
    }
    return {
        channel: {"field": "s", "type": "nominal", "scale": {"domain": domain, "range": values}, "legend": None}
        for channel, values in looks.items()
    }


def _records(table: pd.DataFrame) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the index and the values of each line: a plain dict is read much faster than a Series."""
    for index, record in zip(table.index, table.to_dict("records"), strict=True):
        yield int(index), {str(name): value for name, value in record.items()}


def _numbers(line: dict[str, Any], outcomes: Sequence[str]) -> dict[str, float | None]:
    saved = {cost.name: number(line[cost.column]) for cost in tradeoff.COSTS}
    return saved | {outcome: number(line[f"{outcome}_pruned_pct"]) for outcome in outcomes}


def _run_layer() -> Chart:
    mark = {"type": "point", "filled": True, "size": 30, "opacity": 0.6, "tooltip": True, "clip": True}
    mark |= {"stroke": "#ffffff", "strokeWidth": 0.5}
    return {
        "name": "runs",
        "data": {"name": "runs"},
        "transform": [_ISOLATED],
        "mark": mark,
        "encoding": {"strokeDash": None},
    }


def _mean_layers(outcome: str, shown_pct: tuple[float, float]) -> list[Chart]:
    own: Chart = {"data": {"name": "means"}}
    # An interval beyond both ends of the axis (two seeds, mostly) would be a line through the whole chart.
    low, high = shown_pct
    fits = f"datum.{outcome}_low > {low:.6g} || datum.{outcome}_high < {high:.6g}"
    with_interval = [_ISOLATED, {"filter": f"isValid(datum.{outcome}_low) && ({fits})"}]
    ends = {"y": {"field": f"{outcome}_low"}, "y2": {"field": f"{outcome}_high"}}
    return [
        own
        | {
            "transform": with_interval,
            "mark": {"type": "rule", "clip": True, "strokeWidth": 1.5},
            "encoding": {"shape": None, "strokeDash": None, **ends},
        },
        own
        | {
            "transform": [_ISOLATED],
            "mark": {"type": "line", "clip": True, "strokeWidth": 2},
            "encoding": {"shape": None, "order": None},
        },
        own
        | {
            "name": "means",
            "transform": [_ISOLATED, {"calculate": f"datum.{outcome}_t", "as": "t"}],
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1, "tooltip": True, "clip": True},
            "encoding": {"strokeDash": None},
        },
    ]


def _front_layer() -> Chart:
    return {
        "name": "front",
        "data": {"name": "means"},
        "transform": [_ISOLATED, {"filter": "datum.front"}],
        "mark": {"type": "point", "size": 420, "filled": False, "stroke": NEUTRAL, "strokeWidth": 2},
        "encoding": {"color": None, "shape": None, "strokeDash": None},
    }


def _baseline(accuracy_pct: float) -> Chart:
    text = f"baseline {accuracy_pct:.2f} %"
    values = {"values": [{"base": number(accuracy_pct), "t": text}]}
    plain = {"y": {"field": "base"}, "x": None, "color": None, "shape": None, "strokeDash": None}
    rule = {"type": "rule", "strokeDash": [5, 4], "stroke": NEUTRAL, "strokeWidth": 1.5}
    label = {"type": "text", "align": "right", "baseline": "bottom", "dy": -3, "fill": NEUTRAL, "text": text}
    return {
        "name": "baseline",
        "data": values,
        "layer": [
            {"mark": rule | {"tooltip": True}, "encoding": plain},
            {"mark": label | {"x": {"expr": "width"}}, "encoding": plain},
        ],
    }
