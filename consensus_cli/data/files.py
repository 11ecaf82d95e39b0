"""Splits whose images stay encoded on disk and are decoded batch by batch in worker processes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from consensus_cli.data.memory import to_unit_range
from consensus_cli.data.split import ALL, Augmentation, Share
from consensus_cli.errors import UserError

logger = logging.getLogger(__name__)

LARGEST_UNCROPPED_SIZE = 64


class EncodedImages(Protocol):
    """Image files, wherever they are kept."""

    def read(self, index: int) -> Tensor:
        """Returns the bytes of one file, (m,) uint8; raises `RuntimeError` if it cannot be read."""

    def name(self, index: int) -> str:
        """Returns what to call the file in a message."""

    def fingerprint(self, indices: Tensor) -> str:
        """Returns 64 hex digits that change when one of the files at `indices` ((m,) int64) or their order does."""


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
        resized = tvf.resize(image, [self.resize_size], antialias=True)
        return tvf.center_crop(resized, [self.image_size, self.image_size])


def decode(images: EncodedImages, index: int) -> Tensor:
    """Returns one image in RGB, (3, h, w) uint8; raises `RuntimeError` if the file is damaged."""
    return decode_image(images.read(index), mode=ImageReadMode.RGB)


def worker_count(workers: int | None) -> int:
    """Returns `workers`, or as many as there are processors up to 8."""
    return min(8, os.cpu_count() or 1) if workers is None else workers


def corrupt_files_error(names: Sequence[str], total: int) -> UserError:
    """Returns the error for files that cannot be decoded, naming the first ten of them."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return UserError(
        f"{len(names)} of {total} image files cannot be decoded: {', '.join(names[:10])}{more}",
        "replace or remove them, or set dataset.on_corrupt=skip",
    )


class ImageFiles:
    """A split of image files, decoded when needed (satisfies `Split`).

    Every image has its own random seed, drawn from the epoch's generator, so that the number of workers does not
    change what they produce.
    """

    def __init__(
        self,
        images: EncodedImages,
        indices: Tensor,
        labels: Tensor,
        geometry: Geometry,
        *,
        on_corrupt: str,
        workers: int | None,
    ) -> None:
        """Takes the files at `indices` ((n,) int64) of `images`, with their `labels` ((n,) int64).

        `on_corrupt` is `error`, or `skip`: then damaged images are missing from the batches and a warning counts
        them. `workers` as in `worker_count`; 0 decodes in the calling process.
        """
        self.images = images
        self.indices = indices
        self.labels = labels
        self.geometry = geometry
        self.on_corrupt = on_corrupt
        self.workers = workers

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image as the network gets it."""
        return 3, self.geometry.image_size, self.geometry.image_size

    def __len__(self) -> int:
        """Number of image files n."""
        return len(self.indices)

    def subset(self, indices: Tensor) -> ImageFiles:
        """Returns the files at `indices` ((m,) int64), in that order."""
        chosen, labels = self.indices[indices], self.labels[indices]
        return ImageFiles(self.images, chosen, labels, self.geometry, on_corrupt=self.on_corrupt, workers=self.workers)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of geometry, labels, and names, sizes and times of the files; opens none of them."""
        digest = hashlib.sha256(f"{self.geometry} {len(self)} {self.images.fingerprint(self.indices)}".encode())
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def name(self, position: int) -> str:
        """Returns what to call the file at a position of this split."""
        return self.images.name(int(self.indices[position]))

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
            UserError: if a file cannot be decoded and `on_corrupt` is `error`.
        """
        if augmentation is not None and generator is None:
            raise ValueError("augmentation needs a generator")
        on_gpu = torch.device(device).type == "cuda"
        loader = DataLoader(
            _Decoding(self.images, self.indices, self._transform(augmentation)),
            batch_size=batch_size,
            sampler=_shared(self._plan(generator), batch_size, share, drop_last=drop_last),
            num_workers=worker_count(self.workers),
            collate_fn=_collate,
            pin_memory=on_gpu,
            drop_last=drop_last,
            generator=torch.Generator(),
        )
        skipped = 0
        for images, positions, corrupt in loader:
            if corrupt and self.on_corrupt == "error":
                raise corrupt_files_error([self.name(position) for position in corrupt], len(self))
            skipped += len(corrupt)
            if len(positions):
                moved = images.to(device, non_blocking=on_gpu)
                yield to_unit_range(moved), self.labels[positions].to(device)
        if skipped:
            logger.warning("skipped %d of %d image files that cannot be decoded", skipped, len(self))

    def _plan(self, generator: torch.Generator | None) -> list[tuple[int, int]]:
        if generator is None:
            return [(position, 0) for position in range(len(self))]
        order = torch.randperm(len(self), generator=generator)
        seeds = torch.randint(0, 2**62, (len(self),), generator=generator)
        return list(zip(order.tolist(), seeds.tolist(), strict=True))

    def _transform(self, augmentation: Augmentation | None) -> Callable[[Tensor], Tensor]:
        if augmentation is None:
            return self.geometry
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


class _Decoding(Dataset[tuple[int, Tensor | None]]):
    """Decodes and transforms one image; a damaged one becomes None, for an exception would lose its file's name."""

    def __init__(self, images: EncodedImages, indices: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.images = images
        self.indices = indices
        self.transform = transform

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[int, Tensor | None]:
        position, seed = drawn
        try:
            image = decode(self.images, int(self.indices[position]))
        except RuntimeError:
            return position, None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return position, self.transform(image)


def _collate(drawn: list[tuple[int, Tensor | None]]) -> tuple[Tensor, Tensor, list[int]]:
    intact = [(position, image) for position, image in drawn if image is not None]
    corrupt = [position for position, image in drawn if image is None]
    images = torch.stack([image for _, image in intact]) if intact else torch.empty(0)
    return images, torch.tensor([position for position, _ in intact], dtype=torch.int64), corrupt
