"""One guarded dry run of a network before anything expensive starts: what cannot work says so in one line.

Copies of the network run on a few real images, in eval mode and, where it will be trained, in training mode, in the
memory format and the precision that the run will use.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parameter import is_lazy

from consensus_cli.errors import ForeignCodeError, UserError, foreign_code
from consensus_cli.experiment.failing_forward import answer, explained, said
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.foreign_files import some
from consensus_cli.models.layout import to_layout
from consensus_cli.models.modes import UsedParameters, evaluating, uncompiled

#: largest difference between two answers to the same images, relative to the largest logit
_SAME = 1e-3

#: the same between an image alone and among others, which a network that computes in bfloat16 rounds differently
_SAME_ALONE = 0.03

_ANY_NUMBER = "its forward must take batches of any number of images: what it keeps must not depend on that"

#: whether a run trains a network, only measures what training costs, or neither
TrainingDemand = Literal["needed", "measured", "none"]


@dataclass
class DryRun:
    """What a dry run found out.

    Attributes:
        precision: `fp32` or `bf16`, of training.
        scoring_precision: the same of scoring.
        outputs: number of logits.
        trains: whether the network can be trained.
        notes: what the user should know.
    """

    precision: str
    scoring_precision: str
    outputs: int = 0
    trains: bool = True
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Demands:
    """What a run asks of its network.

    Attributes:
        name: what messages call the network.
        classes: number of classes of the dataset.
        precision: of training, `fp32` or `bf16`.
        scoring_precision: of scoring.
        any_precision, any_scoring_precision: whether fp32 will do as well.
        training: whether the run trains it.
        attacked: whether gradients of the images are needed.
    """

    name: str
    classes: int
    precision: str
    scoring_precision: str
    any_precision: bool
    any_scoring_precision: bool
    training: TrainingDemand
    attacked: bool


def initialise_lazy_layers(model: Classifier, images: Tensor, name: str) -> None:
    """Gives layers that take their size from their first input that size, by a forward pass in eval mode.

    Raises:
        UserError: the network cannot run on the images.
    """
    if any(is_lazy(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())):
        with evaluating(model), foreign_code(name, "the network must run on the images of the dataset"):
            model(images)


def dry_run(model: Classifier, images: Tensor, labels: Tensor, demands: Demands) -> DryRun:
    """Finds out whether a network can be scored, trained, attacked and measured.

    Sets the memory format of the network: channels_last where its code allows it, else PyTorch's own.

    Args:
        model: the unpruned network; never run itself.
        images: (n, c, h, w) in [0, 1], n at least 2, on the model's device.
        labels: (n,) their classes.
        demands: what the run asks for.

    Raises:
        UserError: in one line, what does not work and what mends it.
    """
    _check_scripts(model, demands.name)
    found = DryRun(demands.precision, demands.scoring_precision)
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        logits, copied = _choose_memory_format(model, images, demands, found)
        _check_choice(copied, images, logits, demands, found)
        _check_logits(logits, len(images), demands, found)
        _check_same(copied, logits, images, demands.name)
        _check_copies(model, copied, images, demands.name)
        _check_alone(copied, logits, images, demands.name, found)
        _try_scoring(copied, images, demands, found)
        trained = clone(model)
        if demands.training != "none":
            _try_training(trained, images, labels, demands, found)
        _check_entries(model, (copied, trained), demands.name)
        if demands.attacked:
            _check_gradient(copied, images, demands.name)
    return found


def _check_scripts(model: Classifier, name: str) -> None:
    scripts = [path for path, module in model.network.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripts:
        raise UserError(
            f"{name} holds TorchScript modules ({', '.join(scripts[:5])}), which can be neither watched nor changed",
            "build it from its Python code",
        )


def _choose_memory_format(
    model: Classifier, images: Tensor, demands: Demands, found: DryRun
) -> tuple[Tensor, Classifier]:
    """Returns the answer of a copy of the network, and the copy."""
    failures: list[ForeignCodeError] = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        model.memory_format = memory_format
        to_layout(model.network, memory_format)
        with foreign_code(f"copying {demands.name}", "its modules must survive copy.deepcopy"):
            copied = clone(model)
        try:
            logits = answer(copied, images, demands.name)
        except ForeignCodeError as failure:
            failures.append(failure)
            continue
        if failures:
            found.notes.append(
                f"{demands.name} cannot run in the memory format channels_last, so it runs in PyTorch's own: "
                f"{said(failures[0], demands.name)}"
            )
        return logits, copied
    raise explained(model, images, demands.name, failures[0])


def _check_choice(copied: Classifier, images: Tensor, logits: Tensor, demands: Demands, found: DryRun) -> None:
    """Makes sure that, of several values a network answers with, the logits are what is taken for them."""
    with evaluating(copied):
        answer = copied.network(copied.inputs(images))
    if not isinstance(answer, tuple | list):
        return
    others = [value.shape for value in answer[1:] if isinstance(value, Tensor) and value.ndim == 2]
    if logits.shape[1] != demands.classes and (len(images), demands.classes) in others:
        raise UserError(
            f"{demands.name} answers with {logits.shape[1]} numbers first and with {demands.classes}, as many as there "
            "are classes, later",
            "let its forward return the logits first, or alone",
        )
    if logits.shape in others:
        count = 1 + others.count(logits.shape)
        found.notes.append(f"{demands.name} answers with {count} tensors that may be logits; the first is taken")


def _check_logits(logits: Tensor, images: int, demands: Demands, found: DryRun) -> None:
    name, (rows, outputs) = demands.name, logits.shape
    if rows != images:
        raise UserError(f"{name} answers {images} images with {rows} rows of logits", "return one row for each image")
    if outputs < demands.classes:
        raise UserError(
            f"{name} has {outputs} outputs, the dataset has {demands.classes} classes",
            f"build it with {demands.classes} outputs, such as 'model.kwargs={{num_classes: {demands.classes}}}'",
        )
    found.outputs = outputs
    if outputs > demands.classes:
        found.notes.append(f"{name} has {outputs} outputs for the {demands.classes} classes of the dataset")
    if not logits.is_floating_point():
        raise UserError(f"{name} answers with {logits.dtype}, not with logits", "return floating-point logits")
    if not logits.isfinite().all():
        raise UserError(
            f"{name} answers real images with values that are not finite",
            "check its weights, and model.mean and model.std: images are in [0, 1]",
        )


def _check_same(copied: Classifier, logits: Tensor, images: Tensor, name: str) -> None:
    if not _alike(answer(copied, images, name), logits):
        raise UserError(
            f"{name} answers the same images differently the second time, in eval mode",
            "something random is on in eval mode, such as F.dropout without training=self.training",
        )


def _check_alone(copied: Classifier, logits: Tensor, images: Tensor, name: str, found: DryRun) -> None:
    """Makes sure that a network that has answered a batch answers an image alone, and notes if it does so otherwise."""
    with evaluating(copied), foreign_code(f"{name}, given one image after {len(images)},", _ANY_NUMBER):
        alone = copied(images[:1])
    if len(alone) != 1:
        raise UserError(f"{name} answers one image after {len(images)} with {len(alone)} rows of logits", _ANY_NUMBER)
    if not _alike(alone, logits[:1], _SAME_ALONE):
        found.notes.append(f"{name} answers an image differently among others: its accuracy depends on the batch size")


def _check_copies(model: Classifier, copied: Classifier, images: Tensor, name: str) -> None:
    """Makes sure that a copy uses its own modules and answers the images that it gets."""
    hint = "a hook or closure refers to the original; let it use the module that it is given"
    expected = answer(copied, images.flip(0), name)
    another = clone(model)
    with uncompiled(), UsedParameters() as used:
        found = answer(another, images.flip(0), name)
    if not _alike(found, expected):
        raise UserError(f"a deep copy of {name} does not answer as the network does", hint)
    foreign = used.keys - {id(parameter) for parameter in another.parameters()}
    borrowed = next((path for path, parameter in model.named_parameters() if id(parameter) in foreign), None)
    if borrowed is not None:
        raise UserError(f"a deep copy of {name} computes with the parameter {borrowed} of the original", hint)


def _try_scoring(copied: Classifier, images: Tensor, demands: Demands, found: DryRun) -> None:
    if demands.scoring_precision == "fp32":
        return
    try:
        with _autocast(images, demands.scoring_precision):
            logits = answer(copied, images, demands.name)
        failure = "" if logits.isfinite().all() else f"{demands.name} answers with values that are not finite"
    except ForeignCodeError as error:
        failure = error.message
    if failure and not demands.any_scoring_precision:
        raise UserError(f"in bfloat16, {failure}", "set scoring.precision=fp32")
    if failure:
        found.scoring_precision = "fp32"
        found.notes.append(f"scoring is in fp32: in bfloat16, {failure}")


def _try_training(model: Classifier, images: Tensor, labels: Tensor, demands: Demands, found: DryRun) -> None:
    try:
        try:
            _train_once(model, images, labels, demands, demands.precision)
        except ForeignCodeError as failure:
            if demands.precision == "fp32" or not demands.any_precision:
                raise
            _train_once(model, images, labels, demands, "fp32")
            found.precision = "fp32"
            found.notes.append(f"training is in fp32: in bfloat16, {failure.message}")
    except UserError as failure:
        if demands.training == "needed":
            raise
        found.trains = False
        found.notes.append(f"the energy of training is not measured: {failure.message}")


def _train_once(model: Classifier, images: Tensor, labels: Tensor, demands: Demands, precision: str) -> None:
    name = demands.name
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{name} has nothing to train: requires_grad is off for all of its parameters",
            "switch it on in the network's code, or prune without training: model.weights=FILE finetune=none",
        )
    model.train()
    hint = "its forward and backward pass in training mode must work on one batch of images after another"
    # The last batch of an epoch is of another size.
    for batch in (torch.arange(len(images)), torch.arange(len(images) + 1) % len(images)):
        with foreign_code(f"{name}, in training mode,", hint):
            with _autocast(images, precision):
                logits = model(images[batch])
            if logits.shape[0] != len(batch) or logits.shape[1] < demands.classes:
                raise UserError(
                    f"{name} answers with shape {tuple(logits.shape)} in training mode",
                    "return the same logits in training mode as in eval mode",
                )
            functional.cross_entropy(logits.float(), labels[batch]).backward()


def _check_entries(model: Classifier, ran: Iterable[Classifier], name: str) -> None:
    """Makes sure that a forward pass makes no weights: a copy that has not run could not take them."""
    known = model.state_dict().keys()
    made = sorted({key.removeprefix("network.") for copied in ran for key in copied.state_dict().keys() - known})
    if made:
        raise UserError(
            f"{name} makes weights or buffers in its forward pass: {some(made)}", "make them in its constructor"
        )


def _check_gradient(copied: Classifier, images: Tensor, name: str) -> None:
    """Makes sure that attacks get gradients of the images."""
    asked = images.clone().requires_grad_()
    with foreign_code(f"{name}, attacked,", "gradients must flow to the images in eval mode, or set attacks=none"):
        copied.eval()
        gradient = None
        logits = copied(asked)
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad(logits.sum(), asked, allow_unused=True)
    if gradient is None:
        raise UserError(
            f"{name} gives attacks no gradient of the images",
            "its forward must not switch gradients off or detach them; without that, set attacks=none",
        )


def _autocast(images: Tensor, precision: str) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16")


def _alike(found: Tensor, expected: Tensor, tolerance: float = _SAME) -> bool:
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance * scale)
