"""`consensus report`: everything gathered, put into the template, one HTML file that needs nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.colors import to_hex
from vl_convert import javascript_bundle

from consensus_cli import __version__
from consensus_cli.errors import UserError
from consensus_cli.report import certificates, charts, energy, figures, removal, robustness, run_table, tradeoff
from consensus_cli.report.formatting import command
from consensus_cli.report.palette import SCALE, Style, styles
from consensus_cli.report.published import published
from consensus_cli.report.runs import Runs, attacks, load
from consensus_cli.report.text import caveats, control_lines, overview, point_rows
from consensus_cli.storage.atomic import write_atomic

#: runs shown in the table until more are asked for: laying out thousands takes a browser seconds
MOST_LINES = 200
#: lines of a chart: with more, none can be followed
MOST_SERIES = 30
#: lines of the tables of robustness and energy, which are for the eye; the table of runs has every run
MOST_POINTS = 40
_SCALE_COLOURS = 32


@dataclass(frozen=True)
class Slot:
    """A place for a chart on the page, with the figure that Vega draws there."""

    section: str
    task: str
    caption: str
    figure: charts.Chart


@dataclass(frozen=True)
class Task:
    """What the charts of one task draw: points and runs of the lines that fit, with their looks."""

    name: str
    points: pd.DataFrame
    finished: pd.DataFrame
    looks: dict[str, Style]
    left_out: int
    published: pd.DataFrame


def write_report(source: Path, out: Path, folder: Path | None = None) -> tuple[Runs, list[Path]]:
    """Writes one HTML file about some runs, and returns the runs and the files in `folder`.

    Args:
        source: `results.csv`, the folder that holds it or `runs/`, or a single run directory.
        out: the page; an earlier one is replaced whole or not at all.
        folder: where every chart goes as PNG, SVG and PDF; made where absent.

    Raises:
        UserError: there are no runs at `source`, or `out` cannot be written.
    """
    for place, option in ((out, "--out"), (folder, "--figures")):
        if place is not None and place.exists() and place.is_dir() == (option == "--out"):
            what = "a folder" if place.is_dir() else "a file"
            raise UserError(f"'{place}' is {what}", f"choose another {option}")
    runs = load(source)
    page = render(runs, f"Pruning report: {source.resolve().name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, page)
        drawn = figures.write_figures(runs, folder) if folder else []
    except OSError as error:
        raise UserError(f"cannot write '{error.filename or out}': {error.strerror}", "choose another --out") from None
    return runs, drawn


def render(runs: Runs, title: str) -> str:
    """Returns the page about these runs: text from the rows is escaped, and nothing is fetched from anywhere."""
    finished = runs.finished
    points = tradeoff.points(finished)
    front = tradeoff.front(points)
    tasks = [_task(str(name), group, finished) for name, group in points.groupby("task")]
    slots = [slot for task in tasks for slot in _slots(task)]
    networks, left_out = removal.chosen(runs, removal.MOST_NETWORKS)
    latest_first = runs.rows.sort_values("started_at", ascending=False, kind="stable")
    payload = {
        "data": {
            task.name: charts.datasets(task.points, task.finished, ["accuracy", *attacks(task.finished)])
            for task in tasks
        },
        "charts": {f"chart-{number}": slot.figure for number, slot in enumerate(slots)},
        "networks": [_network(network) for network in networks],
        "scale": [to_hex(matplotlib.colormaps[SCALE](i / (_SCALE_COLOURS - 1))) for i in range(_SCALE_COLOURS)],
    }
    template = charts.templates().get_template("report.html.j2")
    return template.render(
        title=title,
        version=__version__,
        source=str(runs.source),
        overview=overview(runs, points),
        caveats=caveats(runs, points),
        controls=control_lines(runs),
        front=point_rows(front.head(MOST_POINTS)),
        left_out_points=max(0, len(front) - MOST_POINTS),
        tasks=tasks,
        slots=slots,
        any_published=any(len(task.published) for task in tasks),
        attack_rows=robustness.attack_rows(front.head(MOST_POINTS), finished),
        phase_table=energy.phase_table(finished),
        network_rows=energy.network_rows(front.head(MOST_POINTS), finished),
        certificate_headings=certificates.HEADINGS,
        certificate_rows=certificates.rows(runs, MOST_POINTS),
        energy_sources=energy.sources(finished),
        networks=networks,
        left_out_networks=left_out,
        runs=latest_first,
        columns=run_table.columns(latest_first) if len(latest_first) else [],
        command=command,
        most_lines=MOST_LINES,
        payload=htmlsafe_json_dumps(payload, allow_nan=False, separators=(",", ":")),
        vega=_vega(),
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def _task(name: str, points: pd.DataFrame, finished: pd.DataFrame) -> Task:
    drawn = tradeoff.drawn(points, MOST_SERIES)
    runs = finished[(finished["task"] == name) & finished["series"].isin(drawn)]
    left_out = points["series"].nunique() - len(drawn)
    marks = published(finished[finished["task"] == name])
    return Task(name, points[points["series"].isin(drawn)], runs, styles(drawn), left_out, marks)


def _slots(task: Task) -> Iterator[Slot]:
    """Yields the charts of a task, of what was measured."""
    for cost in tradeoff.COSTS:
        if chart := charts.tradeoff_chart(
            task.points, task.finished, cost, "accuracy", task.looks, published=task.published
        ):
            yield Slot("tradeoff", task.name, f"Accuracy against saving in {cost.label}", chart)
    for name in attacks(task.finished):
        caption = f"Accuracy under {robustness.attack_label(name, task.finished)} against saving in MACs"
        if chart := charts.tradeoff_chart(task.points, task.finished, tradeoff.COSTS[0], name, task.looks):
            yield Slot("robustness", task.name, caption, chart)
    for attack, curve in robustness.curves(task.finished).groupby("attack", sort=False):
        yield Slot("robustness", task.name, f"Accuracy under {attack} over epsilon", charts.curve_chart(curve))
    for _, caption, unit, table in robustness.heat_tables(task.finished):
        yield Slot("robustness", task.name, caption, charts.heat_chart(table, unit))
    if chart := charts.phase_chart(energy.by_phase(task.finished).droplevel("task")):
        yield Slot("energy", task.name, "Energy of a run by phase", chart)


def _network(network: removal.Removal) -> dict[str, Any]:
    steps = [
        {
            "blocks": list(step.importance.index),
            "importance": [charts.number(value) for value in step.importance],
            "removed": list(step.removed),
            "metrics": list(step.ranks.columns),
            "ranks": step.ranks.to_numpy().T.tolist(),
            "tau": [[charts.number(value) for value in values] for values in step.tau.to_numpy()],
        }
        for step in network.steps
    ]
    return {"title": network.title, "blocks": list(network.blocks), "removed": list(network.removed), "steps": steps}


@functools.cache
def _vega() -> Markup:
    """Returns Vega-Lite, Vega and Vega-Embed as one script that leaves `vegaEmbed` behind."""
    return Markup(javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", r"<\/script"))


def _asset(name: str) -> Markup:
    return Markup(files("consensus_cli.report").joinpath("templates", name).read_text(encoding="utf-8"))
