"""The images of a run: with a cue planted, with labels where nobody sorted them, and those that are scored."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from consensus_cli.config.schema import RunConfig
from consensus_cli.data import ImageData
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.sampling import stratified_indices, stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.errors import UserError
from consensus_cli.evaluation.accuracy import predict
from consensus_cli.evaluation.robustness.shortcut import plant_training_cue
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.screen import Screen

#: images of a dry run: as few as batch norm can be trained on
FEW_IMAGES = 2


def few_images(images: ImageData, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns a few training images (n, c, h, w) in [0, 1] and their classes (n,)."""
    few = images.train.subset(torch.arange(min(FEW_IMAGES, len(images.train))))
    return next(few.batches(FEW_IMAGES, device))


def with_cue(images: ImageData, config: RunConfig) -> ImageData:
    """Returns images, with the configured cue in those of training. Raises UserError: it cannot be planted in them."""
    cue = config.dataset.cue
    if cue.kind is None:
        return images
    if not images.classes:
        raise UserError("a cue marks classes, and nobody sorted these images", "choose a dataset with classes")
    if not isinstance(images.train, ImageTensors) or not isinstance(images.test, ImageTensors):
        raise UserError("a cue can be planted in images that are in memory only", "set dataset.streaming=false")
    train = plant_training_cue(images.train, cue, len(images.classes), config.seed)
    return replace(images, train=train)


def with_classes(images: ImageData, outputs: int | None) -> ImageData:
    """Returns images; where nobody sorted them, their classes are the outputs of the original network."""
    if images.classes:
        return images
    note = "nobody sorted these images: the original network's answers are their classes, accuracy is agreement with it"
    return replace(images, classes=tuple(map(str, range(outputs or 0))), notes=(*images.notes, note))


def sorted_by(model: Classifier, images: ImageData, device: torch.device, screen: Screen) -> ImageData:
    """Returns the images with what a network answers as their labels."""

    def answered(name: str, split: Split) -> Split:
        if not len(split):
            return split
        with screen.progress(f"sorting {name} images") as report:
            # What a network keeps of a forward pass must not depend on this one.
            answers = predict(clone(model), split, device, progress=report).logits.argmax(1)
        if len(answers) < len(split):
            raise UserError(
                f"{len(split) - len(answers)} of {len(split)} {name} images cannot be read",
                "remove them: dataset.on_corrupt=error names them",
            )
        return split.labelled(answers)

    parts = {"training": images.train, "validation": images.val, "test": images.test}
    train, val, test = (answered(name, split) for name, split in parts.items())
    return replace(images, train=train, val=val, test=test)


def scored_samples(images: ImageData, config: RunConfig, *, unsorted: bool) -> Split:
    """Returns the images of scoring and healing: as many of every class, where people have sorted them."""
    labels, per_class = images.train.labels, config.metrics.samples_per_class
    if unsorted:
        return images.train.subset(stratified_subset(labels, per_class * len(images.classes), config.seed))
    return images.train.subset(stratified_indices(labels, per_class, config.seed))
