"""Numbers and tables as the document shows them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from consensus_cli.errors import UserError
from study.evidence import Estimate

MARKER = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_MEASURED = "*Not measured yet.*"


def filled(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Returns a document with its tables, between `<!-- table: NAME -->` and `<!-- end -->`, made anew.

    Raises:
        UserError: the document has a marker of an unknown table.
    """
    for match in MARKER.finditer(text):
        if match["name"] not in tables:
            raise UserError(f"unknown table '{match['name']}'", f"valid: {', '.join(tables)}")
    return MARKER.sub(lambda match: f"{match[1]}{tables[match['name']]()}\n{match[3]}", text)


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
