"""A split made from a loader of one's own: anything that yields batches of images and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from consensus_cli.data.memory import ImageTensors, to_unit_range
from consensus_cli.errors import UserError

#: images (b, c, h, w), float in [0, 1], and labels (b,), whole numbers: a DataLoader, a list, a generator
Batches = Iterable[tuple[Tensor, Tensor]]


class LoaderImages(ImageTensors):
    """The images of a loader, read once and kept in memory in the order in which they came.

    A loader that shuffles, augments or can be read only once gives the same images in every later pass. An image takes
    c · h · w bytes where its values are multiples of 1/255, as those of decoded files are, else four times as much
    (float32): 50,000 images of 3×224×224 are 7 or 28 GiB.
    """

    def __init__(self, loader: Batches) -> None:
        """Reads the loader to its end.

        Raises:
            UserError: it yields no batches, other things than images and labels, or values outside [0, 1].
        """
        images, labels = read(loader, _compact)
        if any(part.dtype != torch.uint8 for part in images):
            images = [to_unit_range(part) for part in images]
        super().__init__(torch.cat(images), labels)


def read(loader: Batches, copied: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
    """Reads a loader once, to its end; returns the images of each batch and all labels (n,).

    Args:
        loader: yields images (b, ...) and labels (b,).
        copied: returns what is to be kept of the images of a batch, whose memory the loader may use again.

    Raises:
        UserError: it yields no batches, other things than images and labels, or images of several shapes.
    """
    images, labels = [], []
    for batch in loader:
        more_images, more_labels = _checked(batch)
        images.append(copied(more_images))
        labels.append(more_labels.to("cpu", torch.int64, copy=True))
    if sum(map(len, images)) == 0:
        raise UserError("the loader yields no images", "pass a loader of (images, labels) that has not been read yet")
    shapes = {tuple(part.shape[1:]) for part in images}
    if len(shapes) > 1:
        raise UserError(f"the loader's images differ in shape: {sorted(shapes)}", "resize them to one size")
    return images, torch.cat(labels)


def _checked(batch: Any) -> tuple[Tensor, Tensor]:
    try:
        images, labels = batch
    except (TypeError, ValueError):
        images = labels = None
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)) or images.ndim < 2:
        raise UserError(
            "the loader does not yield pairs of images (b, c, h, w) and labels (b,)",
            "two tensors become [(images, labels)], dictionaries ((b['image'], b['label']) for b in loader)",
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"the loader's labels must be one whole number per image, (b,), not {tuple(labels.shape)} {labels.dtype}",
            "pass class indices: labels.argmax(1) makes them of one-hot rows",
        )
    if len(labels) and labels.min() < 0:
        raise UserError(f"the loader has the label {labels.min()}", "pass class indices from 0 on")
    return images, labels


def _compact(images: Tensor) -> Tensor:
    """Returns a copy on the CPU: uint8 where the values are exact multiples of 1/255, else float32.

    Raises:
        UserError: they are not (b, c, h, w), float, in [0, 1].
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise UserError(
            f"the loader's images are {tuple(images.shape)} {images.dtype}, not (b, c, h, w) of float in [0, 1]",
            "give them four dimensions, and divide bytes by 255",
        )
    # Written so that NaN does not pass.
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"the loader's images have values from {images.min():.3g} to {images.max():.3g}, outside [0, 1]",
            "move the normalisation into the network's first layer: model = cc.normalized(model, mean, std)",
        )
    copied = images.to("cpu", torch.float32, copy=True)
    levels = copied.mul(255).round()
    return levels.to(torch.uint8) if torch.equal(levels.div(255), copied) else copied
