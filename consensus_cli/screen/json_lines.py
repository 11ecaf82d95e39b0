"""One JSON object per event and line, for other programs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from consensus_cli.errors import InterruptedRunError, described
from consensus_cli.screen.events import Ended, Event, Progressed, Started, TrainingLoss
from consensus_cli.screen.plain import Screen

#: seconds between two reports of the same kind
INTERVAL_S = 0.5


class JsonScreen(Screen):
    """Writes every event as one line of JSON with `event`, `at` (UTC) and `run_id`, and nothing else.

    What other code prints meanwhile (a network's `forward`, say) goes to standard error.

    Progress and loss come at most every `INTERVAL_S`, and always at the end of the work. Tables and results are only
    logged: the events `scores` and `row` hold what they show.

    Args:
        stream: where to write; standard output unless given.
    """

    _prints_progress = False

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(Console(quiet=True))
        self._stream = sys.stdout if stream is None else stream
        self._elsewhere = ExitStack()
        self._run_id: str | None = None
        self._opened_s = time.perf_counter()
        self._written_s: dict[type[Event], float] = {}

    def _open(self) -> None:
        self._opened_s = time.perf_counter()
        self._elsewhere.enter_context(redirect_stdout(sys.stderr))

    def _close(self, error: BaseException | None) -> None:
        interrupted = isinstance(error, (KeyboardInterrupt, InterruptedRunError))
        status = "done" if error is None else "interrupted" if interrupted else "failed"
        self._elsewhere.close()
        message = None if error is None else described(error)
        self._write(Ended(status, message, time.perf_counter() - self._opened_s))

    def show(self, event: Event) -> None:
        """Logs the lines of an event, and writes it unless one of its kind was written just before."""
        super().show(event)
        match event:
            case Started(run_dir=folder):
                self._run_id = Path(folder).name
            case Progressed(done=done, total=total) | TrainingLoss(step=done, steps=total):
                now_s = time.perf_counter()
                if done != total and now_s - self._written_s.get(type(event), -math.inf) < INTERVAL_S:
                    return
                self._written_s[type(event)] = now_s
        self._write(event)

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
