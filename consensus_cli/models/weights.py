"""Weights in and out: into a network whole or not at all, and out as safetensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from safetensors.torch import save
from torch import Tensor, nn

from consensus_cli.errors import UserError, enumerated
from consensus_cli.models.matching import Candidate, candidates, choose, completed, entries, faults, mismatch
from consensus_cli.models.weight_files import read_state_dict

__all__ = ["Given", "load_given", "load_into", "read_state_dict", "serialize"]

#: modules whose entries may make a head: a distilled network has two, an Inception one and two beside the trunk
_MOST_HEADS = 3


def load_into(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads a state dict that must fit the network exactly, name by name.

    Only what no result depends on may be missing or left over, as `matching.completed` says.

    Args:
        network: receives the weights in place.
        state: tensors by name.
        source: where the weights come from, for the message.

    Raises:
        UserError: names at most ten missing, unexpected and misshapen entries each.
    """
    expected = entries(network)
    complete = completed(state, expected)
    if wrong := faults(complete, expected):
        raise mismatch(wrong, complete, expected, source)
    try:
        # What modules keep beside tensors is not part of `expected`, and stays. The entries are the network's own by
        # now; so is the version of each module's format, which some modules (torchvision's MNASNet) ask for.
        versioned = OrderedDict(complete)
        versioned._metadata = getattr(network.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
        network.load_state_dict(versioned, strict=False)
    except (RuntimeError, ValueError) as error:
        # A network's own way of taking its weights.
        raise UserError(
            f"{source} cannot be loaded: {' '.join(str(error).split())}", "choose the model it was trained with"
        ) from error


@dataclass(frozen=True)
class Given:
    """What became of given weights.

    Attributes:
        notes: what should be said about them, a sentence each.
        fresh_head: whether the head stayed as it was drawn, so that the network must be trained before it is worth
            anything.
    """

    notes: list[str]
    fresh_head: bool


def load_given(
    network: nn.Module, tensors: Mapping[str, Tensor], source: str, *, num_classes: int | None, reset_head: bool = False
) -> Given:
    """Loads the weights that a user gave, found by the network's names among all that their file holds.

    Of weights and their average over a training, the weights are taken; the average only where it is alone.

    Args:
        network: receives the weights in place, in its own precision.
        tensors: what the file holds, by name, as `read_state_dict` returns it.
        source: where the weights come from, for messages.
        num_classes: classes that the network tells apart.
        reset_head: whether a head that the file lacks, or has for another number of classes, stays fresh.

    Raises:
        UserError: they do not fit, two sets of them do, or some are not finite.
    """
    expected = entries(network)
    found = candidates(tensors, expected)
    fitting = [candidate for candidate in found if not candidate.faults]
    chosen = choose(fitting, source) if fitting else found[0]
    notes = [] if not chosen.averaged else [f"{source}: its averaged weights ('{chosen.prefix}*')"]
    averages = [other.prefix for other in fitting if other.averaged and not chosen.averaged]
    if averages:
        notes.append(f"{source}: its plain weights; the averaged ones ('{averages[0]}*') are left out")
    state, fresh_head = chosen.state, False
    if chosen.faults:
        head = _head_entries(chosen, expected, num_classes)
        if not head:
            raise _channels_error(chosen, expected, source) or mismatch(chosen.faults, state, expected, source)
        if not reset_head:
            raise _head_error(head, chosen, expected, source)
        state = {key: value for key, value in state.items() if key in expected} | {k: expected[k] for k in head}
        fresh_head = True
        notes.append(f"{source}: the head starts fresh ({', '.join(head)})")
    _check_finite(state, source)
    load_into(network, state, source)
    return Given(notes, fresh_head)


def serialize(network: nn.Module, metadata: Mapping[str, str]) -> bytes:
    """Returns the network's state dict as a safetensors file; tied weights are written once per name."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in entries(network).items()}
    return save(tensors, metadata=dict(metadata))


def _head_entries(candidate: Candidate, expected: Mapping[str, Tensor], num_classes: int | None) -> list[str]:
    """Returns the entries that do not fit, where they are those of a head and all else fits; empty otherwise.

    A head has one row per class: its entries differ from the file's in their first dimension alone.
    """
    missing, misshapen, unexpected = (candidate.faults.get(k, []) for k in ("missing", "misshapen", "unexpected"))
    names = [*missing, *misshapen]
    owners = {name.rpartition(".")[0] for name in names}
    beside = [key for key in unexpected if not any(owner and key.startswith(f"{owner}.") for owner in owners)]
    rows = {expected[name].shape[:1] for name in names}
    is_head = (
        not beside
        and "mistyped" not in candidate.faults
        and len(rows) == 1
        and len(owners) <= _MOST_HEADS
        and all(candidate.state[name].shape[1:] == expected[name].shape[1:] for name in misshapen)
        and (not missing or rows == {(num_classes,)})
        and any(expected[name].ndim > 1 for name in names)
    )
    return names if is_head else []


def _head_error(head: list[str], candidate: Candidate, expected: Mapping[str, Tensor], source: str) -> UserError:
    state = candidate.state
    listed = ", ".join(
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        if name in state
        else f"{name} is missing"
        for name in head
    )
    return UserError(
        f"{source} fits the network but for its head: {listed}", "model.reset_head=true keeps a fresh head instead"
    )


def _channels_error(candidate: Candidate, expected: Mapping[str, Tensor], source: str) -> UserError | None:
    """Returns the error for weights that fit but for the number of image channels; None where more differs."""
    if candidate.faults.keys() != {"misshapen"} or len(candidate.faults["misshapen"]) > 1:
        return None
    (name,) = candidate.faults["misshapen"]
    given, own = (tensors[name].shape for tensors in (candidate.state, expected))
    if len(given) != len(own) or len(own) < 2 or given[:1] + given[2:] != own[:1] + own[2:]:
        return None
    return UserError(
        f"{source} does not fit the network: {name} takes {given[1]} channels, the network's {own[1]}",
        "choose images with as many channels as the weights were trained on; three numbers in model.mean and model.std "
        "make three channels of grey images",
    )


def _check_finite(state: Mapping[str, Tensor], source: str) -> None:
    # As the network will hold them: a number may be finite in double precision alone.
    wrong = [key for key, value in state.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if wrong:
        raise UserError(
            f"{source} holds weights that are not finite (NaN or infinite): {enumerated(wrong, 10)}",
            "its training diverged, or the file is damaged: give a checkpoint from before",
        )
