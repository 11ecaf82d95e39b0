"""Accuracy of the original and of the pruned network on images that are corrupted on the fly, in our own way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from consensus_cli.data.split import Split
from consensus_cli.errors import UserError, unknown_name
from consensus_cli.evaluation.pair import Columns, Pair, gather
from consensus_cli.evaluation.robustness.distortions import DISTORTIONS, SEVERITIES, distort


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Accuracy of both networks, in percent, on images with one corruption at one severity from 1 (mild) to 5."""

    corruption: str
    severity: int
    base_pct: float
    pruned_pct: float


def corruption_columns(pair: Pair, corruptions: Sequence[str], images: int) -> Columns:
    """Returns accuracy of both networks under each corruption at each severity, and the mean over all.

    The columns begin with `own_`: the images are not those of the published benchmarks.

    Args:
        pair: the networks; progress is reported after each corruption and severity.
        corruptions: names in `DISTORTIONS`; without any there are no columns.
        images: test images that are corrupted, stratified.
    """
    if not corruptions:
        return {}
    rows = corruption_accuracy(pair, corruptions, images)
    mean_base, mean_pruned = mean_accuracy_pct(rows)
    columns: Columns = {
        "own_corruption_mean_base_pct": mean_base,
        "own_corruption_mean_pruned_pct": mean_pruned,
        "own_corruption_mean_delta_pp": mean_pruned - mean_base,
        "corrupted_images": min(images, len(pair.test)),
    }
    for row in rows:
        columns[f"own_corruption_{row.corruption}_s{row.severity}_base_pct"] = row.base_pct
        columns[f"own_corruption_{row.corruption}_s{row.severity}_pruned_pct"] = row.pruned_pct
    return columns


def corruption_accuracy(
    pair: Pair,
    corruptions: Sequence[str],
    images: int | None = None,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 256,
) -> list[CorruptionAccuracy]:
    """Shows both networks the same corrupted images, one row per corruption and severity.

    Each row has random numbers of its own, from the seed and the batch size. Several processes make whole rows each.

    Args:
        pair: the networks; progress is reported after each row.
        corruptions: names in `DISTORTIONS`.
        images: test images that are corrupted, stratified; None for all.
        severities: from 1 to 5.
        batch_size: images at once.

    Raises:
        UserError: for an unknown corruption or severity.
    """
    check_corruptions(corruptions, severities)
    sample, planned = pair.sample(images), list(itertools.product(corruptions, severities))
    mine = [planned[i] for i in pair.share.part(len(planned))]

    def rows() -> list[CorruptionAccuracy]:
        found = []
        for done, (name, severity) in enumerate(mine, start=1):
            found.append(CorruptionAccuracy(name, severity, *_accuracies_pct(pair, sample, name, severity, batch_size)))
            pair.report(f"corrupting: {name}", done, len(mine))
        return found

    return gather(pair.share, rows)


def mean_accuracy_pct(rows: Sequence[CorruptionAccuracy]) -> tuple[float, float]:
    """Returns the mean of the rows, all of one weight, for the original and the pruned network.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("no corruptions to average")
    return sum(r.base_pct for r in rows) / len(rows), sum(r.pruned_pct for r in rows) / len(rows)


def check_corruptions(corruptions: Iterable[str], severities: Iterable[int] = ()) -> None:
    """Checks names and severities before anything is computed.

    Raises:
        UserError: for the first that does not exist.
    """
    for name in corruptions:
        if name not in DISTORTIONS:
            raise unknown_name("corruption", name, DISTORTIONS)
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"there is no corruption severity {severity}", "severities are 1, 2, 3, 4 and 5")


def _accuracies_pct(pair: Pair, split: Split, name: str, severity: int, batch_size: int) -> list[float]:
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
    return [100 * count / images for count in correct]
