"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from consensus_cli.data.batches import Batches, LoaderImages
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.share import ALL, Share
from consensus_cli.data.split import Augmentation, Split
from consensus_cli.errors import UserError, unknown_name
from consensus_cli.training.averaging import WeightAverage
from consensus_cli.training.checkpoint import Checkpoint, Content, Keeper
from consensus_cli.training.distillation import Distillation, distilling
from consensus_cli.training.machine import accelerated, expect_idle_parameters, prepared
from consensus_cli.training.recipe import Recipe, build_optimizer

PRECISIONS = ("fp32", "bf16")

#: images up to here lie on the device during a training, so that no batch has to travel
RESIDENT_BYTES = 2**30


@dataclass(frozen=True)
class Progress:
    """Where a training stands: `update` of `updates`, and the mean loss since the last report, over all processes."""

    update: int
    updates: int
    loss: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training cost and where it ended.

    Attributes:
        loss: mean training loss over the last epoch (or the part of it that was trained).
        images: images processed, by all processes.
        duration_s: wall-clock seconds.
    """

    loss: float
    images: int
    duration_s: float


NO_AUGMENTATION = Augmentation()


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class _Plan:
    """How the images are divided: into updates of `parts` micro-batches, of `micro` images on every process."""

    updates: int
    updates_per_epoch: int
    micro: int
    parts: int
    share: Share

    @classmethod
    def of(cls, recipe: Recipe, images: int, share: Share) -> _Plan:
        pieces = recipe.accumulate_batches * share.world
        micro = min(recipe.batch_size, images) // pieces
        if micro < 1:
            raise UserError(
                f"{images} images in updates of {recipe.batch_size} are too few for {pieces} micro-batches",
                "raise batch_size, or lower accumulate_batches",
            )
        per_epoch = images // (micro * pieces)
        updates = max(1, round(recipe.epochs * per_epoch)) if recipe.epochs > 0 else 0
        return cls(updates, per_epoch, micro, recipe.accumulate_batches, share)

    @property
    def images(self) -> int:
        return self.updates * self.parts * self.micro * self.share.world

    def epoch(
        self, split: Split, device: torch.device, augmentation: Augmentation, shuffling: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the micro-batches of an epoch."""
        return split.batches(
            self.micro, device, generator=shuffling, augmentation=augmentation, drop_last=True, share=self.share
        )


