"""Everything that can be found wrong before data, training or a device costs time, reported all at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from consensus_cli import data, training
from consensus_cli.config.schema import RunConfig
from consensus_cli.errors import ConfigError, UserError, missing_package, unknown_name
from consensus_cli.evaluation.cost.energy import check_country
from consensus_cli.evaluation.cost.quantities import MEASURED, QUANTITIES
from consensus_cli.evaluation.cost.runtime import lacks_to_compile
from consensus_cli.evaluation.cost.savings import Conditions
from consensus_cli.evaluation.robustness.attacks import ATTACKS, check_attacks
from consensus_cli.evaluation.robustness.corruption import check_corruptions
from consensus_cli.evaluation.robustness.shift import Archive, open_archive
from consensus_cli.experiment import distributed
from consensus_cli.experiment.tracking import check_tracker
from consensus_cli.models import normalization, pretrained, ranges
from consensus_cli.models.paths import expanded
from consensus_cli.scoring.metrics import METRICS
from consensus_cli.scoring.ranking.consensus import AGGREGATIONS
from consensus_cli.scoring.score import metrics_needed
from consensus_cli.storage.results import check_writable
from consensus_cli.storage.rundir import RESULTS_NAME

#: what a run imports only after hours
_LATE = ("accelerate", "matplotlib", "torchattacks")


def check(config: RunConfig) -> None:
    """Checks a configuration against ranges, registries, files and devices.

    Raises:
        ConfigError: holds every mistake found.
    """
    problems = value_problems(config)
    if any(problem.message.endswith(" is empty") for problem in problems):
        # An empty name is the working folder: what lies there is not what was meant.
        raise ConfigError(problems)
    problems += [missing_package(name) for name in _LATE if find_spec(name) is None]
    problems += _name_problems(config)
    problems += data.check(config.dataset, cache_dir(config))
    if config.transfer.source is not None:
        target = replace(
            config.dataset, source=config.transfer.source, name=config.transfer.name or "", root=config.transfer.root
        )
        problems += data.check(target, cache_dir(config))
    if config.output_dir.startswith("~"):
        problems.append(UserError(f"there is no home folder for '{config.output_dir}'", "write out the path"))
    problems += check_writable(Path(config.output_dir) / RESULTS_NAME)
    attempts: list[Callable[[], object]] = [
        partial(metrics_needed, config.criterion.name, config.metrics.weights),
        *(partial(check_attacks, [attack]) for attack in config.attacks.suite.values()),
        partial(check_country, config.evaluate.country),
        partial(_check_device, config),
        partial(pretrained.check_model, config.model),
        partial(check_tracker, config.tracker),
        partial(check_corruptions, config.evaluate.corruptions),
        *(partial(shift_archives, {name: path}) for name, path in config.evaluate.shift.items()),
    ]
    raise_together([*problems, *attempts])


def value_problems(config: RunConfig) -> list[UserError]:
    """Returns every value that is out of range or does not fit another, without touching a file or a device."""
    found = [*ranges.problems(config), *normalization.problems(config.model.mean, config.model.std)]
    if config.criterion.name == "consensus" and not any(config.metrics.weights.values()):
        found.append(UserError("metrics.weights leaves no metric to vote", "give at least one metric a weight above 0"))
    if config.finetune.teacher is not None and config.finetune.distill == 0:
        found.append(UserError("finetune.teacher is given, and finetune.distill=0", "set finetune.distill, to 0.5 say"))
    found += _goal_problems(config)
    if config.finetune.span == "run" and (config.prune.unit != "blocks" or config.prune.target is not None):
        found.append(
            UserError(
                "finetune.span=run needs prune.unit=blocks: how many steps another goal takes is not known before",
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
    if config.scoring.repair and config.prune.replace == "nothing":
        found.append(
            UserError(
                "scoring.repair judges blocks with what takes their place; prune.replace=nothing puts nothing there",
                "set prune.replace=linear (or scale), or leave scoring.repair out",
            )
        )
    world = distributed.world()
    if config.controls and not config.finetune.epochs_per_step and not config.finetune.final_epochs:
        found.append(
            UserError(
                "controls are trained as much as the pruned network, and that is not at all",
                "choose a finetune that trains, such as finetune=short, or leave controls out",
            )
        )
    if config.transfer.source is not None and (config.controls or not config.finetune.final_epochs):
        found.append(
            UserError(
                "transfer trains on other images at the end: it needs finetune.final_epochs and takes no controls",
                "choose a finetune that trains at the end, such as finetune=short, and leave controls out",
            )
        )
    for node, recipe in (("baseline", config.baseline), ("finetune", config.finetune)):
        least = 2 * recipe.accumulate_batches * world
        if 2 <= recipe.batch_size < least:
            shared = f" on {world} processes" if world > 1 else ""
            found.append(
                UserError(
                    f"{node}.batch_size={recipe.batch_size} leaves fewer than 2 images for each micro-batch of "
                    f"{node}.accumulate_batches={recipe.accumulate_batches}{shared}",
                    f"set {node}.batch_size to at least {least}, or lower what divides it",
                )
            )
    return found


def _goal_problems(config: RunConfig) -> Iterator[UserError]:
    """Yields what is wrong with what a run aims at, and with what blocks are weighed by."""
    prune, per = config.prune, config.criterion.per
    try:
        quantity = prune.quantity
    except UserError as error:
        yield error
        return
    if prune.target is not None and prune.unit not in ("blocks", quantity):
        yield UserError(
            f"prune.target={prune.target} is {quantity}, and prune.unit={prune.unit} another thing",
            f"leave one of them out, or use prune={quantity}",
        )
    if per in QUANTITIES and quantity == "blocks":
        yield UserError(
            f"criterion.per={per} weighs blocks by what they save, and prune=blocks asks for no saving",
            f"use prune={per}, or criterion.per=nothing",
        )


def raise_together(attempts: Iterable[UserError | Callable[[], object]]) -> None:
    """Raises mistakes that are known and those that checks raise, all at once.

    Raises:
        ConfigError: holds every mistake, if there is one.
    """
    problems = []
    for attempt in attempts:
        try:
            if isinstance(attempt, UserError):
                raise attempt
            attempt()
        except UserError as error:
            problems.append(error)
    if problems:
        raise ConfigError(problems)


def cache_dir(config: RunConfig) -> Path:
    """Returns the folder of downloads and decoded images."""
    return Path(config.output_dir) / "cache"


def shift_archives(paths: Mapping[str, str]) -> dict[str, Archive]:
    """Opens the published test images of `evaluate.shift`, name -> path.

    Raises:
        UserError: a name that cannot be used, or files that are missing or have another form.
    """
    return {name: open_archive(name, expanded(path)) for name, path in paths.items()}


def pick_device(name: str) -> torch.device:
    """Returns the device of a name; `auto` is the first GPU where there is one, or this process's own of several.

    Raises UserError where there is no such device.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        # One process per GPU: each takes the one of its number.
        return torch.device("cuda", distributed.local_rank()) if distributed.world() > 1 else torch.device("cuda")
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise unknown_name("device", name, ("auto", "cpu", "cuda"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name} is not there: PyTorch sees {torch.cuda.device_count()} GPUs",
            "use device=auto or device=cpu",
        )
    return device


