"""Where networks come from: our CIFAR ResNets, torchvision, timm, transformers, or the user's own code."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from consensus_cli.errors import UserError, foreign_code, unknown_name
from consensus_cli.models import hf
from consensus_cli.models.classifier import Classifier, Normalize
from consensus_cli.models.normalization import check_channels
from consensus_cli.models.plain import settings_kept, to_float32, unwrapped
from consensus_cli.models.resnet import BLOCKS_PER_STAGE, resnet
from consensus_cli.models.spec import ModelSpec
from consensus_cli.models.targets import find_target, program_goes_on

Constructor = Callable[..., object]


def check(spec: ModelSpec) -> None:
    """Checks, without building anything, that there is such an architecture; imports a custom network's code.

    Raises:
        UserError: unknown source, architecture or tag, a package that is not installed, a class that is not there.
    """
    with settings_kept():
        _constructor(spec)
    if spec.source == "hf":
        hf.check(spec.name)


def arguments(spec: ModelSpec) -> dict[str, Any]:
    """Returns the arguments of a network's constructor, given what `model.kwargs` says.

    Those of a network of transformers are its whole configuration: what was read once, need not be there again.

    Raises:
        UserError: its configuration cannot be read, or has no such value.
    """
    return hf.arguments(spec.name, spec.kwargs) if spec.source == "hf" else dict(spec.kwargs)


def build(spec: ModelSpec, in_channels: int) -> Classifier:
    """Builds the network with fresh weights behind its normalisation; without mean and deviation that changes nothing.

    Args:
        spec: with `kwargs` as `arguments` returns them.
        in_channels: channels of the images.

    Raises:
        UserError: unknown source or architecture, a class that cannot be imported or built, a mean or deviation that
            does not fit the images.
    """
    return build_with_notes(spec, in_channels)[0]


def build_with_notes(spec: ModelSpec, in_channels: int) -> tuple[Classifier, list[str]]:
    """Builds a network like `build`; also returns what was changed in it, a sentence each."""
    mean, std = spec.mean or [0.0], spec.std or [1.0]
    check_channels(mean, std, in_channels)
    with settings_kept():
        constructor, channels = _constructor(spec), network_channels(spec, in_channels)
        known = {"num_classes": spec.num_classes, "in_channels": channels, "in_chans": channels}
        given = {argument: known[argument] for argument in SOURCES[spec.source][1]}
        name = str(spec.target) if spec.source == "custom" else spec.name
        network = unwrapped(_construct(name, constructor, given | spec.kwargs))
    converted = to_float32(network)
    made = Classifier(Normalize(mean, std), network)
    made.built = spec, in_channels
    return made, [converted] if converted else []


def network_channels(spec: ModelSpec, in_channels: int) -> int:
    """Returns how many channels reach the network: grey images are spread over as many as the normalisation has."""
    return max(in_channels, len(spec.mean or ()), len(spec.std or ()))


def import_timm() -> Any:
    """Returns the module timm.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError("timm is not installed", "install the extra: pip install 'consensus-cli[timm]'") from error


def _constructor(spec: ModelSpec) -> Constructor:
    if spec.source not in SOURCES:
        raise unknown_name("model.source", spec.source, SOURCES)
    find, _ = SOURCES[spec.source]
    return find(spec.target if spec.source == "custom" else spec.name)


def _cifar_resnet(name: str) -> Constructor:
    depths = {f"resnet{depth}": depth for depth in BLOCKS_PER_STAGE}
    if name not in depths:
        raise unknown_name("model", name, depths)
    # A short training from scratch ends higher and steadier so; given weights replace what is drawn here.
    return functools.partial(resnet, depths[name], zero_init_residual=True)


def _torchvision(name: str) -> Constructor:
    from torchvision import models

    valid = models.list_models(module=models)
    if name not in valid:
        raise unknown_name("torchvision model", name, valid)
    return functools.partial(models.get_model, name)


def _timm(name: str) -> Constructor:
    timm = import_timm()
    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models())
    architecture, _, tag = name.partition(".")
    # Otherwise an unknown tag is found only when the network is built.
    if tag and name not in (tagged := timm.models.get_arch_pretrained_cfgs(architecture)):
        raise unknown_name("timm model", name, tagged)
    return functools.partial(timm.create_model, name)


def _hf(_name: str) -> Constructor:
    # Without a signature, which messages would show: users give values of the configuration.
    return lambda **configured: hf.build(**configured)  # noqa: PLW0108


def _custom(target: str | None) -> Constructor:
    if target is None:
        raise UserError("model.target is missing", "name your class: model.target=package.module.Class")
    constructor: Constructor = find_target(target)
    return constructor


def _construct(name: str, constructor: Constructor, arguments: dict[str, Any]) -> nn.Module:
    hint = f"check model.kwargs{_takes(constructor)}"
    try:
        with program_goes_on(name), foreign_code(name, hint):
            network = constructor(**arguments)
    except TypeError as error:
        # The call itself, with arguments that the constructor does not take.
        raise UserError(f"{name} cannot be built: {error}", hint) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{name} makes an object of type {type(network).__name__}, not a torch.nn.Module",
            "name a class of networks, or a function that returns one",
        )
    return network


def _takes(constructor: Constructor) -> str:
    """Returns what a constructor takes, in words; empty where Python does not know or it takes anything."""
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except (TypeError, ValueError):
        return ""
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return ""
    names = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY]
    return f"; it takes {', '.join(names)}" if names else "; it takes none"


#: source -> how it finds the constructor of a name (of a target, where it is `custom`), and what it gives it by itself
SOURCES: dict[str, tuple[Callable[[Any], Constructor], tuple[str, ...]]] = {
    "cifar_resnet": (_cifar_resnet, ("num_classes", "in_channels")),
    "torchvision": (_torchvision, ("num_classes",)),
    "timm": (_timm, ("num_classes", "in_chans")),
    "hf": (_hf, ("num_classes",)),
    "custom": (_custom, ()),
}
