"""Stratified choices of images: every class gets its share, and the seed alone decides which images they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from consensus_cli.errors import UserError


def stratified_indices(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Draws the same number of images from every class, without replacement.

    Args:
        labels: class index of every image, (n,) int64.
        per_class: images to draw from each class.
        seed: decides which images are drawn.

    Returns:
        Indices, (classes · per_class,) int64: all of the lowest class first, then the next.

    Raises:
        UserError: if a class has fewer than `per_class` images.
    """
    classes, counts = labels.unique(return_counts=True)
    if len(counts) and counts.min() < per_class:
        label, fewest = int(classes[counts.argmin()]), int(counts.min())
        raise UserError(
            f"class {label} has {fewest} images, {per_class} are asked for per class",
            f"{f'set metrics.samples_per_class={fewest} or ' * (fewest > 1)}use more images of it",
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = [_shuffled_members(labels, label, generator)[:per_class] for label in classes.tolist()]
    return torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)


def stratified_subset(labels: Tensor, total: int, seed: int) -> Tensor:
    """Draws `total` images spread over the classes as evenly as their sizes allow.

    Args:
        labels: class index of every image, (n,) int64.
        total: images to draw; all are returned if there are no more.
        seed: decides which images are drawn, and which classes get one more where `total` does not divide evenly.

    Returns:
        Indices in ascending order, (min(total, n),) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = labels.unique()
    order = torch.randperm(len(classes), generator=generator)
    # Classes are dealt out like cards: the first image of each, then the second, until `total` are drawn.
    position_of_turn = []
    members_of_turn = []
    for turn, label in zip(order.tolist(), classes.tolist(), strict=True):
        members = _shuffled_members(labels, label, generator)
        members_of_turn.append(members)
        position_of_turn.append(torch.arange(len(members)) * len(classes) + turn)
    if not members_of_turn:
        return torch.empty(0, dtype=torch.int64)
    dealt = torch.cat(members_of_turn)[torch.cat(position_of_turn).argsort()]
    return dealt[:total].sort().values


def stratified_split(labels: Tensor, fractions: Sequence[float], seed: int) -> tuple[Tensor, ...]:
    """Divides all images into disjoint parts that each hold about the same mix of classes.

    Args:
        labels: class index of every image, (n,) int64.
        fractions: share of each part in [0, 1]; together 1. In each class the cuts fall at the rounded running
            sums of the shares, so a part differs from its share by less than one image per class.
        seed: decides which images go where.

    Returns:
        One tensor of ascending indices per fraction; together they hold every index once.

    Raises:
        ValueError: if a fraction is negative or they do not add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions must be at least 0 and add up to 1, got {tuple(fractions)}")
    generator = torch.Generator().manual_seed(seed)
    ends = torch.tensor(fractions, dtype=torch.float64).cumsum(0)
    parts: list[list[Tensor]] = [[] for _ in fractions]
    for label in labels.unique().tolist():
        members = _shuffled_members(labels, label, generator)
        cuts = (ends * len(members)).round().to(torch.int64)[:-1].tolist()
        for part, piece in zip(parts, torch.tensor_split(members, cuts), strict=True):
            part.append(piece)
    return tuple(torch.cat(part).sort().values if part else torch.empty(0, dtype=torch.int64) for part in parts)


def _shuffled_members(labels: Tensor, label: int, generator: torch.Generator) -> Tensor:
    members = (labels == label).nonzero().flatten()
    return members[torch.randperm(len(members), generator=generator)]
