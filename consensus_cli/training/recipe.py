"""What a training does: its hyperparameters and how the learning rate moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consensus_cli.models import ranges

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import SGD


def _onecycle(progress: float, _: Sequence[float]) -> float:
    warmup = 0.3
    if progress < warmup:
        return 0.04 + 0.96 * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


#: name -> share of the peak rate at a point of the schedule in [0, 1)
SCHEDULES: dict[str, Callable[[float, Sequence[float]], float]] = {
    "constant": lambda progress, milestones: 1.0,
    "cosine": lambda progress, milestones: 0.5 * (1 + math.cos(math.pi * progress)),
    "onecycle": _onecycle,
    "step": lambda progress, milestones: 0.1 ** sum(progress >= m for m in milestones),
}


@dataclass(kw_only=True)
class Hyperparameters:
    """SGD with Nesterov momentum, for however long; the range of each beside it.

    Attributes:
        learning_rate: peak rate.
        schedule: name in `SCHEDULES`.
        milestones: shares of the schedule after which `step` divides the rate by 10.
        weight_decay: L2 factor on weight matrices and kernels; biases and norms are spared.
        batch_size: images per update, over all processes and micro-batches.
        accumulate_batches: micro-batches that an update is made of, where a whole batch does not fit into memory; batch
            norm sees one at a time.
    """

    learning_rate: float = field(metadata={"above": 0})
    schedule: str = field(metadata={"choices": tuple(SCHEDULES)})
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75], metadata={"above": 0, "below": 1})
    momentum: float = field(default=0.9, metadata={"above": 0, "below": 1, "why": "Nesterov needs momentum"})
    weight_decay: float = field(default=5e-4, metadata={"range": (0, math.inf)})
    batch_size: int = field(default=128, metadata={"range": (2, math.inf), "why": "batch norm needs two images"})
    accumulate_batches: int = field(default=1, metadata={"range": (1, math.inf)})
    label_smoothing: float = field(default=0.0, metadata={"range": (0, 1), "below": 1})


@dataclass(kw_only=True)
class RecoveryHyperparameters(Hyperparameters):
    """The same for a network that learns again what it has known.

    Attributes:
        distill: share of the loss that compares with a teacher, the original network (its answers and what its
            classifier gets), instead of with the labels.
        ema_decay: decay of the exponential moving average of the weights, which is what a training ends with; 0: the
            last weights.
    """

    distill: float = field(default=0.0, metadata={"range": (0, 1)})
    ema_decay: float = field(default=0.0, metadata={"range": (0, 1), "below": 1})


@dataclass(kw_only=True)
class Recipe(RecoveryHyperparameters):
    """One training.

    Attributes:
        epochs: passes over the training images; a fraction trains on that share of one pass.
        span: the part of the schedule that this training walks through, within [0, 1].

    Raises:
        UserError: a value out of range.
    """

    epochs: float = field(metadata={"range": (0, math.inf)})
    span: tuple[float, float] = field(default=(0.0, 1.0), metadata={"range": (0, 1)})

    def __post_init__(self) -> None:
        ranges.check(self)

    def rate_factor(self, progress: float) -> float:
        """Returns the share of the peak rate after the share `progress` of this training, in [0, 1)."""
        start, end = self.span
        return SCHEDULES[self.schedule](start + (end - start) * progress, self.milestones)


def build_optimizer(model: nn.Module, recipe: Recipe) -> SGD:
    """Returns SGD that decays weight matrices and kernels, but no bias, norm or other vector (He et al. 2019)."""
    # Late: the configuration reads the classes above, and does not wait for PyTorch.
    from torch.optim import SGD

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return SGD(filled, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True, fused=True)
