"""Accuracy of a baseline and a pruned network on images that are corrupted on the fly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from consensus_cli.data.split import Split
from consensus_cli.errors import UserError, unknown_name
from consensus_cli.evaluation.mode import Progress, evaluation_mode
from consensus_cli.evaluation.robustness.distortions import DISTORTIONS, SEVERITIES, distort


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Accuracy of both networks on images with one corruption at one severity.

    Attributes:
        corruption: its name.
        severity: from 1 (mild) to 5.
        images: number of images.
        base_pct: accuracy of the baseline.
        pruned_pct: accuracy of the pruned network.
    """

    corruption: str
    severity: int
    images: int
    base_pct: float
    pruned_pct: float

    @property
    def delta_pp(self) -> float:
        """Pruned minus base, in percentage points."""
        return self.pruned_pct - self.base_pct


def corruption_accuracy(
    base: nn.Module,
    pruned: nn.Module,
    split: Split,
    *,
    corruptions: Sequence[str],
    severities: Sequence[int] = SEVERITIES,
    seed: int,
    device: torch.device | str,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> list[CorruptionAccuracy]:
    """Evaluates both networks on the same corrupted images, one row per corruption and severity.

    Args:
        base: the network before pruning, on `device`.
        pruned: the network after pruning, on `device`.
        split: the clean images.
        corruptions: names in `DISTORTIONS`.
        severities: from 1 to 5.
        seed: with the batch size it decides every random choice; each row has its own random numbers.
        device: where the networks are.
        batch_size: images at once.
        progress: told after each row.

    Raises:
        UserError: for an unknown corruption or severity.
    """
    check_corruptions(corruptions, severities)
    rows: list[CorruptionAccuracy] = []
    total = len(corruptions) * len(severities)
    for name in corruptions:
        for severity in severities:
            row = list(DISTORTIONS).index(name) * len(SEVERITIES) + severity
            generator = torch.Generator().manual_seed(1000 * seed + row)
            batches = _distorted(split.batches(batch_size, device), name, severity, generator)
            base_pct, pruned_pct = _accuracies_pct((base, pruned), batches)
            rows.append(CorruptionAccuracy(name, severity, len(split), base_pct, pruned_pct))
            if progress is not None:
                progress(f"corrupting: {name}", len(rows), total)
    return rows


def mean_accuracy_pct(rows: Sequence[CorruptionAccuracy]) -> tuple[float, float]:
    """Returns the mean of the rows, all of one weight, for the baseline and the pruned network.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("no corruptions to average")
    return sum(r.base_pct for r in rows) / len(rows), sum(r.pruned_pct for r in rows) / len(rows)


def check_corruptions(corruptions: Iterable[str], severities: Iterable[int]) -> None:
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


def _distorted(
    batches: Iterable[tuple[Tensor, Tensor]], name: str, severity: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield distort(images, name, severity, generator), labels


def _accuracies_pct(models: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Corrupts each batch once and shows it to every network."""
    correct, images = [0] * len(models), 0
    with evaluation_mode(*models), torch.no_grad():
        for batch, labels in batches:
            images += len(labels)
            for position, model in enumerate(models):
                correct[position] += int((model(batch).argmax(1) == labels).sum())
    return [100 * count / images for count in correct]
