"""Residual blocks of a network: found by structure, in any network, with nothing written per architecture."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.modes import answer
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.discovery import Found, discover
from consensus_cli.pruning.silencing import randomness_kept
from consensus_cli.pruning.trace import trace
from consensus_cli.pruning.trials import tried

__all__ = ["GRANULARITIES", "Block", "candidates", "check_candidates", "find_blocks"]

GRANULARITIES = ("block", "branch")

_BRANCH_CAN_GO = "its branch can go by itself: prune.granularity=branch"

_WHAT_CAN_GO = "consensus removes residual blocks with an identity shortcut, as in ResNet, MobileNetV2, ConvNeXt, ViT"


@randomness_kept()
def find_blocks(model: nn.Module, example: Tensor, granularity: str = "block", *, verify: bool = True) -> list[Block]:
    """Finds every residual block of a network, in order of execution, removable or not.

        blocks = find_blocks(resnet, torch.rand(2, 3, 32, 32))
        remove_blocks(resnet, [block for block in blocks if block.removable and block.stage == 2])

    A block is the smallest module whose output is its input plus a branch (or several in sequence: the attention and
    the MLP of an encoder layer), possibly followed by an activation. Where no module is that, as in
    `x = x + self.res(x)` in the network's own forward, the branch is the block. Modules of the same class that only
    lack the shortcut, because they change the shape, count as blocks of their stage, but stay.

    The first block of each stage is kept: the one that changes the shape, or else the first after the change.

    What looks like a candidate is tried: without it, bypassed or really removed, the network must answer as it does
    when the branch adds nothing, and train. Where it does not, the block stays, with the reason. That takes some
    fifteen forward passes, and five for each further class of blocks.

    Args:
        model: any module that maps (n, ...) to an output, in train or eval mode; it is left as it is, for a copy runs.
            Of a `Classifier` (see `normalized`), the blocks are those of the network in it.
        example: (n, ...) a few inputs on the model's device; random ones will do.
        granularity: `block`, or `branch` to list the branches of a block with several additions one by one, and those
            of a block that cannot go as a whole.
        verify: whether candidates are tried; without it, the network runs once, and what it computes is believed.

    Raises:
        UserError: unknown granularity, or the network has no residual blocks.
    """
    if granularity not in GRANULARITIES:
        raise unknown_name("granularity", granularity, GRANULARITIES)
    if isinstance(model, Classifier):
        with torch.no_grad():
            example = model.inputs(example)
        model = model.network
    # A network may keep what its first forward pass computes, from weights that it does not have for long.
    copied = clone(model)
    if any(map(is_lazy, copied.parameters())):
        # Layers that take their size from their first input get it outside of the trace.
        answer(copied, example)
    seen = trace(copied, example)
    # A network of TorchScript cannot be followed.
    found = discover(copied, seen, granularity == "branch") if seen.calls else []
    if not found:
        raise UserError(f"{type(model).__name__} has no residual blocks", _WHAT_CAN_GO)

    def checked(listed: list[Block]) -> list[Block]:
        return tried(copied, example, seen, listed) if verify else listed

    blocks = checked(_number_stages(found))
    known = {block.name: block for block in blocks}
    firsts = {block.stage: block.name for block in reversed(blocks)}
    needed = {b.name: b.reason for b in blocks if not (b.removable or b.is_branch or firsts[b.stage] == b.name)}
    if not needed:
        return blocks
    again = _number_stages(discover(copied, seen, True, needed))
    # Branches of other blocks are for `granularity="branch"` alone.
    wholes = {name.partition("[")[0] for name in needed}
    untried = [b for b in again if b.removable and b.name not in known and b.name.partition("+")[0] in wholes]
    can_go = {block.name: block for block in checked(untried) if block.removable}
    if not can_go:
        return blocks
    if granularity == "branch":
        return [can_go.get(block.name) or known.get(block.name) or block for block in again]
    owners = {name.partition("+")[0] for name in can_go}
    named = {name: replace(known[name], reason=f"{reason}; {_BRANCH_CAN_GO}") for name, reason in needed.items()}
    return [named[b.name] if b.name in named and b.name.partition("[")[0] in owners else b for b in blocks]


def candidates(blocks: Iterable[Block]) -> list[Block]:
    """Returns the blocks that can be removed, in order of execution."""
    return [block for block in blocks if block.removable]


def check_candidates(blocks: Sequence[Block]) -> None:
    """Checks that there is something to remove.

    Raises:
        UserError: none of the blocks, of which there is at least one, can be removed.
    """
    if not candidates(blocks):
        # The last: the first of a stage would stay anyway.
        last = f"{blocks[-1].name} ({blocks[-1].reason})"
        raise UserError(
            f"none of the {len(blocks)} residual blocks of the network can be removed, e.g. {last}", _WHAT_CAN_GO
        )


def _number_stages(found: list[Found]) -> list[Block]:
    """Numbers the stages and marks the first block of each as kept."""
    blocks: list[Block] = []
    stage, first_unit = -1, None
    shape: tuple[int, ...] = (0,)
    for part in found:
        changes = not _same_but_for_layout(part.shape_in, part.shape)
        if changes or not _same_but_for_layout(part.shape, shape):
            stage, shape, first_unit = stage + 1, part.shape, part.unit
        block = Block(part.name, stage, part.shape, not part.reason, part.reason)
        if part.unit == first_unit:
            why = "changes the shape: " if changes else part.reason and f"{part.reason}: "
            block = replace(block, removable=False, reason=f"{why}first block of stage {stage + 1}")
        blocks.append(block)
    return blocks


def _same_but_for_layout(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes differ in the order of their dimensions at most, or in whether rows and columns are one."""
    fewer, more = sorted((one, other), key=len)
    if len(more) - len(fewer) > 1 or len(more) > 4:
        return one == other
    merged = [(a * b, *rest) for a, b, *rest in itertools.permutations(more)] if len(fewer) < len(more) else [more]
    return any(sorted(shape) == sorted(fewer) for shape in merged)
