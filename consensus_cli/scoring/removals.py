"""Pruning step by step, with the user's own training in between."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models.classifier import network_of
from consensus_cli.models.copying import clone
from consensus_cli.models.macs import count_macs
from consensus_cli.pruning.blocks import find_blocks
from consensus_cli.pruning.folding import fold
from consensus_cli.pruning.healing import heal
from consensus_cli.pruning.refit import refit
from consensus_cli.pruning.replacement import check_replacement
from consensus_cli.pruning.schedule import Amounts, Schedule
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.ranking.consensus import Ranking
from consensus_cli.scoring.ranking.criteria import CONSENSUS, Criterion, of_schedule
from consensus_cli.scoring.samples import Batches, Samples
from consensus_cli.scoring.score import example_of, inputs_of, rank_blocks


@dataclass(frozen=True)
class Removal:
    """One round of `prune`.

    Attributes:
        model: the network, now without the blocks; the one that `prune` was given.
        removed: names of the blocks that have just gone.
        ranking: what they were chosen by.
    """

    model: nn.Module = field(repr=False)
    removed: tuple[str, ...]
    ranking: Ranking = field(repr=False)


def prune(
    model: nn.Module,
    samples: Samples | Batches,
    *,
    ratio: float | None = None,
    macs_ratio: float | None = None,
    until: Callable[[nn.Module], bool] | None = None,
    step: int = 1,
    min_blocks_per_stage: int = 1,
    granularity: str = "block",
    replace: str = "nothing",
    refit: bool = False,
    criterion: str | Criterion = CONSENSUS,
    seed: int = 0,
    **ranking: Any,
) -> Iterator[Removal]:
    """Removes blocks from a network, in place, and hands it over after each removal to be trained.

        for removal in prune(model, loader, ratio=0.5):
            train_my_way(removal.model)
            print(removal.removed)

    Args:
        model: any network with residual blocks; changed in place.
        samples: as for `rank_blocks`; a loader is read once, before the first removal.
        ratio: share of the blocks that can go, in (0, 1].
        macs_ratio: share of the MACs that goes, instead of `ratio`.
        until: instead of both, returns whether enough is gone, by whatever it measures of the network; asked before the
            first removal, and after each (with maps in place) before the network is handed over, refitted or folded.
        step: blocks that go in one removal.
        min_blocks_per_stage: blocks that each stage keeps, its first block included.
        granularity: `block`, or `branch` for attention and MLP of a transformer layer on their own.
        replace: what stands where a block stood: `nothing`, or the map that fits best on the samples, `scale` or
            `linear` (docs/healing.md). With `repair` of the same kind, blocks are judged with it. Give the network
            between removals no training then: the maps behind a removal are fitted anew. After the last one, they are
            folded into neighbouring layers where that is exact.
        refit: fit the layers behind the first removed block anew, on the samples, after the last removal; for networks
            that are not trained between removals either.
        criterion: as for `rank_blocks`.
        seed: likewise.
        ranking: further arguments of `rank_blocks`, such as `metrics` or `against`.

    Returns:
        The removals, each carried out when it is asked for.

    Raises:
        UserError: an argument that there is not, a ratio that cannot be reached (with `until` once no more block can
            go), or what `rank_blocks` raises.
    """
    known = inspect.signature(rank_blocks).parameters.keys() - {"blocks", "removed"}
    if unknown := ranking.keys() - known:
        known |= inspect.signature(prune).parameters.keys() - {"ranking"}
        raise unknown_name("argument of prune:", min(unknown), known - {"model", "samples"})
    for kind in (replace, ranking.get("repair", replace)):
        check_replacement(kind)
    if sum(goal is not None for goal in (ratio, macs_ratio, until)) != 1:
        raise UserError("prune takes one of ratio, macs_ratio and until", "ratio=0.5 removes half of the blocks")
    if step < 1:
        raise UserError(f"step is {step}", "at least one block goes in each removal")
    labelled = Samples.of(samples)
    example = example_of(model, labelled)
    blocks = find_blocks(network_of(model), example, granularity)
    network, removed = network_of(model), list[str]()
    amounts = None if macs_ratio is None else Amounts.of_macs(count_macs(network, example[:1]), blocks)
    enough = None if until is None else _asked_of(model, removed, until)
    share = next((share for share in (ratio, macs_ratio) if share is not None), 1.0)
    schedule = Schedule(blocks, share, step, min_blocks_per_stage, amounts, enough)
    schedule.check(type(model).__name__)
    how = {"criterion": of_schedule(criterion, schedule), "seed": seed, **ranking}
    if refit or replace != "nothing":
        how.setdefault("original", clone(model))
    return _removals(model, labelled, schedule, removed, replace=replace, refits=refit, how=how)


def _asked_of(
    model: nn.Module, removed: Sequence[str], until: Callable[[nn.Module], bool]
) -> Callable[[Sequence[str]], bool]:
    """Returns a `Schedule.enough` that asks `until` once for the network as it is; of others it knows nothing."""
    answers: dict[int, bool] = {}

    def enough(names: Sequence[str]) -> bool:
        if len(names) != len(removed):
            return False
        if len(names) not in answers:
            answers[len(names)] = until(model)
        return answers[len(names)]

    return enough


def _removals(
    model: nn.Module,
    samples: Samples,
    schedule: Schedule,
    removed: list[str],
    *,
    replace: str,
    refits: bool,
    how: dict[str, Any],
) -> Iterator[Removal]:
    def batches() -> Iterator[Tensor]:
        return inputs_of(model, samples)

    done = schedule.reached(removed)
    while not done:
        allowed = schedule.allowed(removed)
        if not allowed:
            raise UserError(
                f"all {len(removed)} blocks that can go are gone, and `until` asks for more",
                "ask for less, or lower min_blocks_per_stage",
            )
        ranking = rank_blocks(model, samples, blocks=allowed, removed=len(removed), **how)
        going = schedule.next([ranking.blocks[i] for i in ranking.order], removed)
        remove_blocks(model, going)
        removed += going
        if replace != "nothing":
            gone = [block.name for block in schedule.blocks if block.name in removed]
            first = min(map(gone.index, going))
            heal(network_of(model), network_of(how["original"]), gone[first:], batches, replace)
        done = schedule.reached(removed)
        if refits and done:
            refit(network_of(model), network_of(how["original"]), batches, maps=removed)
        if replace != "nothing" and done:
            fold(network_of(model), removed, batches)
        yield Removal(model, tuple(going), ranking)
