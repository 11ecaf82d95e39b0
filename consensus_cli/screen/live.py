"""The live view on a terminal: the network as a row of blocks, loss and accuracy, what goes on, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from consensus_cli.screen import events
from consensus_cli.screen.plain import Report, Screen

#: redrawn by a thread of its own, so that events cost the run nothing but an assignment
FRAMES_PER_S = 4
BLOCK = "■"

#: from the least important blocks to the most; the terminal's own colours show on its background, light or dark
_SHADES = ("blue", "cyan", "yellow")
_UNKNOWN, _STAYS = "default", "dim"


class LiveScreen(Screen):
    """Shows a view that follows the run at the bottom of the terminal, with the lines of the plain screen above it."""

    _prints_progress = False

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._view = View()
        self._live = Live(
            get_renderable=self._view.render, console=console, refresh_per_second=FRAMES_PER_S, transient=True
        )

    def show(self, event: events.Event) -> None:
        """Shows what happened, in a line and in the view."""
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

    def _open(self) -> None:
        self._live.start()

    def _close(self, error: BaseException | None) -> None:
        self._live.stop()


class View:
    """What the live view shows; events change it, a thread draws it."""

    def __init__(self) -> None:
        self._started: events.Started | None = None
        self._removed: tuple[str, ...] = ()
        self._importance: dict[str, float] = {}
        self._loss = ""
        self._accuracy = ""
        self._plan = TimePlan({}, {})
        self._began_s = time.perf_counter()
        self._work = _bars(SpinnerColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._run = _bars(TextColumn(" "), TextColumn("{task.fields[left]}"))
        self._whole = self._run.add_task("whole run", total=None, left="")

    def take(self, event: events.Event) -> None:
        """Changes the view by what happened."""
        match event:
            case events.Started():
                self._started, self._removed = event, event.removed
                self._plan = TimePlan(event.planned, event.least_s)
            case events.StageStarted(stage):
                self._plan.start(stage, time.perf_counter())
            case events.StageEnded(stage, duration_s):
                self._plan.end(stage, duration_s)
            case events.Scored(importance=importance):
                self._importance = dict(importance)
            case events.BlockRemoved(block):
                self._removed = (*self._removed, block)
            case events.TrainingLoss(loss):
                self._loss = f"loss {loss:.3f}"
            case events.AccuracyChecked():
                self._accuracy = event.lines()[0]
            case events.Progressed(doing, done, total):
                self._move(doing, done, total)

    def begin(self, description: str) -> None:
        """Shows that some work begins."""
        self.finish()
        self._work.add_task(description, total=None)

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

    def _move(self, doing: str, done: int, total: int) -> None:
        (task,) = self._work.tasks
        # Work of another name has a speed of its own.
        if doing != task.description:
            self._work.reset(task.id, description=doing)
        self._work.update(task.id, completed=done, total=total)

    def _network(self, started: events.Started) -> Text:
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

    def _shade(self, name: str, started: events.Started) -> str:
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
        so_far, to_come = (timedelta(seconds=round(seconds)) for seconds in (elapsed_s, left_s))
        left = f"{'' if complete else 'at least '}{to_come} left" if self._plan.planned else "time left unknown"
        total = elapsed_s + left_s if self._plan.planned else None
        self._run.update(self._whole, completed=elapsed_s, total=total, left=f"{so_far} so far, {left}")


@dataclass
class TimePlan:
    """The phases of a run, how often each will run, and how long they took.

    Attributes:
        planned: phase -> how often it will run.
        least_s: phase -> seconds that it takes at least, for those that have not run yet.
        took_s: phase -> seconds of each time it ran.
        current: the phase that runs now and when it began, in seconds; None between phases.
    """

    planned: Mapping[str, int]
    least_s: Mapping[str, float]
    took_s: dict[str, list[float]] = field(default_factory=dict)
    current: tuple[str, float] | None = None

    def start(self, phase: str, now_s: float) -> None:
        """Notes that a phase begins."""
        self.current = (phase, now_s)

    def end(self, phase: str, duration_s: float) -> None:
        """Notes that a phase took so long."""
        self.took_s.setdefault(phase, []).append(duration_s)
        self.current = None

    def left(self, now_s: float) -> tuple[float, bool]:
        """Returns the seconds left, and whether that is all: phases that never ran count with what they take at least.

        A phase that comes again is expected to take as long as the last time, not as the mean: networks get smaller.
        """
        left_s, complete = 0.0, True
        for phase, times in self.planned.items():
            took_s = self.took_s.get(phase, [])
            to_come = max(0, times - len(took_s))
            expected_s = took_s[-1] if took_s else self.least_s.get(phase, 0.0)
            running_s = now_s - self.current[1] if self.current and self.current[0] == phase and to_come else 0.0
            left_s += max(0.0, to_come * expected_s - min(running_s, expected_s))
            complete = complete and bool(took_s or not to_come)
        return left_s, complete


def _bars(first: SpinnerColumn | TextColumn, *last: MofNCompleteColumn | TimeRemainingColumn | TextColumn) -> Progress:
    # Drawn as a part of the view, never started on their own.
    return Progress(first, TextColumn("{task.description:<32}"), BarColumn(30), *last)
