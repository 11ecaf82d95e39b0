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
    """Returns the calls of modules that serve one branch only, in order, the last of which returns what is added.

    They are direct calls of the owner, or of the submodule of the owner that forms the sum
    (`self.output(branch, x)`), and have parameters, but for the last one, which may be a pooling.
    """
    if addition.branch is None:
        return []
    inside, forming = _exclusive_operations(trace, addition), {addition.owner}
    call = trace.ops[addition.op].call
    while call != addition.owner:
        forming.add(call)
        call = trace.calls[call].parent
    serving = [
        index
        for index, call in enumerate(trace.calls)
        if call.parent in forming and call.start < call.end and inside.issuperset(range(call.start, call.end))
    ]
    parts = [index for index in serving if has_parameters(network, trace, index)]
    if parts and not _ends_in(trace, addition, parts[-1]):
        parts += [index for index in serving if index > parts[-1] and _ends_in(trace, addition, index)][:1]
    return parts


def branch_name(trace: Trace, addition: Addition, calls: Sequence[int]) -> str:
    """Returns the name of the branch made of some calls, in the form of `surgery`."""
    owner = trace.calls[addition.owner].path
    prefix = len(owner) + 1 if owner else 0
    parts = [_part(trace, addition, index) for index in calls]
    shapes = [trace.shapes[value] for value in (*trace.calls[calls[0]].inputs[:1], parts[-1][1]) if value is not None]
    given, returned = shapes[0], shapes[-1]
    # Attention of the class token takes all tokens and returns that one.
    fewer = f"[:{returned[1]}]" if given[2:] == returned[2:] and given[1:2] > returned[1:2] > () else ""
    return "+".join([owner, *(name[prefix:] for name, _ in parts)]) + fewer


def why_branch_stays(network: nn.Module, trace: Trace, addition: Addition, calls: Sequence[int]) -> str:
    """Returns why the branch made of some calls cannot be taken out, or an empty string where it may be."""
    if not _ends_in(trace, addition, calls[-1]):
        return "its branch is not what a module returns"
    return why_shared(network, trace, calls)


def _exclusive_operations(trace: Trace, addition: Addition) -> set[int]:
    """Returns the operations between trunk and addition whose results nothing but the branch uses.

    A branch that comes from another stream of features begins after the sums of that stream.
    """
    assert addition.branch is not None
    across = not trace.depends(addition.branch, addition.trunk)
    needed = {*trace.calls[0].outputs, *trace.ops[addition.op].inputs} - {addition.branch}
    inside = {addition.op}
    for index in range(addition.op - 1, trace.producers[addition.trunk], -1):
        op, outputs = trace.ops[index], trace.ops[index].outputs
        if across and op.name == "add" and op.call == addition.owner:
            continue
        used_by = {reader for value in outputs for reader in trace.readers[value]}
        if used_by <= inside and not needed.intersection(outputs):
            inside.add(index)
    return inside - {addition.op}


def _ends_in(trace: Trace, addition: Addition, call: int) -> bool:
    """Whether a branch adds what a call returns, at most reshaped, scaled or through an activation."""
    value, returned = addition.branch, [output for output in trace.calls[call].outputs if output is not None]
    assert value is not None
    while value not in returned:
        op = trace.ops[trace.producers[value]]
        sources = [source for source in op.inputs if any(trace.depends(source, output) for output in returned)]
        if trace.producers[value] < trace.calls[call].end or op.name not in KEEPS_ZEROS or not sources:
            return False
        value = sources[0]
    return True


def _part(trace: Trace, addition: Addition, index: int) -> tuple[str, int | None]:
    """Returns what the name of a branch calls a part, and the value of it that the branch uses."""
    call = trace.calls[index]
    if call.returns_tensor:
        return call.path, call.outputs[0]
    assert addition.branch is not None
    used = next(i for i, v in enumerate(call.outputs) if v is not None and trace.depends(addition.branch, v))
    return f"{call.path}[{used + 1}of{len(call.outputs)}]", call.outputs[used]
