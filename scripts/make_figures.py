"""Draws the figures of the README from the rows and scores of real runs.

Usage: python scripts/make_figures.py [SOURCE [FIGURES_DIR]], SOURCE as for `consensus report`. The default are the runs
kept in docs/figures/sweep: their results.csv as the sweep wrote it, and scores.csv of the run whose order is drawn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from consensus_cli.errors import UserError, tell
from consensus_cli.report import figures, removal, tradeoff
from consensus_cli.report.palette import styles
from consensus_cli.report.runs import Runs, load

ROOT = Path(__file__).parents[1]


def main(source: Path, folder: Path) -> None:
    """Draws the figures into a folder and names the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in draw(load(source), folder):
        print(path)


def draw(runs: Runs, folder: Path) -> list[Path]:
    """Draws accuracy against MACs, and the order in which the consensus removed blocks, as SVG."""
    points = tradeoff.points(runs.finished)
    chart = figures.tradeoff_figure(points, tradeoff.COSTS[0], "accuracy", styles(points["series"]))
    networks, _ = removal.chosen(runs, 1)
    drawn = [("tradeoff", chart)] + [("removal", figures.removal_figure(network)) for network in networks]
    return [path for name, figure in drawn if figure for path in figures.save(figure, folder / name, ("svg",))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the figures of the README.")
    parser.add_argument("source", nargs="?", type=Path, default=ROOT / "docs" / "figures" / "sweep")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "figures")
    asked = parser.parse_args()
    try:
        main(asked.source, asked.folder)
    except UserError as error:
        tell(error)
        sys.exit(2)
