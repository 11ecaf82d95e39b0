"""How many blocks go, which may go next, and what each costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.models.macs import MacCount
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.blocks import candidates, check_candidates
from consensus_cli.pruning.surgery import count_parameters, own_parameters, parts_of


@dataclass(frozen=True)
class Amounts:
    """What the blocks of a network cost, where that can be counted.

    Attributes:
        unit: `macs` or `params`.
        total: of the whole network.
        by_block: what the network has less without each block, by name.
        uncounted: what the total leaves out, for messages.
    """

    unit: str
    total: int
    by_block: Mapping[str, int]
    uncounted: Sequence[str] = ()

    @classmethod
    def of_macs(cls, count: MacCount, blocks: Iterable[Block], kept: Mapping[str, int] | None = None) -> Amounts:
        """Returns MACs, given `count_macs` of the original network and what stays in a block's place, by block."""
        costs = block_costs(count, blocks)
        by_block = {name: macs - (kept or {}).get(name, 0) for name, macs in costs.items()}
        return cls("macs", count.total, by_block, count.uncounted)

    @classmethod
    def of_params(cls, network: nn.Module, blocks: Iterable[Block]) -> Amounts:
        """Returns parameters; those that a block shares with what is left do not go with it."""
        total = count_parameters(network)
        return cls("params", total, {block.name: own_parameters(network, block.name) for block in blocks})


@dataclass(frozen=True)
class Schedule:
    """How far a network is pruned, and by how much at once. It changes nothing and keeps no state.

        schedule, removed = Schedule(find_blocks(model, images), ratio=0.5), []
        while not schedule.reached(removed):
            names = [block.name for block in schedule.allowed(removed)]
            going = schedule.next(rank(names), removed)    # the least important first
            remove_blocks(model, going)
            removed += going

    Attributes:
        blocks: every block of the original network, as `find_blocks` returns them.
        ratio: share that goes in all, in (0, 1]: of the candidates (halves rounded up), or of the amounts where they
            are given.
        step: how many blocks go in one removal, at least 1; the last removal may be smaller.
        min_blocks_per_stage: blocks that each stage keeps, its first block included.
        amounts: what the ratio is a share of: MACs or parameters.
        enough: says whether the network is pruned far enough without blocks of these names, where that is measured;
            amounts then only tell which blocks cost most.
    """

    blocks: Sequence[Block]
    ratio: float
    step: int = 1
    min_blocks_per_stage: int = 1
    amounts: Amounts | None = None
    enough: Callable[[Sequence[str]], bool] | None = None

    @property
    def candidates(self) -> list[Block]:
        """The blocks of the original network that can go, in order of execution."""
        return candidates(self.blocks)

    @property
    def target_blocks(self) -> int:
        """How many blocks go in all, where the ratio is a share of the candidates."""
        return blocks_to_remove(self.ratio, len(self.candidates))

    def check(self, name: str = "the network") -> None:
        """Checks that as much as asked for can go.

        Args:
            name: what the message calls the network.

        Raises:
            UserError: no block can be removed; the ratio lies outside (0, 1], asks for no block or for more than the
                stages can lose, or is a share of the MACs of a network without any.
        """
        check_candidates(self.blocks)
        asked, total, most = self.target_blocks, self._total, sum(self._costs[name] for name in self.largest())
        if self.enough is not None:
            if not self.largest():
                raise UserError(
                    f"min_blocks_per_stage={self.min_blocks_per_stage} lets no block go",
                    "lower prune.min_blocks_per_stage",
                )
        elif self.amounts is not None:
            self._check_amounts(self.amounts, name, most)
        elif asked > most:
            raise UserError(
                f"ratio {self.ratio:g} asks for {asked} of {total} blocks; "
                f"min_blocks_per_stage={self.min_blocks_per_stage} lets {most} go",
                f"lower the ratio to {most / total:.3f} or prune.min_blocks_per_stage",
            )
        elif asked == 0:
            raise UserError(f"ratio {self.ratio:g} of {total} blocks removes none", f"use at least {0.5 / total:.3f}")

    def reached(self, removed: Iterable[str]) -> bool:
        """Returns whether enough is gone, given the names of the blocks that are gone."""
        if self.enough is not None:
            return self.enough(list(removed))
        gone = sum(self._costs[name] for name in removed)
        if self.amounts is None:
            return gone >= self.target_blocks
        return self._total - gone <= (1 - self.ratio) * self._total

    def allowed(self, removed: Collection[str]) -> list[Block]:
        """Returns the candidates that may go now, in order of execution, given the names of those that are gone."""
        return allowed(self.blocks, removed, self.min_blocks_per_stage)

    def left(self, removed: Iterable[str]) -> float:
        """Returns the share, of what the ratio is a share of, that is still to go."""
        return self.ratio - sum(self._costs[name] for name in removed) / self._total

    def most_in_stage(self, removed: Collection[str]) -> dict[int, int]:
        """Returns how many blocks of each stage may go now, given the names of those that are gone."""
        in_stage = Counter(block.stage for block in self.blocks if block.name not in removed)
        return {stage: max(0, count - self.min_blocks_per_stage) for stage, count in in_stage.items()}

    def next(self, order: Iterable[str], removed: Sequence[str]) -> list[str]:
        """Returns the names of the blocks that go in the next removal: `step` of them, fewer where that is enough.

        Args:
            order: names of blocks, the least important first; those that may not go are passed over.
            removed: names of the blocks that are gone.
        """
        going: list[str] = []
        for name in order:
            gone = [*removed, *going]
            if len(going) == self.step or self.reached(gone):
                break
            if name in {block.name for block in self.allowed(gone)}:
                going.append(name)
        return going

    def evenly_spaced(self) -> list[str]:
        """Returns the names of all candidates, those first whose removal reaches the ratio evenly over the depth.

        How many these are is `target_blocks`, or where the ratio is a share of the MACs, the smallest number that
        reaches it; their places and order are those of `spread`.
        """
        names = [block.name for block in self.candidates]
        by_blocks = self.amounts is None and self.enough is None
        counts = [self.target_blocks] if by_blocks else range(1, len(names) + 1)
        for count in counts:
            order = [names[place] for place in spread(len(names), count)]
            going: list[str] = []
            for name in order:
                if len(going) < count and name in {block.name for block in self.allowed(going)}:
                    going.append(name)
            if self.reached(going):
                break
        return order

    @cached_property
    def _costs(self) -> dict[str, int]:
        """By how many blocks, or of the amounts, the network shrinks without each block."""
        return {block.name: 1 for block in self.blocks} if self.amounts is None else dict(self.amounts.by_block)

    @property
    def _total(self) -> int:
        return len(self.candidates) if self.amounts is None else self.amounts.total

    def largest(self) -> list[str]:
        """Returns as many blocks as can go in all before every stage is at its minimum, of each those that cost most.

        They stand in order of execution.
        """
        going: set[str] = set()
        for stage, size in Counter(block.stage for block in self.blocks).items():
            names = [block.name for block in self.candidates if block.stage == stage]
            names.sort(key=self._costs.__getitem__, reverse=True)
            going.update(names[: max(0, size - self.min_blocks_per_stage)])
        return [block.name for block in self.blocks if block.name in going]

    def _check_amounts(self, amounts: Amounts, name: str, most_amount: int) -> None:
        if amounts.total == 0:
            left_out = f" (they leave out {', '.join(amounts.uncounted)})" if amounts.uncounted else ""
            raise UserError(
                f"prune=macs needs MACs; {name} has none that are counted{left_out}",
                "remove a share of the blocks instead: prune=blocks",
            )
        most, what = most_amount / amounts.total, {"macs": "MACs", "params": "parameters"}[amounts.unit]
        if self.ratio > most:
            raise UserError(
                f"ratio={self.ratio:g} asks for {self.ratio:.1%} fewer {what}; at most {most:.1%} can go",
                f"lower the ratio to {most:.3f} or prune.min_blocks_per_stage",
            )


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


