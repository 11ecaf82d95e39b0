"""What other networks save against an original one, measured in turn with it: latency, energy, peak memory."""

from __future__ import annotations

import math
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.complexity import peak_memory_mib
from consensus_cli.evaluation.cost.energy import EnergyMeter, compare_energy
from consensus_cli.evaluation.cost.quantities import MEASURED
from consensus_cli.evaluation.cost.runtime import check_runtime, ready
from consensus_cli.evaluation.statistics import Saving, alternating, median_interval, paired_saving, readings_needed
from consensus_cli.models.modes import synchronize

_J_PER_KWH = 3.6e6

#: a reading of latency is the fastest of so many passes: as many as take about `READING_S`
FEWEST_PASSES, MOST_PASSES, READING_S = 2, 5, 0.02


class Measured(NamedTuple):
    """What a network costs, in the unit of `MEASURED`, and saves against the original.

    Attributes:
        base: the original's cost, a median.
        value: this network's, a median; `low` and `high`: its interval.
        saving: the share that it saves, with the interval of the paired ratio.
    """

    base: float
    value: float
    low: float
    high: float
    saving: Saving


@dataclass(frozen=True)
class Conditions:
    """Under which cost is measured.

    Attributes:
        image_shape: (c, h, w).
        device: where the networks are.
        batch_size: images per forward pass.
        runtime: what runs them, a name in `runtime.RUNTIMES`; peak memory is that of `torch` alone.
        precision: `fp32` or `bf16`.
        confidence: with which every interval of one measurement holds, all of them at once.
        latency_s: seconds to time each network for.
        window_s, windows: least length and number of the energy windows of each network; more where an interval of
            this confidence needs more.
        meter: reads the energy; None where it is not measured.
        tick: called after each block and window; where it changes PyTorch's number of threads, they start again.
    """

    image_shape: Sequence[int]
    device: torch.device
    batch_size: int = 1
    runtime: str = "torch"
    precision: str = "fp32"
    confidence: float = 0.95
    latency_s: float = 0.5
    window_s: float = 0.2
    windows: int = 8
    meter: EnergyMeter | None = None
    tick: Callable[[], None] = field(default=lambda: None)

    def images(self) -> Tensor:
        """Returns one batch (n, c, h, w) of noise in [0, 1]."""
        return torch.rand(self.batch_size, *self.image_shape, device=self.device)

    @property
    def in_eager_torch(self) -> bool:
        """Whether PyTorch runs the networks as they are, which is where peak memory can be followed."""
        return (self.runtime, self.precision) == ("torch", "fp32")

    @property
    def measurable(self) -> list[str]:
        """What can be measured of `MEASURED`: energy with a meter, memory in plain PyTorch."""
        possible = {"latency": True, "energy": self.meter is not None, "memory": self.in_eager_torch}
        return [quantity for quantity in MEASURED if possible[quantity]]

    def check(self, quantity: str) -> None:
        """Checks that this can be measured here. Raises UserError if it cannot."""
        check_runtime(self.runtime, self.device, self.precision)
        if quantity == "memory" and not self.in_eager_torch:
            raise UserError(
                f"peak memory is measured in PyTorch, in fp32, not with {self.runtime} in {self.precision}",
                "leave prune.runtime and prune.precision as they are",
            )


def measure(
    original: nn.Module, others: Mapping[str, nn.Module], quantity: str, under: Conditions
) -> dict[str, Measured]:
    """Measures what other networks save against the original.

    All are measured in one process, in short alternating pieces, and each reading is compared with the original's of
    the same turn. Of c others, each interval has the confidence 1 − (1 − confidence) / c (Bonferroni), so that all of
    them hold at once with `confidence`. Peak memory is exact, and its interval a point.

    Args:
        original: on the device of `under`, as every other.
        others: networks by name; the empty name is the original's.
        quantity: a key of `MEASURED`.
        under: what they are measured with.

    Raises:
        UserError: as `Conditions.check`, or a runtime that cannot take a network.
    """
    assert "" not in others
    under.check(quantity)
    confidence = 1 - (1 - under.confidence) / len(others)
    readings = _READ[quantity]({"": original, **others}, under, readings_needed(confidence))
    base = readings.pop("")

    def compared(values: Sequence[float]) -> Measured:
        if quantity == "memory":
            share = 1 - values[0] / base[0]
            return Measured(base[0], values[0], values[0], values[0], Saving(share, share, share))
        saving, median = paired_saving(base, values, confidence), float(np.median(values))
        return Measured(float(np.median(base)), median, *median_interval(values, confidence), saving)

    return {name: compared(values) for name, values in readings.items()}


def time_in_turn(
    passes: Mapping[str, Callable[[], object]],
    seconds: float,
    device: torch.device,
    *,
    readings: int = 2,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Times forward passes against each other; returns the readings of each in ms, those of one turn at one place.

    In each turn every one of them is read once, in an order drawn anew, and in the next turn backwards. A reading is
    the fastest of a few passes, as many for all: the first of them warm the caches. Where a single thread computes,
    it is processor time, which is the same on a quiet machine, and leaves out what other programs take of the core:
    clocks count their turns in, more than in proportion in longer passes. Several threads wait for each other: theirs
    is wall-clock time, and the machine should be quiet.

    Args:
        passes: by name: what runs one forward pass.
        seconds: wall-clock time for each of them.
        device: where they run.
        readings: readings of each at least.
        tick: called after each; where it changes PyTorch's number of threads, timing starts again.
    """
    threads = torch.get_num_threads()
    clock = time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in passes}

    def fastest_s(name: str, repeats: int) -> float:
        def run() -> None:
            passes[name]()
            synchronize(device)

        return min(timeit.repeat(run, number=1, repeat=repeats, timer=clock))

    shortest_s = min(fastest_s(name, MOST_PASSES) for name in passes)
    repeats = min(MOST_PASSES, max(FEWEST_PASSES, math.ceil(READING_S / shortest_s)))
    turn, end_s = 0, time.perf_counter() + seconds * len(passes)
    while turn < readings or time.perf_counter() < end_s:
        for name in alternating(list(passes), turn):
            found[name].append(1000 * fastest_s(name, repeats))
            tick()
            if torch.get_num_threads() != threads:
                return time_in_turn(passes, seconds, device, readings=readings, tick=tick)
        turn += 1
    return found


def _latency(networks: Mapping[str, nn.Module], under: Conditions, readings: int) -> dict[str, list[float]]:
    with ready(networks, under.images(), under.runtime, under.precision) as passes:
        return time_in_turn(passes, under.latency_s, under.device, readings=readings, tick=under.tick)


def _energy(networks: Mapping[str, nn.Module], under: Conditions, readings: int) -> dict[str, list[float]]:
    assert under.meter is not None
    windows = max(under.windows, readings)
    with ready(networks, under.images(), under.runtime, under.precision) as passes:
        measured = compare_energy(
            passes, meter=under.meter, window_s=under.window_s, repeats=windows, progress=lambda *_: under.tick()
        )
    return {name: [_J_PER_KWH * kwh for kwh in energy.windows_kwh] for name, energy in measured.items()}


def _memory(networks: Mapping[str, nn.Module], under: Conditions, _readings: int) -> dict[str, list[float]]:
    shape, size = under.image_shape, under.batch_size
    return {name: [peak_memory_mib(network, shape, size, under.device)] for name, network in networks.items()}


_READ = {"latency": _latency, "energy": _energy, "memory": _memory}
