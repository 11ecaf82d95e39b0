"""Residual additions in a trace: `x + f(x)`, the module that forms each, and the way of a shortcut through a module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consensus_cli.pruning.trace import SAME_ELEMENTS, Op, Trace

ACTIVATIONS = {
    "_prelu_kernel", "celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "relu", "rrelu",
    "selu", "silu",
}  # fmt: skip


@dataclass(frozen=True)
class Addition:
    """A sum of two values of the same shape that come from one earlier value.

    Attributes:
        op: index of the operation.
        trunk: the earlier value; one of the two operands (identity shortcut) or what both are computed from.
        branch: the operand that is computed from the trunk, where the other one is the trunk; else None.
        owner: the innermost module call that all of the way from the trunk to the sum lies in.
    """

    op: int
    trunk: int
    branch: int | None
    owner: int


@dataclass(frozen=True)
class Shortcut:
    """How the output of a module call comes from its input along additions.

    Attributes:
        additions: residual additions met on the way back from the output, last one first.
        reaches_input: whether the way ends at the unchanged input.
        untouched_by: modules on the way that return their input as it is in eval mode (dropout, for one).
    """

    additions: tuple[Addition, ...]
    reaches_input: bool
    untouched_by: tuple[str, ...]


def find_additions(trace: Trace) -> dict[int, Addition]:
    """Returns the residual additions of a network by index of their operation, in order of execution."""
    example = 1 << trace.calls[0].inputs[0]
    data = sum(1 << value for value, ancestors in enumerate(trace.ancestors) if ancestors & example)
    additions = (_addition(trace, index, data) for index, op in enumerate(trace.ops) if _is_plain_sum(trace, op))
    return {addition.op: addition for addition in additions if addition is not None}


def shortcut_through(trace: Trace, call: int, additions: dict[int, Addition]) -> Shortcut:
    """Follows the output of a call back along additions, activations after an addition, and reshapings."""
    into, value = trace.calls[call].inputs[0], trace.calls[call].outputs[0]
    assert value is not None
    met: list[Addition] = []
    untouched: list[str] = []
    activated = False
    while trace.producers[value] >= trace.calls[call].start:
        index = trace.producers[value]
        op = trace.ops[index]
        if value in trace.untouched_by:
            untouched.append(trace.untouched_by[value])
        if index in additions:
            met.append(additions[index])
            if additions[index].branch is None:
                break
            value = next(v for v in op.inputs if trace.same[v] == trace.same[additions[index].trunk])
        elif op.name in SAME_ELEMENTS or (op.name in ACTIVATIONS and not activated):
            value = op.inputs[0]
        else:
            break
        activated = op.name in ACTIVATIONS or (activated and op.name in SAME_ELEMENTS)
    reaches = trace.same[value] == trace.same[into] and not activated
    return Shortcut(tuple(met), reaches, tuple(untouched))


def _is_plain_sum(trace: Trace, op: Op) -> bool:
    if op.name != "add" or len(op.inputs) != 2 or op.scale != 1:
        return False
    left, right = op.inputs
    return trace.shapes[left] == trace.shapes[right] and trace.same[left] != trace.same[right]


def _addition(trace: Trace, index: int, data: int) -> Addition | None:
    left, right = trace.ops[index].inputs
    common = trace.ancestors[left] & trace.ancestors[right] & data
    if not common:
        return None
    branch = None
    trunk = common.bit_length() - 1
    if trunk == trace.same[left]:
        branch = right
    elif trunk == trace.same[right]:
        branch = left
    first = next(_way(trace, trunk, index), index)
    return Addition(index, trunk, branch, _innermost_call(trace, first, index))


def _way(trace: Trace, trunk: int, addition: int) -> Iterator[int]:
    """Yields the operations on the way from the trunk to an addition, in order."""
    operands = trace.ops[addition].inputs
    for index in range(trace.producers[trunk] + 1, addition):
        for value in trace.ops[index].outputs:
            on_way = trace.same[value] != trunk and trace.depends(value, trunk)
            if on_way and any(trace.depends(operand, value) for operand in operands):
                yield index


def _innermost_call(trace: Trace, first: int, last: int) -> int:
    call = trace.ops[last].call
    while trace.calls[call].start > first:
        call = trace.calls[call].parent
    return call
