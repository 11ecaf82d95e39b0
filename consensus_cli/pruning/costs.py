"""What each block costs in multiply-accumulate operations (MACs)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from consensus_cli.pruning.blocks import Block
from consensus_cli.pruning.surgery import parts_of
from consensus_cli.torch_modes import evaluating, unfused_attention


def block_costs(network: nn.Module, example: Tensor, blocks: Iterable[Block]) -> dict[str, int]:
    """Returns the MACs of each block for one sample, by name: convolutions, linear layers and matrix products.

    PyTorch's own counter attributes operations to modules in one forward pass; it counts a multiply-accumulate as two
    flops, and nothing else as any, so that half of them are the MACs that papers call FLOPs.

    Args:
        network: the network that the blocks were found in.
        example: (n, ...) a batch on the network's device; its first sample is used.
        blocks: blocks of `find_blocks`; the cost of a branch is that of its modules.
    """
    counter = FlopCounterMode(display=False)
    with evaluating(network), unfused_attention(), counter:
        network(example[:1])
    flops = {path.partition(".")[2]: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    return {block.name: sum(flops[path] // 2 for path in parts_of(block.name) if path in flops) for block in blocks}
