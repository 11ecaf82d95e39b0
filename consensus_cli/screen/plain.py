"""Plain lines, for logs and wherever there is no terminal; the other screens change what they show differently."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import ClassVar, Self

from rich.console import Console
from rich.table import Table

from consensus_cli.screen.events import Event, Noted, Progressed, StageEnded, StageStarted, Warned

logger = logging.getLogger("consensus_cli")
# What a screen prints is logged as well; where no log is open, Python would print it a second time.
logger.addHandler(logging.NullHandler())

#: `report(description, done, total)` reports how far some work is
Report = Callable[[str, int, int], None]

#: work that takes less is not worth a line
_WORTH_A_LINE_S = 2

#: work that takes longer gets a line from time to time
_SIGN_OF_LIFE_S = 60


class Screen:
    """Prints lines and tables, and logs what it prints. Open it with `with`: some screens have something to put back.

    Args:
        console: where to print; standard output unless given.
    """

    #: whether work that takes long gets lines of its own
    _prints_progress: ClassVar[bool] = True

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._last_sign_s = time.perf_counter()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaves the terminal as it was, however the body ended."""
        self._close(error)

    def show(self, event: Event) -> None:
        """Prints and logs the lines of an event."""
        for text in event.lines():
            logger.log(event.level, text)
            self._print(event, text)
        if isinstance(event, Progressed) and self._prints_progress:
            now_s = time.perf_counter()
            # A line for each step would bury what matters.
            if now_s - self._last_sign_s > _SIGN_OF_LIFE_S:
                self._last_sign_s = now_s
                self.console.print(f"  {event.doing}: {event.done} of {event.total}", markup=False)

    def line(self, text: str) -> None:
        """Shows one line about what goes on."""
        self.show(Noted(text))

    def warning(self, text: str) -> None:
        """Shows one line that the user should not overlook."""
        self.show(Warned(text))

    def detail(self, text: str) -> None:
        """Logs one line without printing it."""
        logger.info(text)

    def result(self, text: str) -> None:
        """Prints one line of the result, and logs it."""
        self.console.print(text, markup=False)
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
        """Shows that a phase begins and, unless it fails, that it is over."""
        self.show(StageStarted(stage))
        started_s = time.perf_counter()
        yield
        self.show(StageEnded(stage, time.perf_counter() - started_s))

    @contextmanager
    def progress(self, description: str) -> Iterator[Report]:
        """Yields what the body reports its progress to; the end of work that took long is worth a line."""
        started_s = self._last_sign_s = time.perf_counter()
        yield lambda doing, done, total: self.show(Progressed(doing, done, total))
        duration_s = time.perf_counter() - started_s
        logger.info("%s: %.1f s", description, duration_s)
        if self._prints_progress and duration_s > _WORTH_A_LINE_S:
            self.console.print(f"{description}: {duration_s:.1f} s", markup=False)

    def _open(self) -> None:
        """Prepares the terminal."""

    def _close(self, error: BaseException | None) -> None:
        """Puts the terminal back."""

    def _print(self, event: Event, text: str) -> None:
        if isinstance(event, Warned):
            self.console.print(f"warning: {text}", style="yellow", markup=False)
        else:
            self.console.print(text, markup=False)


class QuietScreen(Screen):
    """Prints results and warnings; the rest is in the log."""

    _prints_progress = False

    def _print(self, event: Event, text: str) -> None:
        if isinstance(event, Warned):
            super()._print(event, text)
