"""Splits that live in memory, on the CPU or on the GPU, and are augmented a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from consensus_cli.data.share import ALL, Share
from consensus_cli.data.split import Augmentation

# Images are hashed in parts of about this size, so that a copy in another order stays small.
HASHED_AT_ONCE_BYTES = 2**24


class ImageTensors:
    """A split whose images are one tensor (satisfies `Split`).

    Random numbers of a whole epoch are drawn on the CPU before its first batch and moved at once. They are the
    same on every device, and nothing inside the epoch makes the host wait for the device.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """Takes `images` (n, c, h, w), uint8 or float32 in [0, 1], and `labels` (n,).

        Raises:
            ValueError: if shapes or types do not fit.
        """
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"images must be (n, c, h, w) uint8 or float32, got {tuple(images.shape)} {images.dtype}")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images with labels of shape {tuple(labels.shape)}")
        self.images = images
        self.labels = labels.to("cpu", torch.int64)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        """Number of images n."""
        return len(self.images)

    def to(self, device: torch.device | str) -> ImageTensors:
        """Returns the split with its images on `device`, so that no batch has to travel."""
        return ImageTensors(self.images.to(device), self.labels)

    def subset(self, indices: Tensor) -> ImageTensors:
        """Returns a copy of the images at `indices` ((m,) int64), in that order."""
        return ImageTensors(self.images[indices.to(self.images.device)], self.labels[indices.cpu()])

    def labelled(self, labels: Tensor) -> ImageTensors:
        """Returns the same images with other labels, (n,) int64."""
        return ImageTensors(self.images, labels)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of shape, labels and pixels, the same on every device and in every memory format."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)}".encode())
        digest.update(self.labels.contiguous().numpy().data)
        per_chunk = max(1, HASHED_AT_ONCE_BYTES // max(1, self.images[:1].numel()))
        # Channels last: the order in which most images lie already, so that nothing is copied.
        for chunk in self.images.permute(0, 2, 3, 1).split(per_chunk):
            digest.update(chunk.cpu().contiguous().numpy().data)
        return digest.hexdigest()

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
        """
        if augmentation is not None and generator is None:
            raise ValueError("augmentation needs a generator")
        stride = batch_size * share.world
        count = len(self) // stride * stride if drop_last else len(self)
        home = self.images.device
        labels = self.labels.to(home)
        order = None
        draw = None
        if generator is not None:
            order = torch.randperm(len(self), generator=generator).to(home)
            draw = None if augmentation is None else draw_augmentation(augmentation, count, generator).to(home)
        for start in range(share.rank * batch_size, count, stride):
            rows = slice(start, min(start + batch_size, count))
            chosen = rows if order is None else order[rows]
            images = self.images[chosen].to(device)
            if draw is not None:
                images = augment(images, draw.rows(rows).to(device))
            yield to_unit_range(images), labels[chosen].to(device)


@dataclass(frozen=True)
class AugmentationDraw:
    """The random numbers of `n` augmented images.

    Attributes:
        pad: pixels of padding on each side.
        top: first row of the crop in the padded image, (n,) int64 in [0, 2 · pad].
        left: first column of the crop in the padded image, (n,) int64 in [0, 2 · pad].
        flip: whether the image is mirrored, (n,) bool.
        box: centre x, centre y, width and height of the resized crop in units of the image's own size, (n, 4)
            float32; None where no resized crop is asked for.
    """

    pad: int
    top: Tensor
    left: Tensor
    flip: Tensor
    box: Tensor | None

    def to(self, device: torch.device | str) -> AugmentationDraw:
        """Returns the same numbers on `device`."""
        box = None if self.box is None else self.box.to(device)
        return AugmentationDraw(self.pad, self.top.to(device), self.left.to(device), self.flip.to(device), box)

    def rows(self, rows: slice) -> AugmentationDraw:
        """Returns the numbers of the images at `rows`."""
        box = None if self.box is None else self.box[rows]
        return AugmentationDraw(self.pad, self.top[rows], self.left[rows], self.flip[rows], box)


def draw_augmentation(augmentation: Augmentation, count: int, generator: torch.Generator) -> AugmentationDraw:
    """Draws what happens to each of `count` images, on the CPU."""
    offsets = torch.randint(0, 2 * augmentation.pad + 1, (2, count), generator=generator)
    if augmentation.flip:
        flip = torch.randint(0, 2, (count,), generator=generator).bool()
    else:
        flip = torch.zeros(count, dtype=torch.bool)
    box = None if augmentation.min_area is None else _draw_boxes(augmentation.min_area, count, generator)
    return AugmentationDraw(augmentation.pad, offsets[0], offsets[1], flip, box)


def augment(images: Tensor, draw: AugmentationDraw) -> Tensor:
    """Crops and mirrors each image of a batch as drawn.

    Args:
        images: (b, c, h, w) uint8 or float32 in [0, 1].
        draw: the random numbers of these b images, on the same device.

    Returns:
        The same shape and type, channels_last.
    """
    if draw.box is not None:
        images = _resized_crop(images, draw.box)
    height, width = images.shape[-2:]
    device = images.device
    columns = torch.arange(width, device=device)
    columns = torch.where(draw.flip[:, None], width - 1 - columns, columns) + draw.left[:, None]  # (b, w)
    rows = torch.arange(height, device=device) + draw.top[:, None]  # (b, h)
    padded = functional.pad(images, [draw.pad] * 4) if draw.pad else images
    batch = torch.arange(len(images), device=device)
    # The index tensors surround the channel slice, so the result is (b, h, w, c): channels_last for free.
    picked = padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def to_unit_range(images: Tensor) -> Tensor:
    """Returns a copy of images (b, c, h, w), uint8 or float32 in [0, 1], as float32 in [0, 1], channels_last."""
    copied = images.to(torch.float32, memory_format=torch.channels_last, copy=True)
    return copied if images.is_floating_point() else copied.div_(255)


def _draw_boxes(min_area: float, count: int, generator: torch.Generator) -> Tensor:
    area = torch.empty(count).uniform_(min_area, 1, generator=generator)
    limit = torch.tensor(4 / 3).log().item()
    aspect = torch.empty(count).uniform_(-limit, limit, generator=generator).exp()
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1)  # (n, 2)
    corner = torch.rand(count, 2, generator=generator) * (1 - size)
    return torch.cat([corner + size / 2, size], dim=1)


def _resized_crop(images: Tensor, box: Tensor) -> Tensor:
    centre, size = box[:, :2], box[:, 2:]
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = size[:, 0]
    theta[:, 1, 1] = size[:, 1]
    theta[:, :, 2] = 2 * centre - 1
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return sampled if images.is_floating_point() else sampled.round().clamp(0, 255).to(torch.uint8)
