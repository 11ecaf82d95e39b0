"""Numbers and tables as the document shows them."""

from __future__ import annotations

from collections.abc import Sequence

from study.evidence import Estimate


def number(value: float) -> str:
    """Returns two decimals with a real minus sign."""
    # What rounds to zero has no sign.
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def estimate(value: Estimate) -> str:
    """Returns `mean [low, high]`."""
    return f"{number(value.mean_pp)} [{number(value.low_pp)}, {number(value.high_pp)}]"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first column is left-aligned."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
