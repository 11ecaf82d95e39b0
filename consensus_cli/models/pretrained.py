"""Named weights of torchvision and timm, and the normalisation they were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models.weights import load_into, read_state_dict
from consensus_cli.models.zoo import ModelSpec, import_timm

#: what `model.weights` says for timm's own
TIMM_WEIGHTS = "pretrained"


def is_named(source: str, weights: str) -> bool:
    """Says whether `weights` is the name of published weights and not the path of a file."""
    if source == "timm":
        return weights == TIMM_WEIGHTS
    return source == "torchvision" and not Path(weights).suffix


def check_weights(source: str, name: str, weights: str) -> None:
    """Checks, without any download, that the weights exist and can be read.

    Raises:
        UserError: a file that is missing or damaged, or a name that the architecture does not have.
    """
    if not is_named(source, weights):
        read_state_dict(Path(weights).expanduser())
    elif source == "torchvision":
        _torchvision_entry(name, weights)
    else:
        import_timm()


def normalization(source: str, name: str, weights: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns mean and deviation that published weights were trained with; None where the data decide."""
    if weights is None or not is_named(source, weights):
        return None
    if source == "torchvision":
        transform = _torchvision_entry(name, weights).transforms()
        return tuple(transform.mean), tuple(transform.std)
    settings = import_timm().get_pretrained_cfg(name)
    return tuple(settings.mean), tuple(settings.std)


def load_weights(network: nn.Module, spec: ModelSpec, weights: str) -> None:
    """Loads a file or published weights; the head stays fresh where published weights have another number of classes.

    Args:
        network: receives the weights in place.
        spec: how the network was built.
        weights: path of a file, or a name.

    Raises:
        UserError: the weights are missing, damaged, cannot be fetched, or do not fit.
    """
    if not is_named(spec.source, weights):
        load_into(network, read_state_dict(Path(weights).expanduser()), f"checkpoint {weights}")
        return
    state = _fetch(spec, weights)
    head = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    own = network.state_dict()
    for key in (f"{head}.weight", f"{head}.bias"):
        if key in state and key in own and state[key].shape != own[key].shape:
            state[key] = own[key]
    load_into(network, state, f"weights {weights} of {spec.name}")


def _fetch(spec: ModelSpec, weights: str) -> dict[str, Tensor]:
    try:
        if spec.source == "torchvision":
            return dict(_torchvision_entry(spec.name, weights).get_state_dict(progress=False, check_hash=True))
        timm = import_timm()
        return dict(
            timm.create_model(spec.name, pretrained=True, in_chans=spec.in_channels, **spec.kwargs).state_dict()
        )
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"weights {weights} of {spec.name} cannot be fetched: {error}",
            "is there a network? download them elsewhere and give the file: model.weights=PATH",
        ) from error


def _torchvision_entry(name: str, weights: str) -> Any:
    from torchvision import models

    valid = models.list_models(module=models)
    if name not in valid:
        raise unknown_name("torchvision model", name, valid)
    entries = models.get_model_weights(name).__members__
    if weights not in entries:
        raise unknown_name(f"weights of {name}", weights, entries)
    return entries[weights]
