"""Sufficient statistics of pairs of representations, streamed over samples and mergeable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from consensus_cli.errors import UserError
from consensus_cli.scoring.statistics.angular import AngularSums
from consensus_cli.scoring.statistics.norms import NormMoments
from consensus_cli.scoring.statistics.quantiles import ValueDistributions
from consensus_cli.scoring.statistics.second_moments import FactoredMoments, PairMoments

GROUPS = frozenset({"pooled", "norms", "class_conditional", "quantiles", "angular"})
HOLDOUT_PERIOD = 5
EXACT_SAMPLES = 2560


class Part(Protocol):
    """One group of statistics."""

    def add(self, other: Self, weight: int) -> None:
        """Adds another's samples in place, each counted `weight` times."""


def held_out(index: Tensor) -> Tensor:
    """Returns which samples are held out of every fit, one in five, by their position in the whole sample (b,)."""
    return index % HOLDOUT_PERIOD == HOLDOUT_PERIOD - 1


class PairStatistics:
    """Sufficient statistics of (original, ablated) representation pairs for c candidates, float64, mergeable.

    Samples whose `index` leaves a remainder of 4 by 5 are held out: linear metrics are fitted on the others.
    `keep` names the groups to accumulate (`consensus_cli.scoring.metrics.statistics_needed` gives those a list of
    metrics needs). Up to `exact_samples` samples the bags of feature values are kept as they are; beyond it they
    are a fixed-size sketch (see `consensus_cli.scoring.statistics.quantiles`).
    """

    def __init__(
        self,
        candidates: int,
        features: int,
        num_classes: int,
        *,
        device: torch.device | str = "cpu",
        exact_samples: int = EXACT_SAMPLES,
        keep: frozenset[str] = GROUPS,
    ) -> None:
        if keep - GROUPS:
            raise ValueError(f"unknown groups of statistics: {sorted(keep - GROUPS)}, valid: {sorted(GROUPS)}")
        self.candidates, self.features, self.num_classes = candidates, features, num_classes
        self.device, self.exact_samples, self.keep = torch.device(device), exact_samples, keep
        self.samples = 0
        self._groups: dict[str, Any] = {group: self._empty(group) for group in sorted(keep)}

    def _empty(self, group: str) -> list[Part]:
        streams, features, device = self.candidates, self.features, self.device
        if group == "norms":
            return [NormMoments(streams, features, device)]
        if group == "quantiles":
            return [ValueDistributions(streams + 1, features, device, self.exact_samples)]
        if group == "angular":
            return [AngularSums.empty(streams, device)]
        # To fit and held out, or one for each class.
        cross = group == "pooled"
        count = 2 if cross else self.num_classes
        return [FactoredMoments(streams, features, device, cross=cross) for _ in range(count)]

    def update(self, original: Tensor, ablated: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds a batch: original (b, d), ablated (c, b, d), labels (b,), index (b,) position in the whole sample.

        All of them are on the device of the statistics.

        Raises ValueError where shapes or labels disagree with each other or with the statistics, UserError where a
        representation is not finite.
        """
        self._check(original, ablated, labels, index)
        original, ablated, held = original.detach(), ablated.detach(), held_out(index)
        self.samples += len(original)
        if "norms" in self.keep:
            self.norms.absorb(original, ablated)
        if "quantiles" in self.keep:
            self.values.absorb(torch.cat([original[None], ablated]))
        if "angular" in self.keep:
            self.angular.absorb(original, ablated)
        if "pooled" in self.keep:
            for part, rows in zip(self._group("pooled"), (~held, held), strict=True):
                part.absorb(original[rows], ablated[:, rows])
        if "class_conditional" in self.keep:
            for label in labels.unique().tolist():
                rows = labels == label
                self.classes[label].absorb(original[rows], ablated[:, rows])

    def _check(self, original: Tensor, ablated: Tensor, labels: Tensor, index: Tensor) -> None:
        batch = len(original)
        expected = {
            "original": (original, (batch, self.features)),
            "ablated": (ablated, (self.candidates, batch, self.features)),
            "labels": (labels, (batch,)),
            "index": (index, (batch,)),
        }
        for name, (tensor, shape) in expected.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if batch and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(f"labels outside 0 to {self.num_classes - 1}")
        if not torch.isfinite(ablated).all() or not torch.isfinite(original).all():
            raise UserError(
                "the network's representations contain NaN or infinite values",
                "check the weights and the input range: images in [0, 1]",
            )

    @staticmethod
    def combine(parts: Sequence[PairStatistics], weights: Sequence[int] | None = None) -> PairStatistics:
        """Returns the statistics of a sample that holds each part `weight` times, as a bootstrap draws it, or once.

        A part of weight 0 leaves no trace. Raises ValueError where the weights are not whole numbers ≥ 0 with a
        positive sum, or not one per part, or where the parts are of different kinds.
        """
        weights = [1] * len(parts) if weights is None else weights
        if len(parts) != len(weights) or any(w != int(w) or w < 0 for w in weights) or not sum(weights):
            raise ValueError("combine needs one whole weight of at least 0 per part, and one above 0")
        first = parts[0]
        kind = first.candidates, first.features, first.num_classes
        combined = PairStatistics(*kind, device=first.device, exact_samples=first.exact_samples, keep=first.keep)
        for part, weight in zip(parts, weights, strict=True):
            if (part.candidates, part.features, part.num_classes, part.keep) != (*kind, first.keep):
                raise ValueError("statistics of other shapes or groups cannot be combined")
            if weight:
                combined._add(part, int(weight))
        return combined

    def _add(self, other: PairStatistics, weight: int) -> None:
        self.samples += other.samples * weight
        for group, parts in self._groups.items():
            for own, others in zip(parts, other._groups[group], strict=True):
                own.add(others, weight)

    def _group(self, group: str) -> Any:
        if group not in self.keep:
            raise ValueError(f"the group '{group}' was not accumulated: name it in keep")
        return self._groups[group]

    def fit_moments(self, candidate: int) -> PairMoments:
        """Returns the moments of X and one candidate over the samples that are not held out."""
        moments: PairMoments = self._group("pooled")[0].pair(candidate)
        return moments

    def held_out_moments(self, candidate: int) -> PairMoments:
        """Returns the moments of X and one candidate over the held-out fifth of the samples."""
        moments: PairMoments = self._group("pooled")[1].pair(candidate)
        return moments

    def pooled_moments(self, candidate: int) -> PairMoments:
        """Returns the moments of X and one candidate over all samples."""
        return self.fit_moments(candidate).joined(self.held_out_moments(candidate))

    def pooled(self) -> Iterator[PairMoments]:
        """Yields the moments of X and each candidate in turn, over all samples."""
        return map(self.pooled_moments, range(self.candidates))

    @property
    def norms(self) -> NormMoments:
        """Moments of the squared norms over all samples."""
        return self._group("norms")[0]

    @property
    def values(self) -> ValueDistributions:
        """The bags of feature values: stream 0 is the original, stream 1 + j candidate j."""
        return self._group("quantiles")[0]

    @property
    def angular(self) -> AngularSums:
        """Angles between paired rows."""
        return self._group("angular")[0]

    @property
    def classes(self) -> list[FactoredMoments]:
        """Class-conditional moments, one entry per class."""
        return self._group("class_conditional")
