"""Knowledge distillation: the network before pruning shows the pruned one what to answer, and how to get there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

TEMPERATURE = 4.0


class ClassifierInput:
    """Keeps what the classifier, the last linear layer that a network executes, gets at each forward pass.

    Attributes:
        value: (b, d) float32, of the latest forward pass.
    """

    value: Tensor

    def __init__(self, model: nn.Module) -> None:
        self._hooks: list[RemovableHandle] = []
        for module in model.modules():
            if isinstance(module, nn.Linear):
                self._hooks.append(module.register_forward_pre_hook(self._keep))

    def _keep(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.value = args[0].flatten(1).float()

    def release(self) -> None:
        """Stops watching the network."""
        for hook in self._hooks:
            hook.remove()


class Distillation:
    """The distance between a student's answers and its teacher's.

    The mean over the images of T² KL(teacher ‖ student) of the class probabilities at temperature T = 4 (Hinton et al.
    2015), plus the mean squared error of the classifier's input relative to its mean square in the teacher (after
    Romero et al. 2015, without a regressor, for pruning whole blocks keeps the width). 0: the two agree; no
    upper limit.
    """

    def __init__(self, student: ClassifierInput, teacher: nn.Module, seen_by_teacher: ClassifierInput) -> None:
        self._student = student
        self._teacher = teacher
        self._seen_by_teacher = seen_by_teacher

    def loss(self, images: Tensor, logits: Tensor) -> Tensor:
        """Returns the distance for the images (b, c, h, w) that the student has just answered with `logits` (b, k)."""
        with torch.no_grad():
            taught = self._teacher(images).float()
        answers = functional.kl_div(
            (logits / TEMPERATURE).log_softmax(1),
            (taught / TEMPERATURE).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        target = self._seen_by_teacher.value
        features = functional.mse_loss(self._student.value, target) / target.square().mean().clamp_min(1e-12)
        return TEMPERATURE**2 * answers + features


@contextmanager
def distilling(student: nn.Module, teacher: nn.Module) -> Iterator[Distillation]:
    """Watches both networks while the body runs; the teacher is put into eval mode."""
    teacher.eval()
    with ExitStack() as watched:
        inputs = [ClassifierInput(model) for model in (student, teacher)]
        for classifier_input in inputs:
            watched.callback(classifier_input.release)
        yield Distillation(inputs[0], teacher, inputs[1])
