"""Accuracy of the original and of the pruned network on images that are corrupted on the fly, in our own way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch

from consensus_cli.data.split import Split
from consensus_cli.errors import unknown_name
from consensus_cli.evaluation.pair import Columns, Pair, gather
from consensus_cli.evaluation.robustness.distortions import DISTORTIONS, SEVERITIES, distort

#: (corruption, severity) -> accuracy in percent of the original and of the pruned network
Accuracies = dict[tuple[str, int], tuple[float, float]]


def corruption_columns(pair: Pair, corruptions: Sequence[str], images: int) -> Columns:
    """Returns what `corruption_accuracy` measures on `images` test images, and the mean over all.

    The columns begin with `own_`: the images are not those of the published benchmarks.
    """
    if not corruptions:
        return {}
    accuracies = corruption_accuracy(pair, corruptions, images)
    mean_base, mean_pruned = mean_accuracy_pct(accuracies)
    columns: Columns = {
        "own_corruption_mean_base_pct": mean_base,
        "own_corruption_mean_pruned_pct": mean_pruned,
        "own_corruption_mean_delta_pp": mean_pruned - mean_base,
        "corrupted_images": min(images, len(pair.test)),
    }
    for (corruption, severity), (base_pct, pruned_pct) in accuracies.items():
        columns[f"own_corruption_{corruption}_s{severity}_base_pct"] = base_pct
        columns[f"own_corruption_{corruption}_s{severity}_pruned_pct"] = pruned_pct
    return columns


def corruption_accuracy(
    pair: Pair,
    corruptions: Sequence[str],
    images: int | None = None,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 256,
) -> Accuracies:
    """Shows both networks the same corrupted images.

    Each corruption and severity has random numbers of its own, from the seed and the batch size; several processes
    share them.

    Args:
        pair: the networks; progress is reported after each corruption and severity.
        corruptions: names in `DISTORTIONS`.
        images: test images that are corrupted, stratified; None for all.
        severities: from 1 (mild) to 5.
        batch_size: images at once.

    Raises:
        UserError: for an unknown corruption.
    """
    check_corruptions(corruptions)
    sample, planned = pair.sample(images), list(itertools.product(corruptions, severities))
    mine = [planned[i] for i in pair.share.part(len(planned))]

    def accuracies() -> list[tuple[float, float]]:
        found = []
        for done, (name, severity) in enumerate(mine, start=1):
            found.append(_accuracies_pct(pair, sample, name, severity, batch_size))
            pair.report(f"corrupting: {name}", done, len(mine))
        return found

    return dict(zip(planned, gather(pair.share, accuracies), strict=True))


def mean_accuracy_pct(accuracies: Accuracies) -> tuple[float, float]:
    """Returns the mean over corruptions and severities, for the original and the pruned network."""
    base, pruned = (sum(of_network) / len(accuracies) for of_network in zip(*accuracies.values(), strict=True))
    return base, pruned


def check_corruptions(corruptions: Iterable[str]) -> None:
    """Checks names before anything is computed. Raises UserError for the first that does not exist."""
    for name in corruptions:
        if name not in DISTORTIONS:
            raise unknown_name("corruption", name, DISTORTIONS)


def _accuracies_pct(pair: Pair, split: Split, name: str, severity: int, batch_size: int) -> tuple[float, float]:
    """Corrupts each batch once and shows it to both networks."""
    row = list(DISTORTIONS).index(name) * len(SEVERITIES) + severity
    generator = torch.Generator().manual_seed(1000 * pair.seed + row)
    correct, images = [0, 0], 0
    with pair.evaluating():
        for batch, labels in split.batches(batch_size, pair.device):
            distorted = distort(batch, name, severity, generator)
            images += len(labels)
            for position, model in enumerate(pair.networks.values()):
                correct[position] += int((model(distorted).argmax(1) == labels).sum())
    return 100 * correct[0] / images, 100 * correct[1] / images
