"""What the baseline and the pruned network cost, side by side: operations, time, memory, disk, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from consensus_cli.data.split import Split
from consensus_cli.evaluation.comparison import Columns
from consensus_cli.evaluation.cost.complexity import complexity, file_size_mib, latency_ms, peak_memory_mib
from consensus_cli.evaluation.cost.energy import EnergyMeter, compare_energy
from consensus_cli.evaluation.mode import Progress, evaluation_mode
from consensus_cli.evaluation.statistics import paired_reduction_pct

#: what `macs_uncounted` says where every operator that multiplies and adds was counted
EVERYTHING_COUNTED = "nothing"
#: of the machine's processor time, in %: others that used more while latency was measured may have slowed it down
DISTURBING_PCT = 5.0
#: energy of inference is measured on at most so many images, and given for so many
INFERENCE_IMAGES = 1000


def complexity_columns(base: nn.Module, pruned: nn.Module, image_shape: Sequence[int]) -> Columns:
    """Returns MACs and parameters of both networks for one image, and their reduction in percent.

    `macs_uncounted` names the operators of the baseline that may hold MACs but are not counted, or says `nothing`.
    """
    before, after = complexity(base, image_shape), complexity(pruned, image_shape)
    return {
        "macs_base": before.macs,
        "macs_pruned": after.macs,
        "macs_reduction_pct": reduction_pct(before.macs, after.macs),
        "macs_uncounted": ", ".join(before.uncounted) or EVERYTHING_COUNTED,
        "params_base": before.params,
        "params_pruned": after.params,
        "params_reduction_pct": reduction_pct(before.params, after.params),
    }


def latency_columns(
    base: nn.Module,
    pruned: nn.Module,
    image_shape: Sequence[int],
    *,
    batch_sizes: Sequence[int],
    device: torch.device,
    min_run_time_s: float,
    progress: Progress | None = None,
) -> Columns:
    """Returns latency (median, interquartile range, reduction), throughput and peak memory of both networks.

    Args:
        base: the network before pruning.
        pruned: the network after pruning.
        image_shape: (c, h, w).
        batch_sizes: images per forward pass; each has columns of its own.
        device: where the networks are.
        min_run_time_s: seconds to time each network for, per batch size.
        progress: told after each timed block and each batch size.
    """
    columns: Columns = {}
    models = {"base": base, "pruned": pruned}
    for done, size in enumerate(batch_sizes, start=1):
        tick = None if progress is None else partial(progress, "timing the networks", done - 1, len(batch_sizes))
        timed = latency_ms(models, image_shape, size, device, min_run_time_s, tick=tick)
        for network, latency in timed.items():
            columns |= {
                f"latency_b{size}_{network}_ms": latency.median_ms,
                f"latency_b{size}_{network}_iqr_ms": latency.iqr_ms,
                f"throughput_b{size}_{network}_images_per_s": latency.images_per_s,
                f"peak_memory_b{size}_{network}_mib": peak_memory_mib(models[network], image_shape, size, device),
            }
        blocks_ms = timed["base"].blocks_ms, timed["pruned"].blocks_ms
        columns[f"latency_b{size}_reduction_pct"] = paired_reduction_pct(*blocks_ms)
        if progress is not None:
            progress("timing the networks", done, len(batch_sizes))
    return columns


def file_size_columns(base: Path, pruned: Path) -> Columns:
    """Returns the size on disk of both networks' weights."""
    return {"file_size_base_mib": file_size_mib(base), "file_size_pruned_mib": file_size_mib(pruned)}


def energy_columns(
    base: nn.Module,
    pruned: nn.Module,
    test: Split,
    training: Mapping[str, Callable[[], None]],
    *,
    epoch_share: float,
    meter: EnergyMeter,
    window_s: float,
    repeats: int,
    progress: Progress | None = None,
) -> Columns:
    """Returns energy (median, interquartile range) and CO2 of both networks: per 1,000 images, per training epoch.

    Args:
        base: the network before pruning.
        pruned: the network after pruning.
        test: the first 1,000 of these images are classified, as often as the windows take.
        training: `base` and `pruned`: functions that train a copy of the network for a share of an epoch; empty where
            it cannot be trained, which leaves the columns of the epoch out.
        epoch_share: that share, in (0, 1].
        meter: reads the energy.
        window_s: least seconds of one window.
        repeats: windows per network.
        progress: told after each window.
    """
    shown = test.subset(torch.arange(min(INFERENCE_IMAGES, len(test))))
    batches = [images for images, _ in shown.batches(256, meter.device)]
    passes = {name: _forward_passes(model, batches) for name, model in (("base", base), ("pruned", pruned))}
    with evaluation_mode(base, pruned):
        inference = compare_energy(passes, meter=meter, window_s=window_s, repeats=repeats, progress=progress)
    measurements = [("inference", inference, INFERENCE_IMAGES / len(shown))]
    if training:
        epoch = compare_energy(training, meter=meter, window_s=window_s, repeats=repeats, progress=progress)
        measurements.append(("epoch", epoch, 1 / epoch_share))
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


def _forward_passes(model: nn.Module, batches: Sequence[torch.Tensor]) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        for images in batches:
            model(images)

    return run
