"""Branches without a module of their own: which modules make them up, and whether they come out cleanly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from consensus_cli.models.modes import evaluating, tensors_in
from consensus_cli.pruning.additions import ACTIVATIONS, Addition
from consensus_cli.pruning.removability import has_parameters, why_shared
from consensus_cli.pruning.surgery import bypassed, parts_of
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


class BranchTrials:
    """Tells which branches can be made to add nothing, by trying.

    The modules of a branch are called by code that may count on more than their outputs (an attribute, a shape). So
    the network runs without the branch, and must return what it returns when the branch's own output is overwritten
    with zeros. The same branch of two modules of one class is called by the same code and tried once.

    Args:
        network: the network that was traced.
        example: (n, ...) what it was traced on; the first sample is used.
        trace: its data flow.
    """

    def __init__(self, network: nn.Module, example: Tensor, trace: Trace) -> None:
        self.network = network
        self._example = example[:1]
        self._trace = trace
        self._outcomes: dict[tuple[type, str], bool] = {}

    def why_stays(self, addition: Addition, calls: Sequence[int]) -> str:
        """Returns why the branch made of some calls cannot be taken out, or an empty string where it can."""
        if not _ends_in(self._trace, addition, calls[-1]):
            return "its branch is not what a module returns"
        reason = why_shared(self.network, self._trace, calls)
        if reason:
            return reason
        name = branch_name(self._trace, addition, calls)
        owner = self._trace.calls[addition.owner].path
        key = type(self.network.get_submodule(owner)), name.removeprefix(owner) if owner else str(addition.op)
        if key not in self._outcomes:
            self._outcomes[key] = self._comes_out(name)
        return "" if self._outcomes[key] else "the code around it needs its modules"

    def _comes_out(self, name: str) -> bool:
        last = self.network.get_submodule(parts_of(name)[-1])
        with evaluating(self.network):
            handle = last.register_forward_hook(_silence)
            try:
                expected = self.network(self._example)
            finally:
                handle.remove()
            try:
                with bypassed(self.network, name):
                    found = self.network(self._example)
            except Exception:
                # Whatever the code around it raises; a module called without any tensor has nothing to hand on.
                return False
        pairs = zip(tensors_in([expected]), tensors_in([found]), strict=True)
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def _silence(_: nn.Module, __: object, output: Tensor | tuple[Tensor | None, ...]) -> object:
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    return tuple(None if element is None else torch.zeros_like(element) for element in output)


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
