"""Runs that stop where a test wants them to: the screen sees what happens, and sends a signal."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from consensus_cli.config.composition import compose_run
from consensus_cli.errors import InterruptedRunError
from consensus_cli.experiment import pipeline
from consensus_cli.screen import Screen, events


class ActingScreen(Screen):
    """Calls `act` on the first event for which `when` is true."""

    def __init__(self, when: Callable[[events.Event], bool], act: Callable[[], None]) -> None:
        super().__init__(Console(file=io.StringIO()))
        self._when, self._act, self._acted = when, act, False

    def show(self, event: events.Event) -> None:
        super().show(event)
        if not self._acted and self._when(event):
            self._acted = True
            self._act()


def after_finetuning(removals: int) -> Callable[[events.Event], bool]:
    """Returns what is true once the network without so many blocks is fine-tuned, right before that is saved."""
    removed = 0

    def when(event: events.Event) -> bool:
        nonlocal removed
        if isinstance(event, events.BlockRemoved):
            removed = event.number
        return isinstance(event, events.AccuracyChecked) and removed == removals

    return when


def in_phase(name: str) -> Callable[[events.Event], bool]:
    """Returns what is true when a phase of this name begins."""
    return lambda event: isinstance(event, events.StageStarted) and event.stage == name


@contextmanager
def signal_when_written(file: Path, number: signal.Signals) -> Iterator[None]:
    """Sends a signal to this process as soon as the body has written a file: in the middle of what it saves."""

    def watch() -> None:
        while not file.exists() and not over.wait(0.001):
            pass
        if file.exists():
            os.kill(os.getpid(), number)

    over = threading.Event()
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def stop_run(output_dir: Path, *words: str, when: Callable[[events.Event], bool], number: signal.Signals) -> int:
    """Starts a run that a signal stops; returns the signal that the run says it was stopped by."""
    config = compose_run([*words, f"output_dir={output_dir}"])
    config.if_done = config.if_done or "rerun"
    with ActingScreen(when, lambda: os.kill(os.getpid(), number)) as screen:
        try:
            pipeline.run(config, words, screen)
        except InterruptedRunError as stop:
            return stop.signal_number
    raise AssertionError("the run was not stopped")
