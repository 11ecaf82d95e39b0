"""The steps of a run, each with its arguments taken from the configuration: below here nothing knows a config."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli import data, limits, training
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
from consensus_cli.scoring.bootstrap import RankStability, bootstrap
from consensus_cli.scoring.consensus import Ranking, decide
from consensus_cli.scoring.moments import PairStatistics
from consensus_cli.scoring.score import baseline_importance, collect_statistics
from consensus_cli.screen import Screen

Result = TypeVar("Result")

SCORING_BATCH_SIZE = 256

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
        return cls(prepared, screen, StageMeter(meter))

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
                self.screen.line(self._removal_line(ranking, int(position)))

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
                report=lambda p: report(f"{description}, loss {p.loss:.3f}", p.step, p.steps),
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

    def _epoch(self, model: Classifier) -> Callable[[], None]:
        """Returns a function that trains a copy of the network for one epoch."""
        trained = copy.deepcopy(model)
        recipe = _recipe(self.config.finetune, 1)
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
