"""Plain lines, for logs and for wherever no terminal is; the other screens change what they show differently."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.table import Table

from consensus_cli.screen.events import Event, StageEnded, StageStarted

logger = logging.getLogger("consensus_cli")
# What a screen prints is logged as well; where no log is open, Python would print it a second time.
logger.addHandler(logging.NullHandler())

#: `report(description, done, total)` says how far some work is
Report = Callable[[str, int, int], None]

#: work that takes less is not worth a line
_WORTH_A_LINE_S = 2

#: work that takes longer says from time to time how far it is
_SIGN_OF_LIFE_S = 60


class Screen:
    """Prints lines and tables, and logs what it prints. Open it with `with`: some screens have something to put back.

    Args:
        console: where to print; standard output unless given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._last_sign_s = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaves the terminal as it was, however the body ended."""

    def show(self, event: Event) -> None:
        """Tells what happened."""
        for text in event.lines():
            self.line(text)

    def line(self, text: str) -> None:
        """Prints one line about what goes on, and logs it."""
        self._print(text)
        logger.info(text)

    def detail(self, text: str) -> None:
        """Logs one line that the screen is not bothered with."""
        logger.info(text)

    def warning(self, text: str) -> None:
        """Prints one line that the user should not overlook, and logs it."""
        self._print(f"warning: {text}", style="yellow")
        logger.warning(text)

    def result(self, text: str) -> None:
        """Prints one line of what was asked for, and logs it."""
        self._print(text)
        logger.info(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints results whose first column is text and whose others are right-aligned, and logs the rows."""
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in rows:
            table.add_row(*row)
            logger.info("%s", " | ".join(row))
        self.console.print(table)

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Tells that a stage begins and, unless it fails, that it is over."""
        self.show(StageStarted(stage))
        started_s = time.perf_counter()
        yield
        self.show(StageEnded(stage, time.perf_counter() - started_s))

    @contextmanager
    def progress(self, description: str) -> Iterator[Report]:
        """Yields what to tell the progress of the body to; the end of work that took long is worth a line."""
        started_s = self._last_sign_s = time.perf_counter()
        yield self._moved
        duration_s = time.perf_counter() - started_s
        logger.info("%s: %.1f s", description, duration_s)
        self._finished(description, duration_s)

    def _moved(self, doing: str, done: int, total: int) -> None:
        """Takes note of progress; a line for each step would bury what matters."""
        now_s = time.perf_counter()
        if now_s - self._last_sign_s > _SIGN_OF_LIFE_S:
            self._last_sign_s = now_s
            self._print(f"  {doing}: {done} of {total}")

    def _finished(self, description: str, duration_s: float) -> None:
        if duration_s > _WORTH_A_LINE_S:
            self._print(f"{description}: {duration_s:.1f} s")

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)


class QuietScreen(Screen):
    """Prints results and warnings; the rest is in the log."""

    def line(self, text: str) -> None:
        """Logs one line about what goes on."""
        logger.info(text)

    def _finished(self, description: str, duration_s: float) -> None:
        """Stays quiet."""

    def _moved(self, doing: str, done: int, total: int) -> None:
        """Stays quiet."""
