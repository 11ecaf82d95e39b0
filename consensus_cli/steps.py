"""The steps of a run, each with its arguments taken from the configuration: below here nothing knows a config."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli import data, limits, training
from consensus_cli.baseline import cached, fingerprint
from consensus_cli.config import BaselineConfig, FinetuneConfig, RunConfig
from consensus_cli.evaluation.accuracy import accuracy_pct, predict
from consensus_cli.evaluation.comparison import Columns
from consensus_cli.evaluation.complexity import complexity
from consensus_cli.evaluation.energy import EnergyMeter, StageMeter
from consensus_cli.measure import Training, measure
from consensus_cli.models.classifier import Classifier
from consensus_cli.prepare import Prepared
from consensus_cli.pruning import schedule
from consensus_cli.pruning.blocks import Block
from consensus_cli.pruning.surgery import remove_block
from consensus_cli.scoring import metrics
from consensus_cli.scoring.bootstrap import RankStability, bootstrap
from consensus_cli.scoring.consensus import Ranking, decide
from consensus_cli.scoring.moments import PairStatistics
from consensus_cli.scoring.score import baseline_importance, collect_statistics
from consensus_cli.screen import Screen, events

Result = TypeVar("Result")

SCORING_BATCH_SIZE = 256

#: most updates of a network for one reading of the energy of training
ENERGY_UPDATES = 32

#: about so many images say how good the network is while the run goes on: a small share of a scoring's time
CHECKED_IMAGES = 256

#: parts that a bootstrap draws from
BOOTSTRAP_CHUNKS = 20


@dataclass(frozen=True)
class Scores:
    """What a criterion said before one step.

    Attributes:
        ranking: distances, ranks and the order that follows.
        stability: where resamples of the images put each block; None without a bootstrap.
    """

    ranking: Ranking
    stability: RankStability | None


@dataclass
class Steps:
    """A run under way.

    Attributes:
        prepared: what the run works on.
        screen: where progress is shown.
        stages: energy and time of each stage.
        removed: names of the blocks that are gone, in order of removal.
        scores: what the criterion said before each step.
        batch_sizes: `training` or `scoring` -> largest batch that fits into memory, where that was found out.
    """

    prepared: Prepared
    screen: Screen
    stages: StageMeter
    removed: list[str] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    batch_sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begin(cls, prepared: Prepared, screen: Screen) -> Steps:
        """Returns a run that has not done anything yet."""
        meter = EnergyMeter(prepared.config.evaluate.country, device=prepared.device)
        return cls(prepared, screen, StageMeter(meter, watch=screen.stage))

    def branch(self) -> Steps:
        """Returns a copy that goes its own way from here, with its own account of time and energy."""
        stages = StageMeter(self.stages.meter, copy.deepcopy(self.stages.stages))
        return Steps(self.prepared, self.screen, stages, list(self.removed), list(self.scores), dict(self.batch_sizes))

    @property
    def config(self) -> RunConfig:
        """Everything that determines the run."""
        return self.prepared.config

    def fitting(self, purpose: str, batch_size: int) -> int:
        """Returns the batch size, or what is left of it where memory ran out before."""
        return min(batch_size, self.batch_sizes.get(purpose, batch_size))

    def baseline(self) -> Classifier:
        """Returns the unpruned network with its weights: as given, from the cache, or trained now."""
        if self.config.model.weights is not None:
            self.screen.line(f"baseline: weights of {self.config.model.weights}")
            self._show_accuracy(self.prepared.fresh)
            return self.prepared.fresh
        model = copy.deepcopy(self.prepared.fresh)
        recipe = _recipe(self.config.baseline, self.config.baseline.epochs)
        determined_by = {
            "model": asdict(self.prepared.spec),
            "images": fingerprint(self.prepared.images),
            "recipe": asdict(recipe),
            "seed": self.config.seed,
            "precision": self.prepared.precision,
        }
        cache_dir = Path(self.config.output_dir) / "baselines"
        with self.stages.stage("baseline"):
            train = functools.partial(self._train, model, recipe, self.config.seed, "training the baseline")
            path, known = cached(model, determined_by, cache_dir, train)
        self.screen.line(f"baseline: {'reused' if known else 'trained, kept as'} {path}")
        self._show_accuracy(model)
        return model

    def reached(self, network: nn.Module, ratio: float) -> bool:
        """Says whether enough blocks are gone for a ratio."""
        if self.config.prune.unit == "blocks":
            return len(self.removed) >= schedule.blocks_to_remove(ratio, self.prepared.candidates)
        macs = complexity(network, self.prepared.images.test.image_shape).macs
        return macs <= (1 - ratio) * self.prepared.macs_base

    def score(self, network: Classifier, original: Classifier) -> Ranking:
        """Ranks the candidates that may go now, the least important first."""
        allowed = schedule.allowed(self.prepared.blocks, self.removed, self.config.prune.min_blocks_per_stage)
        with self.stages.stage("score"):
            if self.prepared.votes:
                scores = self._consult_metrics(network, original, allowed)
            else:
                scores = self._consult_baseline(network, allowed)
        self.scores.append(scores)
        self.screen.show(_scored(len(self.scores), scores.ranking))
        return scores.ranking

    def prune(self, network: Classifier, ranking: Ranking, ratio: float) -> None:
        """Removes the least important blocks of a ranking, up to `prune.step`, or until the ratio is reached."""
        gone = 0
        for position in ranking.order:
            allowed = schedule.allowed(self.prepared.blocks, self.removed, self.config.prune.min_blocks_per_stage)
            if gone == self.config.prune.step or (gone and self.reached(network, ratio)):
                break
            name = ranking.blocks[position]
            if name in {block.name for block in allowed}:
                remove_block(network.network, name)
                self.removed.append(name)
                gone += 1
                self._show_removal(ranking, int(position))

    def finetune(self, network: Classifier) -> None:
        """Measures batch norm anew if asked to, and trains the network for `finetune.epochs_per_step`."""
        settings = self.config.finetune
        if settings.recalibration_images:
            recalibrate = functools.partial(
                training.recalibrate_batch_norm,
                network,
                self.prepared.images.train,
                images=settings.recalibration_images,
                device=self.prepared.device,
                seed=self._seed(len(self.removed)),
            )
            with self.stages.stage("finetune"):
                self._in_memory("training", settings.batch_size, lambda size: recalibrate(batch_size=size))
        self._finetune(network, self.config.finetune.epochs_per_step, f"fine-tuning after {len(self.removed)} removals")
        self._show_accuracy(network)

    def finetune_finally(self, network: Classifier) -> None:
        """Trains the network for `finetune.final_epochs`."""
        self._finetune(network, self.config.finetune.final_epochs, "final fine-tuning")
        self._show_accuracy(network)

    def evaluate(self, original: Classifier, network: Classifier) -> Columns:
        """Measures both networks on the same data and the same device."""
        with self.stages.stage("evaluate"), self.screen.progress("evaluating") as report:
            return measure(
                self.prepared,
                original,
                network,
                training=self._measured_training(original, network),
                meter=self.stages.meter,
                progress=report,
            )

    def _consult_metrics(self, network: Classifier, original: Classifier, allowed: list[Block]) -> Scores:
        names, votes = [block.name for block in allowed], self.prepared.votes
        resamples, aggregation = self.config.scoring.bootstrap, self.config.criterion.aggregation
        chunks = BOOTSTRAP_CHUNKS if resamples else 1
        with self.screen.progress(f"scoring {len(allowed)} blocks") as report:
            parts = self._in_memory(
                "scoring",
                SCORING_BATCH_SIZE,
                lambda size: self._statistics(network, original, allowed, report, chunks=chunks, batch_size=size),
            )
            whole = PairStatistics.combine(parts, [1] * len(parts)) if resamples else parts[0]
            ranking = decide(
                names,
                metrics.compute(list(votes), whole),
                families=metrics.FAMILIES,
                aggregation=aggregation,
                weights=votes,
            )
            if not resamples:
                return Scores(ranking, None)
            stability = bootstrap(
                names,
                parts,
                list(votes),
                resamples=resamples,
                seed=self.config.seed,
                weights=votes,
                aggregation=aggregation,
            )
        return Scores(ranking, stability)

    def _consult_baseline(self, network: Classifier, allowed: list[Block]) -> Scores:
        criterion = self.config.criterion.name
        importance = baseline_importance(criterion, network.network, allowed, self._seed(len(self.removed)))
        names, distances = [block.name for block in allowed], {criterion: importance}
        return Scores(decide(names, distances, families={criterion: criterion}, weights={criterion: 1.0}), None)

    def _statistics(
        self,
        network: Classifier,
        original: Classifier,
        allowed: list[Block],
        report: Callable[[str, int, int], None],
        *,
        chunks: int,
        batch_size: int,
    ) -> list[PairStatistics]:
        scoring, prepared = self.config.scoring, self.prepared
        return collect_statistics(
            network.network,
            allowed,
            _normalized(network, prepared.samples, batch_size, prepared.device, report),
            list(prepared.votes),
            original=original.network if scoring.against == "original" else None,
            num_classes=len(prepared.images.classes),
            precision=scoring.precision,
            memory_gb=scoring.memory_gb * batch_size / SCORING_BATCH_SIZE,
            chunks=chunks,
        )

    def _finetune(self, network: Classifier, epochs: float, description: str) -> None:
        if epochs > 0:
            with self.stages.stage("finetune"):
                recipe = _recipe(self.config.finetune, epochs)
                self._train(network, recipe, self._seed(len(self.removed), int(epochs * 1000)), description)

    def _train(self, model: Classifier, recipe: training.Recipe, seed: int, description: str) -> None:
        before = copy.deepcopy(model.state_dict())

        def told(progress: training.Progress) -> None:
            report(description, progress.step, progress.steps)
            self.screen.show(events.TrainingLoss(progress.loss, progress.step, progress.steps))

        def attempt(batch_size: int) -> training.TrainingResult:
            model.load_state_dict(before)
            # Dropout draws from the global generator: a step must not depend on what earlier ones drew.
            torch.manual_seed(seed)
            return training.train(
                model,
                self.prepared.images.train,
                replace(recipe, batch_size=batch_size),
                device=self.prepared.device,
                augmentation=self.prepared.images.augmentation,
                seed=seed,
                precision=self.prepared.precision,
                report=told,
            )

        with self.screen.progress(description) as report:
            try:
                result = self._in_memory("training", recipe.batch_size, attempt)
            except training.TrainingDivergedError as error:
                raise training.TrainingDivergedError(f"{description}: {error}") from error
        self.screen.detail(f"{description}: loss {result.loss:.4f}, {result.images / result.duration_s:.0f} images/s")

    def _in_memory(self, purpose: str, batch_size: int, attempt: Callable[[int], Result]) -> Result:
        """Does work in batches, in smaller ones from the moment on that memory runs out."""

        def note(size: int) -> None:
            self.screen.warning(f"out of memory: {purpose} goes on with batches of {size} images")
            self.batch_sizes[purpose] = size

        smallest = 2 if purpose == "training" else 1  # batch norm needs two images
        return limits.halving(attempt, self.fitting(purpose, batch_size), note, smallest=smallest)

    def _measured_training(self, original: Classifier, network: Classifier) -> Training:
        """Returns training by the recipe of fine-tuning; of a long epoch a part, lest one window take minutes."""
        images = len(self.prepared.images.train)
        updates = images // min(self.config.finetune.batch_size, images)
        share = min(1.0, ENERGY_UPDATES / updates)
        work = {"base": self._part_of_epoch(original, share), "pruned": self._part_of_epoch(network, share)}
        return Training(work, share)

    def _part_of_epoch(self, model: Classifier, share: float) -> Callable[[], None]:
        """Returns a function that trains a copy of the network for a share of an epoch."""
        trained = copy.deepcopy(model)
        recipe = _recipe(self.config.finetune, share)
        recipe = replace(recipe, batch_size=self.fitting("training", recipe.batch_size))

        def run() -> None:
            training.train(
                trained,
                self.prepared.images.train,
                recipe,
                device=self.prepared.device,
                augmentation=self.prepared.images.augmentation,
                seed=self.config.seed,
                precision=self.prepared.precision,
            )

        return run

    def _show_removal(self, ranking: Ranking, position: int) -> None:
        criterion = self.config.criterion
        by_ranks = (criterion.name, criterion.aggregation) == ("consensus", "rank_sum")
        others = np.delete(ranking.importance, position)
        self.screen.show(
            events.BlockRemoved(
                block=ranking.blocks[position],
                number=len(self.removed),
                of=self.prepared.target_blocks if self.config.prune.unit == "blocks" else None,
                importance=float(ranking.importance[position]),
                unit="rank sum" if by_ranks else "importance",
                next_importance=float(others.min()) if len(others) else None,
            )
        )

    def _show_accuracy(self, network: Classifier) -> None:
        """Shows how good the network is now; never on test images, which nobody should choose a network by."""
        held_out = self.prepared.images.val
        images = held_out if len(held_out) else self.prepared.samples
        # Every n-th: the samples lie class after class.
        few = images.subset(torch.arange(0, len(images), max(1, len(images) // CHECKED_IMAGES)))
        correct_pct = accuracy_pct(predict(network, few, self.prepared.device))
        self.screen.show(events.AccuracyChecked(correct_pct, len(few), "validation" if len(held_out) else "training"))

    def _seed(self, *where: int) -> int:
        """Returns a seed that differs from step to step and depends on nothing but the run's seed."""
        return int(np.random.SeedSequence([self.config.seed, *where]).generate_state(1)[0])


def _scored(step: int, ranking: Ranking) -> events.Scored:
    def by_block(values: Iterable[float]) -> dict[str, float]:
        return {block: float(value) for block, value in zip(ranking.blocks, values, strict=True)}

    return events.Scored(
        step=step,
        order=tuple(ranking.blocks[i] for i in ranking.order),
        importance=by_block(ranking.importance),
        distances={metric: by_block(values) for metric, values in ranking.distances.items()},
        ranks={metric: by_block(values) for metric, values in ranking.ranks.items()},
    )


def _recipe(settings: BaselineConfig | FinetuneConfig, epochs: float) -> training.Recipe:
    return training.Recipe(
        epochs=epochs,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        milestones=tuple(settings.milestones),
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        batch_size=settings.batch_size,
        label_smoothing=settings.label_smoothing,
    )


def _normalized(
    model: Classifier,
    samples: data.Split,
    batch_size: int,
    device: torch.device,
    report: Callable[[str, int, int], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for images, labels in samples.batches(batch_size, device):
        with torch.no_grad():
            yield model.normalize(images), labels
        done += len(labels)
        report("scoring", done, len(samples))
