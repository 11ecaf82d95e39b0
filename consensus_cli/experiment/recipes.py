"""The recipes of a run's trainings, from its configuration."""

from __future__ import annotations

import math
from dataclasses import fields, replace

from consensus_cli.config.schema import RunConfig
from consensus_cli.training.recipe import Hyperparameters, Recipe, RecoveryHyperparameters


def training_baseline(config: RunConfig) -> Recipe:
    """Returns how the original network is trained."""
    return _recipe(config.baseline, config.baseline.epochs)


def part_of_epoch(config: RunConfig, share: float) -> Recipe:
    """Returns a share of an epoch of fine-tuning without teacher and average: what the energy of training is of."""
    return _recipe(config.finetune, share)


def after_removal(config: RunConfig, removed: int, target_blocks: int) -> Recipe:
    """Returns how the network is trained between two removals.

    Args:
        config: of the run.
        removed: blocks that are gone by now.
        target_blocks: blocks that will be gone in the end; read where `finetune.span` is `run`.
    """
    epochs = config.finetune.epochs_per_step
    rounds_before = math.ceil(removed / config.prune.step) - 1
    return _in_the_run(config, epochs, rounds_before * epochs, target_blocks)


def at_the_end(config: RunConfig, removed: int, target_blocks: int) -> Recipe:
    """Returns how the network is trained after the last removal; arguments as in `after_removal`."""
    epochs_before = math.ceil(removed / config.prune.step) * config.finetune.epochs_per_step
    return _in_the_run(config, config.finetune.final_epochs, epochs_before, target_blocks)


def from_scratch(config: RunConfig, rounds: int, *, with_original: bool) -> Recipe:
    """Returns how the pruned shape is trained from fresh weights: by the recipe of fine-tuning, for all of its epochs.

    Args:
        config: of the run.
        rounds: fine-tunings between removals.
        with_original: add the epochs of the original's training, `baseline.epochs`.
    """
    epochs = rounds * config.finetune.epochs_per_step + config.finetune.final_epochs
    return _recovery(config, epochs + config.baseline.epochs * with_original)


def _recovery(config: RunConfig, epochs: float) -> Recipe:
    return _recipe(config.finetune, epochs, RecoveryHyperparameters)


def _in_the_run(config: RunConfig, epochs: float, epochs_before: float, target_blocks: int) -> Recipe:
    settings, recipe = config.finetune, _recovery(config, epochs)
    if settings.span == "step" or epochs == 0:
        return recipe
    rounds = math.ceil(target_blocks / config.prune.step)
    epochs_in_all = rounds * settings.epochs_per_step + settings.final_epochs
    return replace(recipe, span=(epochs_before / epochs_in_all, (epochs_before + epochs) / epochs_in_all))


def _recipe(settings: Hyperparameters, epochs: float, kind: type[Hyperparameters] = Hyperparameters) -> Recipe:
    return Recipe(epochs=epochs, **{item.name: getattr(settings, item.name) for item in fields(kind)})