def _name_problems(config: RunConfig) -> Iterator[UserError]:
    yield from (unknown_name("metric", name, METRICS) for name in config.metrics.weights if name not in METRICS)
    if config.criterion.aggregation not in AGGREGATIONS:
        yield unknown_name("criterion.aggregation", config.criterion.aggregation, AGGREGATIONS)
    for name, attack in config.attacks.suite.items():
        # So that its columns cannot be those of another measure.
        if attack.name in ATTACKS and not re.fullmatch(rf"{attack.name}[a-z0-9_]*", name):
            yield UserError(
                f"attacks.suite.{name} does not begin with its attack, '{attack.name}'",
                f"use lower-case letters, digits and _, such as attacks.suite.{attack.name}_mine",
            )


def _check_device(config: RunConfig) -> None:
    """Checks that the device is there, and the compiler that torch.compile calls in the middle of a training.

    And, where a measurement decides, that the runtime takes the device and the precision.
    """
    device, prune = pick_device(config.device), config.prune
    if not any(_goal_problems(config)):
        for quantity in {prune.quantity, config.criterion.per} & MEASURED.keys():
            Conditions((), device, runtime=prune.runtime, precision=prune.precision).check(quantity)
    # For `auto` the images decide, which are not known yet.
    if config.compile is True:
        _check_compiler(config, device)


def compiles(config: RunConfig, device: torch.device, image_shape: Sequence[int]) -> bool:
    """Returns whether trainings on images (c, h, w) are compiled.

    Raises:
        UserError: they are to be, and a compiler is missing.
    """
    compiled = training.resolve_compile(config.compile, device, image_shape)
    if compiled:
        _check_compiler(config, device)
    return compiled


def _check_compiler(config: RunConfig, device: torch.device) -> None:
    if missing := lacks_to_compile(device):
        raise UserError(f"compile={config.compile} needs {missing}", "use compile=false")
