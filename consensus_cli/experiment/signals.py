"""SIGTERM and SIGINT end a run where it can be taken up again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from consensus_cli.errors import InterruptedRunError


@dataclass
class Stopper:
    """Lets a signal stop the run in `run_dir`, but not while files that belong together are being written."""

    run_dir: Path
    asked: int | None = None
    saving: bool = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Raises `InterruptedRunError` in the body when SIGTERM or SIGINT comes; a second SIGINT stops at once.

        Only the main thread can receive signals; in another one they stay what they were.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Lets the body end before a signal stops the run."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False
        if self.asked is not None:
            raise InterruptedRunError(self.asked, self.run_dir)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.asked = number
        if not self.saving:
            raise InterruptedRunError(number, self.run_dir)
