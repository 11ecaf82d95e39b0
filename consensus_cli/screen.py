"""What the user sees while a run goes on: rich on a terminal, plain lines elsewhere, and the same lines in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

logger = logging.getLogger("consensus_cli")

#: `report(description, done, total)` moves a progress bar
Report = Callable[[str, int, int], None]


class Screen:
    """Prints lines, progress bars and tables, and logs what it prints.

    Args:
        console: where to print; standard output unless given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True, highlight=False)

    def line(self, text: str) -> None:
        """Prints one line and logs it."""
        self.console.print(text, markup=False)
        logger.info(text)

    def detail(self, text: str) -> None:
        """Logs one line that the screen is not bothered with."""
        logger.info(text)

    def warning(self, text: str) -> None:
        """Prints one line that the user should not overlook, and logs it."""
        self.console.print(f"warning: {text}", style="yellow", markup=False)
        logger.warning(text)

    @contextmanager
    def progress(self, description: str) -> Iterator[Report]:
        """Shows a bar with the time left while the body runs; elsewhere than on a terminal, nothing but its end."""
        started = time.perf_counter()
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as bars:
            bar = bars.add_task(description, total=None)
            yield lambda doing, done, total: bars.update(bar, description=doing, completed=done, total=total)
        duration_s = time.perf_counter() - started
        logger.info("%s: %.1f s", description, duration_s)
        if not self.console.is_terminal and duration_s > 2:
            self.console.print(f"{description}: {duration_s:.1f} s", markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table whose first column is text and whose others are right-aligned, and logs its rows."""
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in rows:
            table.add_row(*row)
            logger.info("%s", " | ".join(row))
        self.console.print(table)
