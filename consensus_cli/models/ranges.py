"""Which values an option can take, of a run or in Python: every one out of range is found at once.

The rules stand beside the fields of the dataclasses, `field(metadata=...)`; null passes:
`choices` (one of them), `range` (from the first number to the second), `above` and `below` (exclusive), `but` (the
number that is left out), `order` (of a list: `increasing` or `distinct`, and not empty), `why` (a reason to show) and
`own` (text of the user's own, such as a path: never empty). Those of a list or dictionary hold for each of its items.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any

from consensus_cli.errors import ConfigError, UserError, unknown_name

#: a value that must be given, as OmegaConf writes it; the library does without OmegaConf
MISSING: Any = "???"

_EVERYWHERE = (-math.inf, math.inf)


def check(node: Any) -> None:
    """Checks the values of a dataclass.

    Raises:
        ConfigError: names every value that is out of range.
    """
    if found := list(problems(node)):
        raise ConfigError(found)


def problems(node: Any, prefix: str = "") -> Iterator[UserError]:
    """Yields every value of a dataclass that is out of range; keys begin with the prefix."""
    for item in fields(node):
        yield from _value_problems(f"{prefix}{item.name}", getattr(node, item.name), item.metadata)


def _value_problems(key: str, value: Any, rules: Mapping[str, Any]) -> Iterator[UserError]:
    if is_dataclass(value):
        yield from problems(value, f"{key}.")
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _value_problems(f"{key}.{name}", entry, rules)
    elif value is None:
        return
    elif value == "" and "own" in rules:
        yield UserError(f"{key} is empty", f"write {key}=NAME, or leave it out")
    elif "choices" in rules:
        for item in value if isinstance(value, list) else [value]:
            # As YAML writes true and false.
            if (said := str(item).lower() if isinstance(item, bool) else item) not in rules["choices"]:
                yield unknown_name(key, said, rules["choices"])
    elif not _fits(value, rules):
        finite = " and finite" if value in (math.inf, -math.inf) else ""
        yield UserError(f"{key}={value} is out of range", f"{key} must be {_in_words(rules)}{finite}")


def _fits(value: Any, rules: Mapping[str, Any]) -> bool:
    if isinstance(value, list | tuple):
        order = rules.get("order")
        increasing = order != "increasing" or all(low < high for low, high in itertools.pairwise(value))
        distinct = order != "distinct" or len(set(value)) == len(value)
        return increasing and distinct and bool(value or not order) and all(_fits(item, rules) for item in value)
    if not {"range", "above", "below"} & rules.keys():
        return True
    low, high = rules.get("range", _EVERYWHERE)
    above, below = rules.get("above", -math.inf), rules.get("below", math.inf)
    number = isinstance(value, Real) and math.isfinite(value)
    return bool(number and low <= value <= high and above < value < below and value != rules.get("but"))


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
