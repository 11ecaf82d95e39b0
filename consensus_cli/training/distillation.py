"""Knowledge distillation: the pruned network learns the answers and the features of the original one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from consensus_cli.models.head import find_head

TEMPERATURE = 4.0


class Distillation:
    """The distance between the pruned network's answers and its teacher's, the original network's.

    The mean over the images of T² KL(teacher ‖ student) of the class probabilities at temperature T = 4 (Hinton et al.
    2015), plus the mean squared error of what the head gets relative to its mean square in the teacher (after
    Romero et al. 2015, without a regressor, for pruning whole blocks keeps the width). 0: the two agree; no
    upper limit.
    """

    def __init__(
        self, features: Callable[[], Tensor], teacher: nn.Module, teacher_features: Callable[[], Tensor]
    ) -> None:
        self._features = features
        self._teacher = teacher
        self._teacher_features = teacher_features

    def loss(self, images: Tensor, logits: Tensor) -> Tensor:
        """Returns the distance for images (b, c, h, w) that the pruned network has just answered by `logits` (b, k)."""
        # Read before the teacher runs: a head that is written in plain code is watched by what runs last.
        own = self._features().float()
        with torch.no_grad():
            taught = self._teacher(images).float()
        answers = functional.kl_div(
            (logits / TEMPERATURE).log_softmax(1),
            (taught / TEMPERATURE).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        target = self._teacher_features().float()
        features = functional.mse_loss(own, target) / target.square().mean().clamp_min(1e-12)
        return TEMPERATURE**2 * answers + features


@contextmanager
def distilling(pruned: nn.Module, teacher: nn.Module, example: Tensor) -> Iterator[Distillation]:
    """Watches both networks while the body runs; the teacher is put into eval mode.

    Args:
        pruned: the teacher's network without some of its blocks.
        teacher: the original network.
        example: (n, …) a few of the images that both take.
    """
    teacher.eval()
    head = find_head(teacher, example)
    with head.watching(pruned) as features, head.watching(teacher) as teacher_features:
        yield Distillation(features, teacher, teacher_features)
