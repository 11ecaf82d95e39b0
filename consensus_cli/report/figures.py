"""The charts as files for papers: PNG, SVG and PDF, fonts embedded, readable in grey."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from consensus_cli.report import energy, robustness, tradeoff
from consensus_cli.report.palette import PHASE_COLOURS, SCALE, Style, curve_styles, styles
from consensus_cli.report.published import published
from consensus_cli.report.removal import MOST_NETWORKS, Removal, chosen
from consensus_cli.report.runs import Runs, attacks
from consensus_cli.report.tradeoff import Cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
#: more lines than these make a legend that covers the chart
_MOST_IN_LEGEND = 14
_STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "consensus",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "savefig.bbox": "tight",
    # Names come from files: a dollar sign in them is a dollar sign.
    "text.parse_math": False,
}
_HATCHES = ("", "//", "xx", "..", "--", "++")
_HEAT_LABELS = {"corruption": "accuracy (%)", "shortcut": "shortcut reliance (pp)"}


def write_figures(runs: Runs, folder: Path) -> list[Path]:
    """Draws every chart of the report into a folder and returns the files.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Figure | None] = {}
    marks = published(runs.finished)
    for task, points in tradeoff.points(runs.finished).groupby("task"):
        finished = runs.finished[runs.finished["task"] == task]
        looks = styles(points["series"])
        stem = slug(str(task))
        for cost in tradeoff.COSTS:
            found[f"{stem}_tradeoff_{cost.name}"] = tradeoff_figure(
                points, cost, "accuracy", looks, published=marks[marks["task"] == task]
            )
        for name in attacks(finished):
            found[f"{stem}_robustness_{name}"] = tradeoff_figure(points, tradeoff.COSTS[0], name, looks)
        for attack, curve in robustness.curves(finished).groupby("attack"):
            found[f"{stem}_curve_{slug(str(attack))}"] = curve_figure(curve)
        found[f"{stem}_energy_phases"] = phase_figure(energy.by_phase(finished).droplevel("task"))
        for name, _, _, table in robustness.heat_tables(finished):
            found[f"{stem}_{name}"] = heat_figure(table, _HEAT_LABELS[name])
    for number, network in enumerate(chosen(runs, MOST_NETWORKS)[0], start=1):
        if network.steps:
            found[f"removal_{number:02}_{slug(network.title)}"] = removal_figure(network)
            found[f"ranks_{number:02}_{slug(network.title)}"] = rank_figure(network)
    return [path for name, figure in found.items() if figure for path in save(figure, folder / name)]


