"""What can be asked of a network: the node `model` of the configuration, and what a checkpoint is rebuilt from.

Importing it costs nothing: no PyTorch, no registry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from consensus_cli.models.ranges import MISSING

#: sides in pixels: below, the last stages of a network see nothing; above, a batch fits into no memory
IMAGE_SIZES = (8, 16_384)


@dataclass
class ModelSpec:
    """Which network is pruned, and where its weights come from, as plain values that a JSON file can hold.

    Attributes:
        source: `cifar_resnet`, `torchvision`, `timm`, `hf` or `custom`.
        name: architecture within the source (`resnet56`); of `hf`, a folder or a name on the hub.
        weights: checkpoint (a file of safetensors or torch.save, an index of shards, or their folder), a torchvision
            weights name, `pretrained` for timm and `hf`, or null: train a baseline.
        reset_head: keep a fresh head where that of the weights is missing or has other classes; else they are refused.
        target: `package.module.Class` or `path/to/file.py:Class` of a custom network; a function works as well.
        kwargs: further arguments of the network's constructor; of `hf`, values of its configuration.
        num_classes: outputs of the head; null: the dataset's classes.
        image_size: side of the square images in pixels; null: that of the image processor (`hf`), else the dataset's.
        mean, std: normalisation of images in [0, 1], one number per channel or one for all, in [0, 1] themselves; null:
            the weights' or image processor's own, else the dataset's. Three numbers make three channels of grey images.
    """

    source: str = MISSING
    name: str = field(default=MISSING, metadata={"own": True})
    weights: str | None = field(default=None, metadata={"own": True})
    reset_head: bool = False
    target: str | None = field(default=None, metadata={"own": True})
    kwargs: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = field(default=None, metadata={"range": (2, 1_000_000)})
    image_size: int | None = field(default=None, metadata={"range": IMAGE_SIZES})
    mean: list[float] | None = None
    std: list[float] | None = None

    def construction(self) -> dict[str, Any]:
        """Returns what says how to build the network: without its weights, which have other places."""
        return {name: value for name, value in vars(self).items() if name not in _ABOUT_WEIGHTS}


_ABOUT_WEIGHTS = ("weights", "reset_head", "image_size")
