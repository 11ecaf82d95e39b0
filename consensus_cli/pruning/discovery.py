"""From residual additions to blocks: the modules that are blocks, and the branches that have no module of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from consensus_cli.pruning.additions import Addition, Shortcut, find_additions, shortcut_through
from consensus_cli.pruning.branches import BranchTrials, branch_calls, branch_name
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


def discover(network: nn.Module, example: Tensor, trace: Trace, split: bool) -> list[Found]:
    """Returns every residual block of a traced network in order of execution, each once.

    Args:
        network: the network that was traced.
        example: (n, ...) what it was traced on; used to try branches out.
        trace: its data flow.
        split: whether a block with several additions is listed as its branches.
    """
    additions = find_additions(trace)
    blocks = _block_calls(network, trace, additions)
    trials = BranchTrials(network, example, trace)
    found = [_module(trace, call, "has no shortcut") for call in _siblings(network, trace, blocks)]
    for call, shortcut in blocks.items():
        reason = why_module_stays(network, trace, call, shortcut)
        branches: list[Found] = []
        if split and not reason and len(shortcut.additions) > 1:
            branches = list(_branches_of_block(trace, trials, call, shortcut.additions))
        elif reason and not trace.calls[call].returns_tensor:
            # In its own form (a dictionary, features beside a mask) it can go on returning what it is given.
            branches = list(_branches_of_block(trace, trials, call, shortcut.additions))
            branches = [] if any(branch.reason for branch in branches) else branches
        found += branches or [_module(trace, call, reason)]
    loose = (a for a in additions.values() if not _inside_any(trace, a.owner, blocks))
    found += _loose_branches(trace, trials, loose, blocks)
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


def _branches_of_block(trace: Trace, trials: BranchTrials, call: int, additions: Iterable[Addition]) -> Iterable[Found]:
    shape = _module(trace, call, "").shape
    for addition in additions:
        parts = branch_calls(trials.network, trace, addition)
        if parts:
            name = branch_name(trace, addition, parts)
            yield Found(name, shape, shape, trials.why_stays(addition, parts), call, addition.op)


def _loose_branches(
    trace: Trace, trials: BranchTrials, additions: Iterable[Addition], blocks: dict[int, Shortcut]
) -> Iterable[Found]:
    """Yields the branches that are added outside of any block's module, each as a block of its own."""
    for addition in additions:
        parts = branch_calls(trials.network, trace, addition)
        if not parts:
            continue
        shape = trace.shapes[trace.ops[addition.op].outputs[0]][1:]
        holds_block = any(trace.within(block, part) for block in blocks for part in parts)
        reason = "holds residual blocks of its own" if holds_block else trials.why_stays(addition, parts)
        yield Found(branch_name(trace, addition, parts), shape, shape, reason, -1 - addition.op, addition.op)
