"""Named weights of torchvision, timm and transformers, and the images they were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models import hf
from consensus_cli.models.hub import without_waiting
from consensus_cli.models.paths import expanded
from consensus_cli.models.weights import Given, load_given, read_state_dict
from consensus_cli.models.zoo import ModelSpec, check, import_timm

#: what `model.weights` says for the weights that timm or the hub has of a network
PRETRAINED = "pretrained"


def is_named(source: str, weights: str) -> bool:
    """Returns whether `weights` is the name of published weights and not the path of a file."""
    if source in ("timm", "hf"):
        return weights == PRETRAINED
    path = expanded(weights)
    return source == "torchvision" and not (path.suffix or len(path.parts) > 1 or path.exists())


def check_weights(source: str, name: str, weights: str) -> None:
    """Checks, without any download, that the weights exist and can be read.

    Raises:
        UserError: a file that is missing or damaged, or a name that the architecture does not have.
    """
    if not is_named(source, weights):
        _read(weights)
    elif source == "torchvision":
        _torchvision_entry(name, weights)
    elif source == "hf":
        hf.check_weights(name)
    elif not import_timm().models.is_model_pretrained(name):
        raise UserError(
            f"timm has no weights of {name}", "give a file: model.weights=PATH, or leave model.weights=null"
        )


def normalization(source: str, name: str, weights: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns mean and deviation that a network was trained with; None where the data decide."""
    if source == "hf":
        return hf.normalization(name)
    if weights is None or not is_named(source, weights):
        return None
    if source == "torchvision":
        transform = _torchvision_entry(name, weights).transforms()
        return tuple(transform.mean), tuple(transform.std)
    settings = import_timm().get_pretrained_cfg(name)
    return tuple(settings.mean), tuple(settings.std)


def image_size(source: str, name: str, kwargs: Mapping[str, Any]) -> int | None:
    """Returns the side of the square images in pixels that a network asks for; None where the data decide."""
    return hf.image_size(name, kwargs) if source == "hf" else None


def load_weights(
    network: nn.Module, spec: ModelSpec, weights: str, *, reset_head: bool = False, classes: Sequence[str] = ()
) -> Given:
    """Loads a file or published weights; those of torchvision and timm leave the head fresh for other classes.

    Args:
        network: receives the weights in place.
        spec: how the network was built.
        weights: path of a file, or a name.
        reset_head: whether the head stays fresh as well where a file has none, or one for other classes.
        classes: names of the dataset's classes, which labels of transformers are matched with.

    Raises:
        UserError: the weights are missing, damaged, cannot be fetched, or do not fit.
    """
    named = is_named(spec.source, weights)
    source = f"weights {weights} of {spec.name}" if named else f"checkpoint {weights}"
    notes: list[str] = []
    if named and spec.source == "hf":
        # A network with other outputs than the classes keeps its labels as they are.
        known = classes if len(classes) == spec.num_classes else ()
        tensors, notes = hf.published_weights(spec.name, spec.kwargs["config"], known)
    else:
        tensors, reset_head = (_fetch(spec, weights), True) if named else (_read(weights), reset_head)
    given = load_given(network, tensors, source, num_classes=spec.num_classes, reset_head=reset_head)
    return Given(notes + given.notes, given.fresh_head)


def _read(weights: str) -> dict[str, Tensor]:
    if "://" in weights or weights.startswith("hf-hub:"):
        raise UserError(
            f"model.weights={weights} is an address, not a file", "download it and give the file: model.weights=PATH"
        )
    return read_state_dict(expanded(weights))


def _fetch(spec: ModelSpec, weights: str) -> dict[str, Tensor]:
    try:
        if spec.source == "torchvision":
            return dict(_torchvision_entry(spec.name, weights).get_state_dict(progress=False, check_hash=True))
        timm = import_timm()
        with without_waiting():
            network = timm.create_model(spec.name, pretrained=True, in_chans=spec.network_channels, **spec.kwargs)
        return dict(network.state_dict())
    except UserError:
        raise
    except Exception as error:
        # The clients of the servers raise errors of their own, which are not even all of OSError.
        raise UserError(
            f"weights {weights} of {spec.name} cannot be fetched: {error}",
            "is there a network? download them elsewhere and give the file: model.weights=PATH",
        ) from error


def _torchvision_entry(name: str, weights: str) -> Any:
    from torchvision import models

    check("torchvision", name, None)
    entries = models.get_model_weights(name).__members__
    if weights not in entries:
        raise unknown_name(f"weights of {name}", weights, entries)
    return entries[weights]