def train(
    model: nn.Module,
    images: Split | Batches,
    recipe: Recipe,
    *,
    device: torch.device | str | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
    seed: int = 0,
    precision: str = "fp32",
    compiled: bool = False,
    teacher: nn.Module | None = None,
    share: Share = ALL,
    keeper: Keeper | None = None,
    report: Callable[[Progress], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> TrainingResult:
    """Trains `model` in place and leaves it in eval mode.

        recipe = Recipe(epochs=3, learning_rate=0.01, schedule="cosine")
        train(model, train_loader, recipe, augmentation=Augmentation(pad=4, flip=True))

    The loss is read from the device once per report interval (a twentieth of an epoch), not at every update.

    Args:
        model: takes images in [0, 1] and returns logits.
        images: a `Split` of at least two training images, or a loader of (images in [0, 1], labels), which is read
            once: what it augments stays the same in all epochs, so leave that to `augmentation`.
        recipe: hyperparameters.
        device: where the model is; None: looked up.
        augmentation: random changes to the images.
        seed: of shuffling and augmentation.
        precision: `fp32` or `bf16` (autocast).
        compiled: compile the network's repeated blocks with `torch.compile`.
        teacher: the network to learn from where `recipe.distill` is above 0.
        share: this process's part of every update; all processes of the job must call this function together, and all
            end with the same weights.
        keeper: keeps the training at ends of epochs (with micro-batches, of those that end with an update); one of the
            same first weights, recipe, seed, augmentation and number of images that it has goes on from there, and ends
            as if it had never stopped. That the images and the teacher are the same is the caller's to see to.
        report: called with the progress about twenty times an epoch.
        tick: called after every update.

    Raises:
        TrainingDivergedError: when the loss is not finite, in every process.
        UserError: an unknown precision, fewer images per update than processes and micro-batches, or
            distillation without a teacher.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    split: Split = images if hasattr(images, "batches") else LoaderImages(images)  # type: ignore[assignment]
    plan = _Plan.of(recipe, len(split), share)
    if plan.updates == 0:
        return TrainingResult(math.nan, 0, 0.0)
    if recipe.distill and teacher is None:
        raise UserError(f"distill={recipe.distill:g} needs a teacher", "train(…, teacher=original)")
    device = next(p.device for p in model.parameters()) if device is None else torch.device(device)
    if isinstance(split, ImageTensors) and split.images.nbytes <= RESIDENT_BYTES:
        split = split.to(device)
    course = _Course.of(plan, model, recipe, report, tick)
    shuffling = torch.Generator().manual_seed(seed)
    settings = (recipe, seed, precision, len(split), augmentation, plan.micro, share.world, device.type)
    checkpoint = Checkpoint(keeper, settings, share, device, course, shuffling)
    began_s = time.perf_counter() - checkpoint.go_on()
    model.train()
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(device, precision, plan.parts))
        distillation = None
        if recipe.distill and teacher is not None:
            answering = stack.enter_context(prepared(accelerator, teacher, joint=False, compiled=False))
            example = next(iter(split.batches(2, device)))[0]
            distillation = stack.enter_context(distilling(model, answering, example))
        if share.world > 1:
            expect_idle_parameters(accelerator, model, next(iter(split.batches(2, device)))[0])
        network = stack.enter_context(prepared(accelerator, model, joint=share.world > 1, compiled=compiled))
        stepper = accelerator.prepare_optimizer(course.optimizer, device_placement=False)
        checkpoint.draw_as_before()
        while course.losses.done < plan.updates:
            for batch, labels in plan.epoch(split, device, augmentation, shuffling):
                with accelerator.accumulate(network):
                    loss = _loss(network(batch), batch, labels, recipe, distillation)
                    accelerator.backward(loss)
                    stepper.step()
                    stepper.zero_grad()
                course.losses.add(loss.detach())
                if accelerator.sync_gradients and course.update_done():
                    break
            # An update that several micro-batches make up may go on in the next epoch.
            if accelerator.sync_gradients:
                checkpoint.write(time.perf_counter() - began_s)
    model.eval()
    if course.average is not None:
        course.average.copy_to(model)
    return TrainingResult(course.losses.last_epoch(), plan.images, time.perf_counter() - began_s)


def _loss(logits: Tensor, images: Tensor, labels: Tensor, recipe: Recipe, distillation: Distillation | None) -> Tensor:
    logits = logits.float()
    supervised = functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if distillation is None:
        return supervised
    return (1 - recipe.distill) * supervised + recipe.distill * distillation.loss(images, logits)


@dataclass
class _Losses:
    """The losses of a training, left on the device until a report needs their mean."""

    plan: _Plan
    report: Callable[[Progress], None] | None
    done: int = 0
    window: list[Tensor] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor) -> None:
        self.window.append(loss)
        if self.done >= self.plan.updates - self.plan.updates_per_epoch:
            self.last.append(loss)

    def update_done(self) -> None:
        """Counts an update; at the end of an interval, checks and reports the mean loss since the last report."""
        self.done += 1
        if self.done % max(1, self.plan.updates_per_epoch // 20) and self.done != self.plan.updates:
            return
        loss = self._mean(self.window)
        self.window = []
        if not math.isfinite(loss):
            raise TrainingDivergedError(f"the training loss is {loss} at update {self.done} of {self.plan.updates}")
        if self.report is not None:
            self.report(Progress(self.done, self.plan.updates, loss))

    def content(self) -> Content:
        """Returns how far the training is, with the losses that are still needed."""
        return {"done": self.done, "window": list(map(float, self.window)), "last": list(map(float, self.last))}

    def restore(self, content: Content, device: torch.device) -> None:
        """Goes back to where `content` was taken."""
        self.done = content["done"]
        self.window, self.last = ([torch.tensor(x, device=device) for x in content[k]] for k in ("window", "last"))

    def last_epoch(self) -> float:
        return self._mean(self.last)

    def _mean(self, losses: list[Tensor]) -> float:
        mean = torch.stack(losses).mean()
        if self.plan.share.world > 1:
            # All processes must see the same loss, or one of them would stop and the others wait for it.
            torch.distributed.all_reduce(mean)
            mean /= self.plan.share.world
        return float(mean)


@dataclass
class _Course:
    """All that a training changes."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    average: WeightAverage | None
    losses: _Losses
    tick: Callable[[], None] | None

    @classmethod
    def of(
        cls,
        plan: _Plan,
        model: nn.Module,
        recipe: Recipe,
        report: Callable[[Progress], None] | None,
        tick: Callable[[], None] | None,
    ) -> _Course:
        optimizer = build_optimizer(model, recipe)
        scheduler = LambdaLR(optimizer, lambda update: recipe.rate_factor(update / plan.updates))
        average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
        return cls(model, optimizer, scheduler, average, _Losses(plan, report), tick)

    def update_done(self) -> bool:
        """Does what follows an update, and returns whether it was the last."""
        self.scheduler.step()
        self.losses.update_done()
        if self.average is not None:
            self.average.update(self.model)
        if self.tick is not None:
            self.tick()
        return self.losses.done == self.losses.plan.updates

    def content(self) -> Content:
        """Returns where the training stands, but for the losses, which each process has of its own."""
        return {
            "model": self._tensors(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def restore(self, content: Content) -> None:
        """Goes back to where `content` was taken."""
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                # What a network computes as it goes may not be there yet, or have another size.
                if name in content["model"] and content["model"][name].shape == tensor.shape:
                    tensor.copy_(content["model"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])

    def _tensors(self) -> dict[str, Tensor]:
        # Buffers that a state dict leaves out as well: some networks count or average in them as they train.
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
