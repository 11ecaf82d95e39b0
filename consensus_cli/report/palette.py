"""How a line looks: a colour that colour-blind readers can tell apart, and a dash and a marker that survive grey."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Okabe & Ito (2008) without black and yellow, which vanish on one of the two backgrounds, and a grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
#: (plotly symbol, matplotlib marker, character)
_MARKERS = (
    ("circle", "o", "●"),
    ("square", "s", "■"),
    ("triangle-up", "^", "▲"),
    ("diamond", "D", "◆"),
    ("triangle-down", "v", "▼"),
    ("x", "X", "✖"),
    ("star", "*", "★"),
    ("hexagon", "h", "⬢"),
)
#: (plotly dash, matplotlib line style, SVG stroke-dasharray)
_DASHES: tuple[tuple[str, str | tuple[float, tuple[float, ...]], str], ...] = (
    ("solid", "-", "none"),
    ("dash", "--", "6 3"),
    ("dot", ":", "2 2"),
    ("dashdot", "-.", "6 2 2 2"),
    ("longdash", (0, (8, 2)), "9 3"),
)
#: the colour scale of importance: even in lightness, so it reads in grey and by colour-blind readers
SCALE = "cividis"


@dataclass(frozen=True)
class Style:
    """The look of one line, in the words of plotly, matplotlib and HTML."""

    colour: str
    symbol: str
    marker: str
    glyph: str
    dash: str
    line_style: str | tuple[float, tuple[float, ...]]
    dash_array: str


def styles(series: Iterable[str]) -> dict[str, Style]:
    """Returns a style per series; the consensus comes first, the others follow in alphabetical order."""
    names = sorted(set(series), key=lambda name: (not name.startswith("consensus"), name))
    return {name: _style(position) for position, name in enumerate(names)}


def _style(position: int) -> Style:
    symbol, marker, glyph = _MARKERS[position % len(_MARKERS)]
    dash, line_style, dash_array = _DASHES[position % len(_DASHES)]
    return Style(COLOURS[position % len(COLOURS)], symbol, marker, glyph, dash, line_style, dash_array)
