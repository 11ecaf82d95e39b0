"""Which tensors of a checkpoint are a network's weights, whatever wrappers stand around their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from consensus_cli.errors import UserError, enumerated

#: parts of names that PyTorch's wrappers of compiled, sharded and checkpointed modules add anywhere
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}

#: the same for data-parallel ones; networks have modules of this name themselves
_PARALLEL = {"module"}

#: what lies under such a name is an average of the weights over the training
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)([._]|$)", re.IGNORECASE)

#: buffers that a profiler (thop) leaves in every module
_LEFTOVERS = ("total_ops", "total_params")

#: prefixes that are compared, the likeliest first
_COMPARED = 8

_COUNTER = "num_batches_tracked"


#: what keeps a state dict from fitting a network: kind -> names of entries that are `missing` in it, `unexpected` by
#: the network, `misshapen`, or `mistyped` (whole numbers in place of real ones, not dense, without values)
Faults = dict[str, list[str]]


@dataclass(frozen=True)
class Candidate:
    """Entries of a checkpoint that may be the network's weights.

    Attributes:
        prefix: what their names begin with in the file.
        state: tensors by the network's names.
        faults: what does not fit.
    """

    prefix: str
    state: dict[str, Tensor]
    faults: Faults

    @property
    def averaged(self) -> bool:
        """Whether they are said to be an average over the training."""
        return bool(_AVERAGED.search(self.prefix))


def entries(network: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a network's state dict by name, without what modules keep beside tensors."""
    return {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def completed(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict with what may be missing, and without what may be left over.

    Batch counters may be missing: checkpoints older than PyTorch 0.4.1 or written by other tools have none, and no
    result depends on them. So may a tensor that the network holds under two names, if one of them is there. Left over
    may be a profiler's counts, single numbers beside the modules (an epoch), and batch counters of frozen norms.
    """
    complete = {key: value for key, value in state.items() if key in expected or not _is_leftover(key, value, expected)}
    tied: dict[tuple[object, ...], str] = {
        _memory(value): key for key, value in expected.items() if key in complete and not is_lazy(value)
    }
    for key, value in expected.items():
        if key in complete:
            continue
        if key.endswith(_COUNTER):
            complete[key] = value
        elif not is_lazy(value) and value.data_ptr() and _memory(value) in tied:
            complete[key] = complete[tied[_memory(value)]]
    return complete


def faults(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Faults:
    """Returns what keeps a state dict from fitting; lazy parameters take any shape."""
    shared = [key for key in expected if key in state]
    found = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "misshapen": [k for k in shared if not is_lazy(expected[k]) and state[k].shape != expected[k].shape],
        "mistyped": [k for k in shared if not _can_be_copied(state[k], expected[k])],
    }
    return {kind: names for kind, names in found.items() if names}


def mismatch(found: Faults, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> UserError:
    """Returns the error that names at most ten entries of each kind."""
    described: dict[str, Callable[[str], str]] = {
        "misshapen": lambda key: f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}",
        "mistyped": lambda key: f"{key} ({state[key].dtype}, {state[key].layout}, {state[key].device})",
    }
    words = {"misshapen": "of another shape", "mistyped": "of another kind"}
    listed = "; ".join(
        f"{len(names)} {words.get(kind, kind)}: {enumerated([described.get(kind, str)(name) for name in names], 10)}"
        for kind, names in found.items()
    )
    return UserError(f"{source} does not fit the network: {listed}", "choose the model the weights were trained with")


def candidates(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[Candidate]:
    """Returns the parts of a checkpoint that may be the network's weights, the most complete first.

    Names are compared with the network's, as they are and without the parts that PyTorch's wrappers add; what stands
    before all of them is a prefix. So a prefix goes only where names fit without it, and one that the network has
    itself stays.

    Args:
        tensors: what a file holds, by name.
        expected: what the network has, by name.
    """
    found: list[Candidate] = []
    for left_out in (set(), _WRAPPERS, _WRAPPERS | _PARALLEL):
        renamed = {_without(key, left_out): value for key, value in tensors.items()}
        if len(renamed) < len(tensors) or (left_out and renamed.keys() == tensors.keys()):
            continue
        for prefix in _prefixes(renamed, expected):
            inside = {key[len(prefix) :]: value for key, value in renamed.items() if key.startswith(prefix)}
            state = completed(inside, expected)
            found.append(Candidate(prefix, state, faults(state, expected)))
    return sorted(found, key=lambda candidate: (-_fitting(candidate, expected), candidate.averaged))


def choose(fitting: list[Candidate], source: str) -> Candidate:
    """Returns the one of several candidates that all fit: the plain weights, an average only where there are no others.

    Raises:
        UserError: two that are not averages differ.
    """
    plain = [candidate for candidate in fitting if not candidate.averaged] or fitting
    first = plain[0]
    for other in plain[1:]:
        if not _equal(first.state, other.state):
            raise UserError(
                f"{source} holds two sets of weights that fit: '{first.prefix}*' and '{other.prefix}*'",
                "save the one that is meant in a file of its own",
            )
    return first


def _prefixes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Returns what stands before the network's names in those of a checkpoint, the most frequent first."""
    counted: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for start in range(len(parts)):
            if (inner := ".".join(parts[start:])) in expected:
                counted[key[: len(key) - len(inner)]] += 1
    return [prefix for prefix, _ in counted.most_common(_COMPARED)] or [""]


def _fitting(candidate: Candidate, expected: Mapping[str, Tensor]) -> int:
    return len(expected) - sum(len(candidate.faults.get(kind, ())) for kind in ("missing", "misshapen"))


def _without(key: str, parts: set[str]) -> str:
    return ".".join(part for part in key.split(".") if part not in parts)


def _is_leftover(key: str, value: Tensor, expected: Mapping[str, Tensor]) -> bool:
    owner, _, name = key.rpartition(".")
    if name == _COUNTER:
        return f"{owner}.running_mean" in expected
    return name in _LEFTOVERS or (not owner and value.ndim == 0)


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _can_be_copied(given: Tensor, own: Tensor) -> bool:
    if given.is_meta or given.layout is not torch.strided or given.is_quantized:
        return False
    if given.is_complex():
        return own.is_complex()
    return given.is_floating_point() or not (own.is_floating_point() or own.is_complex())


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return all(
        value is second[key] or (value.dtype == second[key].dtype and torch.equal(value, second[key]))
        for key, value in first.items()
    )
