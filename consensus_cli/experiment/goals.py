"""What a run aims at where its cost is measured: whether a network has reached it, and whether any can."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from consensus_cli.config.schema import PruneConfig
from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.block_costs import pruned_copy
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.cost.quantities import COUNTED, MEASURED, written
from consensus_cli.evaluation.cost.savings import Conditions, Measured, measure
from consensus_cli.experiment.kept_costs import conditions
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.models.classifier import Classifier
from consensus_cli.pruning.replacement import install_forms

#: what decides is timed so many times as long as what is shown
_LONGER = 4


def measured(
    prepared: Prepared, names: Sequence[str], maps: Mapping[str, Any], meter: EnergyMeter, *, longer: bool = False
) -> Measured:
    """Returns what the network costs without blocks, and saves against the original, measured in turn.

    Args:
        prepared: what the run works on.
        names: of the blocks that are gone.
        maps: forms of the maps in their place, by block.
        meter: reads the energy.
        longer: take more time, for an interval that left the goal undecided.
    """
    under = _conditions(prepared, meter)
    under = replace(under, latency_s=(_LONGER**2 if longer else _LONGER) * under.latency_s)
    original, pruned = _without(prepared, [], {}), _without(prepared, names, maps)
    return measure(original, {"pruned": pruned}, prepared.config.prune.quantity, under)["pruned"]


def saved_besides(
    prepared: Prepared, names: Sequence[str], maps: Mapping[str, Any], others: Sequence[str], meter: EnergyMeter
) -> dict[str, float]:
    """Returns what each of some other blocks saves once blocks are gone, as a share of the original's cost.

    Savings add up roughly, and what was measured on a busy day holds roughly: for the last block that is not enough.
    Blocks that are the same work share their median, so that noise does not decide between them. What a map in the
    place of one of them would cost is left out.

    Args:
        prepared: what the run works on.
        names: of the blocks that are gone.
        maps: forms of the maps in their place, by block.
        others: names of the blocks that may go next.
        meter: reads the energy.
    """
    original, now = _without(prepared, [], {}), _without(prepared, names, maps)
    next_ones = {name: _without(prepared, [*names, name], maps) for name in others}
    networks = {"as it is": now, **next_ones}
    found = measure(original, networks, prepared.config.prune.quantity, _conditions(prepared, meter))
    counted = [prepared.amounts(unit).by_block for unit in COUNTED]
    works = {b.name: (b.stage, b.shape, *(amounts[b.name] for amounts in counted)) for b in prepared.blocks}
    shares: dict[object, list[float]] = defaultdict(list)
    for name in others:
        shares[works[name]].append(found[name].saving.share - found["as it is"].saving.share)
    return {name: statistics.median(shares[works[name]]) for name in others}


def _conditions(prepared: Prepared, meter: EnergyMeter) -> Conditions:
    config = prepared.config
    return conditions(config, prepared.images.test.image_shape, prepared.device, meter, prepared.threads)


def _without(prepared: Prepared, names: Sequence[str], maps: Mapping[str, Any]) -> Classifier:
    network = pruned_copy(prepared.original, names)
    install_forms(network.network, {name: form for name, form in maps.items() if name in names})
    return network


def is_reached(prune: PruneConfig, ratio: float, found: Measured) -> bool:
    """Returns whether a network saves enough, with the confidence asked for: the bad end of the interval counts."""
    amount = prune.amount
    return found.saving.low >= ratio if amount is None else found.high <= amount.value


def is_undecided(prune: PruneConfig, ratio: float, found: Measured) -> bool:
    """Returns whether the goal lies within the interval.

    Measured once more, each of the two must reach it with half of the risk that the confidence leaves, as the end of a
    two-sided interval does.
    """
    amount, saving = prune.amount, found.saving
    inside = saving.low < ratio <= saving.high if amount is None else found.low <= amount.value < found.high
    return inside and prune.quantity == "latency"


def left_to_save(prune: PruneConfig, ratio: float, found: Measured) -> float:
    """Returns the share of the original's cost that is still to be saved, above 0 until it is reached."""
    amount = prune.amount
    return ratio - found.saving.low if amount is None else (found.high - amount.value) / found.base