def tradeoff_figure(
    points: pd.DataFrame,
    cost: Cost,
    outcome: str,
    looks: dict[str, Style],
    *,
    published: pd.DataFrame | None = None,
) -> Figure | None:
    """Returns accuracy against saving, a line per series with 95 % intervals over seeds; None where nothing has both.

    `points` are means over seeds, of one task; `outcome` is the accuracy on the vertical axis, such as `pgd`;
    `published` are points of papers.
    """
    x, y = cost.column, f"{outcome}_pruned_pct"
    shown = points[points[x].notna() & points[y].notna()]
    if shown.empty:
        return None
    figure, axes = blank(4.6, 3.2)
    base = points[f"{outcome}_base_pct"].mean()
    marks = tradeoff.beside(published, cost, outcome)
    axes.set_ylim(*tradeoff.accuracy_range([*shown[y], base, *marks["accuracy_pct"]]))
    for series, group in shown.groupby("series"):
        _draw_line(axes, str(series), group.sort_values("ratio"), (x, y), looks[str(series)])
    if np.isfinite(base):
        axes.axhline(base, color="0.45", linestyle=(0, (4, 3)), linewidth=1, label=f"baseline, {base:.2f} %")
    if len(marks):
        axes.plot(marks["macs_reduction_pct"], marks["accuracy_pct"], "*", color="0.45", label="published, as changes")
    if tradeoff.is_main(cost, outcome):
        front = shown[shown["pareto"]]
        axes.plot(front[x], front[y], "o", markersize=12, fillstyle="none", color="0.45", label="Pareto front")
    axes.set_xlabel(f"saving in {cost.label} (%)")
    axes.set_ylabel("accuracy (%)")
    if shown["series"].nunique() <= _MOST_IN_LEGEND:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def curve_figure(curve: pd.DataFrame) -> Figure:
    """Returns accuracy under one attack over epsilon, a line per network, from `robustness.curves`."""
    figure, axes = blank(4.6, 3.2)
    for line, look in curve_styles(curve).items():
        own = curve[curve["line"] == line]
        axes.plot(own["eps255"], own["accuracy_pct"], label=line, **look.line)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epsilon (1/255)")
    axes.set_ylabel(f"accuracy under {curve['attack'].iloc[0]} (%)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def phase_figure(phases: pd.DataFrame) -> Figure | None:
    """Returns the energy of a run by phase, a bar per series, from `energy.by_phase` of one task."""
    if phases.empty:
        return None
    figure, axes = blank(5.0, 0.9 + 0.3 * len(phases))
    left = np.zeros(len(phases))
    for phase, colour, hatch in zip(energy.PHASES.values(), PHASE_COLOURS, _HATCHES, strict=True):
        if phase in phases:
            used = phases[phase].fillna(0)
            axes.barh(range(len(phases)), used, left=left, color=colour, hatch=hatch, edgecolor="white", label=phase)
            left += used.to_numpy()
    axes.set_yticks(range(len(phases)), [str(series) for series in phases.index])
    axes.invert_yaxis()
    axes.set_xlabel("energy per run (Wh)")
    axes.grid(visible=False, axis="y")
    axes.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def removal_figure(network: Removal) -> Figure:
    """Returns steps × blocks, coloured by importance within the step, a cross on what goes; it needs scores."""
    shares = np.full((len(network.steps), len(network.blocks)), np.nan)
    for row, step in enumerate(network.steps):
        low, high = step.importance.min(), step.importance.max()
        for block, importance in step.importance.items():
            share = (importance - low) / (high - low) if high > low else 1
            shares[row, network.blocks.index(str(block))] = share
    figure, axes = blank(1.6 + 0.28 * len(network.blocks), 1.3 + 0.22 * len(network.steps))
    numbers = [str(number) for number in range(1, len(network.steps) + 1)]
    _heat(axes, pd.DataFrame(shares, numbers, network.blocks), "importance, 0 = least", (0, 1))
    for row, step in enumerate(network.steps):
        for column in map(network.blocks.index, step.removed):
            axes.plot(column, row, "x", color="white" if shares[row, column] < 0.5 else "black", markersize=6)
    axes.set_xlabel("block")
    axes.set_ylabel("step (× goes)")
    return figure


def rank_figure(network: Removal) -> Figure:
    """Returns metrics × blocks, coloured by the rank before the first step; it needs scores."""
    ranks = network.steps[0].ranks
    figure, axes = blank(2.6 + 0.28 * len(ranks), 1.3 + 0.22 * ranks.shape[1])
    _heat(axes, ranks.T, "rank, 1 = least important", (1, max(2, len(ranks))))
    axes.set_xlabel("block")
    return figure


def heat_figure(table: pd.DataFrame, unit: str) -> Figure:
    """Returns a table of numbers as a heat map with the values written in it."""
    figure, axes = blank(3.0 + 0.55 * table.shape[1], 1.2 + 0.26 * len(table))
    values = table.to_numpy()
    low, high = np.nanmin(values), np.nanmax(values)
    _heat(axes, table.set_axis(list(map(", ".join, table.index))), unit, (low, high if high > low else low + 1))
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < (low + high) / 2 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
    for label in axes.get_xticklabels():
        label.set(rotation=45, ha="right")
    return figure


def save(figure: Figure, stem: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Writes a figure in each format, the same bytes for the same figure, and returns the files."""
    import matplotlib

    written = []
    with matplotlib.rc_context(_STYLE):
        for kind in formats:
            path = stem.with_name(f"{stem.name}.{kind}")
            dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
            figure.savefig(path, dpi=200, metadata=dated)
            written.append(path)
    return written


def slug(text: str) -> str:
    """Returns a text as part of a file name: letters, digits and hyphens, at most 60 of them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "unnamed"


def blank(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """Returns an empty figure of a width and height in inches and its axes, in the style of the report."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        return figure, figure.subplots()


def _heat(axes: Axes, table: pd.DataFrame, label: str, limits: tuple[float, float]) -> None:
    image = axes.imshow(table.to_numpy(), cmap=SCALE, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.grid(visible=False)
    axes.figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    axes.set_xticks(range(table.shape[1]), list(table.columns), rotation=90)
    axes.set_yticks(range(len(table)), list(table.index))


def _draw_line(axes: Axes, series: str, group: pd.DataFrame, columns: tuple[str, str], style: Style) -> None:
    x, y = columns
    low, high = axes.get_ylim()
    half = group[f"{y}_ci95"]
    # An interval beyond both ends of the axis (two seeds, mostly) would be a line through the whole figure.
    fits = (group[y] - half > low) | (group[y] + half < high)
    axes.errorbar(group[x], group[y], half.where(fits).fillna(0), label=series, capsize=2, **style.line)
