"""The summary of one run: `summary.md` in its directory, and two figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from consensus_cli.report import certificates, figures
from consensus_cli.report.attribution import sentences
from consensus_cli.report.comparison import Change, run_changes
from consensus_cli.report.formatting import command, duration, ratio_text
from consensus_cli.report.palette import COLOURS
from consensus_cli.report.removal import Removal, read_scores, removal
from consensus_cli.report.text import escape_markdown, markdown_table
from consensus_cli.storage.atomic import write_atomic
from consensus_cli.storage.certificate import read_certificate
from consensus_cli.storage.rundir import RunDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_summary(run_dir: RunDir, row: Mapping[str, object]) -> list[Path]:
    """Writes the table baseline / pruned / change and the two key figures of a finished run; returns the files.

    Without readable scores in the run directory the figure of the removal is left out.
    """
    run, changes = run_changes(row)
    written = figures.save(comparison_figure(changes), run_dir.comparison_figure.with_suffix(""), ("svg",))
    gone = removal(run, read_scores(run_dir.scores))
    if gone.steps:
        written += figures.save(figures.removal_figure(gone), run_dir.removal_figure.with_suffix(""), ("svg",))
    write_atomic(run_dir.summary, _text(run, changes, gone, [path.name for path in written], read_certificate(run_dir)))
    return [run_dir.summary, *written]


def comparison_figure(changes: list[Change]) -> Figure:
    """Returns every measure of the pruned network in percent of the baseline's, which is the line at 100 %."""
    known = [change for change in changes if pd.notna(change.relative_pct)]
    figure, axes = figures.blank(5.0, 0.8 + 0.3 * len(known))
    axes.barh(range(len(known)), [change.relative_pct for change in known], color=COLOURS[0], height=0.6)
    axes.axvline(100, color="0.3", linestyle="--", linewidth=1)
    for height, change in enumerate(known):
        axes.annotate(f" {change.change}", (max(change.relative_pct, 100), height), va="center", fontsize=7)
    axes.set_yticks(range(len(known)), [change.label for change in known])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max([100, *(change.relative_pct for change in known)]))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("pruned network in % of the baseline")
    return figure


def _text(
    run: pd.Series, changes: list[Change], gone: Removal, drawn: list[str], certificate: Mapping[str, Any]
) -> str:
    title = f"{run['model']} on {run['dataset']} without {len(gone.removed)} blocks"
    table = [(change.label, change.before, change.after, change.change) for change in changes]
    told = filter(None, (*sentences(run.to_dict()), certificates.sentence(certificate)))
    parts = [
        f"# {escape_markdown(title)}",
        "",
        f"Run {escape_markdown(run['run_id'])}: criterion {escape_markdown(run['criterion'])}, "
        f"{ratio_text(run['ratio'], run['ratio_unit'])} to remove, seed {run['seed']:g}, "
        f"{escape_markdown(run['device'])}, {duration(run['duration_s'])}.",
        "",
        markdown_table(("", "original", "pruned", "change"), table),
        "",
        f"Accuracy over {run['test_images']:.0f} test images. Energy: {escape_markdown(run['energy_source'])}.",
        "",
        *(part for sentence in told for part in (escape_markdown(sentence), "")),
        f"Removed, in order: {escape_markdown(' '.join(gone.removed)) or 'nothing'}.",
        "",
        *(f"![{Path(name).stem}]({name})" for name in drawn),
        "",
        f"    {command(run['overrides'])}",
    ]
    return "\n".join(parts) + "\n"
