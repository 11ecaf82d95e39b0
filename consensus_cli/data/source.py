"""What a dataset is to the rest of the package, and what a source of one has to offer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Request
from consensus_cli.data.sampling import stratified_split
from consensus_cli.data.split import Augmentation, Split
from consensus_cli.errors import UserError

# Train, validation and test images are the same in every run, whatever its seed.
SPLIT_SEED = 0

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
        classes: names of the classes; the position is the label.
        augmentation: random changes that suit these images during training.
        mean: per channel, of training images in [0, 1].
        std: standard deviation per channel, of training images in [0, 1].
        notes: lines for the screen and the log: what was left out, and what was taken for what.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    augmentation: Augmentation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Returns 64 hex digits that change with the images of any split, their labels, classes and statistics.

        Neither the dataset's name nor the place of its files has a part in it.
        """
        # Nine digits: the last ones of a sum may differ from one processor to another.
        statistics = [f"{value:.9g}" for value in (*self.mean, *self.std)]
        parts = [split.fingerprint() for split in (self.train, self.val, self.test)]
        return hashlib.sha256("\0".join((*parts, *self.classes, *statistics)).encode()).hexdigest()


@dataclass(frozen=True)
class Parts:
    """What a source found; mean and std are None where only the training images can tell. `notes` as in `ImageData`."""

    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    augmentation: Augmentation
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """One way to get labelled images; an entry of the registry of datasets."""

    streams: bool
    """Whether images can be read from disk batch by batch."""

    def check(self, request: Request, cache_dir: Path) -> list[UserError]:
        """Returns what is wrong with the request without reading images."""

    def read(self, request: Request, cache_dir: Path) -> Parts:
        """Returns the splits; raises `UserError` for files that are missing or broken."""


def hold_out(labels: Tensor, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Returns indices of the training and of the validation images, stratified, the same in every run."""
    train, val = stratified_split(labels, (1 - val_fraction, val_fraction), SPLIT_SEED)
    return train, val


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
