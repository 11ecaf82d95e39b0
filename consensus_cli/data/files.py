"""Splits whose images stay encoded on disk and are decoded batch by batch in worker processes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from consensus_cli.data.decoding import UnreadableImageError, decode
from consensus_cli.data.loading import batches, worker_count
from consensus_cli.data.memory import to_unit_range
from consensus_cli.data.share import ALL, Share
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import UserError, enumerated

logger = logging.getLogger(__name__)

LARGEST_UNCROPPED_SIZE = 64
# Sides whose ratio is larger are cut before the image is resized: a strip of 4000×1 pixels would need 0.8 GB.
LARGEST_RATIO = 8

# Unreadable files that a message names.
NAMED = 10


class EncodedImages(Protocol):
    """Image files, wherever they are kept."""

    def read(self, index: int) -> Tensor:
        """Returns the bytes of one file, (m,) uint8; raises `UnreadableImageError` if they cannot be read."""

    def name(self, index: int) -> str:
        """Returns what to call the file in a message."""

    def fingerprint(self, indices: Tensor) -> str:
        """Returns 64 hex digits that change when one of the files at `indices` ((m,) int64) or their order does."""

    def cache_key(self, indices: Tensor) -> str:
        """Returns as many for what is kept of these files on this machine: no others may have the same."""


@dataclass(frozen=True)
class Geometry:
    """How an image of any size becomes a square: shorter side resized, then the centre cropped.

    Attributes:
        image_size: side of the square in pixels.
        resize_size: length of the shorter side before the crop, in pixels.
    """

    image_size: int
    resize_size: int

    @classmethod
    def for_size(cls, image_size: int) -> Geometry:
        """Crops as torchvision's ImageNet recipes do (224 of 256 pixels); small images keep everything."""
        if image_size <= LARGEST_UNCROPPED_SIZE:
            return cls(image_size, image_size)
        return cls(image_size, round(image_size * 256 / 224))

    def __call__(self, image: Tensor) -> Tensor:
        """Maps a uint8 image (3, h, w) to (3, image_size, image_size)."""
        from torchvision.transforms.v2 import functional as tvf

        shorter, longer = sorted(image.shape[1:])
        if longer > LARGEST_RATIO * shorter:
            # More of the centre than is kept, so that the filter finds its neighbours.
            image = tvf.center_crop(image, [min(side, 4 * shorter) for side in image.shape[1:]])
        resized = tvf.resize(image, [self.resize_size], antialias=True)
        return tvf.center_crop(resized, [self.image_size, self.image_size])


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """A split of image files, decoded when needed (satisfies `Split`).

    Every image has its own random seed, drawn from the epoch's generator, so that the number of workers does not
    change what they produce.

    Attributes:
        images: where the files are.
        indices: of the split's files among them, (n,) int64.
        labels: of the split's files, (n,) int64.
        geometry: how they become squares.
        on_corrupt: `error`, or `skip`: unreadable images are missing from the batches and a warning counts them.
        workers: as in `worker_count`; 0 decodes in the calling process.
    """

    images: EncodedImages
    indices: Tensor
    labels: Tensor
    geometry: Geometry
    on_corrupt: str = "error"
    workers: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image as the network gets it."""
        return 3, self.geometry.image_size, self.geometry.image_size

    def __len__(self) -> int:
        """Number of image files n."""
        return len(self.indices)

    def subset(self, indices: Tensor) -> ImageFiles:
        """Returns the files at `indices` ((m,) int64), in that order."""
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])

    def labelled(self, labels: Tensor) -> ImageFiles:
        """Returns the same files with other labels, (n,) int64."""
        return replace(self, labels=labels)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of geometry, labels, and names, sizes and times of the files; opens none of them."""
        digest = hashlib.sha256(f"{self.geometry} {len(self)} {self.images.fingerprint(self.indices)}".encode())
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def decoded(self, position: int) -> Tensor:
        """Returns the image at a position of this split, (3, h, w) uint8, as large as its file has it.

        Raises:
            UnreadableImageError: its file cannot be read.
        """
        return decode(self.images.read(int(self.indices[position])))

    def problem(self, position: int) -> str | None:
        """Returns why the image at a position cannot be read; None where it can."""
        try:
            self.decoded(position)
        except UnreadableImageError as error:
            return str(error)
        return None

    def left_out(self, unreadable: Mapping[int, str]) -> str:
        """Returns a sentence about the files that cannot be read: position -> reason.

        Raises:
            UserError: unreadable files are an error.
        """
        named = [f"{self.images.name(int(self.indices[place]))} ({reason})" for place, reason in unreadable.items()]
        what, which = f"{len(unreadable)} of {len(self)} image files", enumerated(named, NAMED)
        if self.on_corrupt == "error":
            hint = "replace or remove them, or set dataset.on_corrupt=skip"
            raise UserError(f"{what} cannot be read: {which}", hint)
        return f"{what} left out, for they cannot be read: {which}"

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
        """Yields batches as `Split.batches` says, in channels_last memory format.

        Raises:
            ValueError: at the first batch, if `augmentation` comes without a `generator`.
            UserError: if a file cannot be read and `on_corrupt` is `error`.
            RunFailedError: if a worker is killed.
        """
        if augmentation is not None and generator is None:
            raise ValueError("augmentation needs a generator")
        unreadable: dict[int, str] = {}
        for images, positions, reasons in batches(
            self.decoded,
            self._transform(augmentation),
            _shared(self._plan(generator), batch_size, share, drop_last=drop_last),
            image_shape=self.image_shape,
            batch_size=batch_size,
            workers=worker_count(self.workers),
            drop_last=drop_last,
        ):
            unreadable |= reasons
            if unreadable and self.on_corrupt == "error":
                self.left_out(unreadable)
            if positions:
                yield to_unit_range(images.to(device)), self.labels[positions].to(device)
        if unreadable:
            logger.warning(self.left_out(unreadable))

    def _plan(self, generator: torch.Generator | None) -> list[tuple[int, int]]:
        if generator is None:
            return [(position, 0) for position in range(len(self))]
        order = torch.randperm(len(self), generator=generator)
        seeds = torch.randint(0, 2**62, (len(self),), generator=generator)
        return list(zip(order.tolist(), seeds.tolist(), strict=True))

    def _transform(self, augmentation: Augmentation | None) -> Callable[[Tensor], Tensor]:
        if augmentation is None:
            return self.geometry
        from torchvision.transforms import v2

        size = self.geometry.image_size
        steps: list[Callable[[Tensor], Tensor]] = []
        if augmentation.min_area is None:
            steps.append(self.geometry)
        else:
            steps.append(v2.RandomResizedCrop(size, scale=(augmentation.min_area, 1), antialias=True))
        if augmentation.pad:
            steps.append(v2.RandomCrop(size, padding=augmentation.pad))
        if augmentation.flip:
            steps.append(v2.RandomHorizontalFlip())
        return v2.Compose(steps)


def _shared(plan: list[tuple[int, int]], batch_size: int, share: Share, *, drop_last: bool) -> list[tuple[int, int]]:
    """Returns the part of an epoch's plan that one process decodes."""
    stride = batch_size * share.world
    count = len(plan) // stride * stride if drop_last else len(plan)
    starts = range(share.rank * batch_size, count, stride)
    return [drawn for start in starts for drawn in plan[start : start + batch_size]]
