"""The contract between data and everything that reads images: a split is a finite, labelled set of images.

A split yields batches of images in [0, 1]; it never normalises (the network's first layer does).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from consensus_cli.data.share import ALL, Share
from consensus_cli.models import ranges


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images; the default changes nothing.

    Attributes:
        pad: pixels of zero padding on each side before a random crop back to size; 0 switches cropping off.
        flip: mirror half of the images left to right; wrong for digits, right for photographs.
        min_area: smallest share of the image, in (0, 1], that a random resized crop keeps, with an aspect ratio
            between 3/4 and 4/3 (Szegedy et al. 2015); None switches it off. Right for large photographs.

    Raises:
        UserError: a value out of range.
    """

    pad: int = field(default=0, metadata={"range": (0, math.inf)})
    flip: bool = False
    min_area: float | None = field(default=None, metadata={"above": 0, "range": (0, 1)})

    def __post_init__(self) -> None:
        ranges.check(self)


class Split(Protocol):
    """A labelled set of images, in memory or on disk."""

    @property
    def labels(self) -> Tensor:
        """Class indices, (n,) int64 on the CPU, in the order of the images."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image as the network gets it."""

    def __len__(self) -> int:
        """Number of images n."""

    def subset(self, indices: Tensor) -> Split:
        """Returns the images at `indices` ((m,) int64), in that order."""

    def labelled(self, labels: Tensor) -> Split:
        """Returns the same images with other labels, (n,) int64."""

    def fingerprint(self) -> str:
        """Returns 64 hex digits that change with the images, their order and their labels.

        Images in memory are known by their pixels; image files by relative path, size and time of change, so that
        the same folder elsewhere is the same.
        """

    def batches(
        self,
        batch_size: int,
        device: torch.device | str = "cpu",
        *,
        generator: torch.Generator | None = None,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        share: Share = ALL,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields `(images (b, c, h, w) float32 in [0, 1], labels (b,) int64)` on `device`.

        Args:
            batch_size: images per batch; the last batch may be smaller unless `drop_last`.
            device: where the batches live.
            generator: CPU generator that shuffles and augments; without one the order is the split's own.
            augmentation: random changes; needs a `generator`.
            drop_last: leave out last batches that are smaller than `batch_size`, or that not every process gets.
            share: the batches of one process among several. With generators of one seed, the batches of all processes
                are, in turn, those that a single process gets.
        """
