"""Builds the original network of a run, and the teacher of its fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from consensus_cli.config.schema import RunConfig
from consensus_cli.data import ImageData
from consensus_cli.errors import UserError
from consensus_cli.experiment.dry_run import initialise_lazy_layers
from consensus_cli.experiment.run_images import few_images
from consensus_cli.models import pretrained, zoo
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.spec import ModelSpec


@dataclass(frozen=True)
class Built:
    """The original network as it was built.

    Attributes:
        spec: how.
        model: the network, on its device, in eval mode.
        is_trained: whether it has all of its weights.
        notes: what should be said about it, a sentence each.
    """

    spec: ModelSpec
    model: Classifier
    is_trained: bool
    notes: list[str]


def build_model(config: RunConfig, images: ImageData, device: torch.device) -> Built:
    """Builds the original network for the images, with the configured weights or fresh ones from the seed.

    Raises:
        UserError: a network that cannot be built, or weights that do not fit.
    """
    if not images.classes and config.model.num_classes is None:
        raise UserError(
            "nobody sorted these images, so they do not say how many classes there are",
            "set model.num_classes to the number of the network's outputs",
        )
    spec = _model_spec(config, images)
    torch.manual_seed(config.seed)
    model, notes = zoo.build_with_notes(spec, images.train.image_shape[0])
    initialise_lazy_layers(model, few_images(images, torch.device("cpu"))[0], network_name(config))
    is_trained = False
    if config.model.weights is not None:
        given = pretrained.load_weights(model.network, spec, images.train.image_shape[0], images.classes)
        is_trained, notes = not given.fresh_head, notes + given.notes
    return Built(spec, model.to(device).eval(), is_trained, notes)


def build_teacher(built: Built, config: RunConfig, images: ImageData) -> Classifier | None:
    """Returns the original's architecture with the weights of `finetune.teacher`. Raises UserError: they do not fit."""
    if config.finetune.teacher is None:
        return None
    teacher, spec = clone(built.model), replace(built.spec, weights=config.finetune.teacher, reset_head=False)
    pretrained.load_weights(teacher.network, spec, images.train.image_shape[0], images.classes)
    return teacher


def network_name(config: RunConfig) -> str:
    """Returns what messages call the network."""
    return config.model.target if config.model.source == "custom" and config.model.target else config.model.name


def _model_spec(config: RunConfig, images: ImageData) -> ModelSpec:
    """Returns the node `model` with what the weights and the data decide filled in."""
    model = config.model
    mean, std = map(list, pretrained.normalization(model) or (images.mean, images.std))
    if model.source in ("torchvision", "hf") and len(mean) == 1:
        # Their networks take three channels; normalisation spreads the one there is over them.
        mean, std = mean * 3, std * 3
    return replace(
        model,
        num_classes=model.num_classes or len(images.classes),
        mean=model.mean or mean,
        std=model.std or std,
        kwargs=zoo.arguments(model),
    )
