"""From a configuration to everything a run needs before it starts: data, network, blocks, and whether they fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from consensus_cli import data, preflight, training
from consensus_cli.config import RunConfig
from consensus_cli.data import ImageData
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.sampling import stratified_indices
from consensus_cli.errors import ConfigError, UserError
from consensus_cli.evaluation.complexity import complexity
from consensus_cli.evaluation.shift import Archive
from consensus_cli.evaluation.shortcut import Cue, CueKind, plant_training_cue
from consensus_cli.models import pretrained, zoo
from consensus_cli.models.classifier import Classifier
from consensus_cli.pruning import schedule
from consensus_cli.pruning.blocks import Block, check_candidates, find_blocks
from consensus_cli.pruning.costs import block_costs
from consensus_cli.scoring import metrics
from consensus_cli.scoring.ablation import representation_size
from consensus_cli.scoring.score import metrics_needed
from consensus_cli.screen import Screen


@dataclass
class Prepared:
    """What a run works on; nothing here changes while it runs.

    Attributes:
        config: everything that determines the run.
        device: where the networks are.
        precision: `fp32` or `bf16`, of training.
        scoring_precision: `fp32` or `bf16`, of the forward pass of scoring; None where the criterion reads no metric.
        compiled: whether training compiles the network.
        images: the dataset.
        spec: how to build the unpruned network.
        fresh: the unpruned network, with its weights if they are given and not to be trained.
        blocks: every residual block of the unpruned network.
        votes: metric -> weight, for the metrics that the criterion reads.
        samples: the training images that the metrics see, the same in every step, class after class.
        shift: name -> published test images that the networks are tested on besides.
    """

    config: RunConfig
    device: torch.device
    precision: str
    scoring_precision: str | None
    compiled: bool
    images: ImageData
    spec: zoo.ModelSpec
    fresh: Classifier
    blocks: list[Block]
    votes: dict[str, float]
    samples: data.Split
    shift: dict[str, Archive]

    @property
    def candidates(self) -> int:
        """Number of blocks of the unpruned network that can go."""
        return sum(block.removable for block in self.blocks)

    @functools.cached_property
    def macs_base(self) -> int:
        """MACs of the unpruned network for one image."""
        return complexity(self.fresh, self.images.test.image_shape).macs

    @functools.cached_property
    def target_blocks(self) -> int:
        """How many blocks go in all where `prune.unit` is `blocks`."""
        return schedule.blocks_to_remove(self.config.ratios[-1], self.candidates)

    def example(self) -> Tensor:
        """Returns two test images as the network takes them."""
        with torch.no_grad():
            return self.fresh.normalize(next(self.images.test.batches(2, self.device))[0])


def prepare(config: RunConfig, screen: Screen) -> Prepared:
    """Loads the data, builds the network, finds its blocks, and makes sure that the run can be carried out.

    Raises:
        UserError: files or values that are wrong or do not fit together.
    """
    preflight.check(config)
    device = _set_up_device(config)
    with screen.progress("loading images") as report:
        images = _with_cue(data.load(**preflight.dataset_arguments(config), seed=config.seed, progress=report), config)
    spec, model = build_model(config, images, device)
    example = model.normalize(next(images.test.batches(2, device))[0])
    precision = training.resolve_precision(config.precision, device)
    votes = metrics_needed(config.criterion.name, config.metrics.weights)
    prepared = Prepared(
        config=config,
        device=device,
        precision=precision,
        scoring_precision=_scoring_precision(config, precision) if votes else None,
        compiled=training.resolve_compile(config.compile, device),
        images=images,
        spec=spec,
        fresh=model,
        blocks=find_blocks(model.network, example, config.prune.granularity),
        votes=votes,
        samples=images.train.subset(
            stratified_indices(images.train.labels, config.metrics.samples_per_class, config.seed)
        ),
        shift=preflight.shift_archives(config.evaluate.shift),
    )
    _check_fit(prepared)
    return prepared


def planted_cue(config: RunConfig, classes: int) -> Cue | None:
    """Returns the mark that the training images get, or None."""
    cue = config.dataset.cue
    return None if cue.kind is None else Cue(cast(CueKind, cue.kind), cue.size_pct, classes)


def build_model(config: RunConfig, images: ImageData, device: torch.device) -> tuple[zoo.ModelSpec, Classifier]:
    """Builds the unpruned network for the images, with the configured weights or fresh ones from the seed.

    Raises:
        UserError: a network that cannot be built, or weights that do not fit.
    """
    spec = _model_spec(config, images)
    torch.manual_seed(config.seed)
    model = zoo.build(spec)
    if config.model.weights is not None:
        pretrained.load_weights(model.network, spec, config.model.weights)
    return spec, model.to(device).to(memory_format=torch.channels_last).eval()


def _with_cue(images: ImageData, config: RunConfig) -> ImageData:
    cue = planted_cue(config, len(images.classes))
    if cue is None:
        return images
    if not isinstance(images.train, ImageTensors) or not isinstance(images.test, ImageTensors):
        raise UserError("a cue can be planted in images that are in memory only", "set dataset.streaming=false")
    train = plant_training_cue(images.train, cue, config.dataset.cue.correlation, config.seed)
    return replace(images, train=train)


def _set_up_device(config: RunConfig) -> torch.device:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Two runs of one configuration must agree, and fp32 means all of its bits: TF32 keeps 10 of 23.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    return preflight.pick_device(config.device)


def _scoring_precision(config: RunConfig, of_training: str) -> str:
    return of_training if config.scoring.precision == "auto" else config.scoring.precision


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


def _check_fit(prepared: Prepared) -> None:
    config = prepared.config
    check_candidates(prepared.blocks)
    problems = metrics.check_requirements(
        list(prepared.votes),
        samples_per_class=config.metrics.samples_per_class,
        num_classes=len(prepared.images.classes),
        features=representation_size(prepared.fresh.network, prepared.example()),
    )
    check_ratio: Callable[[Prepared], Any] = _check_blocks if config.prune.unit == "blocks" else _check_macs
    checks = [functools.partial(check_ratio, prepared)]
    shape, classes = prepared.images.test.image_shape, len(prepared.images.classes)
    checks += [functools.partial(archive.check_fits, shape, classes) for archive in prepared.shift.values()]
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(error)
    if problems:
        raise ConfigError(problems)


def _check_blocks(prepared: Prepared) -> None:
    config = prepared.config
    for ratio in config.ratios:
        schedule.check_enough_blocks(ratio, prepared.blocks, config.prune.min_blocks_per_stage)


def _check_macs(prepared: Prepared) -> None:
    config = prepared.config
    costs = block_costs(prepared.fresh.network, prepared.example(), prepared.blocks)
    most = schedule.most_macs_removable(prepared.blocks, costs, config.prune.min_blocks_per_stage) / prepared.macs_base
    ratio = config.ratios[-1]
    if ratio > most:
        raise UserError(
            f"ratio={ratio} asks for {ratio:.1%} fewer MACs; at most {most:.1%} can go",
            f"lower the ratio to {most:.3f} or prune.min_blocks_per_stage",
        )
