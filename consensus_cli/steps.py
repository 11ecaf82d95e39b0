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

from consensus_cli import data, preflight, training
from consensus_cli.baseline import cached
from consensus_cli.config import BaselineConfig, FinetuneConfig, RunConfig
from consensus_cli.data import ImageData
from consensus_cli.data.sampling import stratified_indices
from consensus_cli.errors import ConfigError, UserError
from consensus_cli.evaluation import comparison
from consensus_cli.evaluation.attacks import Attack
from consensus_cli.evaluation.complexity import complexity
from consensus_cli.evaluation.energy import EnergyMeter, StageMeter
from consensus_cli.models import pretrained, zoo
from consensus_cli.models.classifier import Classifier
from consensus_cli.pruning import schedule
from consensus_cli.pruning.blocks import Block, find_blocks
from consensus_cli.pruning.costs import block_costs
from consensus_cli.pruning.surgery import remove_block
from consensus_cli.scoring import metrics
from consensus_cli.scoring.ablation import AblationEngine
from consensus_cli.scoring.consensus import Ranking, decide
from consensus_cli.scoring.score import baseline_importance, collect_statistics, metrics_needed
from consensus_cli.screen import Screen

SCORING_BATCH_SIZE = 256


@dataclass
class Steps:
    """A run under way.

    Attributes:
        config: everything that determines the run.
        screen: where progress is shown.
        device: where the networks are.
        precision: `fp32` or `bf16`, of training.
        images: the dataset.
        spec: how to build the unpruned network.
        fresh: the network before its weights are trained or loaded.
        blocks: every residual block of the unpruned network.
        votes: metric -> weight, for the metrics that the criterion reads.
        stages: energy and time of each stage.
        removed: names of the blocks that are gone, in order of removal.
        rankings: what the criterion said at each step.
    """

    config: RunConfig
    screen: Screen
    device: torch.device
    precision: str
    images: ImageData
    spec: zoo.ModelSpec
    fresh: Classifier
    blocks: list[Block]
    votes: dict[str, float]
    stages: StageMeter
    removed: list[str] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)

    @classmethod
    def prepare(cls, config: RunConfig, screen: Screen) -> Steps:
        """Loads the data, builds the network, finds its blocks, and makes sure that the run can be carried out.

        Raises:
            UserError: files or values that do not fit together.
        """
        device = preflight.pick_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.backends.cudnn.deterministic = True
        with screen.progress("loading images") as report:
            images = data.load(**preflight.dataset_arguments(config), seed=config.seed, progress=report)
        spec = _model_spec(config, images)
        torch.manual_seed(config.seed)
        model = zoo.build(spec)
        if config.model.weights is not None:
            pretrained.load_weights(model.network, spec, config.model.weights)
        model = model.to(device, memory_format=torch.channels_last).eval()
        steps = cls(
            config=config,
            screen=screen,
            device=device,
            precision=training.resolve_precision(config.precision, device),
            images=images,
            spec=spec,
            fresh=model,
            blocks=find_blocks(model.network, _example(model, images, device), config.prune.granularity),
            votes=metrics_needed(config.criterion.name, config.metrics.weights),
            stages=StageMeter(EnergyMeter(config.evaluate.country, device=device)),
        )
        steps._check()
        return steps

    @property
    def candidates(self) -> int:
        """Number of blocks of the unpruned network that can go."""
        return sum(block.removable for block in self.blocks)

    @functools.cached_property
    def macs_base(self) -> int:
        """MACs of the unpruned network for one image."""
        return complexity(self.fresh, self.images.test.image_shape).macs

    def baseline(self) -> Classifier:
        """Returns the unpruned network with its weights: as given, from the cache, or trained now."""
        if self.config.model.weights is not None:
            self.screen.line(f"baseline: weights of {self.config.model.weights}")
            return self.fresh
        model = copy.deepcopy(self.fresh)
        recipe = _recipe(self.config.baseline, self.config.baseline.epochs)
        determined_by = {
            "model": asdict(self.spec),
            "data": [self.images.name, list(self.images.train.image_shape), len(self.images.train)],
            "labels": int(self.images.train.labels.sum()),
            "recipe": asdict(recipe),
            "seed": self.config.seed,
            "precision": self.precision,
        }
        cache_dir = Path(self.config.output_dir) / "baselines"
        with self.stages.stage("baseline"):
            train = functools.partial(self._train, model, recipe, 0, "training the baseline")
            path, known = cached(model, determined_by, cache_dir, train)
        self.screen.line(f"baseline: {'reused' if known else 'trained, kept as'} {path}")
        return model

    def reached(self, network: nn.Module) -> bool:
        """Says whether enough blocks are gone."""
        if self.config.prune.unit == "blocks":
            return len(self.removed) >= schedule.blocks_to_remove(self.config.ratio, self.candidates)
        macs = complexity(network, self.images.test.image_shape).macs
        return macs <= (1 - self.config.ratio) * self.macs_base

    def score(self, network: Classifier, original: Classifier) -> Ranking:
        """Ranks the candidates that may go now, the least important first."""
        allowed = schedule.allowed(self.blocks, self.removed, self.config.prune.min_blocks_per_stage)
        names = [block.name for block in allowed]
        with self.stages.stage("score"):
            if self.votes:
                distances = self._distances(network, original, allowed)
                ranking = decide(
                    names,
                    distances,
                    families=metrics.FAMILIES,
                    aggregation=self.config.criterion.aggregation,
                    weights=self.votes,
                )
            else:
                criterion = self.config.criterion.name
                importance = baseline_importance(criterion, network.network, allowed, self._seed(len(self.removed)))
                ranking = decide(
                    names, {criterion: importance}, families={criterion: criterion}, weights={criterion: 1.0}
                )
        self.rankings.append(ranking)
        return ranking

    def prune(self, network: Classifier, ranking: Ranking) -> None:
        """Removes the least important blocks of a ranking, up to `prune.step`, or until the ratio is reached."""
        gone = 0
        for position in ranking.order:
            allowed = schedule.allowed(self.blocks, self.removed, self.config.prune.min_blocks_per_stage)
            if gone == self.config.prune.step or (gone and self.reached(network)):
                break
            name = ranking.blocks[position]
            if name in {block.name for block in allowed}:
                remove_block(network.network, name)
                self.removed.append(name)
                gone += 1
                self.screen.line(self._removal_line(ranking, int(position)))

    def finetune(self, network: Classifier) -> None:
        """Trains the network for `finetune.epochs_per_step`."""
        self._finetune(network, self.config.finetune.epochs_per_step, f"fine-tuning after {len(self.removed)} removals")

    def finetune_finally(self, network: Classifier) -> None:
        """Trains the network for `finetune.final_epochs`."""
        self._finetune(network, self.config.finetune.final_epochs, "final fine-tuning")

    def evaluate(self, original: Classifier, network: Classifier) -> comparison.Columns:
        """Measures both networks on the same data and the same device."""
        settings, attacks = self.config.evaluate, self.config.attacks
        shape, test = self.images.test.image_shape, self.images.test
        columns = comparison.complexity_columns(original, network, shape)
        with self.stages.stage("evaluate"), self.screen.progress("evaluating") as report:
            columns |= comparison.accuracy_columns(original, network, test, self.device)
            columns |= comparison.latency_columns(original, network, shape, self.device, settings.latency_min_run_s)
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
                    {key: Attack(**asdict(a), seed=self.config.seed) for key, a in attacks.suite.items()},  # type: ignore[arg-type]
                    images=attacks.images,
                    seed=self.config.seed,
                    device=self.device,
                    progress=report,
                )
        return columns

    def _check(self) -> None:
        features = AblationEngine(self.fresh.network, (), _example(self.fresh, self.images, self.device)).features
        problems = metrics.check_requirements(
            list(self.votes),
            samples_per_class=self.config.metrics.samples_per_class,
            num_classes=len(self.images.classes),
            features=features,
        )
        for attempt in (self._samples, self._check_ratio):
            try:
                attempt()
            except UserError as error:
                problems.append(error)
        if problems:
            raise ConfigError(problems)

    def _check_ratio(self) -> None:
        prune = self.config.prune
        if prune.unit == "blocks":
            schedule.check_enough_blocks(self.config.ratio, self.blocks, prune.min_blocks_per_stage)
            return
        costs = block_costs(self.fresh.network, _example(self.fresh, self.images, self.device), self.blocks)
        most = schedule.most_macs_removable(self.blocks, costs, prune.min_blocks_per_stage) / self.macs_base
        if self.config.ratio > most:
            raise UserError(
                f"ratio={self.config.ratio} asks for {self.config.ratio:.1%} fewer MACs; at most {most:.1%} can go",
                f"lower the ratio to {most:.3f} or prune.min_blocks_per_stage",
            )

    def _samples(self) -> data.Split:
        """The training images that the metrics see: the same in every step, class after class."""
        labels = self.images.train.labels
        return self.images.train.subset(
            stratified_indices(labels, self.config.metrics.samples_per_class, self.config.seed)
        )

    def _distances(self, network: Classifier, original: Classifier, allowed: list[Block]) -> dict[str, np.ndarray]:
        scoring, samples = self.config.scoring, self._samples()
        with self.screen.progress(f"scoring {len(allowed)} blocks") as report:
            (statistics,) = collect_statistics(
                network.network,
                allowed,
                _normalized(network, samples, self.device, report),
                list(self.votes),
                original=original.network if scoring.against == "original" else None,
                num_classes=len(self.images.classes),
                precision=scoring.precision,
                memory_gb=scoring.memory_gb,
            )
            return metrics.compute(list(self.votes), statistics)

    def _finetune(self, network: Classifier, epochs: float, description: str) -> None:
        if epochs > 0:
            with self.stages.stage("finetune"):
                recipe = _recipe(self.config.finetune, epochs)
                self._train(network, recipe, self._seed(len(self.removed), int(epochs * 1000)), description)

    def _train(self, model: Classifier, recipe: training.Recipe, seed: int, description: str) -> None:
        with self.screen.progress(description) as report:
            result = training.train(
                model,
                self.images.train,
                recipe,
                device=self.device,
                augmentation=self.images.augmentation,
                seed=seed,
                precision=self.precision,
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
                self.images.train,
                recipe,
                device=self.device,
                augmentation=self.images.augmentation,
                seed=self.config.seed,
                precision=self.precision,
            )

        return run

    def _removal_line(self, ranking: Ranking, position: int) -> str:
        name, importance = ranking.blocks[position], ranking.importance[position]
        runner_up = np.sort(ranking.importance)[1] if len(ranking.blocks) > 1 else float("nan")
        of = (
            f" of {schedule.blocks_to_remove(self.config.ratio, self.candidates)}"
            if self.config.prune.unit == "blocks"
            else ""
        )
        return f"removed {len(self.removed):>2}{of}: {name:<12} rank sum {importance:g} (next {runner_up:g})"

    def _seed(self, *where: int) -> int:
        """Returns a seed that differs from step to step and depends on nothing but the run's seed."""
        return int(np.random.SeedSequence([self.config.seed, *where]).generate_state(1)[0])


def _model_spec(config: RunConfig, images: ImageData) -> zoo.ModelSpec:
    model = config.model
    known = pretrained.normalization(model.source, model.name, model.weights)
    mean, std = known or (images.mean, images.std)
    if model.source == "torchvision" and len(mean) == 1:
        # torchvision's networks take three channels; normalisation spreads the one there is over them.
        mean, std = mean * 3, std * 3
    return zoo.ModelSpec(
        source=model.source,
        name=model.name,
        num_classes=model.num_classes or len(images.classes),
        in_channels=images.train.image_shape[0],
        mean=tuple(model.mean or mean),
        std=tuple(model.std or std),
        target=model.target,
        kwargs=dict(model.kwargs),
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


def _example(model: Classifier, images: ImageData, device: torch.device) -> Tensor:
    """Returns two test images as the network takes them."""
    with torch.no_grad():
        return model.normalize(next(images.test.batches(2, device))[0])


def _normalized(
    model: Classifier, samples: data.Split, device: torch.device, report: Callable[[str, int, int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for images, labels in samples.batches(SCORING_BATCH_SIZE, device):
        with torch.no_grad():
            yield model.normalize(images), labels
        done += len(labels)
        report("scoring", done, len(samples))
