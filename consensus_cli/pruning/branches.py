"""Branches without a module of their own: which modules make them up, and what keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from consensus_cli.pruning.additions import ACTIVATIONS, Addition
from consensus_cli.pruning.removability import has_parameters, why_shared
from consensus_cli.pruning.trace import SAME_ELEMENTS, Trace

#: operations that map zeros to zeros (a product: whatever the other factor)
KEEPS_ZEROS = SAME_ELEMENTS | ACTIVATIONS | {"mul", "permute", "transpose", "roll", "slice", "tanh"}


def branch_calls(network: nn.Module, trace: Trace, addition: Addition) -> list[int]:
    """Returns the owner's direct calls of modules with parameters that serve one branch only, in order."""
    if addition.branch is None:
        return []
    inside = _exclusive_operations(trace, addition)
    return [
        index
        for index, call in enumerate(trace.calls)
        if call.parent == addition.owner
        and call.start < call.end
        and inside.issuperset(range(call.start, call.end))
        and has_parameters(network, trace, index)
    ]


def branch_name(trace: Trace, addition: Addition, calls: Sequence[int]) -> str:
    """Returns the name of the branch made of some calls, in the form of `surgery`."""
    owner = trace.calls[addition.owner].path
    prefix = len(owner) + 1 if owner else 0
    return "+".join([owner, *(_part(trace, addition, index)[prefix:] for index in calls)])


def why_branch_stays(network: nn.Module, trace: Trace, addition: Addition, calls: Sequence[int]) -> str:
    """Returns why the branch made of some calls cannot be taken out, or an empty string where it may be."""
    if not _ends_in(trace, addition, calls[-1]):
        return "its branch is not what a module returns"
    return why_shared(network, trace, calls)


def _exclusive_operations(trace: Trace, addition: Addition) -> set[int]:
    """Returns the operations between trunk and addition whose results nothing but the branch uses."""
    returned = set(trace.calls[0].outputs)
    inside = {addition.op}
    for index in range(addition.op - 1, trace.producers[addition.trunk], -1):
        outputs = trace.ops[index].outputs
        used_by = {reader for value in outputs for reader in trace.readers[value]}
        if used_by <= inside and not returned.intersection(outputs):
            inside.add(index)
    return inside - {addition.op}


def _ends_in(trace: Trace, addition: Addition, call: int) -> bool:
    """Whether a branch adds what a call returns, at most reshaped, scaled or through an activation."""
    value = addition.branch
    assert value is not None
    while value not in trace.calls[call].outputs:
        op = trace.ops[trace.producers[value]]
        if trace.producers[value] < trace.calls[call].end or op.name not in KEEPS_ZEROS:
            return False
        value = next(source for source in op.inputs if trace.depends(source, addition.trunk))
    return True


def _part(trace: Trace, addition: Addition, index: int) -> str:
    call = trace.calls[index]
    if call.returns_tensor:
        return call.path
    assert addition.branch is not None
    used = [i for i, v in enumerate(call.outputs, 1) if v is not None and trace.depends(addition.branch, v)]
    return f"{call.path}[{used[0]}of{len(call.outputs)}]"
