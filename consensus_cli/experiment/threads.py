"""How many threads compute: as many as the machine gives when a run starts, and fewer once others take its cores.

PyTorch splits every operator over its threads and waits for the last of them. A thread that shares its core with
another program comes late, at worst by a turn of the scheduler, hundreds of times in an update: two threads on two
cores of which one is taken need many times what a single thread needs. What others use is read from the system, so
that watching costs nothing, and the number only falls: every change also changes the last bits of the results.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import torch

#: what others use is averaged over so many seconds: a stall is noticed soon, a program that only starts up is not
WINDOW_S = 2.0

#: before a run the machine is looked at for so long, and again for longer where others seem to work on it
LOOKS_S = (0.2, 0.8)

_BUSY = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")


@dataclass(frozen=True)
class Load:
    """What others have used up to a moment.

    Attributes:
        wall_s: clock.
        others_s: processor time of everything but this process and its children, other virtual machines included, on
            the cores that this process may use; None where the system does not show it.
        cores: number of those cores.
    """

    wall_s: float
    others_s: float | None
    cores: int

    @classmethod
    def now(cls) -> Load:
        """Reads the system's counters, which takes a tenth of a millisecond."""
        try:
            counted = psutil.cpu_times(percpu=True)
        except (OSError, psutil.Error, NotImplementedError):
            # Some containers hide them.
            return cls(time.perf_counter(), None, 1)
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        # The counters leave out cores that are switched off, so their places may be beyond the end.
        mine = [counted[i] for i in sorted(usable) if i < len(counted)] or counted
        busy_s = sum(getattr(core, kind, 0.0) for core in mine for kind in _BUSY)
        return cls(time.perf_counter(), busy_s - _own_s(), len(mine))

    def used_since(self, earlier: Load) -> float | None:
        """Returns how many cores others have used on average, in [0, cores]; None where the system does not show it."""
        if self.others_s is None or earlier.others_s is None or self.wall_s <= earlier.wall_s:
            return None
        used = (self.others_s - earlier.others_s) / (self.wall_s - earlier.wall_s)
        return min(max(used, 0.0), float(self.cores))

    def used_since_pct(self, earlier: Load) -> float | None:
        """Returns the same as a share of all usable cores, in [0, 100]."""
        used = self.used_since(earlier)
        return None if used is None else 100 * used / self.cores


class ThreadWatch:
    """Sets the number of PyTorch's threads for a run and lowers it where others take the cores.

    A number that the user gave stays, with a warning. One thread waits for nobody, and where a GPU computes, little
    depends on threads: neither is watched.

    Attributes:
        lowered: one text for each time that the number fell, such as `from 2 after 14 s`.

    Args:
        asked: the user's number; None: PyTorch's own, or what the container's quota allows if that is less.
        warn: shows a line to the user.
        watched: False where nothing depends on the threads.
        load, clock, sleep: read what others use, read the seconds of `load`'s clock, and let time pass.
    """

    def __init__(
        self,
        asked: int | None,
        warn: Callable[[str], None],
        *,
        watched: bool = True,
        load: Callable[[], Load] = Load.now,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.lowered: list[str] = []
        self._asked, self._warn, self._load, self._clock, self._sleep = asked, warn, load, clock, sleep
        _set(asked or min(torch.get_num_threads(), _quota()))
        self._watching = watched and torch.get_num_threads() > 1
        self._began = self._window = load()

    def look(self) -> None:
        """Looks at the machine before anything is computed; takes a fifth of a second, and one where others work."""
        if not self._watching or self._asked is not None:
            return
        used = None
        for seconds in LOOKS_S:
            before = self._load()
            self._sleep(seconds)
            self._began = self._window = self._load()
            used = self._window.used_since(before)
            if not self._too_many(used):
                return
        self._lower(used, "at the start")

    def tick(self) -> None:
        """To be called after every update, batch or forward pass: most calls compare two numbers and return."""
        if not self._watching or self._clock() < self._window.wall_s + WINDOW_S:
            return
        now = self._load()
        used, self._window = now.used_since(self._window), now
        if self._too_many(used):
            self._lower(used, f"after {now.wall_s - self._began.wall_s:.0f} s")

    def ticking(self, progress: Callable[[str, int, int], None] | None = None) -> Callable[[str, int, int], None]:
        """Returns a function to report progress to that ticks, too."""

        def report(doing: str, done: int, total: int) -> None:
            if progress is not None:
                progress(doing, done, total)
            self.tick()

        return report

    def _left(self, used: float | None) -> int:
        """Returns how many cores others leave, rounded: they keep a thread waiting with half a core already."""
        return max(1, math.floor(self._window.cores - (used or 0.0) + 0.5))

    def _too_many(self, used: float | None) -> bool:
        # More threads than cores are the user's wish where nobody else is there.
        return self._left(used) < min(torch.get_num_threads(), self._window.cores)

    def _lower(self, used: float | None, when: str) -> None:
        count, left = torch.get_num_threads(), self._left(used)
        busy = f"other programs use {used:.1f} of {self._window.cores} cores"
        if self._asked is not None:
            self._watching = False
            self._warn(f"{busy}: with threads={count} most of the time may be spent waiting; threads={left} would not")
            return
        _set(left)
        self._watching = left > 1
        self.lowered.append(f"from {count} {when}")
        if when == "at the start":
            self._warn(f"{busy}: threads={left} instead of {count}; the run repeats bit for bit with threads={left}")
        else:
            self._warn(f"{busy}: threads={left} instead of {count} from here on; the run does not repeat bit for bit")


@contextmanager
def restored() -> Iterator[None]:
    """Gives PyTorch the number of threads back that it had, so that a run of a sweep changes nothing for the next."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        _set(before)


def _set(count: int) -> None:
    # Setting even the number that it has takes MKL's own choice away, which may change the last bits of a result.
    if count != torch.get_num_threads():
        torch.set_num_threads(count)


def _quota() -> int:
    """Returns how many cores a container's quota allows, at most all."""
    from joblib import cpu_count

    return int(cpu_count())


def _own_s() -> float:
    """Returns the processor time of this process and its children, those at work and those that have ended."""
    times = os.times()
    own_s = times.user + times.system + times.children_user + times.children_system
    for child in multiprocessing.active_children():
        with suppress(psutil.Error):
            own_s += sum(psutil.Process(child.pid).cpu_times()[:4])
    return own_s