def in_words(quantity: str, found: Measured) -> str:
    """Returns what a network saves, such as `latency 5.31 ms → 4.07 ms, 23.4 % less [22.1, 24.9]`."""
    saving, before, after = found.saving, written(quantity, found.base), written(quantity, found.value)
    ends = f" [{100 * saving.low:.1f}, {100 * saving.high:.1f}]" if saving.low < saving.high else ""
    return f"{quantity} {before} → {after}, {100 * saving.share:.1f} % less{ends}"


def check_attainable(prepared: Prepared) -> None:
    """Checks, before anything expensive, that a measured goal can be reached at all: without every block that can go.

    Raises:
        UserError: it cannot, or the original is there already.
    """
    prune, quantity = prepared.config.prune, prepared.config.prune.quantity
    if quantity not in MEASURED:
        return
    meter, ratio = EnergyMeter(prepared.config.evaluate.country, device=prepared.device), prepared.config.ratios[-1]
    names = prepared.schedule(ratio, enough=lambda _: False).largest()
    found = measured(prepared, names, {}, meter)
    if is_undecided(prune, ratio, found):
        found = measured(prepared, names, {}, meter, longer=True)
    amount = prune.amount
    if amount is not None and found.base <= amount.value:
        raise UserError(
            f"prune.target={prune.target}: the original needs {written(quantity, found.base)} already "
            f"({_how(prepared)})",
            "ask for less",
        )
    if not is_reached(prune, ratio, found):
        raise out_of_reach(prepared, ratio, names, found)


def out_of_reach(prepared: Prepared, ratio: float, names: Sequence[str], found: Measured) -> UserError:
    """Returns the mistake of a goal that the network misses without all the blocks that can go."""
    prune = prepared.config.prune
    asked = f"prune.target={prune.target}" if prune.target else f"ratio={ratio:g} of the {prune.quantity}"
    hint = (
        f"ask for {written(prune.quantity, found.high)} or more"
        if prune.target
        else f"lower the ratio to {math.floor(1000 * max(0.0, found.saving.low)) / 1000:g}"
    )
    seconds = "a larger evaluate.latency_min_run_s narrows the interval"
    narrower = f"; {seconds}" if prune.quantity == "latency" else ""
    return UserError(
        f"{asked} is out of reach: without all {len(names)} blocks that can go, {in_words(prune.quantity, found)} "
        f"({_how(prepared)})",
        f"{hint}, or lower prune.min_blocks_per_stage{narrower}",
    )


def columns(prune: PruneConfig, found: Measured | None) -> dict[str, object]:
    """Returns what was aimed at, and what the network that reached it cost when it did; `found`: where measured."""
    about: dict[str, object] = {} if prune.target is None else {"target": prune.target}
    if found is None:
        return about
    quantity, unit = prune.quantity, MEASURED[prune.quantity].lower()
    return about | {
        f"goal_{quantity}_base_{unit}": found.base,
        f"goal_{quantity}_pruned_{unit}": found.value,
        f"goal_{quantity}_saved_pct": 100 * found.saving.share,
        f"goal_{quantity}_saved_low_pct": 100 * found.saving.low,
        f"goal_{quantity}_saved_high_pct": 100 * found.saving.high,
        "goal_confidence": prune.confidence,
        "goal_batch_size": prune.batch_size,
        "goal_runtime": prune.runtime,
        "goal_precision": prune.precision,
    }


def _how(prepared: Prepared) -> str:
    prune = prepared.config.prune
    how = f"{prepared.device}, batch {prune.batch_size}, {prune.runtime}, {prune.precision}"
    threads = torch.get_num_threads()
    return f"{how}, {threads} thread{'s' * (threads > 1)}" if prepared.device.type == "cpu" else how
