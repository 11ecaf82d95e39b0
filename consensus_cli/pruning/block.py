"""A residual block, as the rest of the package knows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A residual block: a part of a network with a shortcut around it.

    Attributes:
        name: unique; what the column `removed_blocks` records. The dotted path of the block's module in the network,
            or, for a branch without a module of its own, the form described in `surgery`.
        stage: 0-based index of the stage; a stage starts where the shape of the features changes.
        shape: shape of the features that the block returns, without the batch dimension.
        removable: whether the block can be replaced by its shortcut.
        reason: why it cannot be; empty where it can.
    """

    name: str
    stage: int
    shape: tuple[int, ...]
    removable: bool
    reason: str = ""

    @property
    def is_branch(self) -> bool:
        """Whether it is a branch without a module of its own."""
        return "+" in self.name
