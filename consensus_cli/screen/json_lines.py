"""One JSON object per event and line, for other programs."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from consensus_cli.errors import InterruptedRunError
from consensus_cli.screen.events import Ended, Event, Noted, Progressed, Started, TrainingLoss, Warned
from consensus_cli.screen.plain import Screen

logger = logging.getLogger("consensus_cli")

#: seconds between two reports of the same kind
INTERVAL_S = 0.5


class JsonScreen(Screen):
    """Writes every event as one line of JSON with `event`, `at` (UTC) and `run_id`, and nothing else.

    What other code prints meanwhile (a network's `forward`, say) goes to standard error.

    Progress and loss come at most every `INTERVAL_S`, and always at the end of the work. Tables are for the eye: what
    they show is in the events `scores` and `row`.

    Args:
        stream: where to write; standard output unless given.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = sys.stdout if stream is None else stream
        self._elsewhere = ExitStack()
        self._run_id: str | None = None
        self._opened_s = time.perf_counter()
        self._told_s: dict[type[Event], float] = {}

    def __enter__(self) -> Self:
        self._opened_s = time.perf_counter()
        self._elsewhere.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Writes how it ended."""
        interrupted = isinstance(error, (KeyboardInterrupt, InterruptedRunError))
        status = "done" if error is None else "interrupted" if interrupted else "failed"
        self._elsewhere.close()
        told = None if error is None else " ".join(f"{type(error).__name__}: {error}".split())
        self._write(Ended(status, told, time.perf_counter() - self._opened_s))

    def show(self, event: Event) -> None:
        """Writes the event, and logs the lines that tell a reader."""
        for text in event.lines():
            logger.info(text)
        if isinstance(event, Started):
            self._run_id = Path(event.run_dir).name
        if isinstance(event, TrainingLoss) and not self._due(event, event.step == event.steps):
            return
        self._write(event)

    def line(self, text: str) -> None:
        """Writes a note, and logs it."""
        logger.info(text)
        self._write(Noted(text))

    def warning(self, text: str) -> None:
        """Writes a warning, and logs it."""
        logger.warning(text)
        self._write(Warned(text))

    def result(self, text: str) -> None:
        """Logs a line of the result, which is in the events already."""
        logger.info(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Logs the rows of a table, which are in the events already."""
        for row in rows:
            logger.info("%s", " | ".join(row))

    def _moved(self, doing: str, done: int, total: int) -> None:
        event = Progressed(doing, done, total)
        if self._due(event, done == total):
            self._write(event)

    def _finished(self, description: str, duration_s: float) -> None:
        """Writes nothing: the stage's end is an event of its own."""

    def _due(self, event: Event, last: bool) -> bool:
        now_s = time.perf_counter()
        if not last and now_s - self._told_s.get(type(event), -math.inf) < INTERVAL_S:
            return False
        self._told_s[type(event)] = now_s
        return True

    def _write(self, event: Event) -> None:
        about = {
            "event": event.name,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run_id": self._run_id,
        }
        line = json.dumps(_plain(about | asdict(event)), ensure_ascii=False, allow_nan=False)
        # In one piece and at once: runs of one sweep may share the stream, and whoever reads it is waiting.
        self._stream.write(line + "\n")
        self._stream.flush()


def _plain(value: Any) -> Any:
    """Returns the value as JSON knows it: no NaN, no infinity, no NumPy scalar."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
