"""Residual additions in a trace: `x + f(x)`, the module that forms each, and the way of a shortcut through a module."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from consensus_cli.pruning.trace import REARRANGING, SAME_ELEMENTS, Op, Trace

ACTIVATIONS = {
    "_prelu_kernel", "celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "relu", "rrelu",
    "selu", "silu",
}  # fmt: skip

#: operations that scale each channel or element by itself, or a number for each
_SCALING = SAME_ELEMENTS | {
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "div", "mul", "native_batch_norm", "native_group_norm",
    "native_layer_norm",
}  # fmt: skip

#: operations that take a part of a value, and those by which features get from a sum to what a module returns
_PART = SAME_ELEMENTS | {"narrow", "select", "slice", "split", "split_with_sizes", "unbind"}
_HANDS_ON = SAME_ELEMENTS | REARRANGING | ACTIVATIONS | {"add"}


@dataclass(frozen=True)
class Addition:
    """A sum of two values of the same shape that come from one earlier value.

    Attributes:
        op: index of the operation.
        trunk: the earlier value; one of the two operands (identity shortcut) or what both are computed from.
        branch: the operand that is computed from the trunk, where the other one is the trunk, or the trunk scaled or
            normalised; what is computed from another stream of features; else None.
        owner: the innermost module call that a way from the trunk to the branch lies in (what else the branch reads may
            be computed from the trunk outside); without a branch, all ways from the trunk to the sum.
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
        input: position of the input that it leads to unchanged, among the tensors that the call is given; None: it does
            not lead to any.
        untouched_by: modules on the way that return their input as it is in eval mode (dropout, for one).
    """

    additions: tuple[Addition, ...]
    input: int | None
    untouched_by: tuple[str, ...]


def find_additions(trace: Trace) -> dict[int, Addition]:
    """Returns the residual additions of a network by index of their operation, in order of execution."""
    example = 1 << trace.calls[0].inputs[0]
    data = sum(1 << value for value, ancestors in enumerate(trace.ancestors) if ancestors & example)
    found: dict[int, Addition] = {}
    for index in (index for index, op in enumerate(trace.ops) if _is_plain_sum(trace, op)):
        addition = _addition(trace, index, data)
        if addition is not None and addition.branch is None:
            addition = _between_streams(trace, addition, found)
        if addition is not None:
            found[index] = addition
    return found


def shortcut_through(trace: Trace, call: int, additions: dict[int, Addition]) -> Shortcut:
    """Follows the output of a call back along additions, activations after an addition, and rearrangements."""
    ways = [_Way(trace, call, additions, start) for start in dict.fromkeys(trace.calls[call].inputs)]
    way = next((way for way in ways if way.is_identity), ways[0])
    reached = trace.calls[call].inputs.index(way.start) if way.is_identity else None
    met = tuple(way.met[index] for index in sorted(way.met, reverse=True))
    return Shortcut(met, reached, tuple(dict.fromkeys(way.untouched)))


class _Way:
    """The way from the output of a call back to one of its inputs.

    Attributes:
        met: the residual additions on it by index of their operation.
        untouched: modules on it that return their input as it is in eval mode.
        is_identity: whether it leads from each element of the output to the same element of the input.
    """

    def __init__(self, trace: Trace, call: int, additions: dict[int, Addition], start: int) -> None:
        self.trace, self.begin, self.additions, self.start = trace, trace.calls[call].start, additions, start
        self.met: dict[int, Addition] = {}
        self.untouched: list[str] = []
        output = trace.calls[call].outputs[0]
        assert output is not None
        # Real numbers, because padding may be infinite.
        self.whole = torch.arange(math.prod(trace.shapes[start]), dtype=torch.float64).view(trace.shapes[start])
        self._known: dict[tuple[int, bool], Tensor | None] = {}
        found = self._elements(output, activated=False)
        self.is_identity = found is not None and torch.equal(found, self.whole)

    def _elements(self, value: int, *, activated: bool) -> Tensor | None:
        """Returns the numbers of the input's elements that a value leads back to; None where the way ends before.

        Args:
            value: a value of the trace.
            activated: whether an activation follows, which must be one of a sum.
        """
        if (value, activated) not in self._known:
            self._known[value, activated] = self._follow(value, activated)
        return self._known[value, activated]

    def _follow(self, value: int, activated: bool) -> Tensor | None:
        trace, index, shape = self.trace, self.trace.producers[value], self.trace.shapes[value]
        if index < self.begin:
            return None if activated or trace.same[value] != trace.same[self.start] else self.whole.reshape(shape)
        op = trace.ops[index]
        if value in trace.untouched_by:
            self.untouched.append(trace.untouched_by[value])
        if index in self.additions:
            addition = self.additions[index]
            # Where no operand is the trunk, one may be a part of it: `x[:, :1] + f(x)`.
            before = [source for source in op.inputs if source != addition.branch]
            ways = {source: self._elements(source, activated=False) for source in before}
            led = [source for source, elements in ways.items() if elements is not None]
            found = ways[led[0]] if len(led) == 1 else None
            if len(before) > len(led) == 1:
                addition = replace(addition, branch=next(source for source in before if source not in led))
            self.met[index] = addition
        elif op.name in SAME_ELEMENTS or (op.name in ACTIVATIONS and not activated):
            found = self._elements(op.inputs[0], activated=activated or op.name in ACTIVATIONS)
        elif op.rearrange is not None:
            parts = [part for source in op.inputs if (part := self._elements(source, activated=activated)) is not None]
            return op.rearrange(parts)[op.outputs.index(value)] if len(parts) == len(op.inputs) else None
        else:
            # `0 + x`, with which `sum([x, f(x)])` begins, is x.
            found = self.whole if not activated and trace.same[value] == trace.same[self.start] else None
        # A sum can be written into a part of a value's memory.
        return found.reshape(shape) if found is not None and found.numel() == math.prod(shape) else None


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
    elif (scaled := _is_scaled(trace, left, trunk)) != _is_scaled(trace, right, trunk):
        branch = right if scaled else left
    way = [*_way(trace, trunk, index), index]
    call = trace.ops[index].call
    while call and not (
        trace.calls[call].start <= way[0] if branch is None else _leads_to(trace, way, call, trunk, branch)
    ):
        call = trace.calls[call].parent
    return Addition(index, trunk, branch, call)


def _between_streams(trace: Trace, addition: Addition, found: dict[int, Addition]) -> Addition:
    """Returns the addition to one of the streams of features that a module is given and returns, of what it makes of
    another, where it is one; else as it is.

    Blocks of two streams (pixels and patches, maps and tokens) have residual branches, and hand on what they find.
    """
    index, call = addition.op, trace.ops[addition.op].call
    while call:
        start, end, inputs = trace.calls[call].start, trace.calls[call].end, trace.calls[call].inputs
        streams = {trace.same[value] for value in inputs}
        outputs = {trace.same[value] for value in trace.calls[call].outputs if value is not None}
        if len(streams) > 1 and len(outputs) > 1:
            streams |= {
                trace.same[value] for a in found.values() if a.owner == call for value in trace.ops[a.op].outputs
            }
            operands = trace.ops[index].inputs
            roots = [_whole_of(trace, operand, start) for operand in operands]
            if (roots[0] in streams) != (roots[1] in streams) and outputs & _handed_on(trace, index, end):
                trunk, branch = (roots[0], operands[1]) if roots[0] in streams else (roots[1], operands[0])
                return Addition(index, trunk, branch, call)
        call = trace.calls[call].parent
    return addition


def _whole_of(trace: Trace, value: int, start: int) -> int:
    """Returns what a value is a part of, as far as the operations from `start` on say."""
    while trace.producers[value] >= start and trace.ops[trace.producers[value]].name in _PART:
        value = trace.ops[trace.producers[value]].inputs[0]
    return trace.same[value]


def _handed_on(trace: Trace, index: int, end: int) -> set[int]:
    """Returns the values that hold the sum of an operation, or it and more branches, before operation `end`."""
    held = set(trace.ops[index].outputs)
    for op in trace.ops[index + 1 : end]:
        if op.name in _HANDS_ON and held.intersection(op.inputs):
            held.update(op.outputs)
    return {trace.same[value] for value in held}


def _is_scaled(trace: Trace, value: int, trunk: int) -> bool:
    """Whether a value is the trunk, scaled or normalised."""
    while trace.same[value] != trunk:
        op = trace.ops[trace.producers[value]]
        sources = [source for source in dict.fromkeys(op.inputs) if trace.depends(source, trunk)]
        if len(sources) != 1 or op.name not in _SCALING:
            return False
        value = sources[0]
    return True


def _way(trace: Trace, trunk: int, addition: int) -> Iterator[int]:
    """Yields the operations on the way from the trunk to an addition, in order."""
    operands = trace.ops[addition].inputs
    for index in range(trace.producers[trunk] + 1, addition):
        for value in trace.ops[index].outputs:
            on_way = trace.same[value] != trunk and trace.depends(value, trunk)
            if on_way and any(trace.depends(operand, value) for operand in operands):
                yield index


def _leads_to(trace: Trace, way: list[int], call: int, trunk: int, branch: int) -> bool:
    """Whether operations of a way that ran in one call lead from the trunk to the branch."""
    reached = {trunk}
    for op in (trace.ops[index] for index in way if index >= trace.calls[call].start):
        if reached.intersection(trace.same[value] for value in op.inputs):
            reached |= {trace.same[value] for value in op.outputs}
    return trace.same[branch] in reached
