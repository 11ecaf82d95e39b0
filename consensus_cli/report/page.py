"""The page: everything gathered, put into the template, one HTML file that needs nothing else."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import matplotlib
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from matplotlib.colors import to_hex
from vl_convert import javascript_bundle

from consensus_cli import __version__
from consensus_cli.report import charts, energy, listing, removal, robustness, tradeoff
from consensus_cli.report.caveats import caveats
from consensus_cli.report.palette import SCALE, styles
from consensus_cli.report.removal import MOST_NETWORKS, Removal
from consensus_cli.report.source import Runs, attacks
from consensus_cli.report.text import front_table, overview

#: runs shown in the table until more are asked for: laying out thousands takes a browser seconds
MOST_LINES = 200
#: lines of a chart: with more, none can be followed
MOST_SERIES = 30
#: lines of the tables of robustness and energy, which are for the eye; the table of runs has every run
MOST_POINTS = 40
_SCALE_COLOURS = 32


@dataclass(frozen=True)
class Slot:
    """Where a chart stands on the page, with the figure that Vega draws there."""

    id: str
    section: str
    task: str
    caption: str
    figure: charts.Chart


def render(runs: Runs, title: str) -> str:
    """Returns the page about these runs: text from the rows is escaped, and nothing is fetched from anywhere."""
    points = tradeoff.points(runs.finished)
    front = tradeoff.front(points)
    slots = _slots(runs, points)
    networks, left_out = removal.chosen(runs, MOST_NETWORKS)
    shown = listing.columns(runs.rows)
    template = _environment().get_template("report.html.j2")
    return template.render(
        title=title,
        version=__version__,
        source=str(runs.source),
        overview=overview(runs, points),
        caveats=caveats(runs, points),
        front=front_table(front.head(MOST_POINTS)),
        left_out_points=max(0, len(front) - MOST_POINTS),
        tasks=sorted(runs.finished["task"].unique()),
        legends=_legends(points),
        slots=slots,
        attack_rows=robustness.attack_rows(front.head(MOST_POINTS), runs.finished) if attacks(runs.finished) else [],
        stage_rows=energy.stage_rows(runs.finished),
        stage_labels=energy.STAGE_LABELS,
        network_rows=energy.network_rows(front.head(MOST_POINTS), runs.finished),
        energy_sources=energy.sources(runs.finished),
        networks=networks,
        left_out_networks=left_out,
        columns=shown,
        most_lines=MOST_LINES,
        lines=listing.lines(runs.rows, shown),
        payload=_json(
            {
                "data": _data(runs, points),
                "charts": {slot.id: slot.figure for slot in slots},
                "networks": [_network(network) for network in networks],
                "scale": [to_hex(matplotlib.colormaps[SCALE](i / (_SCALE_COLOURS - 1))) for i in range(_SCALE_COLOURS)],
            }
        ),
        vega=_vega(),
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def _slots(runs: Runs, points: pd.DataFrame) -> list[Slot]:
    """Returns every chart of the page, those of one task after those of another."""
    found: list[tuple[str, str, str, charts.Chart | None]] = []
    for task, of_task in points.groupby("task"):
        looks = styles(tradeoff.drawn(of_task, MOST_SERIES))
        group = of_task[of_task["series"].isin(looks)]
        finished = runs.finished[(runs.finished["task"] == task) & runs.finished["series"].isin(looks)]
        for cost in tradeoff.COSTS:
            chart = charts.tradeoff_chart(group, finished, cost, "accuracy", looks)
            found.append(("tradeoff", str(task), f"Accuracy against saving in {cost.label}", chart))
        for name in attacks(finished):
            caption = f"Accuracy under {robustness.attack_label(name, finished)} against saving in MACs"
            chart = charts.tradeoff_chart(group, finished, tradeoff.COSTS[0], name, looks)
            found.append(("robustness", str(task), caption, chart))
        found += _heat_maps(str(task), finished)
        stages = energy.by_stage(finished).droplevel("task")
        found.append(("energy", str(task), "Energy of a run by stage", charts.stage_chart(stages)))
    return [
        Slot(f"chart-{i}", section, task, caption, figure)
        for i, (section, task, caption, figure) in enumerate(found)
        if figure is not None
    ]


def _data(runs: Runs, points: pd.DataFrame) -> dict[str, charts.Chart]:
    """Returns per task what its charts draw from."""
    found = {}
    for task, group in points.groupby("task"):
        drawn = tradeoff.drawn(group, MOST_SERIES)
        finished = runs.finished[(runs.finished["task"] == task) & runs.finished["series"].isin(drawn)]
        outcomes = ["accuracy", *attacks(finished)]
        found[str(task)] = charts.datasets(group[group["series"].isin(drawn)], finished, outcomes)
    return found


def _heat_maps(task: str, finished: pd.DataFrame) -> list[tuple[str, str, str, charts.Chart | None]]:
    found: list[tuple[str, str, str, charts.Chart | None]] = []
    for caption, unit, table in (
        ("Accuracy under corruption", "%", robustness.corruptions(finished)),
        ("Shortcut reliance (0: ignores the planted cue)", "pp", robustness.shortcuts(finished)),
    ):
        if not table.empty:
            found.append(("robustness", task, caption, charts.heat_chart(table.droplevel("task"), unit)))
    return found


def _legends(points: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "entries": list(styles(tradeoff.drawn(group, MOST_SERIES)).items()),
            "left_out": max(0, group["series"].nunique() - MOST_SERIES),
        }
        for task, group in points.groupby("task")
    ]


def _network(network: Removal) -> dict[str, Any]:
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


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("consensus_cli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _json(content: object) -> Markup:
    return htmlsafe_json_dumps(content, allow_nan=False, separators=(",", ":"))


@functools.cache
def _vega() -> Markup:
    """Returns Vega-Lite, Vega and Vega-Embed as one script that leaves `vegaEmbed` behind."""
    return Markup(javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", r"<\/script"))


def _asset(name: str) -> Markup:
    return Markup(files("consensus_cli.report").joinpath("templates", name).read_text(encoding="utf-8"))
