"""What a network costs, and amounts of it in the units of people: `8 ms`, `5 MB`, `40 MMACs`. Imports no PyTorch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from consensus_cli.errors import UserError, unknown_name

#: what is counted -> what counts it
COUNTED = {"macs": "MACs", "params": "params"}
#: what is measured -> its unit, per forward pass of one batch
MEASURED = {"latency": "ms", "energy": "J", "memory": "MiB"}
QUANTITIES = (*COUNTED, *MEASURED)

_THOUSANDS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
#: unit -> (quantity, how many of its own units this one is)
UNITS: dict[str, tuple[str, float]] = {
    **{f"{prefix}MACs": ("macs", factor) for prefix, factor in _THOUSANDS.items()},
    **{f"{prefix}params": ("params", factor) for prefix, factor in _THOUSANDS.items()},
    **{"us": ("latency", 1e-3), "µs": ("latency", 1e-3), "ms": ("latency", 1.0), "s": ("latency", 1e3)},
    **{"mJ": ("energy", 1e-3), "J": ("energy", 1.0), "kJ": ("energy", 1e3)},
    **{"mWh": ("energy", 3.6), "Wh": ("energy", 3.6e3)},
    **{"B": ("memory", 2**-20), "kB": ("memory", 1e3 / 2**20), "KiB": ("memory", 2**-10)},
    **{"MB": ("memory", 1e6 / 2**20), "MiB": ("memory", 1.0), "GB": ("memory", 1e9 / 2**20), "GiB": ("memory", 2**10)},
}


@dataclass(frozen=True)
class Amount:
    """So much of what a network costs.

        >>> Amount.parse("prune.target", "0.3 M params")
        Amount(quantity='params', value=300000.0)

    Attributes:
        quantity: one of `QUANTITIES`.
        value: above 0, in the quantity's own unit: MACs, parameters, ms, J or MiB.
    """

    quantity: str
    value: float

    @classmethod
    def parse(cls, key: str, text: str) -> Amount:
        """Returns the amount in a text; blanks do not count.

        Args:
            key: the setting that the text is of, for messages.
            text: a number and a unit of `UNITS`.

        Raises:
            UserError: it is something else, or not above 0.
        """
        example = f"write a number and a unit, such as {key}='8 ms'; units: {', '.join(UNITS)}"
        match = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(.*)", re.sub(r"\s", "", text))
        if match is None:
            raise UserError(f"{key}={text} is not a number with a unit", example)
        number, unit = float(match[1]), match[2]
        if not unit:
            raise UserError(f"{key}={text} has no unit", example)
        if unit not in UNITS:
            raise unknown_name(f"unit of {key}", unit, UNITS)
        if not (number > 0 and math.isfinite(number)):
            raise UserError(f"{key}={text} is not above 0", "it is what the pruned network may cost at most")
        quantity, factor = UNITS[unit]
        return cls(quantity, number * factor)


def written(quantity: str, value: float) -> str:
    """Returns an amount, given in the quantity's own unit, for people: three digits and a unit.

    >>> written("macs", 31_360_000), written("latency", 8.125)
    ('31.4 MMACs', '8.12 ms')
    """
    if quantity in MEASURED:
        return f"{value:.3g} {MEASURED[quantity]}"
    prefix = max((p for p, factor in _THOUSANDS.items() if factor <= max(1, value)), key=_THOUSANDS.__getitem__)
    return f"{value / _THOUSANDS[prefix]:.3g} {prefix}{COUNTED[quantity]}"
