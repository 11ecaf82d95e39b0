"""What each block costs in multiply-accumulate operations (MACs)."""

from __future__ import annotations

from collections.abc import Iterable

from consensus_cli.models.macs import MacCount
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.surgery import parts_of


def block_costs(count: MacCount, blocks: Iterable[Block]) -> dict[str, int]:
    """Returns the MACs of each block, by name; the cost of a branch is that of its modules.

    Args:
        count: the MACs of the network that the blocks were found in.
        blocks: blocks of `find_blocks`.
    """
    return {block.name: sum(count.by_module.get(path, 0) for path in parts_of(block.name)) for block in blocks}
