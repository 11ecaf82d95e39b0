"""The live view on a terminal: the network as a row of blocks, loss and accuracy, what goes on, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from consensus_cli.screen.events import (
    AccuracyChecked,
    BlockRemoved,
    Event,
    Scored,
    StageEnded,
    StageStarted,
    Started,
    TrainingLoss,
)
from consensus_cli.screen.plain import Report, Screen
from consensus_cli.screen.timing import TimePlan

#: redrawn by a thread of its own, so that events cost the run nothing but an assignment
FRAMES_PER_S = 4
BLOCK = "■"

#: from the least important blocks to the most; the terminal's own colours show on its background, light or dark
_SHADES = ("blue", "cyan", "yellow")
_UNKNOWN, _STAYS = "default", "dim"


class LiveScreen(Screen):
    """Shows a view that follows the run at the bottom of the terminal, with the lines of the plain screen above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._view = View()
        self._live = Live(
            get_renderable=self._view.render, console=console, refresh_per_second=FRAMES_PER_S, transient=True
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Takes the view away and gives the cursor back."""
        self._live.stop()

    def show(self, event: Event) -> None:
        """Tells what happened, in a line and in the view."""
        super().show(event)
        self._view.take(event)

    @contextmanager
    def progress(self, description: str) -> Iterator[Report]:
        """Shows a bar with the time left while the body runs."""
        self._view.begin(description)
        try:
            with super().progress(description) as report:
                yield report
        finally:
            self._view.finish()

    def _moved(self, doing: str, done: int, total: int) -> None:
        self._view.move(doing, done, total)

    def _finished(self, description: str, duration_s: float) -> None:
        """Prints nothing: the view has shown it."""


class View:
    """What the live view shows; events change it, a thread draws it."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._removed: tuple[str, ...] = ()
        self._importance: dict[str, float] = {}
        self._loss = ""
        self._accuracy = ""
        self._plan = TimePlan({}, {})
        self._began_s = time.perf_counter()
        self._doing = ""
        self._work = _bars(SpinnerColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._run = _bars(TextColumn(" "), TextColumn("{task.fields[left]}"))
        self._whole = self._run.add_task("whole run", total=None, left="")

    def take(self, event: Event) -> None:
        """Changes the view by what happened."""
        if isinstance(event, Started):
            self._started, self._removed = event, event.removed
            self._plan = TimePlan(event.planned, event.least_s)
        elif isinstance(event, StageStarted):
            self._plan.start(event.stage, time.perf_counter())
        elif isinstance(event, StageEnded):
            self._plan.end(event.stage, event.duration_s)
        elif isinstance(event, Scored):
            self._importance = dict(event.importance)
        elif isinstance(event, BlockRemoved):
            self._removed = (*self._removed, event.block)
        elif isinstance(event, TrainingLoss):
            self._loss = f"loss {event.loss:.3f}"
        elif isinstance(event, AccuracyChecked):
            self._accuracy = event.lines()[0]

    def begin(self, description: str) -> None:
        """Shows that some work begins."""
        self.finish()
        self._doing = description
        self._work.add_task(description, total=None)

    def move(self, doing: str, done: int, total: int) -> None:
        """Shows how far the work is; with another name it is other work, whose speed is its own."""
        (task,) = self._work.task_ids
        if doing != self._doing:
            self._work.reset(task, description=doing)
            self._doing = doing
        self._work.update(task, completed=done, total=total)

    def finish(self) -> None:
        """Shows no work."""
        for task in self._work.task_ids:
            self._work.remove_task(task)

    def render(self) -> RenderableType:
        """Returns the view as it is now."""
        parts: list[RenderableType] = []
        if self._started is not None:
            parts.append(self._network(self._started))
        if self._loss or self._accuracy:
            parts.append(Text("  " + ", ".join(filter(None, (self._loss, self._accuracy)))))
        parts.append(self._work)
        if self._started is not None:
            self._update_run()
            parts.append(self._run)
        return Group(*parts)

    def _network(self, started: Started) -> Text:
        """Returns a block per residual block that is still there, a gap between stages, blue = least important."""
        text = Text("  ")
        before = None
        for name in started.blocks:
            stage = name.rpartition(".")[0]
            if name in self._removed:
                continue
            text.append(" " if before not in (None, stage) else "")
            text.append(BLOCK, style=self._shade(name, started))
            before = stage
        return text.append(f"  {len(started.blocks) - len(self._removed)} of {len(started.blocks)} blocks")

    def _shade(self, name: str, started: Started) -> str:
        if name not in started.candidates:
            return _STAYS
        if name not in self._importance:
            return _UNKNOWN
        low, high = min(self._importance.values()), max(self._importance.values())
        share = (self._importance[name] - low) / (high - low) if high > low else 0.0
        return _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]

    def _update_run(self) -> None:
        now_s = time.perf_counter()
        elapsed_s = now_s - self._began_s
        left_s, complete = self._plan.left(now_s)
        # Without a plan nobody knows how many blocks will go.
        left = f"{'' if complete else 'at least '}{_clock(left_s)} left" if self._plan.planned else "time left unknown"
        total = elapsed_s + left_s if self._plan.planned else None
        self._run.update(self._whole, completed=elapsed_s, total=total, left=f"{_clock(elapsed_s)} so far, {left}")


def _bars(first: SpinnerColumn | TextColumn, *last: MofNCompleteColumn | TimeRemainingColumn | TextColumn) -> Progress:
    # Drawn as a part of the view, never started on their own.
    return Progress(first, TextColumn("{task.description:<32}"), BarColumn(30), *last)


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}"
