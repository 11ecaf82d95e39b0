"""The images that a ranking looks at: the same ones in the same order in every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from consensus_cli.data.batches import Batches, read
from consensus_cli.data.split import Split
from consensus_cli.errors import UserError

#: images in one batch; the engine takes as many of them at once as memory and cache allow
BATCH_SIZE = 256

#: Images of a loader are kept in memory up to here: a ranking needs some hundreds or thousands, not all there are.
LARGEST_GB = 8


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
    def of(cls, samples: Samples | Split | Batches) -> Samples:
        """Returns samples as they are; reads a loader once and keeps its images in memory, in the order they came in.

        So a generator, or a loader that shuffles or augments, gives the same images in every pass.

        Raises:
            UserError: the loader yields no images, something else, or more than `LARGEST_GB` of them.
        """
        if isinstance(samples, Samples):
            return samples
        if hasattr(samples, "batches"):
            split: Split = samples  # type: ignore[assignment]
            return cls.of_split(split, int(split.labels.max()) + 1)
        size = 0

        def copied(images: Tensor) -> Tensor:
            nonlocal size
            size += images.nbytes
            if size > LARGEST_GB * 2**30:
                raise UserError(
                    f"the loader yields more than {LARGEST_GB} GiB of images",
                    "pass some hundreds or thousands of images, such as those of a torch.utils.data.Subset",
                )
            return images.detach().to("cpu", copy=True)

        parts, labels = read(samples, copied)
        images = torch.cat(parts)

        def batches(positions: Tensor | None) -> Batches:
            rows = torch.arange(len(labels)) if positions is None else positions
            return ((images[part], labels[part]) for part in rows.split(BATCH_SIZE))

        return cls(labels, int(labels.max()) + 1, batches)

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
