"""One guarded dry run of a network before anything expensive starts: what cannot work is one line with a hint.

Copies of the network run on a few real images, in eval mode and, where it will be trained, in training mode, in the
memory format and the precision that the run will use.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parameter import is_lazy

from consensus_cli.errors import ForeignCodeError, UserError, enumerated, foreign_code
from consensus_cli.experiment.failing_forward import ANOTHER_MODULE, answer, explained, said
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone, to_layout
from consensus_cli.models.head import find_head
from consensus_cli.models.modes import SAME, UsedParameters, alike, evaluating, uncompiled

#: largest relative difference between the answers to an image alone and among others: bfloat16 rounds them differently
_SAME_ALONE = 0.03

_ANY_NUMBER = "its forward must take batches of any number of images: what it keeps must not depend on that"

#: whether a run trains a network, only measures what training costs, or neither
TrainingDemand = Literal["needed", "measured", "none"]


@dataclass
class DryRun:
    """What a dry run found out: precisions that work (`fp32` or `bf16`), number of logits, notes for the user."""

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
        precision: of training, `fp32` or `bf16`; where `any_precision`, fp32 will do as well.
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
        model: the original network; never run itself.
        images: (n, c, h, w) in [0, 1], n at least 2, on the model's device.
        labels: (n,) their classes.
        demands: what the run asks for.

    Raises:
        UserError: in one line, what does not work and how to fix it.
    """
    scripts = [path for path, module in model.network.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripts:
        raise UserError(
            f"{demands.name} holds TorchScript modules ({enumerated(scripts)}), which cannot be watched or changed",
            "build it from its Python code",
        )
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        trial = _Trial(model, images, labels, demands)
        trial.run()
    return trial.found


class _Trial:
    """The dry run of one network: `copied` runs in eval mode, another copy in training mode."""

    copied: Classifier
    logits: Tensor

    def __init__(self, model: Classifier, images: Tensor, labels: Tensor, demands: Demands) -> None:
        self.model, self.images, self.labels, self.demands, self.name = model, images, labels, demands, demands.name
        self.found = DryRun(demands.precision, demands.scoring_precision)

    def run(self) -> None:
        self.copied, self.logits = self._answered()
        self._check_entries(self.copied)
        self._check_choice()
        self._check_logits()
        self._check_repeats()
        self._check_alone()
        self._try_scoring()
        trained = clone(self.model)
        if self.demands.training != "none":
            self._try_training(trained)
            self._check_entries(trained)
        if self.demands.attacked:
            self._check_gradient()

    def _answered(self) -> tuple[Classifier, Tensor]:
        """Returns a copy of the network in the memory format that it can run in, and its answer."""
        failures: list[ForeignCodeError] = []
        for memory_format in (torch.channels_last, torch.contiguous_format):
            self.model.memory_format = memory_format
            to_layout(self.model.network, memory_format)
            with foreign_code(f"copying {self.name}", "its modules must survive copy.deepcopy"):
                copied = clone(self.model)
            try:
                logits = answer(copied, self.images, self.name)
            except ForeignCodeError as failure:
                failures.append(failure)
                continue
            if failures:
                self.found.notes.append(
                    f"{self.name} cannot run in the memory format channels_last, so it runs in PyTorch's own: "
                    f"{said(failures[0], self.name)}"
                )
            return copied, logits
        raise explained(self.model, self.images, self.name, failures[0])

    def _check_choice(self) -> None:
        """Checks that, where a network answers with several values, the first of them are the logits."""
        with evaluating(self.copied):
            values = self.copied.network(self.copied.inputs(self.images))
        others = values[1:] if isinstance(values, tuple | list) else []
        shapes = [value.shape for value in others if isinstance(value, Tensor) and value.ndim == 2]
        outputs, classes = self.logits.shape[1], self.demands.classes
        if outputs != classes and (len(self.images), classes) in shapes:
            raise UserError(
                f"{self.name} answers with {outputs} numbers first and with {classes}, as many as there are classes, "
                "later",
                "let its forward return the logits first, or alone",
            )
        if self.logits.shape in shapes:
            count = 1 + shapes.count(self.logits.shape)
            self.found.notes.append(f"{self.name} answers with {count} tensors that may be logits; the first is taken")

    def _check_logits(self) -> None:
        name, images, classes, (rows, outputs) = self.name, len(self.images), self.demands.classes, self.logits.shape
        if rows != images:
            raise UserError(
                f"{name} answers {images} images with {rows} rows of logits", "return one row for each image"
            )
        if outputs < classes:
            raise UserError(
                f"{name} has {outputs} outputs, the dataset has {classes} classes",
                f"build it with {classes} outputs, such as 'model.kwargs={{num_classes: {classes}}}'",
            )
        self.found.outputs = outputs
        if outputs > classes:
            self.found.notes.append(f"{name} has {outputs} outputs for the {classes} classes of the dataset")
        if not self.logits.is_floating_point():
            raise UserError(f"{name} answers with {self.logits.dtype}, not with logits", "return floating-point logits")
        if not self.logits.isfinite().all():
            raise UserError(
                f"{name} answers real images with values that are not finite",
                "check its weights, and model.mean and model.std: images are in [0, 1]",
            )
        if (self.logits >= 0).all() and (self.logits.sum(1) - 1).abs().max() < SAME:
            raise UserError(
                f"{name} answers with probabilities (each row sums to 1), not with logits",
                "leave out the softmax at its end",
            )

    def _check_repeats(self) -> None:
        """Checks that the copy answers the same again, and that another copy answers the same with its own modules."""
        if not alike(answer(self.copied, self.images, self.name), self.logits):
            keeps = alike(answer(clone(self.model), self.images, self.name), self.logits)
            raise UserError(
                f"{self.name} answers the same images differently the second time, in eval mode",
                "what it keeps from one forward pass must not change the next answer in eval mode"
                if keeps
                else "something random is on in eval mode, such as F.dropout without training=self.training",
            )
        expected = answer(self.copied, self.images.flip(0), self.name)
        another = clone(self.model)
        with uncompiled(), UsedParameters() as used:
            found = answer(another, self.images.flip(0), self.name)
        if not alike(found, expected):
            raise UserError(f"a deep copy of {self.name} does not answer as the network does", ANOTHER_MODULE)
        foreign = used.parameters.keys() - {id(parameter) for parameter in another.parameters()}
        for path, parameter in self.model.named_parameters():
            if id(parameter) in foreign:
                raise UserError(
                    f"a deep copy of {self.name} computes with the parameter {path} of the original", ANOTHER_MODULE
                )
        if any(used.parameters[key].requires_grad for key in foreign):
            raise UserError(
                f"{self.name} computes with {len(foreign)} parameters that are not among its own",
                "hold modules as attributes, in nn.ModuleList or in nn.ModuleDict, not in a plain list or dictionary",
            )

    def _check_alone(self) -> None:
        """Checks that a network that has answered a batch answers an image alone; notes if it does so otherwise."""
        after = f"one image after {len(self.images)}"
        with evaluating(self.copied), foreign_code(f"{self.name}, given {after},", _ANY_NUMBER):
            alone = self.copied(self.images[:1])
        if len(alone) != 1:
            raise UserError(f"{self.name} answers {after} with {len(alone)} rows of logits", _ANY_NUMBER)
        if not alike(alone, self.logits[:1], _SAME_ALONE):
            self.found.notes.append(
                f"{self.name} answers an image differently among others: its accuracy depends on the batch size"
            )

    def _try_scoring(self) -> None:
        if self.demands.scoring_precision == "fp32":
            return
        try:
            with self._autocast(self.demands.scoring_precision):
                logits = answer(self.copied, self.images, self.name)
            if logits.isfinite().all():
                return
            failure = f"{self.name} answers with values that are not finite"
        except ForeignCodeError as error:
            failure = error.message
        if not self.demands.any_scoring_precision:
            raise UserError(f"in bfloat16, {failure}", "set scoring.precision=fp32")
        self.found.scoring_precision = "fp32"
        self.found.notes.append(f"scoring is in fp32: in bfloat16, {failure}")

    def _try_training(self, model: Classifier) -> None:
        try:
            try:
                self._train_once(model, self.demands.precision)
            except ForeignCodeError as failure:
                if self.demands.precision == "fp32" or not self.demands.any_precision:
                    raise
                self._train_once(model, "fp32")
                self.found.precision = "fp32"
                self.found.notes.append(f"training is in fp32: in bfloat16, {failure.message}")
        except UserError as failure:
            if self.demands.training == "needed":
                raise
            self.found.trains = False
            self.found.notes.append(f"the energy of training is not measured: {failure.message}")

    def _train_once(self, model: Classifier, precision: str) -> None:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(
                f"{self.name} has nothing to train: requires_grad is off for all of its parameters",
                "switch it on in the network's code, or prune without training: model.weights=FILE finetune=none",
            )
        model.train()
        hint = "its forward and backward pass in training mode must work on one batch of images after another"
        count = len(self.images)
        # The last batch of an epoch is of another size.
        numbers = torch.arange(count + 1, device=self.images.device)
        for batch in (numbers[:count], numbers % count):
            with foreign_code(f"{self.name}, in training mode,", hint):
                with self._autocast(precision):
                    logits = model(self.images[batch])
                if logits.shape[0] != len(batch) or logits.shape[1] < self.demands.classes:
                    raise UserError(
                        f"{self.name} answers with shape {tuple(logits.shape)} in training mode",
                        "return the same logits in training mode as in eval mode",
                    )
                functional.cross_entropy(logits.float(), self.labels[batch]).backward()
        self._check_head(model)

    def _check_head(self, trained: Classifier) -> None:
        """Checks that training reaches what the logits of eval mode come from, which may be others."""
        try:
            head = find_head(self.copied.network, self.copied.inputs(self.images))
        except UserError:
            # Criteria that read no metric need none that can be found.
            return
        weights = [p for path in head.modules for p in trained.network.get_submodule(path).parameters()]
        if weights and all(parameter.requires_grad and parameter.grad is None for parameter in weights):
            raise UserError(
                f"in training mode, {self.name} answers with other logits than those of {enumerated(head.modules)}",
                "return the same logits first in both modes, and those of auxiliary heads after them",
            )

    def _check_entries(self, run: Classifier) -> None:
        """Checks that a forward pass makes no weights: a copy that has not run could not take them."""
        made = run.state_dict().keys() - self.model.state_dict().keys()
        if made:
            raise UserError(
                f"{self.name} makes weights or buffers in its forward pass: "
                f"{enumerated(sorted(key.removeprefix('network.') for key in made))}",
                "make them in its constructor",
            )

    def _check_gradient(self) -> None:
        """Checks that attacks get gradients of the images."""
        asked, gradient = self.images.clone().requires_grad_(), None
        hint = "gradients must flow to the images in eval mode, or set attacks=none"
        with foreign_code(f"{self.name}, attacked,", hint):
            logits = self.copied.eval()(asked)
            if logits.requires_grad:
                (gradient,) = torch.autograd.grad(logits.sum(), asked, allow_unused=True)
        if gradient is None:
            raise UserError(
                f"{self.name} gives attacks no gradient of the images",
                "its forward must not switch gradients off or detach them; without that, set attacks=none",
            )

    def _autocast(self, precision: str) -> torch.autocast:
        return torch.autocast(self.images.device.type, torch.bfloat16, enabled=precision == "bf16")
