"""Finding residual blocks in a network, removing them for real, and planning how many go per removal."""

from consensus_cli.pruning.block import Block
from consensus_cli.pruning.blocks import candidates, find_blocks
from consensus_cli.pruning.schedule import Schedule
from consensus_cli.pruning.surgery import bypassed, remove_blocks

__all__ = ["Block", "Schedule", "bypassed", "candidates", "find_blocks", "remove_blocks"]
