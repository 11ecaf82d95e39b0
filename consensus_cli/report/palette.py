"""How a line looks: a colour that colour-blind readers can tell apart, and a dash and a marker that survive grey."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

#: Okabe & Ito (2008) without black and yellow, which vanish on one of the two backgrounds, and a grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
#: from the same set, neighbours in a bar being as far apart in lightness as can be
PHASE_COLOURS = ("#0072B2", "#F0E442", "#D55E00", "#56B4E9", "#009E73", "#E69F00")
#: what belongs to no series; seen on both backgrounds
NEUTRAL = "#8C8C8C"
#: the colour scale of importance: even in lightness, so it reads in grey and by colour-blind readers
SCALE = "cividis"
#: (Vega shape, matplotlib marker, character)
_MARKERS = (
    ("circle", "o", "●"),
    ("square", "s", "■"),
    ("triangle-up", "^", "▲"),
    ("diamond", "D", "◆"),
    ("triangle-down", "v", "▼"),
    ("cross", "P", "✚"),
    ("triangle-right", ">", "▶"),
    ("triangle-left", "<", "◀"),
)
_DASHES_PX: tuple[tuple[float, ...], ...] = ((), (6, 3), (2, 2), (6, 2, 2, 2), (10, 3))


@dataclass(frozen=True)
class Style:
    """The look of one line, in the words of Vega, matplotlib and HTML.

    Attributes:
        colour: hex.
        shape: Vega's name of the marker.
        marker: matplotlib's.
        glyph: the character that resembles it.
        dashes_px: lengths of dashes and gaps; empty for a solid line.
    """

    colour: str
    shape: str
    marker: str
    glyph: str
    dashes_px: tuple[float, ...]

    @property
    def line(self) -> dict[str, Any]:
        """A line with markers in matplotlib's keywords."""
        dashes = (0, self.dashes_px) if self.dashes_px else "-"
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": dashes,
            "markersize": 5,
            "linewidth": 1.4,
        }


def styles(series: Iterable[str]) -> dict[str, Style]:
    """Returns a style per series; the consensus comes first, the others follow in alphabetical order."""
    names = sorted(set(series), key=lambda name: (not name.startswith("consensus"), name))
    return {
        name: Style(COLOURS[i % len(COLOURS)], *_MARKERS[i % len(_MARKERS)], _DASHES_PX[i % len(_DASHES_PX)])
        for i, name in enumerate(names)
    }


def curve_styles(curve: pd.DataFrame) -> dict[str, Style]:
    """Returns a style per line of a curve over epsilon, at most eight: the original's, then the others by ratio."""
    names = curve.sort_values("ratio", kind="stable")["line"].drop_duplicates()
    pruned = [name for name in names if name != "original"][:7]
    looks = [Style(COLOURS[i % 6], *_MARKERS[i], _DASHES_PX[i % len(_DASHES_PX)]) for i in range(len(pruned))]
    return {"original": Style(NEUTRAL, *_MARKERS[-1], (5, 4))} | dict(zip(pruned, looks, strict=True))
