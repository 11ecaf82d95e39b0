"""The trainings of a run that are not in its state yet: files from which they go on at the end of an epoch."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from consensus_cli.evaluation.cost.energy import Consumption, Reading
from consensus_cli.experiment.original import code_hash_of_training
from consensus_cli.screen import Screen
from consensus_cli.storage.atomic import write_atomic
from consensus_cli.storage.rundir import config_hash

#: least seconds from one writing to the next
LEAST_S = 60.0
#: and least multiple of the seconds that writing takes
LEAST_RATIO = 50.0


@dataclass
class Clock:
    """Wall-clock seconds of a run over all its sessions.

    Attributes:
        earlier_s: seconds of earlier sessions up to where this one goes on.
        began_s: reading of `time.perf_counter` where this one went on.
    """

    earlier_s: float = 0.0
    began_s: float = field(default_factory=time.perf_counter)

    def duration_s(self) -> float:
        """Returns the seconds up to now, without what a killed session did after it last saved."""
        return self.earlier_s + time.perf_counter() - self.began_s

    def go_on_from(self, duration_s: float) -> None:
        """Goes on where an earlier session was after so many seconds."""
        self.earlier_s, self.began_s = duration_s, time.perf_counter()


@dataclass
class KeptTraining:
    """Keeps the trainings of a run, each in a file of its own, until its state is saved; a `training.Keeper`.

    Several trainings may come between two states: the original trained on as the pruned network was, between its
    removals. What comes after one of them can go on only once that one is done again, which its file makes short.

    Attributes:
        folder: where the files lie.
        clock: of the run.
        screen: where it is shown that a training goes on, or could not be kept, which ends none.
        reading: what the phase under way has used so far.
    """

    folder: Path
    clock: Clock
    screen: Screen
    reading: Reading | None = None
    _due_s: float = field(default_factory=lambda: time.perf_counter() + LEAST_S)

    @contextmanager
    def during(self, reading: Reading) -> Iterator[None]:
        """Keeps, with the trainings in the body, what the phase that they are part of has used."""
        outer, self.reading = self.reading, reading
        try:
            yield
        finally:
            self.reading = outer

    def read(self, key: str) -> dict[str, Any] | None:
        """Returns what was kept of a training; None where nothing was, or the file is damaged."""
        file = self._file(key)
        if not file.is_file():
            return None
        try:
            # Nothing in the file is executed: it may come from someone else.
            content = torch.load(file, map_location="cpu", weights_only=True)
            used, run_s = Consumption(**content.pop("used")), float(content.pop("run_s"))
            line = f"training continues where it was stopped, after {content['duration_s']:.0f} s"
        except Exception as error:
            # A damaged pickle raises whatever its bytes lead to.
            self.screen.warning(f"'{file}' cannot be read, so this training starts over: {error}".splitlines()[0])
            return None
        self.clock.go_on_from(run_s)
        if self.reading is not None:
            self.reading.go_on_from(used)
        self.screen.line(line)
        return content

    def is_due(self) -> bool:
        """Returns whether enough time has passed for writing to cost little beside training."""
        return time.perf_counter() >= self._due_s

    def write(self, key: str, content: dict[str, Any]) -> None:
        """Writes the training, with what the run has taken and the phase has used so far."""
        used = Consumption() if self.reading is None else self.reading.so_far()
        began_s = time.perf_counter()
        data = io.BytesIO()
        try:
            torch.save({**content, "used": asdict(used), "run_s": self.clock.duration_s()}, data)
            self.folder.mkdir(exist_ok=True)
            write_atomic(self._file(key), data.getvalue())
        except (OSError, MemoryError) as error:
            self.screen.warning(f"the training could not be saved, and would start over if the run is stopped: {error}")
        ended_s = time.perf_counter()
        self._due_s = ended_s + max(LEAST_S, LEAST_RATIO * (ended_s - began_s))

    def _file(self, key: str) -> Path:
        # Of another version the rest of the training would be another.
        name = config_hash({"key": key, "code": code_hash_of_training(), "torch": torch.__version__})
        return self.folder / f"{name[:16]}.pt"
