"""Which values a configuration can take: every one out of range is found at once, without touching a file.

The rules stand beside the fields of the dataclasses, `field(metadata=...)`; null passes where the type allows it:
`choices` (one of them), `range` (from the first number to the second), `above` and `below` (exclusive), `but` (the
number that is left out), `order` (of a list: `increasing` or `distinct`, and not empty), `why` (a reason to show) and
`own` (text of the user's own, such as a path: never empty). Those of a list or dictionary hold for each of its items.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from consensus_cli.config.schema import RunConfig
from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models import normalization

_EVERYWHERE = (-math.inf, math.inf)


def problems(config: RunConfig) -> list[UserError]:
    """Returns every value that is out of range, without touching a file, the data or a device."""
    found = [*_out_of_range(config), *normalization.problems(config.model.mean, config.model.std)]
    if config.criterion.name == "consensus" and not any(config.metrics.weights.values()):
        found.append(UserError("metrics.weights leaves no metric to vote", "give at least one metric a weight above 0"))
    if config.finetune.span == "run" and config.prune.unit != "blocks":
        found.append(
            UserError(
                "finetune.span=run needs prune.unit=blocks: how many steps a MACs target takes is not known before",
                "use finetune.span=step",
            )
        )
    if config.finetune.span == "run" and len(config.ratios) > 1:
        found.append(
            UserError(
                "finetune.span=run fits one ratio: a schedule over the run ends at the last one, not at those before",
                "sweep over the ratios instead (-m ratio=0.25,0.5), or use finetune.span=step",
            )
        )
    for node, recipe in (("baseline", config.baseline), ("finetune", config.finetune)):
        if 2 <= recipe.batch_size < 2 * recipe.accumulate_batches:
            found.append(
                UserError(
                    f"{node}.accumulate_batches={recipe.accumulate_batches} leaves micro-batches of 1 image",
                    f"lower it to {recipe.batch_size // 2}, or raise {node}.batch_size",
                )
            )
    return found


def _out_of_range(node: Any, prefix: str = "") -> Iterator[UserError]:
    for item in fields(node):
        yield from _value_problems(f"{prefix}{item.name}", getattr(node, item.name), item.metadata)


def _value_problems(key: str, value: Any, rules: Mapping[str, Any]) -> Iterator[UserError]:
    if is_dataclass(value):
        yield from _out_of_range(value, f"{key}.")
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _value_problems(f"{key}.{name}", entry, rules)
    elif value is None:
        return
    elif value == "" and "own" in rules:
        yield UserError(f"{key} is empty", f"write {key}=NAME, or leave it out")
    elif "choices" in rules:
        # As YAML writes true and false.
        if (said := str(value).lower() if isinstance(value, bool) else value) not in rules["choices"]:
            yield unknown_name(key, said, rules["choices"])
    elif not _fits(value, rules):
        yield UserError(f"{key}={value} is out of range", f"{key} must be {_in_words(rules)}")


def _fits(value: Any, rules: Mapping[str, Any]) -> bool:
    if isinstance(value, list):
        if "order" in rules and not value:
            return False
        if rules.get("order") == "increasing" and any(low >= high for low, high in itertools.pairwise(value)):
            return False
        if rules.get("order") == "distinct" and len(set(value)) < len(value):
            return False
        return all(_fits(item, rules) for item in value)
    if not {"range", "above", "below"} & rules.keys():
        return True
    low, high = rules.get("range", _EVERYWHERE)
    above, below = rules.get("above", -math.inf), rules.get("below", math.inf)
    return bool(low <= value <= high and above < value < below and value != rules.get("but"))


def _in_words(rules: Mapping[str, Any]) -> str:
    """Returns the rules of a number, as in `above 0 and at most 100`."""
    low, high = rules.get("range", _EVERYWHERE)
    if {"above", "below"} & rules.keys() or math.inf in (-low, high):
        words = [f"above {rules['above']}"] if "above" in rules else [f"at least {low}"] if low > -math.inf else []
        words += [f"below {rules['below']}"] if "below" in rules else [f"at most {high}"] if high < math.inf else []
    else:
        words = [f"from {low} to {high}"]
    if "but" in rules:
        words.append(f"not {rules['but']}")
    each = ", in increasing order" if rules.get("order") == "increasing" else ", each once" if "order" in rules else ""
    return " and ".join(words) + each + (f" ({rules['why']})" if "why" in rules else "")
