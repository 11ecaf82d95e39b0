"""`consensus report`: reads the runs, writes the page and, if asked for, the figures for papers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from consensus_cli.errors import UserError
from consensus_cli.report import figures as static
from consensus_cli.report.page import render
from consensus_cli.report.source import load
from consensus_cli.storage.atomic import write_atomic


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Attributes:
        page: the HTML file.
        figures: the static figures.
        runs: number of runs in the report, those that did not finish included.
        notes: what the source lacked or what could not be read, one sentence each.
    """

    page: Path
    figures: tuple[Path, ...]
    runs: int
    notes: tuple[str, ...]


def write_report(source: Path, out: Path, figures: Path | None = None) -> ReportResult:
    """Writes one HTML file about the runs of a results file, of its folder, or of a run directory.

    Args:
        source: `results.csv`, the folder that holds it or `runs/`, or a single run directory.
        out: the page; an earlier one is replaced whole or not at all.
        figures: a folder for every chart as PNG, SVG and PDF; made where absent.

    Raises:
        UserError: there are no runs at `source`, or `out` cannot be written.
    """
    for place, option in ((out, "--out"), (figures, "--figures")):
        if place is not None and place.exists() and place.is_dir() == (option == "--out"):
            what = "a folder" if place.is_dir() else "a file"
            raise UserError(f"'{place}' is {what}", f"choose another {option}")
    runs = load(source)
    page = render(runs, f"Pruning report: {source.resolve().name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, page)
        drawn = static.write_figures(runs, figures) if figures else []
    except OSError as error:
        raise UserError(f"cannot write '{error.filename or out}': {error.strerror}", "choose another --out") from None
    return ReportResult(out, tuple(drawn), len(runs.rows), runs.notes)
