"""One training loop, for the baseline and for fine-tuning."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from consensus_cli.data.split import Augmentation, Split


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one training: SGD with Nesterov momentum.

    Attributes:
        epochs: passes over the training images; a fraction trains on that share of one pass.
        learning_rate: peak rate.
        schedule: name in `SCHEDULES`.
        milestones: shares of the training after which the schedule `step` divides the rate by 10.
        momentum: in (0, 1).
        weight_decay: L2 factor on weight matrices and kernels; biases and norms are spared.
        batch_size: images per update.
        label_smoothing: in [0, 1).
    """

    epochs: float
    learning_rate: float
    schedule: str
    milestones: tuple[float, ...]
    momentum: float
    weight_decay: float
    batch_size: int
    label_smoothing: float


@dataclass(frozen=True)
class Progress:
    """Where a training stands after an update.

    Attributes:
        step: updates done, of `steps`.
        loss: mean loss since the last report; NaN where none was read.
    """

    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training cost and where it ended.

    Attributes:
        loss: mean training loss over the last epoch (or the part of it that was trained).
        images: images processed.
        duration_s: wall-clock seconds.
    """

    loss: float
    images: int
    duration_s: float


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def _onecycle(progress: float, _: tuple[float, ...]) -> float:
    warmup = 0.3
    if progress < warmup:
        return 0.04 + 0.96 * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


#: name -> share of the peak rate at a point of the training in [0, 1)
SCHEDULES: dict[str, Callable[[float, tuple[float, ...]], float]] = {
    "constant": lambda progress, milestones: 1.0,
    "cosine": lambda progress, milestones: 0.5 * (1 + math.cos(math.pi * progress)),
    "onecycle": _onecycle,
    "step": lambda progress, milestones: 0.1 ** sum(progress >= m for m in milestones),
}


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    device: torch.device,
    augmentation: Augmentation,
    seed: int,
    precision: str,
    report: Callable[[Progress], None] | None = None,
) -> TrainingResult:
    """Trains `model` in place on `split` and leaves it in eval mode.

    The loss is read from the device once per report interval (a twentieth of an epoch), not at every update.

    Args:
        model: takes images in [0, 1] and returns logits.
        split: training images; must hold at least two.
        recipe: hyperparameters.
        device: where the model lives.
        augmentation: random changes to the images.
        seed: of shuffling and augmentation.
        precision: `fp32` or `bf16` (autocast).
        report: called with the progress about twenty times an epoch.

    Raises:
        TrainingDivergedError: when the loss is not finite.
    """
    batch_size = min(recipe.batch_size, len(split))
    steps_per_epoch = len(split) // batch_size
    steps = max(1, round(recipe.epochs * steps_per_epoch)) if recipe.epochs > 0 else 0
    if steps == 0:
        return TrainingResult(math.nan, 0, 0.0)
    optimizer = _optimizer(model, recipe)
    schedule = SCHEDULES[recipe.schedule]
    scheduler = LambdaLR(optimizer, lambda step: schedule(step / steps, recipe.milestones))
    generator = torch.Generator().manual_seed(seed)
    interval = max(1, steps_per_epoch // 20)

    started = time.perf_counter()
    window: list[torch.Tensor] = []
    last_epoch: list[torch.Tensor] = []
    step = 0
    model.train()
    while step < steps:
        for images, labels in split.batches(
            batch_size, device, generator=generator, augmentation=augmentation, drop_last=True
        ):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(images)
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            window.append(loss.detach())
            if step > steps - steps_per_epoch:
                last_epoch.append(loss.detach())
            if step % interval == 0 or step == steps:
                _report(window, step, steps, report)
                window = []
            if step == steps:
                break
    model.eval()
    return TrainingResult(
        loss=float(torch.stack(last_epoch).mean()),
        images=steps * batch_size,
        duration_s=time.perf_counter() - started,
    )


def recalibrate_batch_norm(
    model: nn.Module, split: Split, *, images: int, batch_size: int, device: torch.device, seed: int
) -> None:
    """Measures the means and variances of every batch norm anew, in place, without changing a weight.

    A block that is gone shifts the statistics of everything behind it; some forward passes mend most of that. The new
    statistics are averages over the batches with equal weight (Ioffe & Szegedy 2015, algorithm 2, line 10).

    Args:
        model: takes images in [0, 1]; left as it is where it has no batch norm.
        split: training images.
        images: how many of them are used, drawn at random; all where it has fewer.
        batch_size: images per batch.
        device: where the model lives.
        seed: of the draw.
    """
    batch_size = min(batch_size, images, len(split))
    batches = split.batches(batch_size, device, generator=torch.Generator().manual_seed(seed), drop_last=True)
    update_bn(itertools.islice(batches, min(images, len(split)) // batch_size), model)


def _optimizer(model: nn.Module, recipe: Recipe) -> SGD:
    """Builds SGD that decays weight matrices and kernels, but no bias, norm or other vector (He et al. 2019)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return SGD([g for g in groups if g["params"]], lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)


def _report(window: list[torch.Tensor], step: int, steps: int, report: Callable[[Progress], None] | None) -> None:
    loss = float(torch.stack(window).mean())
    if not math.isfinite(loss):
        raise TrainingDivergedError(f"the training loss is {loss} at update {step} of {steps}")
    if report is not None:
        report(Progress(step, steps, loss))


def resolve_precision(precision: str, device: torch.device) -> str:
    """Returns `fp32` or `bf16` for `auto`: bf16 where the device computes in it natively, checked, not assumed."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if native else "fp32"
