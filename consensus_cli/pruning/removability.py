"""Why a block that looks residual cannot be replaced by its shortcut."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from consensus_cli.pruning.additions import Shortcut
from consensus_cli.pruning.trace import Trace


def why_module_stays(network: nn.Module, trace: Trace, index: int, shortcut: Shortcut) -> str:
    """Returns why a module cannot be replaced by the identity, or an empty string where it can.

    Args:
        network: the network that was traced.
        trace: its data flow.
        index: the call of the module.
        shortcut: the way from the call's output back to its input.
    """
    call = trace.calls[index]
    if not call.returns_tensor and not returns_one_in_sequence(trace, index):
        return f"returns {len(call.outputs)} values, not one tensor"
    if trace.shapes[call.inputs[0]] != trace.shapes[call.outputs[0] or 0]:
        return "changes the shape"
    if not shortcut.reaches_input:
        return "its shortcut is not the identity"
    for path in shortcut.untouched_by:
        if changes_in_training(network.get_submodule(path), trace.shapes[call.inputs[0]]):
            return f"its shortcut passes {path}, which acts in training only"
    return why_shared(network, trace, [index]) or _why_side_outputs(trace, index)


def returns_one_in_sequence(trace: Trace, index: int) -> bool:
    """Whether a call returns a tuple or list whose first element is its only tensor, as layers of transformers do."""
    call = trace.calls[index]
    return call.returns_sequence and call.outputs[0] is not None and not any(v is not None for v in call.outputs[1:])


def why_shared(network: nn.Module, trace: Trace, calls: Iterable[int]) -> str:
    """Returns what else uses the modules of some calls, or their parameters; empty where nothing does."""
    for index in calls:
        path = trace.calls[index].path
        runs = sum(call.path == path for call in trace.calls)
        if runs > 1:
            return f"runs {runs} times in one forward pass"
        shared = _shared_parameters(network, path)
        if shared:
            return f"shares {shared[0]} with {shared[1]}"
        for other, call in enumerate(trace.calls):
            if _is_below(call.path, path) and not trace.within(other, index) and has_parameters(network, trace, other):
                return f"its module {call.path} also runs outside of it"
    return ""


def _why_side_outputs(trace: Trace, index: int) -> str:
    call = trace.calls[index]
    made = {v for op in trace.ops[call.start : call.end] for v in op.outputs if trace.producers[v] >= call.start}
    used = {value for op in trace.ops[call.end :] for value in op.inputs} | set(trace.calls[0].outputs)
    return "its intermediate results are used outside of it" if (made - set(call.outputs)) & used else ""


def has_parameters(network: nn.Module, trace: Trace, call: int) -> bool:
    """Whether the module of a call has parameters, its submodules' included."""
    return any(True for _ in network.get_submodule(trace.calls[call].path).parameters())


def changes_in_training(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a module that returns its input in eval mode does something else in training mode."""
    modes = {part: part.training for part in module.modules()}
    ones = torch.ones(shape)
    module.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return not torch.equal(module(ones), ones)
    finally:
        for part, training in modes.items():
            part.training = training


def _shared_parameters(network: nn.Module, path: str) -> tuple[str, str] | None:
    """Returns the names of one parameter inside a module and of the same one outside of it.

    The block itself may hang at several places (`features = nn.Sequential(*backbone.children())`), its modules may not.
    """
    block = network.get_submodule(path)
    own = {id(parameter): name for name, parameter in block.named_parameters()}
    for prefix, module in network.named_modules(memo={block}):
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if id(parameter) in own:
                return f"{path}.{own[id(parameter)]}", name
    return None


def _is_below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")
