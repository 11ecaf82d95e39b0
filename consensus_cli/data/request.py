"""What can be asked of a dataset: the node `dataset` of the configuration, the range of each option beside it.

Importing it costs nothing: no PyTorch, no registry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from consensus_cli.models.paths import expanded
from consensus_cli.models.ranges import MISSING
from consensus_cli.models.spec import IMAGE_SIZES


@dataclass
class Cue:
    """A mark that stands for a class, planted in training images to measure shortcut learning.

    Attributes:
        kind: `patch`: a square of the class's colour in the top left corner; `tint`: the whole image mixed with that
            colour; `watermark`: a faint pattern of the class's own, repeated over the image; null: none is planted.
        correlation: share of the training images of every class that get its mark.
        size_pct: side of the patch in percent of the shorter side of the image, or share of the mark in the mix.
    """

    kind: str | None = field(default=None, metadata={"choices": ("patch", "tint", "watermark")})
    correlation: float = field(default=1.0, metadata={"range": (0, 1)})
    size_pct: float = field(default=25.0, metadata={"above": 0, "range": (0, 100)})


@dataclass
class Request:
    """Which images, where they lie, and how many of them are used.

    Attributes:
        source: registry name of the loader.
        name: what the results call it; for `dataset=hf` the name on the hub, or a folder.
        root: folder of the data; null where none is needed.
        download: fetch missing archives.
        image_size: side of the square images in pixels; null: the dataset's own.
        val_fraction: share of the training images set aside for validation, where the dataset brings none.
        limit_train, limit_test: use at most so many images, stratified; null: all. `limit_test` holds for validation
            images as well.
        streaming: read from disk batch by batch; null: by size.
        on_corrupt: `error` or `skip` for files that cannot be read.
        if_missing: where files are not there and not to be downloaded, `error`, or `synthetic` images in their place.
        workers: processes that decode streamed images; 0: the run itself; null: as many as processors, at most 8.
        cue: a mark planted in the training images.
    """

    source: str = MISSING
    name: str = field(default=MISSING, metadata={"own": True})
    root: str | None = field(default=None, metadata={"own": True})
    download: bool = False
    image_size: int | None = field(default=None, metadata={"range": IMAGE_SIZES})
    val_fraction: float = field(default=0.1, metadata={"range": (0, 1), "below": 1})
    limit_train: int | None = field(default=None, metadata={"range": (1, math.inf)})
    limit_test: int | None = field(default=None, metadata={"range": (1, math.inf)})
    streaming: bool | None = None
    on_corrupt: str = field(default="error", metadata={"choices": ("error", "skip")})
    if_missing: str = field(default="error", metadata={"choices": ("error", "synthetic")})
    workers: int | None = field(default=None, metadata={"range": (0, math.inf)})
    cue: Cue = field(default_factory=Cue)

    @property
    def folder(self) -> Path | None:
        """The root as a path, its `~` replaced."""
        return None if self.root is None else expanded(self.root)
