"""One training loop, for the baseline and for fine-tuning, on Hugging Face Accelerate."""

from consensus_cli.training.batch_norm import recalibrate_batch_norm
from consensus_cli.training.loop import Progress, TrainingDivergedError, TrainingResult, train
from consensus_cli.training.machine import resolve_compile, resolve_precision
from consensus_cli.training.recipe import SCHEDULES, Recipe

__all__ = [
    "SCHEDULES",
    "Progress",
    "Recipe",
    "TrainingDivergedError",
    "TrainingResult",
    "recalibrate_batch_norm",
    "resolve_compile",
    "resolve_precision",
    "train",
]
