"""What the original and the pruned network cost, side by side: operations, time, memory, disk, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from consensus_cli.evaluation.cost.complexity import complexity, latency_ms, peak_memory_mib
from consensus_cli.evaluation.cost.energy import EnergyMeter, compare_energy
from consensus_cli.evaluation.pair import Columns, Pair
from consensus_cli.evaluation.statistics import paired_reduction_pct, paired_saving

#: what `macs_uncounted` says where every operator that multiplies and adds was counted
EVERYTHING_COUNTED = "nothing"
#: of the machine's processor time, in %: others that used more while latency was measured may have slowed it down
DISTURBING_PCT = 5.0
#: energy of inference is measured on at most so many images, and given for so many
INFERENCE_IMAGES = 1000


def complexity_columns(original: nn.Module, pruned: nn.Module, image_shape: Sequence[int]) -> Columns:
    """Returns MACs and parameters of both networks for one image, and their reduction in percent.

    `macs_uncounted` names the operators of the original that may hold MACs but are not counted, or says `nothing`.
    """
    before, after = complexity(original, image_shape), complexity(pruned, image_shape)
    return {
        "macs_base": before.macs,
        "macs_pruned": after.macs,
        "macs_reduction_pct": reduction_pct(before.macs, after.macs),
        "macs_uncounted": ", ".join(before.uncounted) or EVERYTHING_COUNTED,
        "params_base": before.params,
        "params_pruned": after.params,
        "params_reduction_pct": reduction_pct(before.params, after.params),
    }


def latency_columns(pair: Pair, batch_sizes: Sequence[int], min_run_time_s: float) -> Columns:
    """Returns latency (median, interquartile range, reduction, interval), throughput and peak memory of both networks.

    Args:
        pair: the networks; progress is reported after each timed block and each batch size.
        batch_sizes: images per forward pass; each has columns of its own.
        min_run_time_s: seconds to time each network for, per batch size.
    """
    columns: Columns = {}
    shape, device = pair.test.image_shape, pair.device
    for done, size in enumerate(batch_sizes, start=1):
        tick = partial(pair.report, "timing the networks", done - 1, len(batch_sizes))
        timed = latency_ms(pair.networks, shape, size, device, min_run_time_s, tick=tick)
        for network, latency in timed.items():
            columns |= {
                f"latency_b{size}_{network}_ms": latency.median_ms,
                f"latency_b{size}_{network}_iqr_ms": latency.iqr_ms,
                f"throughput_b{size}_{network}_images_per_s": 1000 * size / latency.median_ms,
                f"peak_memory_b{size}_{network}_mib": peak_memory_mib(pair.networks[network], shape, size, device),
            }
        blocks_ms = timed["base"].blocks_ms, timed["pruned"].blocks_ms
        columns[f"latency_b{size}_reduction_pct"] = paired_reduction_pct(*blocks_ms)
        saving = paired_saving(*blocks_ms)
        columns |= {f"latency_b{size}_ci95_low": 100 * saving.low, f"latency_b{size}_ci95_high": 100 * saving.high}
        pair.report("timing the networks", done, len(batch_sizes))
    return columns


def file_size_columns(original: Path, pruned: Path) -> Columns:
    """Returns the size on disk of both networks' weights."""
    return {
        f"file_size_{name}_mib": path.stat().st_size / 2**20 for name, path in (("base", original), ("pruned", pruned))
    }


def energy_columns(
    pair: Pair,
    meter: EnergyMeter,
    *,
    window_s: float,
    repeats: int,
    training: Mapping[str, Callable[[], None]] = MappingProxyType({}),
    epoch_share: float = 1.0,
) -> Columns:
    """Returns energy (median, interquartile range) and CO2 of both networks: per 1,000 images, per training epoch.

    Args:
        pair: the networks; the first 1,000 test images are classified, as often as the windows take.
        meter: reads the energy.
        window_s: least seconds of one window.
        repeats: windows per network.
        training: `base` and `pruned`: functions that train a copy of the network for a share of an epoch; empty where
            it cannot be trained, which leaves the columns of the epoch out.
        epoch_share: that share, in (0, 1].
    """
    shown = pair.test.subset(torch.arange(min(INFERENCE_IMAGES, len(pair.test))))
    batches = [images for images, _ in shown.batches(256, meter.device)]
    passes = {name: forward_passes(model, batches) for name, model in pair.networks.items()}
    measure = partial(compare_energy, meter=meter, window_s=window_s, repeats=repeats, progress=pair.report)
    with pair.evaluating():
        measurements = [("inference", measure(passes), INFERENCE_IMAGES / len(shown))]
    if training:
        measurements.append(("epoch", measure(training), 1 / epoch_share))
    columns: Columns = {}
    for what, measured, scale in measurements:
        for name, energy in measured.items():
            columns[f"energy_{what}_{name}_kwh"] = scale * energy.kwh
            columns[f"energy_{what}_{name}_iqr_kwh"] = scale * energy.kwh_iqr
            columns[f"co2_{what}_{name}_kg"] = scale * energy.co2_kg
        columns[f"energy_{what}_reduction_pct"] = paired_reduction_pct(
            measured["base"].windows_kwh, measured["pruned"].windows_kwh
        )
    return columns | {"energy_source": meter.source, "country": meter.country}


def reduction_pct(before: float, after: float) -> float:
    """Returns by how many percent `after` is below `before`; NaN where `before` is 0."""
    return 100 * (1 - after / before) if before else float("nan")


def forward_passes(model: nn.Module, batches: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Returns a function that shows the network every batch once, without gradients."""

    @torch.no_grad()
    def run() -> None:
        for images in batches:
            model(images)

    return run
