"""Weights in and out: safetensors, or PyTorch files read without executing anything in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from consensus_cli.errors import UserError

_LISTED = 10


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads tensors by name from a checkpoint, on the CPU.

    `.safetensors` files hold nothing but tensors; any other file is read by `torch.load(weights_only=True)`, which
    refuses pickled code. A state dict inside a training checkpoint (`state_dict`, `model`) is found, and the prefix
    `module.` of data-parallel training is dropped.

    Raises:
        UserError: the file is missing, damaged, holds code or no tensors.
    """
    if not path.is_file():
        raise UserError(
            f"checkpoint {path} does not exist", "model.weights takes the path of a file; is it spelled right?"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path} is no plain file of tensors: it may run code when loaded, so it is refused",
            "save the state dict alone (torch.save(model.state_dict(), …)) or as safetensors",
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read: {_first_line(error)}", "the file is damaged or cut short; copy it again"
        ) from error
    return _find_state_dict(content, path)


def load_into(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads a state dict that must fit the network exactly.

    Only the batch counters of batch norm (`num_batches_tracked`) may be missing: checkpoints older than PyTorch 0.4.1
    or written by other tools have none, and no result depends on them.

    Args:
        network: receives the weights in place.
        state: tensors by name.
        source: where the weights come from, for the message.

    Raises:
        UserError: names at most ten missing, unexpected and misshapen entries each.
    """
    expected = network.state_dict()
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    state = counters | dict(state)
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        told = "; ".join(f"{len(keys)} {fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
        raise UserError(f"{source} does not fit the network: {told}", "choose the model the weights were trained with")
    network.load_state_dict(state)


def serialize(network: nn.Module, metadata: Mapping[str, str]) -> bytes:
    """Returns the network's state dict as a safetensors file; tied weights are written once per name."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    return save(tensors, metadata=dict(metadata))


def _find_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"checkpoint {path} holds no state dict", "it must map parameter names to tensors")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value for key, value in content.items()}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
