"""Why a block that looks residual cannot be replaced by its shortcut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from consensus_cli.models.copying import clone
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
    if shortcut.input:
        return f"its shortcut leads from the tensor number {shortcut.input + 1} that it is given"
    if trace.shapes[call.inputs[0]] != trace.shapes[call.outputs[0] or 0]:
        return "changes the shape"
    if shortcut.input is None:
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
    """Returns what else needs the modules of some calls; empty where nothing does.

    Parameters that others share stay with them; nothing can be gained by taking out modules that have no others.
    """
    calls = list(calls)
    modules = [network.get_submodule(trace.calls[index].path) for index in calls]
    elsewhere = parameters_outside(network, modules)
    own = {id(parameter) for module in modules for parameter in module.parameters()} - elsewhere
    if not own:
        return "shares all its parameters"
    for index in calls:
        path = trace.calls[index].path
        runs = sum(call.path == path for call in trace.calls)
        if runs > 1:
            return f"runs {runs} times in one forward pass"
        for other, call in enumerate(trace.calls):
            if not _is_below(call.path, path) or trace.within(other, index):
                continue
            if any(id(parameter) in own for parameter in network.get_submodule(call.path).parameters()):
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
    """Whether a module that returns its input in eval mode does something else in training mode.

    Dropout and other noise of training does not count: it belongs to its block and goes with it.
    """
    # On the CPU, wherever the network is: there it shows whether random numbers were drawn.
    ones, copied = torch.ones(shape), clone(module).cpu().train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        return not torch.equal(copied(ones), ones) and torch.equal(torch.get_rng_state(), before)


def parameters_outside(network: nn.Module, modules: Sequence[nn.Module]) -> set[int]:
    """Returns the ids of the parameters that a network has outside of some of its modules.

    The modules may hang at several places (`features = nn.Sequential(*backbone.children())`).
    """
    others = network.named_modules(memo=set(modules))
    return {id(parameter) for _, module in others for parameter in module.parameters(recurse=False)}


def _is_below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")
