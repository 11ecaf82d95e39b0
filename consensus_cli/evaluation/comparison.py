"""How the baseline and the pruned network answer, side by side: same data, same device, one set of columns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.evaluation import accuracy
from consensus_cli.evaluation.mode import Progress
from consensus_cli.evaluation.robustness.adversarial import attack_accuracy
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.evaluation.robustness.corruption import corruption_accuracy, mean_accuracy_pct
from consensus_cli.evaluation.robustness.shift import Archive
from consensus_cli.evaluation.robustness.shortcut import Cue, shortcut_reliance
from consensus_cli.evaluation.statistics import paired_change

Columns = dict[str, float | int | str]


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
    """Returns accuracy under each attack of both networks, its change with a 95 % interval, transfer, and the time.

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
    start_s = time.perf_counter()
    results = attack_accuracy(base, pruned, test, attacks, images=images, seed=seed, device=device, progress=progress)
    columns: Columns = {"attacked_images": min(images, len(test)), "attacks_s": time.perf_counter() - start_s}
    for name, result in results.items():
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


def shift_columns(
    base: nn.Module,
    pruned: nn.Module,
    name: str,
    archive: Archive,
    *,
    image_size: int,
    images: int | None,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> Columns:
    """Returns accuracy of both networks on every set of a published archive, the mean, and the interval of its change.

    The interval is about images (paired bootstrap). It is left out where the sets do not hold the same images in the
    same order, so that an image's answers cannot be averaged over them.

    Args:
        base: the network before pruning.
        pruned: the network after pruning.
        name: what the columns begin with.
        archive: the sets.
        image_size: pixels that image files are brought to.
        images: test images of each set, stratified; None for all.
        seed: of the subset and the interval.
        device: where the networks are.
        progress: told after each set.
    """
    columns, right, labels = Columns(), [], []
    for done, (part, read) in enumerate(archive.sets.items(), start=1):
        split = read(image_size)
        if images is not None:
            split = split.subset(stratified_subset(split.labels, images, seed))
        both = [accuracy.predict(model, split, device).correct.double() for model in (base, pruned)]
        right.append(torch.stack(both))  # (2, n)
        labels.append(split.labels)
        if part:
            columns[f"{name}_{part}_base_pct"], columns[f"{name}_{part}_pruned_pct"] = (_mean_pct(r) for r in both)
        if progress is not None:
            progress(f"testing on {name}", done, len(archive.sets))
    mean_base, mean_pruned = (sum(_mean_pct(pair[i]) for pair in right) / len(right) for i in (0, 1))
    columns |= {
        f"{name}_accuracy_base_pct": mean_base,
        f"{name}_accuracy_pruned_pct": mean_pruned,
        f"{name}_accuracy_delta_pp": mean_pruned - mean_base,
        f"{name}_images": sum(map(len, labels)),
    }
    if all(torch.equal(labels[0], others) for others in labels):
        right_base, right_pruned = torch.stack(right).mean(0)
        change = paired_change(right_base, right_pruned, seed)
        columns[f"{name}_accuracy_ci95_low"] = change.ci95_low_pp
        columns[f"{name}_accuracy_ci95_high"] = change.ci95_high_pp
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


def _mean_pct(right: torch.Tensor) -> float:
    return 100 * right.mean().item()
