"""The steps of a run, each with its arguments taken from the configuration; the packages below know none."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from consensus_cli import training
from consensus_cli.config.schema import RunConfig
from consensus_cli.evaluation.accuracy import accuracy_pct, predict
from consensus_cli.evaluation.cost.complexity import complexity
from consensus_cli.evaluation.cost.energy import EnergyMeter, StageMeter
from consensus_cli.evaluation.pair import Columns
from consensus_cli.experiment import recipes
from consensus_cli.experiment.batch_sizes import Fitting
from consensus_cli.experiment.finetuning import Trainer
from consensus_cli.experiment.inputs import code_hash
from consensus_cli.experiment.measuring import measure
from consensus_cli.experiment.original import cached
from consensus_cli.experiment.parallel import jobs
from consensus_cli.experiment.parallel.shards import SCORING_BATCH_SIZE
from consensus_cli.experiment.parallel.team import Team, team
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.experiment.tracking import Tracker
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.weights import serialize
from consensus_cli.pruning import schedule
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring import metrics
from consensus_cli.scoring.ranking.bootstrap import Scores, rank_stability
from consensus_cli.scoring.ranking.consensus import Ranking, decide
from consensus_cli.scoring.score import Measured, baseline_importance
from consensus_cli.screen import Screen, events

#: about so many images say how good the network is while the run goes on: a small share of a scoring's time
CHECKED_IMAGES = 256


@dataclass
class Steps:
    """A run under way.

    Attributes:
        prepared: what the run works on.
        team: the processes that work on it.
        screen: where progress is shown.
        stages: energy and time of each stage.
        fitting: which batches fit into memory.
        tracker: where losses, accuracies and scores are logged beside the run directory.
        removed: names of the blocks that are gone, in order of removal.
        scores: what the criterion said before each step.
    """

    prepared: Prepared
    team: Team
    screen: Screen
    stages: StageMeter
    fitting: Fitting
    tracker: Tracker = field(default_factory=Tracker.none)
    removed: list[str] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)

    @classmethod
    def begin(cls, prepared: Prepared, screen: Screen) -> Steps:
        """Returns a run that has not done anything yet, once all processes of the job are ready for it."""
        members = team()
        jobs.begin(members, prepared)
        meter = EnergyMeter(prepared.config.evaluate.country, device=prepared.device)
        stages = StageMeter(meter, watch=screen.stage)
        return cls(prepared, members, screen, stages, Fitting(screen, alone=members.world == 1))

    def branch(self) -> Steps:
        """Returns a copy that goes its own way from here, with its own account of time and energy."""
        stages = replace(self.stages, stages=copy.deepcopy(self.stages.stages))
        return replace(self, stages=stages, removed=list(self.removed), scores=list(self.scores))

    @contextmanager
    def tracking(self, run_dir: Path) -> Iterator[None]:
        """Logs losses, accuracies and scores to the configured tracker while the body runs."""
        self.tracker = Tracker(self.config.tracker, run_dir, asdict(self.config))
        try:
            yield
        finally:
            with self.tracker_may_fail():
                self.tracker.finish()

    @contextmanager
    def tracker_may_fail(self) -> Iterator[None]:
        """Lets the body fail with a warning: what a tracker does once the row is on disk must not cost the run."""
        try:
            yield
        except Exception as error:
            text = " ".join(str(error).split())
            self.screen.warning(f"tracker={self.config.tracker} failed: {type(error).__name__}: {text}")

    @property
    def config(self) -> RunConfig:
        """Everything that determines the run."""
        return self.prepared.config

    @property
    def trainer(self) -> Trainer:
        """What trains the run's networks."""
        return Trainer(self.prepared, self.team, self.screen, self.fitting, self.tracker)

    def batch_size(self, purpose: str) -> int:
        """Returns how many images a batch of `training` (fine-tuning) or `scoring` holds, as far as memory allows."""
        asked = {"training": self.config.finetune.batch_size, "scoring": SCORING_BATCH_SIZE}
        return self.fitting.size(purpose, asked[purpose])

    def baseline(self) -> Classifier:
        """Returns the unpruned network with its weights: as given, from the cache, or trained now.

        Given weights without the head are where the training starts.
        """
        model = clone(self.prepared.fresh)
        if self.prepared.is_trained:
            self.screen.line(f"baseline: weights of {self.config.model.weights}")
            self._show_accuracy(model)
            return model
        recipe = recipes.training_baseline(self.config)
        determined_by = {
            "model": asdict(self.prepared.spec),
            "target": code_hash(self.prepared.spec.target),
            "images": self.prepared.images.train.fingerprint(),
            "augmentation": asdict(self.prepared.images.augmentation),
            "recipe": asdict(recipe),
            "seed": self.config.seed,
            "precision": self.prepared.precision,
            "starts_from": hashlib.sha256(serialize(model.network, {})).hexdigest(),
        }
        cache_dir = Path(self.config.output_dir) / "baselines"
        with self.stages.stage("baseline"):
            train = functools.partial(
                self.trainer.train,
                recipe=recipe,
                removed=[],
                seed=self.config.seed,
                description="training the baseline",
            )
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
        importance = scores.ranking.importance
        self.tracker.scores(dict(zip(scores.ranking.blocks, importance, strict=True)), len(self.removed))
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
                remove_blocks(network, [name])
                self.removed.append(name)
                gone += 1
                self._show_removal(ranking, int(position))

    def finetune(self, network: Classifier, original: Classifier) -> None:
        """Measures batch norm anew if asked to, and trains the network for `finetune.epochs_per_step`."""
        recalibrates = self.config.finetune.recalibration_images > 0
        recipe = recipes.after_removal(self.config, len(self.removed), self.prepared.target_blocks)
        if recalibrates or recipe.epochs > 0:
            with self.stages.stage("finetune"):
                if recalibrates:
                    self.trainer.recalibrate(network, self._seed(len(self.removed)))
                self._train(network, original, recipe, f"fine-tuning after {len(self.removed)} removals")
        self._show_accuracy(network)

    def finetune_finally(self, network: Classifier, original: Classifier) -> None:
        """Trains the network for `finetune.final_epochs`."""
        recipe = recipes.at_the_end(self.config, len(self.removed), self.prepared.target_blocks)
        if recipe.epochs > 0:
            with self.stages.stage("finetune"):
                self._train(network, original, recipe, "final fine-tuning")
            self._show_accuracy(network)

    def evaluate(self, original: Classifier, network: Classifier) -> Columns:
        """Measures both networks on the same data and the same device."""
        with self.stages.stage("evaluate"), self.screen.progress("evaluating") as report:
            return measure(
                self.prepared,
                original,
                network,
                answers=(
                    jobs.predict(self.team, self.prepared, original, []),
                    jobs.predict(self.team, self.prepared, network, self.removed),
                ),
                training=self.trainer.measured(original, network),
                meter=self.stages.meter,
                progress=report,
            )

    def _consult_metrics(self, network: Classifier, original: Classifier, allowed: list[Block]) -> Scores:
        names, votes = [block.name for block in allowed], self.prepared.votes
        aggregation = self.config.criterion.aggregation
        with self.screen.progress(f"scoring {len(allowed)} blocks") as report:

            def attempt(batch_size: int) -> Measured:
                return jobs.measure(
                    self.team,
                    self.prepared,
                    network,
                    original if self.config.scoring.against == "original" else None,
                    removed=self.removed,
                    candidates=names,
                    batch_size=batch_size,
                    report=report,
                )

            measured = self.fitting.attempt("scoring", SCORING_BATCH_SIZE, attempt)
        if measured.passes > 1:
            self.screen.line(f"the statistics of all blocks exceed scoring.memory_gb: {measured.passes} passes")
        families = metrics.families_of(votes)
        ranking = decide(names, measured.distances, families=families, aggregation=aggregation, weights=votes)
        if not measured.resampled:
            return Scores(ranking, None)
        return Scores(ranking, rank_stability(names, measured.resampled, weights=votes, aggregation=aggregation))

    def _consult_baseline(self, network: Classifier, allowed: list[Block]) -> Scores:
        criterion = self.config.criterion.name
        importance = baseline_importance(criterion, network.network, allowed, self._seed(len(self.removed)))
        names, distances = [block.name for block in allowed], {criterion: importance}
        return Scores(decide(names, distances, families={criterion: criterion}, weights={criterion: 1.0}), None)

    def _train(self, network: Classifier, original: Classifier, recipe: training.Recipe, description: str) -> None:
        if recipe.epochs > 0:
            self.trainer.train(
                network,
                recipe,
                removed=self.removed,
                seed=self._seed(len(self.removed), int(recipe.epochs * 1000)),
                description=description,
                teacher=original,
            )

    def _show_removal(self, ranking: Ranking, position: int) -> None:
        criterion = self.config.criterion
        by_ranks = (criterion.name, criterion.aggregation) == ("consensus", "rank_sum")
        left = [i for i, name in enumerate(ranking.blocks) if name not in self.removed]
        self.screen.show(
            events.BlockRemoved(
                block=ranking.blocks[position],
                number=len(self.removed),
                of=self.prepared.target_blocks if self.config.prune.unit == "blocks" else None,
                importance=float(ranking.importance[position]),
                unit="rank sum" if by_ranks else "importance",
                next_importance=float(ranking.importance[left].min()) if left else None,
            )
        )

    def _show_accuracy(self, network: Classifier) -> None:
        """Shows how good the network is now; never on test images, which nobody should choose a network by."""
        held_out = self.prepared.images.val
        images = held_out if len(held_out) else self.prepared.samples
        # Every n-th: the samples lie class after class.
        few = images.subset(torch.arange(0, len(images), max(1, len(images) // CHECKED_IMAGES)))
        correct_pct = accuracy_pct(predict(network, few, self.prepared.device))
        kind = "validation" if len(held_out) else "training"
        self.screen.show(events.AccuracyChecked(correct_pct, len(few), kind))
        self.tracker.accuracy(correct_pct, kind, len(self.removed))

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
