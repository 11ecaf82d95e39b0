"""The interactive charts, as plain plotly figures: the page adds colours of the theme and the text of single runs."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd

from consensus_cli.report.energy import STAGE_LABELS
from consensus_cli.report.numerals import interval
from consensus_cli.report.palette import COLOURS, Style
from consensus_cli.report.series import ratio_text
from consensus_cli.report.tradeoff import Cost

Chart = dict[str, Any]
_MARGIN = {"l": 56, "r": 12, "t": 12, "b": 46}
#: hatching tells stages apart in grey
_PATTERNS = ("", "/", "x", ".")


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
    shown = points[points[x].notna() & points[y].notna()]
    if shown.empty:
        return None
    data: list[Chart] = []
    for series, group in shown.groupby("series"):
        style = styles[str(series)]
        runs = finished[(finished["series"] == series) & finished[x].notna() & finished[y].notna()]
        data.append(_run_trace(str(series), runs, x, y, style))
        data.append(_mean_trace(str(series), group.sort_values("ratio"), x, y, style))
    if outcome == "accuracy" and cost.name == "macs":
        front = shown[shown["pareto"]].sort_values(x)
        data.append(_front_trace(front, x, y))
    layout = _layout(f"saving in {cost.label} (%)", "accuracy (%)")
    base = points[f"{outcome}_base_pct"].mean()
    if np.isfinite(base):
        layout |= _baseline(base)
    return {"data": data, "layout": layout}


def stage_chart(stages: pd.DataFrame) -> Chart | None:
    """Returns the energy of a run by stage, a bar per series; None where no run tells it."""
    if stages.empty:
        return None
    labels = [html.escape(str(series)) for series in stages.index]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": stage,
            "y": labels,
            "x": numbers(stages[stage]),
            "marker": {"color": COLOURS[i], "pattern": {"shape": _PATTERNS[i], "fgcolor": "#ffffff", "size": 6}},
            "hovertemplate": f"%{{y}}<br>{stage}: %{{x:.3g}} Wh<extra></extra>",
        }
        for i, stage in enumerate(STAGE_LABELS)
    ]
    layout = _layout("energy per run (Wh)", "") | {"barmode": "stack", "showlegend": True, "height": 120 + 34 * len(labels)}
    layout["legend"] = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    layout["margin"] = _MARGIN | {"t": 60}
    layout["yaxis"] |= {"automargin": True, "autorange": "reversed"}
    return {"data": data, "layout": layout}


def heat_chart(table: pd.DataFrame, unit: str) -> Chart:
    """Returns a table of numbers as a heat map with the values written in it."""
    rows = [html.escape(", ".join(map(str, key)) if isinstance(key, tuple) else str(key)) for key in table.index]
    values = [numbers(row) for _, row in table.iterrows()]
    trace = {
        "type": "heatmap",
        "x": [html.escape(str(name)) for name in table.columns],
        "y": rows,
        "z": values,
        "colorscale": "Cividis",
        "texttemplate": "%{z:.1f}",
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": unit}, "thickness": 10},
        "hovertemplate": f"%{{y}}<br>%{{x}}: %{{z:.2f}} {unit}<extra></extra>",
    }
    layout = _layout("", "") | {"height": 120 + 26 * len(rows)}
    layout["xaxis"] |= {"automargin": True, "type": "category"}
    layout["yaxis"] |= {"automargin": True, "type": "category", "autorange": "reversed"}
    return {"data": [trace], "layout": layout}


def numbers(values: pd.Series) -> list[float | None]:
    """Returns numbers as JSON knows them: None for NaN, six significant digits."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _run_trace(series: str, runs: pd.DataFrame, x: str, y: str, style: Style) -> Chart:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": html.escape(series),
        "meta": {"series": series},
        "x": numbers(runs[x]),
        "y": numbers(runs[y]),
        "customdata": [int(str(index)) for index in runs.index],
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 6, "opacity": 0.45},
    }


def _mean_trace(series: str, group: pd.DataFrame, x: str, y: str, style: Style) -> Chart:
    texts = [
        [html.escape(ratio_text(point["ratio"], point["ratio_unit"])), interval(point[y], point[f"{y}_ci95"], 2, "%"), point["seeds"]]
        for _, point in group.iterrows()
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(series),
        "meta": {"series": series},
        "x": numbers(group[x]),
        "y": numbers(group[y]),
        "error_y": {"array": numbers(group[f"{y}_ci95"]), "thickness": 1.2, "width": 4, "color": style.colour},
        "customdata": texts,
        "hovertemplate": (
            f"<b>{html.escape(series)}</b><br>%{{customdata[0]}} removed<br>accuracy %{{customdata[1]}}"
            "<br>saving %{x:.1f} %<br>mean of %{customdata[2]} seeds<extra></extra>"
        ),
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 10},
    }


def _front_trace(front: pd.DataFrame, x: str, y: str) -> Chart:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "Pareto front",
        "x": numbers(front[x]),
        "y": numbers(front[y]),
        "hoverinfo": "skip",
        "marker": {"symbol": "circle-open", "size": 20, "line": {"width": 2}, "color": "#8C8C8C"},
    }


def _baseline(accuracy_pct: float) -> Chart:
    height = float(f"{accuracy_pct:.6g}")
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height}
    line["line"] = {"color": "#8C8C8C", "dash": "dash", "width": 1.5}
    note = {"xref": "paper", "x": 1, "y": height, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
    return {"shapes": [line], "annotations": [note | {"text": f"baseline {height:.2f} %"}]}


def _layout(x_title: str, y_title: str) -> Chart:
    return {
        "margin": dict(_MARGIN),
        "height": 340,
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "xaxis": {"title": {"text": x_title}, "zeroline": False},
        "yaxis": {"title": {"text": y_title}, "zeroline": False},
    }
