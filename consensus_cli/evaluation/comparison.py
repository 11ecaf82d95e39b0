"""The baseline and the pruned network side by side: same data, same device, one set of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.evaluation import accuracy
from consensus_cli.evaluation.adversarial import attack_accuracy
from consensus_cli.evaluation.attacks import Attack
from consensus_cli.evaluation.complexity import complexity, latency_ms
from consensus_cli.evaluation.corruption import corruption_accuracy, mean_accuracy_pct
from consensus_cli.evaluation.energy import EnergyMeter, compare_energy
from consensus_cli.evaluation.mode import Progress, evaluation_mode
from consensus_cli.evaluation.shortcut import Cue, shortcut_reliance

Columns = dict[str, float | int | str]

#: energy of inference is given for so many images
INFERENCE_IMAGES = 1000
LATENCY_BATCH_SIZES = (1, 128)


def accuracy_columns(before: accuracy.Predictions, after: accuracy.Predictions) -> Columns:
    """Returns accuracy, calibration and agreement of both networks, from their answers to all test images."""
    agreement = accuracy.compare(before, after)
    columns: Columns = {
        "accuracy_base_pct": accuracy.accuracy_pct(before),
        "accuracy_pruned_pct": accuracy.accuracy_pct(after),
        "accuracy_delta_pp": accuracy.accuracy_pct(after) - accuracy.accuracy_pct(before),
        "test_images": len(before.labels),
        "nll_base_nats": accuracy.nll_nats(before),
        "nll_pruned_nats": accuracy.nll_nats(after),
        "ece_base_pct": accuracy.calibration_error_pct(before),
        "ece_pruned_pct": accuracy.calibration_error_pct(after),
        "disagreement_pct": agreement.disagreement_pct,
        "mcnemar_p": agreement.mcnemar_p,
        "worst_class": agreement.worst_class,
        "worst_class_delta_pp": agreement.worst_class_delta_pp,
    }
    if before.logits.shape[1] > 10:
        columns["top5_base_pct"] = accuracy.top_k_accuracy_pct(before, 5)
        columns["top5_pruned_pct"] = accuracy.top_k_accuracy_pct(after, 5)
    return columns


def complexity_columns(base: nn.Module, pruned: nn.Module, image_shape: Sequence[int]) -> Columns:
    """Returns MACs and parameters of both networks for one image, and their reduction in percent."""
    before, after = complexity(base, image_shape), complexity(pruned, image_shape)
    return {
        "macs_base": before.macs,
        "macs_pruned": after.macs,
        "macs_reduction_pct": reduction_pct(before.macs, after.macs),
        "params_base": before.params,
        "params_pruned": after.params,
        "params_reduction_pct": reduction_pct(before.params, after.params),
    }


def latency_columns(
    base: nn.Module, pruned: nn.Module, image_shape: Sequence[int], device: torch.device, min_run_time_s: float
) -> Columns:
    """Returns median and interquartile range of the latency of both networks at batch sizes 1 and 128."""
    columns: Columns = {}
    for size in LATENCY_BATCH_SIZES:
        measured = latency_ms({"base": base, "pruned": pruned}, image_shape, size, device, min_run_time_s)
        for network, latency in measured.items():
            columns[f"latency_b{size}_{network}_ms"] = latency.median_ms
            columns[f"latency_b{size}_{network}_iqr_ms"] = latency.iqr_ms
    return columns


def energy_columns(
    base: nn.Module,
    pruned: nn.Module,
    test: Split,
    epochs: Mapping[str, Callable[[], None]],
    *,
    meter: EnergyMeter,
    window_s: float,
    repeats: int,
    progress: Progress | None = None,
) -> Columns:
    """Returns energy and CO2 of inference per 1,000 images and of one training epoch, for both networks.

    Args:
        base: the network before pruning.
        pruned: the network after pruning.
        test: images for inference, run over as often as the windows take.
        epochs: `base` and `pruned`: functions that train a copy of the network for one epoch.
        meter: reads the energy.
        window_s: least seconds of one window.
        repeats: windows per network.
        progress: told after each window.
    """
    batches = [images for images, _ in test.batches(256, meter.device)]
    passes = {name: _forward_passes(model, batches) for name, model in (("base", base), ("pruned", pruned))}
    with evaluation_mode(base, pruned):
        inference = compare_energy(passes, meter=meter, window_s=window_s, repeats=repeats, progress=progress)
    training = compare_energy(epochs, meter=meter, window_s=window_s, repeats=repeats, progress=progress)
    columns: Columns = {}
    for what, measured, scale in (("inference", inference, INFERENCE_IMAGES / len(test)), ("epoch", training, 1.0)):
        for name, energy in measured.items():
            columns[f"energy_{what}_{name}_kwh"] = scale * energy.kwh
            columns[f"co2_{what}_{name}_kg"] = scale * energy.co2_kg
        columns[f"energy_{what}_reduction_pct"] = reduction_pct(measured["base"].kwh, measured["pruned"].kwh)
    return columns | {"energy_source": meter.source, "country": meter.country}


def robustness_columns(
    base: nn.Module,
    pruned: nn.Module,
    test: Split,
    attacks: Mapping[str, Attack],
    *,
    images: int,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Columns:
    """Returns accuracy under each attack of both networks, its change with a 95 % interval, and transfer accuracy.

    Args:
        base: the network before pruning.
        pruned: the network after pruning.
        test: where the attacked images are drawn from.
        attacks: column name -> attack.
        images: test images attacked.
        seed: of the subset and the interval.
        device: where the networks are.
        progress: told after each batch.
    """
    results = attack_accuracy(
        base, pruned, test, list(attacks.values()), images=images, seed=seed, device=device, progress=progress
    )
    columns: Columns = {"attacked_images": min(images, len(test))}
    for name, result in zip(attacks, results.values(), strict=True):
        columns |= {
            f"{name}_eps255": result.attack.eps255,
            f"{name}_base_pct": result.base_pct,
            f"{name}_pruned_pct": result.pruned_pct,
            f"{name}_delta_pp": result.delta_pp,
            f"{name}_ci95_low": result.ci95_low_pp,
            f"{name}_ci95_high": result.ci95_high_pp,
            f"{name}_transfer_to_base_pct": result.transfer_to_base_pct,
            f"{name}_transfer_to_pruned_pct": result.transfer_to_pruned_pct,
            "clean_base_pct": result.clean_base_pct,
            "clean_pruned_pct": result.clean_pruned_pct,
        }
    return columns


def corruption_columns(
    base: nn.Module,
    pruned: nn.Module,
    test: Split,
    corruptions: Sequence[str],
    *,
    images: int,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Columns:
    """Returns accuracy of both networks under each corruption at each severity, and the mean over all.

    Args:
        base: the network before pruning.
        pruned: the network after pruning.
        test: where the images are drawn from.
        corruptions: names of the corruptions.
        images: test images that are corrupted, stratified.
        seed: of the subset and of the corruptions.
        device: where the networks are.
        progress: told after each corruption and severity.
    """
    subset = test.subset(stratified_subset(test.labels, images, seed))
    rows = corruption_accuracy(
        base, pruned, subset, corruptions=corruptions, seed=seed, device=device, progress=progress
    )
    mean_base, mean_pruned = mean_accuracy_pct(rows)
    columns: Columns = {
        "corruption_mean_base_pct": mean_base,
        "corruption_mean_pruned_pct": mean_pruned,
        "corruption_mean_delta_pp": mean_pruned - mean_base,
        "corrupted_images": len(subset),
    }
    for row in rows:
        columns[f"corruption_{row.corruption}_s{row.severity}_base_pct"] = row.base_pct
        columns[f"corruption_{row.corruption}_s{row.severity}_pruned_pct"] = row.pruned_pct
    return columns


def shortcut_columns(
    base: nn.Module, pruned: nn.Module, test: ImageTensors, cue: Cue, *, seed: int, device: torch.device
) -> Columns:
    """Returns how far each network follows the planted cue instead of the image, in percentage points."""
    columns: Columns = {}
    for name, model in (("base", base), ("pruned", pruned)):
        reliance = shortcut_reliance(model, test, cue, seed=seed, device=device)
        columns |= {
            f"shortcut_{cue.kind}_{name}_pp": reliance.shortcut_reliance_pp,
            f"shortcut_{cue.kind}_{name}_ci95_low": reliance.ci95_low_pp,
            f"shortcut_{cue.kind}_{name}_ci95_high": reliance.ci95_high_pp,
            f"shortcut_{cue.kind}_absent_{name}_pct": reliance.absent_pct,
        }
    return columns


def reduction_pct(before: float, after: float) -> float:
    """Returns by how many percent `after` is below `before`; NaN where `before` is 0."""
    return 100 * (1 - after / before) if before else float("nan")


def _forward_passes(model: nn.Module, batches: Sequence[torch.Tensor]) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        for images in batches:
            model(images)

    return run
