"""Where networks come from: our CIFAR ResNets, torchvision, timm, or a class of the user's own."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models.classifier import Classifier, Normalize
from consensus_cli.models.resnet import BLOCKS_PER_STAGE, resnet


@dataclass(frozen=True)
class ModelSpec:
    """Everything that is needed to build an unpruned network, as plain values that a JSON file can hold.

    Attributes:
        source: key of `SOURCES`.
        name: architecture within the source.
        num_classes: outputs of the head.
        in_channels: channels of the images.
        mean, std: normalisation per channel of images in [0, 1].
        target: `package.module.Class` where the source is `custom`.
        kwargs: further arguments of the network's constructor.
    """

    source: str
    name: str
    num_classes: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


def build(spec: ModelSpec) -> Classifier:
    """Builds the network with fresh weights behind its normalisation.

    Raises:
        UserError: unknown source or architecture, a class that cannot be imported or built.
    """
    if spec.source not in SOURCES:
        raise unknown_name("model.source", spec.source, SOURCES)
    return Classifier(Normalize(spec.mean, spec.std), SOURCES[spec.source](spec))


def _cifar_resnet(spec: ModelSpec) -> nn.Module:
    depths = {f"resnet{depth}": depth for depth in BLOCKS_PER_STAGE}
    if spec.name not in depths:
        raise unknown_name("model", spec.name, depths)
    # A short training from scratch ends higher and steadier so; given weights replace what is drawn here.
    arguments = {"zero_init_residual": True, "num_classes": spec.num_classes, "in_channels": spec.in_channels}
    return _construct(spec.name, functools.partial(resnet, depths[spec.name]), arguments | spec.kwargs)


def _custom(spec: ModelSpec) -> nn.Module:
    module_name, _, class_name = (spec.target or "").rpartition(".")
    if not module_name:
        raise UserError("model.target is missing", "name your class: model.target=package.module.Class")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise UserError(
            f"model.target={spec.target} cannot be imported: {error}", "is its folder on PYTHONPATH, or installed?"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UserError(f"model.target={spec.target} is no torch.nn.Module class", "name a class, not an instance")
    return _construct(spec.target or "", found, spec.kwargs)


def _torchvision(spec: ModelSpec) -> nn.Module:
    from torchvision import models

    valid = models.list_models(module=models)
    if spec.name not in valid:
        raise unknown_name("torchvision model", spec.name, valid)
    return _construct(spec.name, models.get_model, {"name": spec.name, "num_classes": spec.num_classes, **spec.kwargs})


def _timm(spec: ModelSpec) -> nn.Module:
    timm = import_timm()
    if not timm.is_model(spec.name):
        raise unknown_name("timm model", spec.name, timm.list_models())
    arguments = {"num_classes": spec.num_classes, "in_chans": spec.in_channels, **spec.kwargs}
    return _construct(spec.name, timm.create_model, {"model_name": spec.name, **arguments})


def import_timm() -> Any:
    """Returns the module timm.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError("timm is not installed", "install the extra: pip install 'consensus-cli[timm]'") from error


def _construct(name: str, constructor: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    try:
        return constructor(**arguments)
    except TypeError as error:
        raise UserError(f"{name} cannot be built: {error}", "check model.kwargs") from error


#: source -> function that builds its network
SOURCES: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "cifar_resnet": _cifar_resnet,
    "torchvision": _torchvision,
    "timm": _timm,
    "custom": _custom,
}
