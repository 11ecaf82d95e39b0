"""How many blocks go, and which may go next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from consensus_cli.errors import UserError
from consensus_cli.pruning.block import Block


def blocks_to_remove(ratio: float, candidates: int) -> int:
    """Returns the share of the candidates as a number of blocks, halves rounded up.

    Args:
        ratio: share of the candidates, in (0, 1].
        candidates: how many blocks could go, at least 0.

    Raises:
        UserError: ratio outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise UserError(f"ratio is {ratio:g}", "the share of blocks to remove lies in (0, 1], e.g. ratio=0.5")
    return math.floor(ratio * candidates + 0.5)


def allowed(blocks: Iterable[Block], removed: Collection[str], min_blocks_per_stage: int) -> list[Block]:
    """Returns the candidates that may go now, in order of execution.

    Args:
        blocks: every block of the unpruned network, as `find_blocks` returns them.
        removed: names of those that are gone.
        min_blocks_per_stage: blocks that a stage keeps, its first block included.
    """
    left = [block for block in blocks if block.name not in removed]
    in_stage = Counter(block.stage for block in left)
    return [block for block in left if block.removable and in_stage[block.stage] > min_blocks_per_stage]


def most_removable(blocks: Iterable[Block], min_blocks_per_stage: int) -> int:
    """Returns how many candidates can go in all before every stage is at its minimum."""
    blocks = list(blocks)
    in_stage = Counter(block.stage for block in blocks)
    movable = Counter(block.stage for block in blocks if block.removable)
    return sum(min(movable[stage], max(0, in_stage[stage] - min_blocks_per_stage)) for stage in movable)


def check_enough_blocks(ratio: float, blocks: Iterable[Block], min_blocks_per_stage: int) -> int:
    """Returns the number of blocks that a ratio asks for, having made sure that they can go.

    Args:
        ratio: share of the candidates, in (0, 1].
        blocks: every block of the unpruned network.
        min_blocks_per_stage: blocks that a stage keeps, its first block included.

    Raises:
        UserError: the ratio asks for no block, or for more than the stages can lose.
    """
    blocks = list(blocks)
    total = sum(block.removable for block in blocks)
    asked, possible = blocks_to_remove(ratio, total), most_removable(blocks, min_blocks_per_stage)
    if asked > possible:
        raise UserError(
            f"ratio {ratio:g} asks for {asked} of {total} blocks; min_blocks_per_stage={min_blocks_per_stage} "
            f"lets {possible} go",
            f"lower the ratio to {possible / total:.3f} or prune.min_blocks_per_stage",
        )
    if asked == 0:
        raise UserError(f"ratio {ratio:g} of {total} blocks removes none", f"use at least {0.5 / total:.3f}")
    return asked


def most_macs_removable(blocks: Iterable[Block], costs: Mapping[str, int], min_blocks_per_stage: int) -> int:
    """Returns the most MACs that can go before every stage is at its minimum.

    Args:
        blocks: every block of the unpruned network.
        costs: MACs of each block, by name.
        min_blocks_per_stage: blocks that a stage keeps, its first block included.
    """
    blocks = list(blocks)
    in_stage = Counter(block.stage for block in blocks)
    most = 0
    for stage, size in in_stage.items():
        movable = sorted((costs[b.name] for b in blocks if b.stage == stage and b.removable), reverse=True)
        most += sum(movable[: max(0, size - min_blocks_per_stage)])
    return most
