"""The report as text: Markdown for pull requests, a LaTeX table for papers."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from consensus_cli.report import robustness, tradeoff
from consensus_cli.report.formatting import interval, ratio_text
from consensus_cli.report.overview import caveats, overview
from consensus_cli.report.runs import load

_MARKDOWN_SIGNS = re.compile(r"([\\`*_{}\[\]()#+!|~])")
_HEADINGS = ("task", "criterion", "removed", "seeds", "accuracy", "change", "MACs saved", "parameters saved")
_ATTACK_HEADINGS = ("task", "criterion", "removed", "images", "baseline", "pruned", "change")
_POINTS = """
## Trade-offs

Bold: on the Pareto front of accuracy and MACs. ±: 95 % interval over seeds.
"""


def markdown(source: Path) -> str:
    """Returns the report as Markdown: summary, warnings, every point, robustness of the Pareto front.

    Raises:
        UserError: there are no runs at `source`.
    """
    runs = load(source)
    points = tradeoff.points(runs.finished)
    parts = ["# Pruning report", "", *(escape_markdown(line) for line in overview(runs, points)), ""]
    parts += [f"- warning: {escape_markdown(line)}" for line in caveats(runs, points)]
    if not points.empty:
        parts += [_POINTS, markdown_table(_HEADINGS, point_rows(points), bold=list(points["pareto"]))]
    if attacked := robustness.attack_rows(tradeoff.front(points), runs.finished):
        parts += ["", "## Robustness of the Pareto front", "", markdown_table(_ATTACK_HEADINGS, attacked)]
    return "\n".join(parts) + "\n"


def latex(source: Path) -> str:
    """Returns every point as a LaTeX table (packages booktabs and longtable), the Pareto front marked by a star.

    Raises:
        UserError: there are no runs at `source`.
    """
    points = tradeoff.points(load(source).finished)
    rows = [[*row, "*" if front else ""] for row, front in zip(point_rows(points), points["pareto"], strict=True)]
    table = pd.DataFrame(rows, columns=[*_HEADINGS, "front"]).map(_one_line)
    styler = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    text: str = styler.to_latex(hrules=True, environment="longtable", column_format="lllrrrrrc")
    return text.replace("±", r"$\pm$").replace("−", r"$-$").replace("–", "--")


def point_rows(points: pd.DataFrame) -> list[list[str]]:
    """Returns a line per point: what it is, the accuracy it kept and the MACs and parameters it saved."""
    return [
        [
            point["task"],
            point["series"],
            ratio_text(point["ratio"], point["ratio_unit"]),
            str(point["seeds"]),
            _mean(point, "accuracy_pruned_pct", 2, "%"),
            _mean(point, "accuracy_delta_pp", 2, "pp", sign=True),
            _mean(point, "macs_reduction_pct", 1, "%"),
            _mean(point, "params_reduction_pct", 1, "%"),
        ]
        for _, point in points.iterrows()
    ]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool] = ()) -> str:
    """Returns a Markdown table; text in it cannot break the table or become markup."""
    marks = list(bold) or [False] * len(rows)
    lines = [list(headings), ["---"] * len(headings)]
    for row, mark in zip(rows, marks, strict=True):
        cells = [escape_markdown(cell) for cell in row]
        lines.append([f"**{cell}**" if mark and cell else cell for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    return html.escape(_MARKDOWN_SIGNS.sub(r"\\\1", _one_line(text)), quote=False)


def _mean(point: pd.Series, name: str, digits: int, unit: str, *, sign: bool = False) -> str:
    return interval(point[name], point[f"{name}_ci95"], digits, unit, sign)


def _one_line(text: str) -> str:
    return " ".join(text.split())
