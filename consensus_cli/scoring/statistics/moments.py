"""Sufficient statistics of pairs of representations, streamed over samples and mergeable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from consensus_cli.errors import UserError
from consensus_cli.scoring.statistics.angles import AngularSums
from consensus_cli.scoring.statistics.norms import NormMoments
from consensus_cli.scoring.statistics.quantiles import Histogram, ValueDistributions
from consensus_cli.scoring.statistics.second_moments import FactoredMoments, Moments, PairMoments

GROUPS = frozenset({"pooled", "norms", "class_conditional", "quantiles", "angular"})
HOLDOUT_PERIOD = 5
EXACT_SAMPLES = 2560
Kept = TypeVar("Kept")


class Part(Protocol):
    """One group of statistics."""

    def add(self, other: Self, weight: int) -> None:
        """Adds another's samples in place, each counted `weight` times."""


def held_out(index: Tensor) -> Tensor:
    """Says which samples, by their position in the whole sample (b,), are held out of every fit: one in five."""
    return index % HOLDOUT_PERIOD == HOLDOUT_PERIOD - 1


def row_limit(features: int, *, cross: bool) -> int:
    """Returns from how many rows on second moments are held instead of the rows.

    A candidate has two second moments, or one without cross products: either way float32 rows weigh at most half of
    what replaces them.
    """
    return (2 if cross else 1) * features


#: what statistics hold once they have too many samples to keep them as they are
LATER_FORMS = (Moments, Histogram)


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
        self._fit = self._moments(cross=True) if "pooled" in keep else None
        self._held_out = self._moments(cross=True) if "pooled" in keep else None
        self._norms = NormMoments(candidates, features, self.device) if "norms" in keep else None
        self._values = (
            ValueDistributions(candidates + 1, features, self.device, exact_samples) if "quantiles" in keep else None
        )
        self._angular = AngularSums.empty(candidates, self.device) if "angular" in keep else None
        per_class = num_classes if "class_conditional" in keep else 0
        self._classes = [self._moments(cross=False) for _ in range(per_class)]

    def _moments(self, *, cross: bool) -> FactoredMoments:
        max_rows = row_limit(self.features, cross=cross)
        return FactoredMoments(self.candidates, self.features, self.device, cross=cross, max_rows=max_rows)

    def update(self, original: Tensor, ablated: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds a batch: original (b, d), ablated (c, b, d), labels (b,), index (b,) position in the whole sample.

        Raises ValueError where shapes or labels disagree with each other or with the statistics, UserError where a
        representation is not finite.
        """
        self._check(original, ablated, labels, index)
        original, ablated = original.detach().to(self.device), ablated.detach().to(self.device)
        labels, index = labels.to(self.device), index.to(self.device)
        self.samples += len(original)
        if self._norms:
            self._norms.absorb(original, ablated)
        if self._fit and self._held_out:
            held = held_out(index)
            self._fit.absorb(original[~held], ablated[:, ~held])
            self._held_out.absorb(original[held], ablated[:, held])
        if self._values:
            self._values.absorb(torch.cat([original[None], ablated]))
        if self._angular:
            self._angular.absorb(original, ablated)
        if self._classes:
            for label in labels.unique().tolist():
                rows = labels == label
                self._classes[label].absorb(original[rows], ablated[:, rows])

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

    def merge(self, other: PairStatistics) -> PairStatistics:
        """Returns the statistics of the samples of both; exact values are kept while they fit `exact_samples`."""
        merged = self._like()
        for part in (self, other):
            merged._add(part, 1)
        return merged

    @staticmethod
    def combine(parts: Sequence[PairStatistics], weights: Sequence[int]) -> PairStatistics:
        """Returns the statistics of a sample that holds each part `weight` times, as a bootstrap draws it.

        A part of weight 0 leaves no trace. Raises ValueError where the weights are not whole numbers ≥ 0 with a
        positive sum, or not one per part.
        """
        if len(parts) != len(weights) or any(w != int(w) or w < 0 for w in weights) or not sum(weights):
            raise ValueError("combine needs one whole weight of at least 0 per part, and one above 0")
        combined = parts[0]._like()
        for part, weight in zip(parts, weights, strict=True):
            if weight:
                combined._add(part, int(weight))
        return combined

    def _like(self) -> PairStatistics:
        return PairStatistics(
            self.candidates,
            self.features,
            self.num_classes,
            device=self.device,
            exact_samples=self.exact_samples,
            keep=self.keep,
        )

    def _add(self, other: PairStatistics, weight: int) -> None:
        if other._signature() != self._signature():
            raise ValueError(f"cannot merge statistics of {other._signature()} into {self._signature()}")
        self.samples += other.samples * weight
        for own, others in zip(self._parts(), other._parts(), strict=True):
            own.add(others, weight)

    def _signature(self) -> tuple[int, int, int, tuple[str, ...]]:
        return self.candidates, self.features, self.num_classes, tuple(sorted(self.keep))

    def _parts(self) -> list[Part]:
        parts: list[Part | None] = [self._fit, self._held_out, self._norms, self._values, self._angular, *self._classes]
        return [part for part in parts if part is not None]

    def fit_moments(self, candidate: int) -> PairMoments:
        """Returns the moments of X and one candidate over the samples that are not held out."""
        return kept(self._fit, "pooled").pair(candidate)

    def held_out_moments(self, candidate: int) -> PairMoments:
        """Returns the moments of X and one candidate over the held-out fifth of the samples."""
        return kept(self._held_out, "pooled").pair(candidate)

    def pooled_moments(self, candidate: int) -> PairMoments:
        """Returns the moments of X and one candidate over all samples."""
        return self.fit_moments(candidate).joined(self.held_out_moments(candidate))

    def pooled(self) -> Iterator[PairMoments]:
        """Yields the moments of X and each candidate in turn, over all samples."""
        return map(self.pooled_moments, range(self.candidates))

    @property
    def norms(self) -> NormMoments:
        """Moments of the squared norms over all samples."""
        return kept(self._norms, "norms")

    @property
    def values(self) -> ValueDistributions:
        """The bags of feature values: stream 0 is the original, stream 1 + j candidate j."""
        return kept(self._values, "quantiles")

    @property
    def angular(self) -> AngularSums:
        """Angles between paired rows."""
        return kept(self._angular, "angular")

    @property
    def classes(self) -> list[FactoredMoments]:
        """Class-conditional moments, one entry per class."""
        return kept(self._classes or None, "class_conditional")


def kept(part: Kept | None, group: str) -> Kept:
    """Returns a group of statistics. Raises ValueError where it was not accumulated."""
    if part is None:
        raise ValueError(f"the group '{group}' was not accumulated: name it in keep")
    return part
