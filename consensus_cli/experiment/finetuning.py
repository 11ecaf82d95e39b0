"""Training within a run: by its recipes, on all its processes, in what memory there is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from consensus_cli import training
from consensus_cli.data.share import Share, others_may_end
from consensus_cli.experiment import recipes
from consensus_cli.experiment.batch_sizes import Fitting
from consensus_cli.experiment.kept_training import KeptTraining
from consensus_cli.experiment.measuring import Training
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.experiment.tracking import Tracker
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.matching import entries
from consensus_cli.screen import Screen, events

#: most updates of a network for one reading of the energy of training
ENERGY_UPDATES = 4


@dataclass(frozen=True)
class Trainer:
    """What trains the networks of a run.

    Attributes:
        prepared: data, device, precision.
        share: this process among those of the job.
        screen: where progress is shown.
        fitting: which batches fit into memory.
        tracker: where losses are logged.
        kept: keeps the trainings, in a run that can be resumed.
    """

    prepared: Prepared
    share: Share
    screen: Screen
    fitting: Fitting
    tracker: Tracker
    kept: KeptTraining | None

    def train(
        self,
        model: Classifier,
        recipe: training.Recipe,
        *,
        seed: int,
        description: str,
        teacher: Classifier | None = None,
    ) -> None:
        """Trains `model` in place, over again with smaller batches where memory runs out.

        Args:
            model: the network.
            recipe: hyperparameters.
            seed: of shuffling, augmentation and dropout.
            description: for the screen.
            teacher: what the network learns from where the recipe distils.

        Raises:
            TrainingDivergedError: the loss is not finite.
        """
        before, updates = copy.deepcopy(model.state_dict()), 0

        def tell(progress: training.Progress) -> None:
            nonlocal updates
            report(description, progress.update, progress.updates)
            self.screen.show(events.TrainingLoss(progress.loss, progress.update, progress.updates))
            self.tracker.loss(progress.loss, progress.update - updates)
            updates = progress.update

        def attempt(batch_size: int) -> training.TrainingResult:
            nonlocal updates
            updates = 0
            model.load_state_dict(before)
            # Dropout draws from the global generator: a phase must not depend on what earlier ones drew.
            torch.manual_seed(seed + self.share.rank)
            return training.train(
                model,
                self.prepared.images.train,
                replace(recipe, batch_size=batch_size),
                device=self.prepared.device,
                augmentation=self.prepared.images.augmentation,
                seed=seed,
                precision=self.prepared.precision,
                compiled=self.prepared.compiled,
                teacher=teacher if recipe.distill else None,
                share=self.share,
                keeper=self.kept,
                report=tell,
                tick=self.prepared.threads.tick,
            )

        with self.screen.progress(description) as report, others_may_end():
            try:
                result = self.fitting.attempt("training", recipe.batch_size, attempt)
            except training.TrainingDivergedError as error:
                raise training.TrainingDivergedError(f"{description}: {error}") from error
        # What batch norm counted is each process's own.
        self.share.synchronize(entries(model.network).values())
        self.screen.detail(f"{description}: loss {result.loss:.4f}, {result.images / result.duration_s:.0f} images/s")

    def recalibrate(self, model: nn.Module, seed: int) -> None:
        """Measures batch norm anew on `finetune.recalibration_images` training images."""
        settings = self.prepared.config.finetune

        def attempt(batch_size: int) -> None:
            # As in training: what dropout draws must not depend on earlier steps.
            torch.manual_seed(seed)
            training.recalibrate_batch_norm(
                model,
                self.prepared.images.train,
                images=settings.recalibration_images,
                batch_size=batch_size,
                device=self.prepared.device,
                augmentation=self.prepared.images.augmentation,
                seed=seed,
                tick=self.prepared.threads.tick,
            )

        self.fitting.attempt("training", settings.batch_size, attempt)
        self.share.synchronize(entries(model).values())

    def measured(self, original: Classifier, network: Classifier) -> Training:
        """Returns training by the recipe of fine-tuning; of a long epoch a part, lest one window take minutes.

        Nothing is trained where the network cannot be.
        """
        if not self.prepared.trains:
            return Training({}, 1.0)
        images = len(self.prepared.images.train)
        updates = images // min(self.prepared.config.finetune.batch_size, images)
        share = min(1.0, ENERGY_UPDATES / updates)
        return Training({"base": self._part(original, share), "pruned": self._part(network, share)}, share)

    def _part(self, model: Classifier, share: float) -> Callable[[], None]:
        """Returns a function that trains a copy of the network, on this process alone, for a share of an epoch."""
        trained, prepared = clone(model), self.prepared
        recipe = recipes.part_of_epoch(prepared.config, share)
        recipe = replace(recipe, batch_size=self.fitting.size("training", recipe.batch_size))

        def run() -> None:
            training.train(
                trained,
                prepared.images.train,
                recipe,
                device=prepared.device,
                augmentation=prepared.images.augmentation,
                seed=prepared.config.seed,
                precision=prepared.precision,
                compiled=prepared.compiled,
            )

        return run
