"""The steps of a run, each with its arguments taken from the configuration: below here nothing knows a config."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli import data, training
from consensus_cli.baseline import cached, fingerprint
from consensus_cli.config import BaselineConfig, FinetuneConfig, RunConfig
from consensus_cli.data.memory import ImageTensors
from consensus_cli.evaluation import comparison
from consensus_cli.evaluation.attacks import Attack
from consensus_cli.evaluation.complexity import complexity
from consensus_cli.evaluation.energy import EnergyMeter, StageMeter
from consensus_cli.models.classifier import Classifier
from consensus_cli.prepare import Prepared, planted_cue
from consensus_cli.pruning import schedule
from consensus_cli.pruning.blocks import Block
from consensus_cli.pruning.surgery import remove_block
from consensus_cli.scoring import metrics
from consensus_cli.scoring.bootstrap import RankStability, rank_stability
from consensus_cli.scoring.consensus import Ranking, decide
from consensus_cli.scoring.score import Measured, baseline_importance, measure
from consensus_cli.screen import Screen

SCORING_BATCH_SIZE = 256


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
    """

    prepared: Prepared
    screen: Screen
    stages: StageMeter
    removed: list[str] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)

    @classmethod
    def begin(cls, prepared: Prepared, screen: Screen) -> Steps:
        """Returns a run that has not done anything yet."""
        meter = EnergyMeter(prepared.config.evaluate.country, device=prepared.device)
        return cls(prepared, screen, StageMeter(meter))

    @property
    def config(self) -> RunConfig:
        """Everything that determines the run."""
        return self.prepared.config

    def baseline(self) -> Classifier:
        """Returns the unpruned network with its weights: as given, from the cache, or trained now."""
        if self.config.model.weights is not None:
            self.screen.line(f"baseline: weights of {self.config.model.weights}")
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
        return model

    def reached(self, network: nn.Module) -> bool:
        """Says whether enough blocks are gone."""
        if self.config.prune.unit == "blocks":
            return len(self.removed) >= self.prepared.target_blocks
        macs = complexity(network, self.prepared.images.test.image_shape).macs
        return macs <= (1 - self.config.ratio) * self.prepared.macs_base

    def score(self, network: Classifier, original: Classifier) -> Ranking:
        """Ranks the candidates that may go now, the least important first."""
        allowed = schedule.allowed(self.prepared.blocks, self.removed, self.config.prune.min_blocks_per_stage)
        with self.stages.stage("score"):
            if self.prepared.votes:
                scores = self._consult_metrics(network, original, allowed)
            else:
                scores = self._consult_baseline(network, allowed)
        self.scores.append(scores)
        return scores.ranking

    def prune(self, network: Classifier, ranking: Ranking) -> None:
        """Removes the least important blocks of a ranking, up to `prune.step`, or until the ratio is reached."""
        gone = 0
        for position in ranking.order:
            allowed = schedule.allowed(self.prepared.blocks, self.removed, self.config.prune.min_blocks_per_stage)
            if gone == self.config.prune.step or (gone and self.reached(network)):
                break
            name = ranking.blocks[position]
            if name in {block.name for block in allowed}:
                remove_block(network.network, name)
                self.removed.append(name)
                gone += 1
                self.screen.line(self._removal_line(ranking, int(position)))

    def finetune(self, network: Classifier) -> None:
        """Measures batch norm anew if asked to, and trains the network for `finetune.epochs_per_step`."""
        settings = self.config.finetune
        if settings.recalibration_images:
            with self.stages.stage("finetune"):
                training.recalibrate_batch_norm(
                    network,
                    self.prepared.images.train,
                    images=settings.recalibration_images,
                    batch_size=settings.batch_size,
                    device=self.prepared.device,
                    seed=self._seed(len(self.removed)),
                )
        self._finetune(network, self.config.finetune.epochs_per_step, f"fine-tuning after {len(self.removed)} removals")

    def finetune_finally(self, network: Classifier) -> None:
        """Trains the network for `finetune.final_epochs`."""
        self._finetune(network, self.config.finetune.final_epochs, "final fine-tuning")

    def evaluate(self, original: Classifier, network: Classifier) -> comparison.Columns:
        """Measures both networks on the same data and the same device."""
        settings, attacks = self.config.evaluate, self.config.attacks
        shape, test = self.prepared.images.test.image_shape, self.prepared.images.test
        columns = comparison.complexity_columns(original, network, shape)
        with self.stages.stage("evaluate"), self.screen.progress("evaluating") as report:
            columns |= comparison.accuracy_columns(original, network, test, self.prepared.device)
            columns |= comparison.latency_columns(
                original, network, shape, self.prepared.device, settings.latency_min_run_s
            )
            columns |= comparison.energy_columns(
                original,
                network,
                test,
                {"base": self._epoch(original), "pruned": self._epoch(network)},
                meter=self.stages.meter,
                window_s=settings.energy_window_s,
                repeats=settings.energy_repeats,
                progress=report,
            )
            if attacks.suite:
                columns |= comparison.robustness_columns(
                    original,
                    network,
                    test,
                    {key: Attack(**asdict(a), seed=self.config.seed) for key, a in attacks.suite.items()},
                    images=attacks.images,
                    seed=self.config.seed,
                    device=self.prepared.device,
                    progress=report,
                )
            if settings.corruptions:
                columns |= comparison.corruption_columns(
                    original,
                    network,
                    test,
                    settings.corruptions,
                    images=settings.corruption_images,
                    seed=self.config.seed,
                    device=self.prepared.device,
                    progress=report,
                )
            cue = planted_cue(self.config, len(self.prepared.images.classes))
            if cue is not None and isinstance(test, ImageTensors):
                columns |= comparison.shortcut_columns(
                    original, network, test, cue, seed=self.config.seed, device=self.prepared.device
                )
        return columns

    def _consult_metrics(self, network: Classifier, original: Classifier, allowed: list[Block]) -> Scores:
        names, votes = [block.name for block in allowed], self.prepared.votes
        aggregation = self.config.criterion.aggregation
        with self.screen.progress(f"scoring {len(allowed)} blocks") as report:
            measured = self._measured(network, original, allowed, report)
        if measured.passes > 1:
            self.screen.line(f"the statistics of all blocks exceed scoring.memory_gb: {measured.passes} passes")
        ranking = decide(names, measured.distances, families=metrics.FAMILIES, aggregation=aggregation, weights=votes)
        if not measured.resampled:
            return Scores(ranking, None)
        return Scores(ranking, rank_stability(names, measured.resampled, weights=votes, aggregation=aggregation))

    def _consult_baseline(self, network: Classifier, allowed: list[Block]) -> Scores:
        criterion = self.config.criterion.name
        importance = baseline_importance(criterion, network.network, allowed, self._seed(len(self.removed)))
        names, distances = [block.name for block in allowed], {criterion: importance}
        return Scores(decide(names, distances, families={criterion: criterion}, weights={criterion: 1.0}), None)

    def _measured(
        self, network: Classifier, original: Classifier, allowed: list[Block], report: Callable[[str, int, int], None]
    ) -> Measured:
        scoring, prepared = self.config.scoring, self.prepared

        def samples(number: int, passes: int) -> Iterator[tuple[Tensor, Tensor]]:
            doing = "scoring" if passes == 1 else f"scoring, pass {number} of {passes}"
            return _normalized(network, prepared.samples, prepared.device, functools.partial(report, doing))

        return measure(
            network.network,
            allowed,
            samples,
            list(prepared.votes),
            original=original.network if scoring.against == "original" else None,
            num_classes=len(prepared.images.classes),
            sample_count=len(prepared.samples),
            precision=scoring.precision,
            memory_gb=scoring.memory_gb,
            resamples=scoring.bootstrap,
            seed=self.config.seed,
        )

    def _finetune(self, network: Classifier, epochs: float, description: str) -> None:
        if epochs > 0:
            with self.stages.stage("finetune"):
                recipe = _recipe(self.config.finetune, epochs)
                self._train(network, recipe, self._seed(len(self.removed), int(epochs * 1000)), description)

    def _train(self, model: Classifier, recipe: training.Recipe, seed: int, description: str) -> None:
        with self.screen.progress(description) as report:
            result = training.train(
                model,
                self.prepared.images.train,
                recipe,
                device=self.prepared.device,
                augmentation=self.prepared.images.augmentation,
                seed=seed,
                precision=self.prepared.precision,
                report=lambda p: report(f"{description}, loss {p.loss:.3f}", p.step, p.steps),
            )
        self.screen.detail(f"{description}: loss {result.loss:.4f}, {result.images / result.duration_s:.0f} images/s")

    def _epoch(self, model: Classifier) -> Callable[[], None]:
        """Returns a function that trains a copy of the network for one epoch."""
        trained = copy.deepcopy(model)
        recipe = _recipe(self.config.finetune, 1)

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

    def _removal_line(self, ranking: Ranking, position: int) -> str:
        name, importance = ranking.blocks[position], ranking.importance[position]
        criterion = self.config.criterion
        unit = "rank sum" if (criterion.name, criterion.aggregation) == ("consensus", "rank_sum") else "importance"
        others = np.delete(ranking.importance, position)
        next_best = f" (next {others.min():g})" if len(others) else ""
        of = f" of {self.prepared.target_blocks}" if self.config.prune.unit == "blocks" else ""
        return f"removed {len(self.removed):>2}{of}: {name:<12} {unit} {importance:g}{next_best}"

    def _seed(self, *where: int) -> int:
        """Returns a seed that differs from step to step and depends on nothing but the run's seed."""
        return int(np.random.SeedSequence([self.config.seed, *where]).generate_state(1)[0])


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
    model: Classifier, samples: data.Split, device: torch.device, report: Callable[[int, int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for images, labels in samples.batches(SCORING_BATCH_SIZE, device):
        with torch.no_grad():
            yield model.normalize(images), labels
        done += len(labels)
        report(done, len(samples))
