"""From a configuration to everything a run needs before it starts: data, network, blocks, and whether they fit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consensus_cli import data, training
from consensus_cli.config.schema import RunConfig
from consensus_cli.data import ImageData
from consensus_cli.errors import UserError, foreign_code
from consensus_cli.evaluation.cost.quantities import COUNTED, MEASURED, written
from consensus_cli.evaluation.robustness.attacks import check_attacks
from consensus_cli.evaluation.robustness.shift import Archive
from consensus_cli.experiment import checks, inputs
from consensus_cli.experiment.building import Built, build_model, build_teacher, network_name
from consensus_cli.experiment.dry_run import Demands, DryRun, TrainingDemand, dry_run
from consensus_cli.experiment.run_images import few_images, scored_samples, sorted_by, with_classes, with_cue
from consensus_cli.experiment.threads import ThreadWatch
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.macs import MacCount, count_macs
from consensus_cli.models.spec import ModelSpec
from consensus_cli.pruning.blocks import Block, check_candidates, find_blocks
from consensus_cli.pruning.healing import map_macs
from consensus_cli.pruning.schedule import Amounts, Schedule, blocks_to_remove
from consensus_cli.scoring import metrics
from consensus_cli.scoring.ranking.criteria import check_criterion
from consensus_cli.scoring.representations import representation_size
from consensus_cli.scoring.score import KL, metrics_needed
from consensus_cli.screen import Screen


@dataclass
class Prepared:
    """What a run works on; nothing here but the number of threads changes while it runs.

    Attributes:
        config: everything that determines the run.
        device: where the networks are.
        precision: `fp32` or `bf16`, of training.
        scoring_precision: `fp32` or `bf16`, of the forward pass of scoring; None where the criterion reads no metric.
        compiled: whether training compiles the network.
        images: the dataset.
        spec: how to build the original network.
        original: the original network, which never runs itself, with its weights if they are given.
        blocks: every residual block of the original network.
        votes: metric -> weight, for the metrics that the criterion reads.
        samples: the training images that the metrics see, the same in every step, class after class.
        shift: name -> published test images that the networks are tested on besides.
        threads: how many threads compute; `tick` is to be called from all long work.
        outputs: number of logits that the network answers with.
        trains: whether the network can be trained; where it cannot, nothing of the run needs it to.
        is_trained: whether `original` has all of its weights; else it is trained first, from those that it has.
        teacher: what pruned networks learn from instead of the original network.
    """

    config: RunConfig
    device: torch.device
    precision: str
    scoring_precision: str | None
    compiled: bool
    images: ImageData
    spec: ModelSpec
    original: Classifier
    blocks: list[Block]
    votes: dict[str, float]
    samples: data.Split
    shift: dict[str, Archive]
    threads: ThreadWatch
    outputs: int
    trains: bool
    is_trained: bool
    teacher: Classifier | None = None

    @property
    def candidates(self) -> int:
        """Number of blocks of the original network that can go."""
        return sum(block.removable for block in self.blocks)

    @functools.cached_property
    def macs(self) -> MacCount:
        """MACs of the original network for one image, in all and per module."""
        image = torch.zeros(1, *self.images.test.image_shape, device=self.device)
        return count_macs(self.original.network, self.original.inputs(image))

    @property
    def macs_base(self) -> int:
        """MACs of the original network for one image."""
        return self.macs.total

    @functools.cached_property
    def target_blocks(self) -> int:
        """How many blocks go in all where `prune.unit` is `blocks`; all that can where it is something else."""
        return blocks_to_remove(self.config.ratios[-1], self.candidates)

    def schedule(self, ratio: float, enough: Callable[[Sequence[str]], bool] | None = None) -> Schedule:
        """Returns how the blocks go, until a ratio (or `prune.target`, where that is given) is reached.

        `enough` says whether it is without blocks of these names, where that is measured.
        """
        prune, amounts = self.config.prune, None
        if prune.quantity != "blocks":
            amounts = self.amounts("params" if prune.quantity == "params" else "macs")
            if prune.amount is not None and prune.quantity == amounts.unit:
                ratio = 1 - prune.amount.value / amounts.total if amounts.total else 1.0
        return Schedule(self.blocks, ratio, prune.step, prune.min_blocks_per_stage, amounts, enough)

    def amounts(self, unit: str) -> Amounts:
        """Returns the MACs (`macs`) or parameters (`params`) of the original network and of its blocks."""
        network = self.original.network
        if unit == "params":
            return Amounts.of_params(network, self.blocks)
        kept = {block.name: map_macs(network, block, self.config.prune.replace) for block in self.blocks}
        return Amounts.of_macs(self.macs, self.blocks, kept)

    def example(self) -> Tensor:
        """Returns two test images as the network takes them."""
        with torch.no_grad():
            return self.original.inputs(few_images(self.images, self.device)[0])


def prepare(config: RunConfig, screen: Screen, loaded: ImageData | None = None, *, finetunes: bool = True) -> Prepared:
    """Loads the data, builds the network, finds its blocks, and makes sure that the run can be carried out.

    Args:
        config: everything that determines the run.
        screen: where progress is shown.
        loaded: the images, where `inputs.load` has loaded them already.
        finetunes: whether the run goes on to prune and fine-tune.

    Raises:
        UserError: files or values that are wrong or do not fit together.
    """
    images = with_cue(inputs.load_images(config, screen) if loaded is None else loaded, config)
    device = _set_up_device(config)
    threads = ThreadWatch(config.threads, screen.warning, watched=device.type == "cpu")
    threads.look()
    built = build_model(config, images, device)
    spec, model = built.spec, built.model
    epochs = config.finetune.epochs_per_step + config.finetune.final_epochs if finetunes else 0
    needed: TrainingDemand = "needed" if epochs or not built.is_trained else "measured"
    attacked = finetunes and bool(config.attacks.suite)
    unsorted, images = not images.classes, with_classes(images, built.spec.num_classes)
    if unsorted and not built.is_trained:
        raise UserError(
            "nobody sorted these images, and there is no trained network that could",
            "set model.weights=FILE, or choose a dataset with classes",
        )
    tried, blocks = try_out(config, images, built, device, screen, training_is=needed, attacked=attacked)
    if unsorted:
        images = sorted_by(built.model, images, device, screen)
    votes = metrics_needed(config.criterion.name, config.metrics.weights)
    heals = config.prune.replace != "nothing" or config.prune.refit
    prepared = Prepared(
        config=config,
        device=device,
        precision=tried.precision,
        scoring_precision=tried.scoring_precision if votes or config.criterion.name == KL or heals else None,
        compiled=checks.compiles(config, device, images.test.image_shape),
        images=images,
        spec=spec,
        original=model,
        blocks=blocks,
        votes=votes,
        samples=scored_samples(images, config, unsorted=unsorted),
        shift=checks.shift_archives(config.evaluate.shift),
        threads=threads,
        outputs=tried.outputs,
        trains=tried.trains,
        is_trained=built.is_trained,
        teacher=build_teacher(built, config, images),
    )
    _check_fit(prepared)
    return prepared


def try_out(
    config: RunConfig,
    images: ImageData,
    built: Built,
    device: torch.device,
    screen: Screen,
    *,
    training_is: TrainingDemand,
    attacked: bool,
) -> tuple[DryRun, list[Block]]:
    """Runs copies of the original network on a few images, and finds its blocks.

    Args:
        config: everything that determines the run.
        images: the dataset.
        built: the original network.
        device: where it is.
        screen: where what the user should know of the network is shown.
        training_is: whether the run trains the network.
        attacked: whether the run attacks it.

    Raises:
        UserError: the network cannot do what the run asks of it, or has no residual blocks.
    """
    name, precision = network_name(config), training.resolve_precision(config.precision, device)
    demands = Demands(
        name=name,
        classes=len(images.classes),
        precision=precision,
        scoring_precision=precision if config.scoring.precision == "auto" else config.scoring.precision,
        any_precision=config.precision == "auto",
        any_scoring_precision=config.scoring.precision == "auto",
        training=training_is,
        attacked=attacked,
    )
    for note in (*images.notes, *built.notes):
        screen.warning(note)
    model, (few, labels) = built.model, few_images(images, device)
    tried = dry_run(model, few, labels, demands)
    for note in tried.notes:
        screen.warning(note)
    with torch.no_grad():
        example = model.inputs(few)
    with foreign_code(name, "its code must run while its operations are watched"):
        return tried, find_blocks(model.network, example, config.prune.granularity)


def _set_up_device(config: RunConfig) -> torch.device:
    # Two runs of one configuration must agree, and fp32 means all of its bits: TF32 keeps 10 of 23.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    return checks.pick_device(config.device)


def _check_fit(prepared: Prepared) -> None:
    config = prepared.config
    check_candidates(prepared.blocks)
    network, candidates = prepared.original.network, [block for block in prepared.blocks if block.removable]
    problems = metrics.check_requirements(
        list(prepared.votes),
        samples=config.metrics.samples_per_class * len(prepared.images.classes),
        per_class=config.metrics.samples_per_class,
        features=representation_size(network, prepared.example()) if prepared.votes else 0,
    )
    attempts: list[Callable[[], object]] = [functools.partial(_check_schedules, prepared)]
    shape, classes = prepared.images.test.image_shape, len(prepared.images.classes)
    attempts += [functools.partial(archive.check_fits, shape, classes) for archive in prepared.shift.values()]
    attempts.append(functools.partial(check_attacks, list(config.attacks.suite.values()), prepared.outputs))
    attempts.append(functools.partial(check_criterion, config.criterion.name, network, candidates))
    checks.raise_together([*problems, *attempts])


def _check_schedules(prepared: Prepared) -> None:
    prune = prepared.config.prune
    if prune.amount is not None and prune.quantity in COUNTED:
        amounts, largest = prepared.amounts(prune.quantity), prepared.schedule(1.0).largest()
        least = amounts.total - sum(amounts.by_block[name] for name in largest)
        if prune.amount.value >= amounts.total > 0:
            has = written(prune.quantity, amounts.total)
            raise UserError(f"prune.target={prune.target}: the network has {has} in all", "ask for less")
        if prune.amount.value < least:
            raise UserError(
                f"prune.target={prune.target} is out of reach: without all {len(largest)} blocks that can go, "
                f"{written(prune.quantity, least)} are left",
                "ask for as much, or lower prune.min_blocks_per_stage",
            )
    enough = (lambda _: False) if prune.quantity in MEASURED else None
    for ratio in prepared.config.ratios:
        prepared.schedule(ratio, enough).check(network_name(prepared.config))
