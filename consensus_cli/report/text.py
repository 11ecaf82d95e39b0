"""The report as text: what was run, what came of it and what to beware of; Markdown, and a LaTeX table for papers."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from consensus_cli.errors import enumerated, one_line
from consensus_cli.evaluation.cost.cost_comparison import DISTURBING_PCT
from consensus_cli.report import energy, robustness, tradeoff
from consensus_cli.report.attribution import attributions
from consensus_cli.report.formatting import fixed, interval, ratio_text
from consensus_cli.report.runs import Runs, attacks, load

#: below this many images, the 95 % interval of an accuracy is wider than ±3 pp (binomial, at 50 %)
FEW_IMAGES = 1000
#: criteria that a sentence names
_MOST_NAMES = 8
_MARKDOWN_SIGNS = re.compile(r"([\\`*_{}\[\]()#+!|~])")
_HEADINGS = ("task", "criterion", "removed", "seeds", "accuracy", "change", "MACs saved", "parameters saved")
_ATTACK_HEADINGS = ("task", "criterion", "removed", "images", "original", "pruned", "change")
_POINTS = """
## Trade-offs

Bold: on the Pareto front of accuracy and MACs. ±: 95 % interval over seeds.
"""


def markdown(source: Path) -> str:
    """Returns the report as Markdown: summary, warnings, every point, robustness of the Pareto front."""
    runs = load(source)
    points = tradeoff.points(runs.finished)
    parts = ["# Pruning report", "", *(escape_markdown(line) for line in overview(runs, points)), ""]
    parts += [f"- warning: {escape_markdown(line)}" for line in caveats(runs, points)]
    if not points.empty:
        parts += [_POINTS, markdown_table(_HEADINGS, point_rows(points), bold=list(points["pareto"]))]
    if controlled := control_lines(runs):
        parts += ["", "## Controls", "", *(f"- {escape_markdown(line)}" for line in controlled)]
    if attacked := robustness.attack_rows(tradeoff.front(points), runs.finished):
        parts += ["", "## Robustness of the Pareto front", "", markdown_table(_ATTACK_HEADINGS, attacked)]
    return "\n".join(parts) + "\n"


def latex(source: Path) -> str:
    """Returns every point as a LaTeX table (packages booktabs and longtable), the Pareto front marked by a star."""
    points = tradeoff.points(load(source).finished)
    rows = [[*row, "*" if front else ""] for row, front in zip(point_rows(points), points["pareto"], strict=True)]
    table = pd.DataFrame(rows, columns=[*_HEADINGS, "front"]).map(one_line)
    styler = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    text: str = styler.to_latex(hrules=True, environment="longtable", column_format="lllrrrrrc")
    return text.replace("±", r"$\pm$").replace("−", r"$-$").replace("–", "--")


def overview(runs: Runs, points: pd.DataFrame) -> list[str]:
    """Returns what was run and the best point of each task."""
    days = sorted(set(runs.rows["started_at"].str[:10]) - {""})
    period = f", on {days[0]}" if len(days) == 1 else f", from {days[0]} to {days[-1]}" if days else ""
    own = runs.rows[runs.rows["control"] == ""]
    found = [f"{_count(len(own), 'run')}, {int(own['finished'].sum())} finished{period}."]
    if len(own) < len(runs.rows):
        found.append(f"{_count(len(runs.rows) - len(own), 'row')} of controls beside them.")
    for task, group in points.groupby("task"):
        low, high = group["seeds"].min(), group["seeds"].max()
        seeds = f"{_count(high, 'seed')} each" if low == high else f"{low} to {high} seeds each"
        found.append(
            f"{task}: {enumerated(group['series'].unique(), _MOST_NAMES)}; "
            f"{_count(int(group['runs'].sum()), 'run')} at {_count(group['ratio'].nunique(), 'ratio')}, {seeds}."
        )
    good = tradeoff.best(points)
    for _, point in good.iterrows():
        change = interval(point["accuracy_delta_pp"], point["accuracy_delta_pp_ci95"], 2, "pp", sign=True)
        found.append(
            f"{point['task']}: {point['series']} saves {fixed(point['macs_reduction_pct'], 1, '%')} of the MACs at "
            f"{change} accuracy, the most within {tradeoff.TOLERATED_LOSS_PP:g} pp of the baseline."
        )
    for task in sorted(set(points["task"]) - set(good["task"])):
        found.append(f"{task}: no point stays within {tradeoff.TOLERATED_LOSS_PP:g} pp of the baseline.")
    return found


def caveats(runs: Runs, points: pd.DataFrame) -> list[str]:
    """Returns the warnings about these runs, one sentence each, the notes of reading them last."""
    attacked = robustness.warnings(runs.finished)
    return [
        *_about_runs(runs.rows, points),
        *_about_measures(runs.finished),
        *attacked,
        *_mixture(runs.finished),
        *runs.notes,
    ]


def control_lines(runs: Runs) -> list[str]:
    """Returns of each run with controls what of its change in accuracy is owed to what, a sentence each."""
    return [
        f"{row['task']}, {row['series']}, {ratio_text(row['ratio'], row['ratio_unit'])}, seed {row['seed']:g}: {text}"
        for row, text in attributions(runs)
    ]


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
    return html.escape(_MARKDOWN_SIGNS.sub(r"\\\1", one_line(text)), quote=False)


def _about_runs(rows: pd.DataFrame, points: pd.DataFrame) -> Iterator[str]:
    counts = rows.loc[~rows["finished"], "status"].value_counts()
    if not counts.empty:
        parts = " and ".join(f"{count} {status}" for status, count in counts.items())
        yield f"{parts} of {len(rows)} runs: they are in the table of runs and in nothing else."
    if single := int((points["seeds"] < 2).sum()):
        which = "Every point is" if single == len(points) else f"{single} of {len(points)} points are"
        yield f"{which} from a single seed: without an interval, a difference between criteria may be chance."


def _about_measures(finished: pd.DataFrame) -> Iterator[str]:
    estimated = energy.is_estimated(finished)
    if estimated.any():
        yield (
            f"The energy of {int(estimated.sum())} of {len(finished)} runs is an estimate from processor load, not a "
            "counter's reading: it adds little beyond the run time."
        )
    measured = {"test_images": "measured"} | ({"attacked_images": "attacked"} if attacks(finished) else {})
    for column, what in measured.items():
        few = finished.loc[finished[column] < FEW_IMAGES, column]
        if not few.empty:
            yield (
                f"Accuracy is {what} on as few as {few.min():.0f} images in {len(few)} of {len(finished)} runs: "
                f"below {FEW_IMAGES:,} images, chance moves it by more than 3 pp."
            )
    left_out = finished[~finished["macs_uncounted"].isin(["", "nothing"])]
    for model, uncounted in left_out[["model", "macs_uncounted"]].drop_duplicates().itertuples(index=False):
        yield f"{model}: MACs leave out {uncounted}."


def _mixture(finished: pd.DataFrame) -> Iterator[str]:
    for task, group in finished.groupby("task"):
        devices = sorted(set(group["device"]) - {""})
        if len(devices) > 1:
            yield f"{task}: latency and energy come from different devices ({', '.join(devices)})."
        if group["threads"].nunique() > 1:
            yield f"{task}: latency was measured with different numbers of threads."
        if (group["other_load_pct"] > DISTURBING_PCT).any():
            yield f"{task}: other programs ran while latency and energy were measured, see `other_load_pct`."
        if group["energy_source"].nunique() > 1:
            yield f"{task}: energy was read in different ways, see the section on energy."
    versions = sorted(set(finished["version"]) - {""})
    if len(versions) > 1:
        yield f"The runs come from different versions of the program: {', '.join(versions)}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _mean(point: pd.Series, name: str, digits: int, unit: str, *, sign: bool = False) -> str:
    return interval(point[name], point[f"{name}_ci95"], digits, unit, sign)
