"""Named weights of torchvision, timm and transformers, and the images they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models import hf
from consensus_cli.models.hub import without_waiting
from consensus_cli.models.paths import expanded
from consensus_cli.models.spec import ModelSpec
from consensus_cli.models.weights import Given, load_given, read_state_dict
from consensus_cli.models.zoo import check, import_timm, network_channels

#: what `model.weights` says for the weights that timm or the hub has of a network
PRETRAINED = "pretrained"


def is_named(spec: ModelSpec) -> bool:
    """Returns whether its `weights` are the name of published weights, and not the path of a file or None."""
    if spec.weights is None or spec.source in ("timm", "hf"):
        return spec.weights == PRETRAINED
    path = expanded(spec.weights)
    return spec.source == "torchvision" and not (path.suffix or len(path.parts) > 1 or path.exists())


def check_model(spec: ModelSpec) -> None:
    """Checks, without any download, that there is such a network, and that its weights exist and can be read.

    Raises:
        UserError: as `zoo.check`; a file that is missing or damaged, or weights that the architecture does not have.
    """
    check(spec)
    if spec.weights is None:
        return
    if not is_named(spec):
        _read(spec.weights)
    elif spec.source == "torchvision":
        _torchvision_entry(spec)
    elif spec.source == "hf":
        hf.check_weights(spec.name)
    elif not import_timm().models.is_model_pretrained(spec.name):
        raise UserError(
            f"timm has no weights of {spec.name}", "give a file: model.weights=PATH, or leave model.weights=null"
        )


def normalization(spec: ModelSpec) -> tuple[Sequence[float], Sequence[float]] | None:
    """Returns mean and deviation that a network was trained with; None where the data decide."""
    if spec.source == "hf":
        return hf.normalization(spec.name)
    if not is_named(spec):
        return None
    if spec.source == "torchvision":
        trained = _torchvision_entry(spec).transforms()
    else:
        trained = import_timm().get_pretrained_cfg(spec.name)
    return trained.mean, trained.std


def image_size(spec: ModelSpec) -> int | None:
    """Returns the side of the square images in pixels that a network asks for; None where the data decide."""
    return spec.image_size or (hf.image_size(spec.name, spec.kwargs) if spec.source == "hf" else None)


def load_weights(network: nn.Module, spec: ModelSpec, in_channels: int, classes: Sequence[str] = ()) -> Given:
    """Loads a file or published weights; those of torchvision and timm leave the head fresh for other classes.

    Args:
        network: receives the weights in place.
        spec: how the network was built, and its weights.
        in_channels: channels of the images.
        classes: names of the dataset's classes, which labels of transformers are matched with.

    Raises:
        UserError: the weights are missing, damaged, cannot be fetched, or do not fit.
    """
    weights, named, notes = str(spec.weights), is_named(spec), list[str]()
    reset_head = spec.reset_head
    if named and spec.source == "hf":
        # A network with other outputs than the classes keeps its labels as they are.
        known = classes if len(classes) == spec.num_classes else ()
        tensors, notes = hf.published_weights(spec.name, spec.kwargs["config"], known)
    elif named:
        tensors, reset_head = _fetch(spec, in_channels), True
    else:
        tensors = _read(weights)
    source = f"weights {weights} of {spec.name}" if named else f"checkpoint {weights}"
    given = load_given(network, tensors, source, num_classes=spec.num_classes, reset_head=reset_head)
    return Given(notes + given.notes, given.fresh_head)


def _read(weights: str) -> dict[str, Tensor]:
    if "://" in weights or weights.startswith("hf-hub:"):
        raise UserError(
            f"model.weights={weights} is an address, not a file", "download it and give the file: model.weights=PATH"
        )
    return read_state_dict(expanded(weights))


def _fetch(spec: ModelSpec, in_channels: int) -> dict[str, Tensor]:
    try:
        if spec.source == "torchvision":
            return dict(_torchvision_entry(spec).get_state_dict(progress=False, check_hash=True))
        timm, channels = import_timm(), network_channels(spec, in_channels)
        with without_waiting():
            network = timm.create_model(spec.name, pretrained=True, in_chans=channels, **spec.kwargs)
        return dict(network.state_dict())
    except UserError:
        raise
    except Exception as error:
        # The clients of the servers raise errors of their own, which are not even all of OSError.
        raise UserError(
            f"weights {spec.weights} of {spec.name} cannot be fetched: {error}",
            "is there a network? download them elsewhere and give the file: model.weights=PATH",
        ) from error


def _torchvision_entry(spec: ModelSpec) -> Any:
    from torchvision import models

    check(spec)
    entries = models.get_model_weights(spec.name).__members__
    if spec.weights not in entries:
        raise unknown_name(f"weights of {spec.name}", str(spec.weights), entries)
    return entries[spec.weights]
