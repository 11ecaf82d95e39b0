"""Makes the figures of the README from real runs: prunes ResNet20 on digits by four criteria, in about ten minutes.

Usage: python scripts/make_figures.py [OUTPUT_DIR [FIGURES_DIR]]; runs that are already in OUTPUT_DIR are not repeated.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from consensus_cli.report import figures, removal, tradeoff
from consensus_cli.report.palette import styles
from consensus_cli.report.source import Runs, load

SWEEP = (
    "experiment=smoke",
    "criterion=consensus,cka,weight_norm,random",
    "ratio=0.34,0.67",
    "seed=0,1,2",
)


def main(output_dir: Path, folder: Path) -> None:
    """Runs the sweep unless its results are there, and draws the figures."""
    if not (output_dir / "results.csv").is_file():
        command = [sys.executable, "-m", "consensus_cli", "run", "-m", *SWEEP, f"output_dir={output_dir}"]
        subprocess.run(command, check=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path in draw(load(output_dir), folder):
        print(path)


def draw(runs: Runs, folder: Path) -> list[Path]:
    """Draws accuracy against MACs, and the order in which the consensus removed blocks, as SVG."""
    points = tradeoff.points(runs.finished)
    chart = figures.tradeoff_figure(points, tradeoff.COSTS[0], "accuracy", styles(points["series"]))
    networks, _ = removal.chosen(runs, 1)
    drawn = [("tradeoff", chart)] + [("removal", figures.removal_figure(network)) for network in networks]
    return [path for name, figure in drawn if figure for path in figures.save(figure, folder / name, ("svg",))]


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/readme"),
        Path(sys.argv[2] if len(sys.argv) > 2 else "docs/figures"),
    )
