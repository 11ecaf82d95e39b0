"""One training loop, for the baseline and for fine-tuning, on Hugging Face Accelerate."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from consensus_cli.training.recipe import SCHEDULES, Recipe

if TYPE_CHECKING:
    from consensus_cli.training.batch_norm import recalibrate_batch_norm
    from consensus_cli.training.checkpoint import Keeper
    from consensus_cli.training.loop import Progress, TrainingDivergedError, TrainingResult, train
    from consensus_cli.training.machine import resolve_compile, resolve_precision

__all__ = [
    "SCHEDULES",
    "Keeper",
    "Progress",
    "Recipe",
    "TrainingDivergedError",
    "TrainingResult",
    "recalibrate_batch_norm",
    "resolve_compile",
    "resolve_precision",
    "train",
]

_HOMES = {
    "Keeper": "checkpoint",
    "recalibrate_batch_norm": "batch_norm",
    "resolve_compile": "machine",
    "resolve_precision": "machine",
}


def __getattr__(name: str) -> Any:
    # Late: the configuration needs `Recipe` alone, and `consensus --help` does not wait for PyTorch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'loop')}"), name)
