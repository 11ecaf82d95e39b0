"""From residual additions to blocks: the modules that are blocks, and the branches that have no module of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from consensus_cli.pruning.additions import Addition, Shortcut, find_additions, shortcut_through
from consensus_cli.pruning.branches import branch_calls, branch_name, why_branch_stays
from consensus_cli.pruning.removability import has_parameters, returns_one_in_sequence, why_module_stays
from consensus_cli.pruning.trace import Trace


@dataclass(frozen=True)
class Found:
    """A residual block or branch, before stages are numbered.

    Attributes:
        name: what `surgery` calls it.
        shape_in: shape of the features it is given, without the batch dimension.
        shape: shape of the features it returns.
        reason: why it cannot be removed; empty where it can.
        unit: the same for branches of one block.
        position: number of operations until it ends; orders blocks by execution.
    """

    name: str
    shape_in: tuple[int, ...]
    shape: tuple[int, ...]
    reason: str
    unit: int
    position: int


def discover(network: nn.Module, trace: Trace, split: bool, needed: Mapping[str, str] | None = None) -> list[Found]:
    """Returns every residual block of a traced network in order of execution, each once.

    Args:
        network: the network that was traced.
        trace: its data flow.
        split: whether a block with several additions is listed as its branches.
        needed: blocks that the network cannot do without as a whole -> why.
    """
    additions = find_additions(trace)
    blocks = _block_calls(network, trace, additions)
    found = [_module(trace, call, "has no shortcut") for call in _siblings(network, trace, blocks)]
    for call, shortcut in blocks.items():
        whole = _module(trace, call, why_module_stays(network, trace, call, shortcut))
        whole = replace(whole, reason=(needed or {}).get(whole.name, whole.reason))
        branches: list[Found] = []
        met = {addition.op: addition for addition in shortcut.additions}
        own = [met.get(a.op, a) for a in additions.values() if a.owner == call or a.op in met]
        if split and (whole.reason or len(own) > 1):
            branches = _branches(network, trace, own, block=whole)
        # Only its own code can return the form of its answer (a dictionary, features beside a mask), or what it returns
        # where no branch adds anything.
        elif whole.reason and (shortcut.input or not trace.calls[call].returns_tensor):
            branches = _branches(network, trace, own, block=whole)
            branches = [] if any(branch.reason for branch in branches) else branches
        found += branches or [whole]
    loose = [a for a in additions.values() if not _inside_any(trace, a.owner, blocks)]
    found += _branches(network, trace, loose, holding=blocks)
    by_name = {part.name: part for part in sorted(found, key=lambda part: part.position, reverse=True)}
    return sorted(by_name.values(), key=lambda part: part.position)


def _block_calls(network: nn.Module, trace: Trace, additions: dict[int, Addition]) -> dict[int, Shortcut]:
    """Returns the module calls that are blocks; additions deeper inside a block belong to it.

    A module whose way from input to output holds more additions of its submodules than its own, or the same branches
    over and over, is a stage.
    """
    blocks: dict[int, Shortcut] = {}
    for call in sorted({addition.owner for addition in additions.values()} - {0}):
        if _inside_any(trace, call, blocks) or not has_parameters(network, trace, call) or not _maps(trace, call):
            continue
        shortcut = shortcut_through(trace, call, additions)
        own = sum(addition.owner == call for addition in shortcut.additions)
        if own and 2 * own >= len(shortcut.additions) and not _repeats(network, trace, call, shortcut):
            blocks[call] = shortcut
    return blocks


def _repeats(network: nn.Module, trace: Trace, call: int, shortcut: Shortcut) -> bool:
    """Whether the branches on the way through a module are alike, or alike by turns, as those of a stage are.

    Two of a kind make a block of a class that the network has more of.
    """
    branches = [
        branch_calls(network, trace, addition) for addition in shortcut.additions if addition.branch is not None
    ]
    forms = [[_form(network.get_submodule(trace.calls[part].path)) for part in parts] for parts in branches]
    kind = type(network.get_submodule(trace.calls[call].path))
    alone = sum(type(network.get_submodule(other.path)) is kind for other in trace.calls) == 1
    least = 2 if alone else 3
    turns = [length for length in range(1, len(forms) // least + 1) if len(forms) % length == 0]
    return all(forms) and any(forms == forms[:length] * (len(forms) // length) for length in turns)


def _form(module: nn.Module) -> list[object]:
    return [*map(type, module.modules()), *(parameter.shape for parameter in module.parameters())]


def _siblings(network: nn.Module, trace: Trace, blocks: dict[int, Shortcut]) -> list[int]:
    """Returns the calls of modules of a block's class that hold no block and are in none."""
    classes = {type(network.get_submodule(trace.calls[call].path)) for call in blocks} - {nn.Sequential}
    return [
        index
        for index, call in enumerate(trace.calls)
        if type(network.get_submodule(call.path)) in classes
        and not _inside_any(trace, index, blocks)
        and not any(trace.within(block, index) for block in blocks)
        and _maps(trace, index)
    ]


def _maps(trace: Trace, call: int) -> bool:
    """Whether a call maps at least one tensor to at least one tensor."""
    return bool(trace.calls[call].inputs) and trace.calls[call].outputs[:1] not in ((), (None,))


def _inside_any(trace: Trace, call: int, blocks: Iterable[int]) -> bool:
    return any(trace.within(call, block) for block in blocks)


def _module(trace: Trace, index: int, reason: str) -> Found:
    call = trace.calls[index]
    output = call.outputs[0]
    assert output is not None
    shape_in, shape = trace.shapes[call.inputs[0]][1:], trace.shapes[output][1:]
    element = f"[1of{len(call.outputs)}]" if returns_one_in_sequence(trace, index) else ""
    return Found(call.path + element, shape_in, shape, reason, unit=index, position=call.end)


def _branches(
    network: nn.Module,
    trace: Trace,
    additions: Iterable[Addition],
    *,
    block: Found | None = None,
    holding: Iterable[int] = (),
) -> list[Found]:
    """Returns the branches that are added, each in place of a block, or each as one where they are outside of any.

    Args:
        network: the network that was traced.
        trace: its data flow.
        additions: where the branches are added.
        block: what they are branches of.
        holding: calls of blocks that a branch must not hold.
    """
    found = []
    for addition in additions:
        parts = branch_calls(network, trace, addition)
        if not parts:
            continue
        reason = why_branch_stays(network, trace, addition, parts)
        if any(trace.within(inner, part) for inner in holding for part in parts):
            reason = "holds residual blocks of its own"
        shape = trace.shapes[trace.ops[addition.op].outputs[0]][1:] if block is None else block.shape
        unit = -1 - addition.op if block is None else block.unit
        found.append(Found(branch_name(trace, addition, parts), shape, shape, reason, unit, addition.op))
    return found
