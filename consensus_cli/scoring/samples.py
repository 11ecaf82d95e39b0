"""The images that a ranking looks at: the same ones in the same order in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from consensus_cli.data.split import Split
from consensus_cli.errors import UserError

#: images in one batch; the engine takes as many of them at once as memory and cache allow
BATCH_SIZE = 256

#: Images of a loader are kept in memory up to here: a ranking needs some hundreds or thousands, not all there are.
LARGEST_GB = 8

#: images (b, ...) as the model takes them and labels (b,), whole numbers: a DataLoader, a list, a generator
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Samples:
    """Labelled images that can be read again and again.

    Attributes:
        labels: (n,) int64, in the order of the images.
        num_classes: number of classes.
        batches: yields images (b, ...) as the model takes them and labels (b,): those at the positions given, or
            with None all of them; the same ones in the same order every time.
    """

    labels: Tensor
    num_classes: int
    batches: Callable[[Tensor | None], Batches]

    @classmethod
    def of(cls, samples: Samples | Batches) -> Samples:
        """Returns samples as they are; reads a loader once and keeps its images in memory, in the order they came in.

        So a generator, or a loader that shuffles or augments, gives the same images in every pass.

        Raises:
            UserError: the loader yields no images, something else, or more than `LARGEST_GB` of them.
        """
        if isinstance(samples, Samples):
            return samples
        images, labels, size = [], [], 0
        for batch in samples:
            more_images, more_labels = _checked(batch)
            images.append(more_images.detach().to("cpu", copy=True))
            labels.append(more_labels.to("cpu", torch.int64, copy=True))
            size += images[-1].nbytes
            if size > LARGEST_GB * 2**30:
                raise UserError(
                    f"the loader yields more than {LARGEST_GB} GiB of images",
                    "pass some hundreds or thousands of images, such as those of a torch.utils.data.Subset",
                )
        if not sum(map(len, images)):
            raise UserError(
                "the loader yields no images", "pass a loader of (images, labels) that has not been read yet"
            )
        shapes = {tuple(part.shape[1:]) for part in images}
        if len(shapes) > 1:
            raise UserError(f"the loader's images differ in shape: {sorted(shapes)}", "resize them to one size")
        all_images, all_labels = torch.cat(images), torch.cat(labels)

        def batches(positions: Tensor | None) -> Batches:
            rows = torch.arange(len(all_labels)) if positions is None else positions
            return ((all_images[part], all_labels[part]) for part in rows.split(BATCH_SIZE))

        return cls(all_labels, int(all_labels.max()) + 1, batches)

    @classmethod
    def of_split(
        cls, split: Split, num_classes: int, *, device: torch.device | str = "cpu", batch_size: int = BATCH_SIZE
    ) -> Samples:
        """Returns the images of a split, in [0, 1], on `device`."""

        def batches(positions: Tensor | None) -> Batches:
            chosen = split if positions is None else split.subset(positions)
            return chosen.batches(batch_size, device)

        return cls(split.labels, num_classes, batches)

    def __len__(self) -> int:
        return len(self.labels)


def _checked(batch: Any) -> tuple[Tensor, Tensor]:
    try:
        images, labels = batch
    except (TypeError, ValueError):
        images = labels = None
    if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
        raise UserError(
            "the loader does not yield pairs of images (b, ...) and labels (b,)",
            "wrap it in a generator: ((batch['image'], batch['label']) for batch in loader)",
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex() or (labels < 0).any():
        raise UserError(
            f"the loader's labels must be one class index per image, (b,), not {tuple(labels.shape)} {labels.dtype}",
            "pass class indices from 0 on: labels.argmax(1) makes them of one-hot rows",
        )
    return images, labels
