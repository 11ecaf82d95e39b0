"""Datasets as splits of labelled images in [0, 1], stratified sampling and augmentation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from consensus_cli.data.request import Cue, Request

if TYPE_CHECKING:
    from consensus_cli.data.datasets import DATASETS, available, check, load
    from consensus_cli.data.source import ImageData, Progress
    from consensus_cli.data.split import Augmentation, Split

__all__ = ["DATASETS", "Augmentation", "Cue", "ImageData", "Progress", "Request", "Split"]
__all__ += ["available", "check", "load"]

_HOMES = {"ImageData": "source", "Progress": "source", "Augmentation": "split", "Split": "split"}


def __getattr__(name: str) -> Any:
    # Late: the configuration needs `Request` alone, and `consensus --help` does not wait for PyTorch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'datasets')}"), name)
