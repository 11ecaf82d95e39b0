"""The interactive charts, as Vega-Lite specifications: the page adds a tooltip and the colours of its theme.

A datum carries what its tooltip says: `t` is that text, or `r` the number of the run whose text the page composes from
its table. Text is data in Vega and never markup.
"""

from __future__ import annotations

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
#: the page sets the signal to the one series to show, or to null for all
_ISOLATED = {"filter": "isolated === null || datum.s === isolated"}


def tradeoff_chart(
    points: pd.DataFrame, finished: pd.DataFrame, cost: Cost, outcome: str, styles: dict[str, Style]
) -> Chart | None:
    """Returns what the runs of one task kept against what they saved; None where no run has both.

    Args:
        points: means over seeds, of the task.
        finished: its runs; their index is what the page finds their text by.
        cost: what pruning saved.
        outcome: the accuracy on the vertical axis, such as `accuracy` or `pgd`.
        styles: look of each series.
    """
    x, y = cost.column, f"{outcome}_pruned_pct"
    shown = points[points[x].notna() & points[y].notna()].sort_values(["series", "ratio"])
    runs = finished[finished[x].notna() & finished[y].notna()]
    if shown.empty:
        return None
    base = points[f"{outcome}_base_pct"].mean()
    low, high = tradeoff.accuracy_range([*runs[y], *shown[y], base])
    layers = [_baseline(base)] if np.isfinite(base) else []
    layers += [_run_layer(runs, x, y), *_mean_layers(shown, x, y)]
    if outcome == "accuracy" and cost.name == "macs":
        layers.append(_front_layer(shown[shown["pareto"]], x, y))
    axis_x = {"field": "x", "type": "quantitative", "title": f"saving in {cost.label} (%)", "scale": {"zero": False}}
    axis_y = {"field": "y", "type": "quantitative", "title": "accuracy (%)", "scale": {"domain": [low, high]}}
    return {
        "width": "container",
        "height": 280,
        "params": [{"name": "isolated", "value": None}],
        "encoding": {"x": axis_x, "y": axis_y, **_looks(styles)},
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
        "height": {"step": _ROW_HEIGHT_PX},
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
    return {
        "width": "container",
        "height": {"step": _ROW_HEIGHT_PX},
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
            {"mark": {"type": "text", "tooltip": True}, "encoding": {"text": {"field": "v"}, "color": ink}},
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


def _run_layer(runs: pd.DataFrame, x: str, y: str) -> Chart:
    values = [
        {"x": number(saved), "y": number(kept), "s": series, "r": index}
        for index, saved, kept, series in zip(runs.index, runs[x], runs[y], runs["series"], strict=True)
    ]
    mark = {
        "type": "point",
        "filled": True,
        "size": 36,
        "opacity": 0.45,
        "tooltip": True,
        "clip": True,
        "strokeDash": [],
    }
    return {
        "name": "runs",
        "data": {"values": values},
        "transform": [_ISOLATED],
        "mark": mark,
        "encoding": {"strokeDash": None},
    }


def _mean_layers(shown: pd.DataFrame, x: str, y: str) -> list[Chart]:
    half = f"{y}_ci95"
    values = [
        {
            "x": number(point[x]),
            "y": number(point[y]),
            "s": point["series"],
            "low": number(point[y] - point[half]),
            "high": number(point[y] + point[half]),
            "t": f"{point['series']}\n{ratio_text(point['ratio'], point['ratio_unit'])} removed\n"
            f"accuracy {interval(point[y], point[half], 2, '%')}\nmean of {point['seeds']} seeds",
        }
        for point in shown.to_dict("records")
    ]
    own = {"data": {"values": values}, "transform": [_ISOLATED]}
    plain = {"shape": None, "strokeDash": None}
    with_interval = [_ISOLATED, {"filter": "isValid(datum.low)"}]
    return [
        own
        | {
            "transform": with_interval,
            "mark": {"type": "rule", "clip": True, "strokeWidth": 1.5},
            "encoding": plain | {"y": {"field": "low"}, "y2": {"field": "high"}},
        },
        own | {"mark": {"type": "line", "clip": True, "strokeWidth": 2}, "encoding": {"shape": None, "order": None}},
        own
        | {
            "name": "means",
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1, "tooltip": True, "clip": True},
            "encoding": {"strokeDash": None},
        },
    ]


def _front_layer(front: pd.DataFrame, x: str, y: str) -> Chart:
    columns = zip(front[x], front[y], front["series"], strict=True)
    values = [{"x": number(saved), "y": number(kept), "s": series} for saved, kept, series in columns]
    mark = {"type": "point", "size": 420, "filled": False, "stroke": NEUTRAL, "strokeWidth": 2}
    plain = {"color": None, "shape": None, "strokeDash": None}
    return {"name": "front", "data": {"values": values}, "transform": [_ISOLATED], "mark": mark, "encoding": plain}


def _baseline(accuracy_pct: float) -> Chart:
    text = f"baseline {accuracy_pct:.2f} %"
    values = {"values": [{"y": number(accuracy_pct), "t": text}]}
    plain = {"x": None, "color": None, "shape": None, "strokeDash": None}
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
