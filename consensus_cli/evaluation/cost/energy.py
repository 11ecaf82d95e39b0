"""Energy and CO2 of stretches of work, with codecarbon's offline tracker.

Where the machine has no energy counter, codecarbon estimates power from CPU load, and energy is little more than
CPU time. `EnergyMeter.estimated` and `EnergyMeter.source` say which it is; both belong next to every figure.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch

from consensus_cli.data.source import Progress
from consensus_cli.errors import UserError, did_you_mean, packages_told
from consensus_cli.evaluation.statistics import alternating
from consensus_cli.models.modes import synchronize

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker

#: least seconds of an energy window on a GPU: NVML tells energy in steps too coarse for short ones; in windows of 0.2 s
#: a run alone on an H100 scattered by a third
GPU_WINDOW_S = 2.0

#: what a source ends with where the GPU's energy is read, and not estimated as the processor's may be
GPU_READ = "GPU by NVML"

#: how codecarbon describes what reads a counter
_COUNTERS = ("Intel Rapl", "Intel Power Gadget", "Windows Emi", "AppleSiliconChip", "Raspberry")


@dataclass
class Consumption:
    """What a stretch of work used.

    Attributes:
        kwh: electricity in kWh, of the CPU, the memory, and the GPU if the work ran there.
        co2_kg: kg of CO2 equivalents, by the carbon intensity of the country's electricity.
        duration_s: wall-clock seconds.
    """

    kwh: float = 0.0
    co2_kg: float = 0.0
    duration_s: float = 0.0

    def __add__(self, other: Consumption) -> Consumption:
        return Consumption(self.kwh + other.kwh, self.co2_kg + other.co2_kg, self.duration_s + other.duration_s)


class Energy(NamedTuple):
    """What one call of a piece of work uses: medians over windows, the interquartile range, and each window in turn."""

    kwh: float
    kwh_iqr: float
    co2_kg: float
    windows_kwh: tuple[float, ...]


class EnergyMeter:
    """Measures stretches of work on one device; stretches may nest and overlap.

    Where there is no counter, the power of this process and its children is estimated from their CPU time, so that
    neighbours on a shared machine do not count. A counter such as RAPL always reads the whole machine.

    Args:
        country: ISO 3166 alpha-3 code of the country whose electricity is used, such as `BRA`.
        device: where the work runs; a GPU is counted only if it is this one.

    Raises:
        UserError: if codecarbon has no electricity data for the country.
    """

    def __init__(self, country: str, *, device: torch.device | str = "cpu") -> None:
        check_country(country)
        self.country = country
        self.device = torch.device(device)
        tracker = self._tracker()
        tracker.get_detected_hardware()
        # Private: codecarbon has nothing public that shows whether a counter is read or power estimated.
        parts = [part.description() for part in tracker._hardware]
        #: Whether CPU power is codecarbon's estimate and not a counter's reading.
        self.estimated: bool = not any(counter in part for part in parts for counter in _COUNTERS)
        #: The tool, its version, its tracking mode and where the readings come from, in one line.
        self.source: str = _source(parts, self.device, estimated=self.estimated)

    @contextmanager
    def measure(self) -> Iterator[Consumption]:
        """Yields a `Consumption` that is filled when the block ends, also if it ends with an exception."""
        consumption = Consumption()
        tracker = self._tracker()
        synchronize(self.device)
        start_s = time.perf_counter()
        tracker.start()
        try:
            yield consumption
            synchronize(self.device)
        finally:
            tracker.stop()
            consumption.duration_s = time.perf_counter() - start_s
            data = tracker.final_emissions_data
            consumption.kwh = data.cpu_energy + data.ram_energy
            if self.device.type == "cuda":
                consumption.kwh += data.gpu_energy
            if data.energy_consumed > 0:
                consumption.co2_kg = consumption.kwh * data.emissions / data.energy_consumed

    def idle_w(self, duration_s: float) -> float:
        """Returns the power read while this process does nothing for `duration_s` seconds, in watts."""
        with self.measure() as idle:
            time.sleep(duration_s)
        return idle.kwh * 3.6e6 / idle.duration_s

    def _tracker(self) -> OfflineEmissionsTracker:
        from codecarbon import OfflineEmissionsTracker

        # codecarbon puts a handler of its own on its logger and speaks through it from another thread.
        logging.getLogger("codecarbon").disabled = True
        with _no_settings_from_outside():
            return OfflineEmissionsTracker(
                country_iso_code=self.country,
                tracking_mode="process",
                gpu_ids=[_nvml_id(self.device)] if self.device.type == "cuda" else None,
                pue=1.0,
                allow_multiple_runs=True,
                output_methods=[],
                output_dir=tempfile.gettempdir(),
                log_level="critical",
            )


class Reading:
    """What a stretch of work uses, read while it goes on.

    Args:
        meter: reads it.

    Attributes:
        used: up to the last reading; after the block in all.
    """

    def __init__(self, meter: EnergyMeter) -> None:
        self.used = Consumption()
        self._meter = meter
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._now = self._open.enter_context(self._meter.measure())
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)
        self.used += self._now

    def so_far(self) -> Consumption:
        """Returns what was used up to now."""
        self.__exit__(None, None, None)
        self.__enter__()
        return self.used

    def go_on_from(self, used: Consumption) -> None:
        """Counts from `used` on, instead of what was used up to now."""
        self.so_far()
        self.used = used


def compare_energy(
    work: Mapping[str, Callable[[], object]],
    *,
    meter: EnergyMeter,
    window_s: float,
    repeats: int,
    progress: Progress | None = None,
) -> dict[str, Energy]:
    """Measures pieces of work against each other in alternating windows (A B B A …).

    Each window repeats its work until it has lasted `window_s`, because a counter reads nothing in a short one. The
    first window of each is discarded: caches, clock and temperature settle in it. Alternating spreads whatever
    changes on the machine over all pieces of work, and going back and forth cancels a steady drift. Where `progress`
    changes PyTorch's number of threads, it starts again: all windows must have the same.

    Args:
        work: what to measure, by name.
        meter: reads the energy.
        window_s: least seconds of one window; more where the meter cannot read so short a one.
        repeats: windows that count, for each piece of work.
        progress: called after each window.
    """
    readings: dict[str, list[tuple[Consumption, int]]] = {name: [] for name in work}
    done, threads, lasting_s = 0, torch.get_num_threads(), readable_window_s(window_s, meter.device)
    for turn in range(1 + repeats):
        for name in alternating(list(work), turn):
            reading = _window(work[name], meter, lasting_s)
            if turn > 0:
                readings[name].append(reading)
            done += 1
            if progress is not None:
                progress("measuring energy", done, (1 + repeats) * len(work))
            if torch.get_num_threads() != threads:
                return compare_energy(work, meter=meter, window_s=window_s, repeats=repeats, progress=progress)
    return {name: _medians(windows) for name, windows in readings.items()}


def readable_window_s(window_s: float, device: torch.device) -> float:
    """Returns the seconds that a window lasts where `window_s` are asked for: on a GPU no less than can be read."""
    return max(window_s, GPU_WINDOW_S) if device.type == "cuda" else window_s


def check_country(country: str) -> None:
    """Checks that codecarbon knows the electricity of a country, given as ISO 3166 alpha-3 code.

    Raises:
        UserError: if it does not.
    """
    with packages_told():
        from codecarbon.input import DataSource

    known = DataSource().get_global_energy_mix_data()
    if country not in known:
        meant = country.casefold()
        named = [code for code, mix in known.items() if meant in (code.casefold(), mix["country_name"].casefold())]
        raise UserError(
            f"unknown country '{country}'", f"{did_you_mean(named)}give the ISO 3166 alpha-3 code, such as BRA or DEU"
        )


@contextmanager
def _no_settings_from_outside() -> Iterator[None]:
    """Keeps codecarbon from its variables and files: they set powers, factors, files to write and networks to ask."""
    from codecarbon import emissions_tracker

    read = emissions_tracker.get_hierarchical_config
    emissions_tracker.get_hierarchical_config = dict
    try:
        yield
    finally:
        emissions_tracker.get_hierarchical_config = read


def _source(parts: list[str], device: torch.device, *, estimated: bool) -> str:
    cpu = "CPU estimate from load (no energy counter)" if estimated else "CPU energy counter"
    gpu = f" + {GPU_READ}" if device.type == "cuda" and any("GPU" in part for part in parts) else ""
    return f"codecarbon {version('codecarbon')} process: {cpu} + RAM model{gpu}"


def _window(call: Callable[[], object], meter: EnergyMeter, window_s: float) -> tuple[Consumption, int]:
    calls = 0
    with meter.measure() as reading:
        end_s = time.perf_counter() + window_s
        while calls == 0 or time.perf_counter() < end_s:
            call()
            # Without waiting, the loop would run far ahead of a GPU, which only queues the work.
            synchronize(meter.device)
            calls += 1
    return reading, calls


def _medians(windows: list[tuple[Consumption, int]]) -> Energy:
    kwh = [reading.kwh / calls for reading, calls in windows]
    low, median, high = np.percentile(kwh, [25, 50, 75])
    return Energy(
        kwh=float(median),
        kwh_iqr=float(high - low),
        co2_kg=float(np.median([reading.co2_kg / calls for reading, calls in windows])),
        windows_kwh=tuple(kwh),
    )


def _nvml_id(device: torch.device) -> int | str:
    """NVML numbers all GPUs of the machine; torch only those that CUDA_VISIBLE_DEVICES names."""
    index = device.index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[index].strip() if visible else index
