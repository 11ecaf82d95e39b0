"""Which values a configuration can take: every one out of range is found at once, without touching a file."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

from consensus_cli.config.schema import RunConfig
from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models import normalization

#: more than this is a slip of the pen: the machine would be busy or out of memory before a row is written
_MOST_THREADS = 1024
_MOST_CLASSES = 1_000_000
_MOST_EPOCHS = 100_000
_MOST_RESAMPLES = 1_000_000
_LARGEST_BATCH = 65_536
_LONGEST_S = 3600

#: keys whose text names a file, a folder or code: an empty one would be the working folder
NAMES = ("output_dir", "model.name", "model.weights", "model.target", "dataset.root")

_SCHEDULES = ("constant", "cosine", "onecycle", "step")


def _between(low: float, high: float) -> Callable[[float], bool]:
    return lambda value: low < value < high


def _at_least(low: float) -> Callable[[float], bool]:
    return lambda value: low <= value < math.inf


def _increasing(shares: list[float]) -> bool:
    return bool(shares) and all(low < high for low, high in itertools.pairwise([0.0, *shares])) and shares[-1] <= 1


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _from_to(low: float, high: float) -> tuple[Callable[[float], bool], str]:
    return lambda value: low <= value <= high, f"from {low:g} to {high:.0f}"


def _above(low: float, high: float) -> tuple[Callable[[float], bool], str]:
    return lambda value: low < value <= high, f"above {low:g}, at most {high:.0f}"


def _sizes(values: list[int]) -> bool:
    return len(set(values)) == len(values) > 0 and min(values) >= 1 and max(values) <= _LARGEST_BATCH


#: key -> values it can take; null passes where the type allows it
CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("auto", "fp32", "bf16"),
    "baseline.schedule": _SCHEDULES,
    "finetune.schedule": _SCHEDULES,
    "finetune.span": ("step", "run"),
    "scoring.against": ("current", "original"),
    "scoring.precision": ("auto", "fp32", "bf16"),
    "prune.unit": ("blocks", "macs"),
    "prune.granularity": ("block", "branch"),
    "if_done": ("skip", "rerun"),
}

#: key -> (what a value must satisfy, the same in words); null passes where the type allows it; those of `dataset` and
#: sizes of images are checked by `data`
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ratio": (
        lambda value: _increasing(value if isinstance(value, list) else [value]),
        "above 0 and at most 1, or a list of such shares in increasing order",
    ),
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "compile": (lambda value: value in ("auto", True, False), "auto, true or false"),
    "threads": (lambda value: 1 <= value <= _MOST_THREADS, f"from 1 to {_MOST_THREADS}, or null"),
    "model.num_classes": (lambda value: 2 <= value <= _MOST_CLASSES, f"from 2 to {_MOST_CLASSES}, or null"),
    "baseline.epochs": _above(0, _MOST_EPOCHS),
    "finetune.epochs_per_step": _from_to(0, _MOST_EPOCHS),
    "finetune.final_epochs": _from_to(0, _MOST_EPOCHS),
    "finetune.recalibration_images": (lambda images: images == 0 or images >= 2, "0, or at least 2"),
    "finetune.distill": (lambda share: 0 <= share <= 1, "from 0 to 1"),
    "finetune.ema_decay": (lambda decay: 0 <= decay < 1, "at least 0 and below 1"),
    "metrics.samples_per_class": (_at_least(2), "at least 2"),
    "scoring.memory_gb": (_positive, "above 0"),
    "scoring.bootstrap": _from_to(0, _MOST_RESAMPLES),
    "prune.step": (_at_least(1), "at least 1"),
    "prune.min_blocks_per_stage": (_at_least(1), "at least 1"),
    "attacks.images": (_at_least(1), "at least 1"),
    "evaluate.energy_window_s": _above(0, _LONGEST_S),
    "evaluate.energy_repeats": (_at_least(1), "at least 1"),
    "evaluate.batch_sizes": (_sizes, f"one or more sizes from 1 to {_LARGEST_BATCH}, each once"),
    "evaluate.latency_min_run_s": _above(0, _LONGEST_S),
    "evaluate.corruption_images": (_at_least(1), "at least 1"),
    "evaluate.shift_images": (_at_least(1), "at least 1, or null"),
}
_RECIPE_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (_positive, "above 0"),
    "momentum": (_between(0, 1), "between 0 and 1 (Nesterov needs momentum)"),
    "weight_decay": (_at_least(0), "at least 0"),
    "batch_size": (_at_least(2), "at least 2 (batch norm needs two images)"),
    "accumulate_batches": (_at_least(1), "at least 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "milestones": (lambda shares: all(_between(0, 1)(share) for share in shares), "shares between 0 and 1"),
}
RANGES |= {f"{node}.{key}": rule for node in ("baseline", "finetune") for key, rule in _RECIPE_RANGES.items()}


def problems(config: RunConfig) -> list[UserError]:
    """Returns every value that is out of range, without touching a file, the data or a device."""
    found = [
        unknown_name(key, value, valid)
        for key, valid in CHOICES.items()
        if (value := _value(config, key)) is not None and value not in valid
    ]
    for key, (allowed, in_words) in RANGES.items():
        value = _value(config, key)
        if value is not None and not allowed(value):
            found.append(UserError(f"{key}={value} is out of range", f"{key} must be {in_words}"))
    for key in NAMES:
        if _value(config, key) == "":
            found.append(UserError(f"{key} is empty", f"write {key}=NAME, or leave it out"))
    found += [
        UserError(f"evaluate.shift.{name} is empty", "give the file or folder of the images")
        for name, path in config.evaluate.shift.items()
        if not path
    ]
    for name, weight in config.metrics.weights.items():
        if not _at_least(0)(weight):
            found.append(
                UserError(f"metrics.weights.{name}={weight} is out of range", "a weight is 0 or a positive number")
            )
    found += normalization.problems(config.model.mean, config.model.std)
    if config.criterion.name == "consensus" and not any(config.metrics.weights.values()):
        found.append(UserError("metrics.weights leaves no metric to vote", "give at least one metric a weight above 0"))
    if config.finetune.span == "run" and config.prune.unit != "blocks":
        found.append(
            UserError(
                "finetune.span=run needs prune.unit=blocks: how many steps a MACs target takes is not known before",
                "use finetune.span=step",
            )
        )
    if config.finetune.span == "run" and len(config.ratios) > 1:
        found.append(
            UserError(
                "finetune.span=run fits one ratio: a schedule over the run ends at the last one, not at those before",
                "sweep over the ratios instead (-m ratio=0.25,0.5), or use finetune.span=step",
            )
        )
    for node in ("baseline", "finetune"):
        recipe = getattr(config, node)
        if 2 <= recipe.batch_size < 2 * recipe.accumulate_batches:
            found.append(
                UserError(
                    f"{node}.accumulate_batches={recipe.accumulate_batches} leaves micro-batches of 1 image",
                    f"lower it to {recipe.batch_size // 2}, or raise {node}.batch_size",
                )
            )
    return found


def _value(config: RunConfig, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)