def spread(places: int, going: int) -> list[int]:
    """Returns all of 0 … places − 1, those first that are evenly spaced: the middles of `going` equal parts.

    These are ⌊(i + ½) · places / going⌋ for i = 0 … going − 1, in van der Corput's order (i by its reversed bits), so
    that the first of them, however many, are spread widely as well. The others follow from front to back.

    Example:
        >>> spread(8, 4)
        [1, 5, 3, 7, 0, 2, 4, 6]

    Args:
        places: how many there are.
        going: how many of them are to be evenly spaced, from 1 to `places`.
    """
    bits = (going - 1).bit_length()
    turns = sorted(range(going), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    first = [(2 * i + 1) * places // (2 * going) for i in turns]
    return first + sorted(set(range(places)) - set(first))


def allowed(blocks: Iterable[Block], removed: Collection[str], min_blocks_per_stage: int) -> list[Block]:
    """Returns the candidates that may go now, in order of execution; arguments as in `Schedule`."""
    left = [block for block in blocks if block.name not in removed]
    in_stage = Counter(block.stage for block in left)
    return [block for block in left if block.removable and in_stage[block.stage] > min_blocks_per_stage]


def block_costs(count: MacCount, blocks: Iterable[Block]) -> dict[str, int]:
    """Returns the MACs of each block, by name; the cost of a branch is that of its modules.

    Args:
        count: the MACs of the network that the blocks were found in.
        blocks: blocks of `find_blocks`.
    """
    return {block.name: sum(count.by_module.get(path, 0) for path in parts_of(block.name)) for block in blocks}
