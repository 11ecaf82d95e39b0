"""What a dataset is to the rest of the package, and what a source of one has to offer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Request
from consensus_cli.data.sampling import stratified_split
from consensus_cli.data.split import Augmentation, Split
from consensus_cli.errors import UserError

# Train, validation and test images are the same in every run, whatever its seed.
SPLIT_SEED = 0
# Where one tree or table holds all images.
TEST_FRACTION = 0.2

# Reports slow work: what is being done, how much of it is done, how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImageData:
    """A dataset ready for use.

    Attributes:
        name: as the user calls it.
        train: images to train and to score on.
        val: images held out of training, to choose with; may be empty.
        test: images that results are reported on.
        classes: names of the classes; the position is the label. Empty where nobody sorted the images.
        augmentation: random changes that suit these images during training.
        mean: per channel, of training images in [0, 1]; empty until it is measured.
        std: the same for the standard deviation.
        notes: lines for the screen and the log: what was left out, and what was taken for what.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    augmentation: Augmentation
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Returns 64 hex digits that change with the images of any split, their labels, classes and statistics.

        Neither the dataset's name nor the place of its files has a part in it.
        """
        # Nine digits: the last ones of a sum may differ from one processor to another.
        statistics = [f"{value:.9g}" for value in (*self.mean, *self.std)]
        parts = [split.fingerprint() for split in (self.train, self.val, self.test)]
        return hashlib.sha256("\0".join((*parts, *self.classes, *statistics)).encode()).hexdigest()


class Source(Protocol):
    """One way to get labelled images; an entry of the registry of datasets."""

    streams: bool
    """Whether images can be read from disk batch by batch."""

    def check(self, request: Request, cache_dir: Path) -> list[UserError]:
        """Returns what is wrong with the request without reading images."""

    def read(self, request: Request, cache_dir: Path) -> ImageData:
        """Returns all images, not decoded yet; raises `UserError` for files that are missing or broken."""


def divide(splits: Mapping[str, Split], val_fraction: float) -> tuple[Split, Split, Split]:
    """Returns training, validation and test images; those that are missing are held out of the others, stratified.

    With `val` but no `test`, as in ImageNet, `val` is what results are reported on.
    """
    train, val, test = splits["train"], splits.get("val"), splits.get("test")
    if val is not None and test is not None:
        return train, val, test
    test = val if test is None else test
    if test is None:
        rest, last = stratified_split(train.labels, (1 - TEST_FRACTION, TEST_FRACTION), SPLIT_SEED)
        train, test = train.subset(rest), train.subset(last)
    kept, held_out = stratified_split(train.labels, (1 - val_fraction, val_fraction), SPLIT_SEED)
    return train.subset(kept), train.subset(held_out), test


def channel_statistics(split: ImageTensors) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel, over all pixels, of the images in [0, 1]."""
    # Counts of the 256 values are exact, whatever the number of threads, and far faster than sums of floats.
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(split.image_shape[0]):
        values = split.images[:, channel].flatten()
        share = torch.bincount(values, minlength=256).cpu().double() / len(values)
        mean = (share * levels).sum()
        means.append(mean.item())
        deviations.append((share * (levels - mean).square()).sum().sqrt().item())
    return tuple(means), tuple(deviations)
