"""The report as text: what is said on the page, Markdown for pull requests, a LaTeX table for papers."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from consensus_cli.report import robustness, tradeoff
from consensus_cli.report.caveats import caveats
from consensus_cli.report.numerals import fixed, interval
from consensus_cli.report.series import ratio_text
from consensus_cli.report.source import Runs, attacks, load

_MARKDOWN_SIGNS = re.compile(r"([\\`*_{}\[\]()#+!|~])")
_HEADINGS = ("task", "criterion", "removed", "seeds", "accuracy", "change", "MACs saved", "parameters saved")


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
        parts += [
            "",
            "## Trade-offs",
            "",
            "Bold: on the Pareto front of accuracy and MACs. ±: 95 % interval over seeds.",
            "",
        ]
        parts.append(markdown_table(_HEADINGS, _point_rows(points), bold=list(points["pareto"])))
    if attacks(runs.finished):
        rows = robustness.attack_rows(tradeoff.front(points), runs.finished)
        parts += ["", "## Robustness of the Pareto front", ""]
        parts.append(markdown_table(("task", "criterion", "removed", "images", "baseline", "pruned", "change"), rows))
    return "\n".join(parts) + "\n"


def latex(source: Path) -> str:
    """Returns every point as a LaTeX table (packages booktabs and longtable), the Pareto front marked by a star.

    Raises:
        UserError: there are no runs at `source`.
    """
    points = tradeoff.points(load(source).finished)
    rows = [[*row, "*" if front else ""] for row, front in zip(_point_rows(points), points["pareto"], strict=True)]
    table = pd.DataFrame(rows, columns=[*_HEADINGS, "front"]).map(_plain)
    styler = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    text: str = styler.to_latex(hrules=True, environment="longtable", column_format="lllrrrrrc")
    return text.replace("±", r"$\pm$").replace("−", r"$-$").replace("–", "--")


def overview(runs: Runs, points: pd.DataFrame) -> list[str]:
    """Returns what was run and what came of it, in a few sentences."""
    finished = runs.finished
    said = [f"{_count(len(runs.rows), 'run')}, {len(finished)} finished{_period(runs.rows)}."]
    for task, group in points.groupby("task"):
        said.append(
            f"{task}: {_listed(list(group['series'].unique()))}; {_count(int(group['runs'].sum()), 'run')} at "
            f"{_count(group['ratio'].nunique(), 'ratio')}, {_seeds(group['seeds'])}."
        )
    good = tradeoff.best(points)
    for _, point in good.iterrows():
        change = interval(point["accuracy_delta_pp"], point["accuracy_delta_pp_ci95"], 2, "pp", sign=True)
        said.append(
            f"{point['task']}: {point['series']} saves {fixed(point['macs_reduction_pct'], 1, '%')} of the MACs at "
            f"{change} accuracy, the most within {tradeoff.TOLERATED_LOSS_PP:g} pp of the baseline."
        )
    for task in sorted(set(points["task"]) - set(good["task"])):
        said.append(f"{task}: no point stays within {tradeoff.TOLERATED_LOSS_PP:g} pp of the baseline.")
    return said


def front_table(front: pd.DataFrame) -> list[list[str]]:
    """Returns a line per point of the Pareto front, for people."""
    return _point_rows(front)


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
    return html.escape(_MARKDOWN_SIGNS.sub(r"\\\1", _plain(text)), quote=False)


def _point_rows(points: pd.DataFrame) -> list[list[str]]:
    return [
        [
            point["task"],
            point["series"],
            ratio_text(point["ratio"], point["ratio_unit"]),
            str(point["seeds"]),
            interval(point["accuracy_pruned_pct"], point["accuracy_pruned_pct_ci95"], 2, "%"),
            interval(point["accuracy_delta_pp"], point["accuracy_delta_pp_ci95"], 2, "pp", sign=True),
            interval(point["macs_reduction_pct"], point["macs_reduction_pct_ci95"], 1, "%"),
            interval(point["params_reduction_pct"], point["params_reduction_pct_ci95"], 1, "%"),
        ]
        for _, point in points.iterrows()
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _seeds(seeds: pd.Series) -> str:
    low, high = seeds.min(), seeds.max()
    return f"{_count(high, 'seed')} each" if low == high else f"{low} to {high} seeds each"


def _period(rows: pd.DataFrame) -> str:
    days = sorted(set(rows["started_at"].str[:10]) - {""})
    if not days:
        return ""
    return f", on {days[0]}" if len(days) == 1 else f", from {days[0]} to {days[-1]}"


def _listed(names: Sequence[str]) -> str:
    most = 8
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _plain(text: str) -> str:
    return " ".join(text.split())
