"""How long a run will still take, from how long its stages took so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class TimePlan:
    """The stages of a run, how often each will run, and how long they took.

    Attributes:
        planned: stage -> how often it will run.
        least_s: stage -> seconds that it takes at least, for those that have not run yet.
        took_s: stage -> seconds of each time it ran.
        current: the stage that runs now and when it began, in seconds; None between stages.
    """

    planned: Mapping[str, int]
    least_s: Mapping[str, float]
    took_s: dict[str, list[float]] = field(default_factory=dict)
    current: tuple[str, float] | None = None

    def start(self, stage: str, now_s: float) -> None:
        """Notes that a stage begins."""
        self.current = (stage, now_s)

    def end(self, stage: str, duration_s: float) -> None:
        """Notes that a stage took so long."""
        self.took_s.setdefault(stage, []).append(duration_s)
        self.current = None

    def left(self, now_s: float) -> tuple[float, bool]:
        """Returns the seconds left, and whether that is all: stages that never ran count with what they take at least.

        A stage that comes again is expected to take as long as the last time, not as the mean: networks get smaller.
        """
        left_s, complete = 0.0, True
        for stage, times in self.planned.items():
            took_s = self.took_s.get(stage, [])
            to_come = max(0, times - len(took_s))
            expected_s = took_s[-1] if took_s else self.least_s.get(stage, 0.0)
            running_s = now_s - self.current[1] if self.current and self.current[0] == stage and to_come else 0.0
            left_s += max(0.0, to_come * expected_s - min(running_s, expected_s))
            complete = complete and bool(took_s or not to_come)
        return left_s, complete
