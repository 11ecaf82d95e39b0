"""Numbers, settings and commands as text: a dash where there is no number."""

from __future__ import annotations

import math
import shlex

import numpy as np

from consensus_cli.evaluation.cost.quantities import MEASURED

NONE = "–"
_UNITS = {"blocks": "of the blocks", "macs": "of the MACs", "params": "of the parameters"}
_UNITS |= {quantity: f"of the {quantity}" for quantity in MEASURED}


def fixed(value: float, digits: int = 2, unit: str = "", sign: bool = False) -> str:
    """Returns a number with so many decimals and its unit, `–` for NaN."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return f"{text} {unit}".strip().replace("-", "−")


def significant(value: float) -> str:
    """Returns a number with three significant digits, `–` for NaN."""
    if not math.isfinite(value):
        return NONE
    return np.format_float_positional(value, precision=3, fractional=False, trim="-").replace("-", "−")


def interval(mean: float, half: float, digits: int = 2, unit: str = "", sign: bool = False) -> str:
    """Returns `mean ± half`, the mean alone where there is no interval."""
    if not math.isfinite(mean) or not math.isfinite(half):
        return fixed(mean, digits, unit, sign)
    return f"{fixed(mean, digits, sign=sign)} ± {fixed(half, digits)} {unit}".strip()


def duration(seconds: float) -> str:
    """Returns a duration such as `52 s`, `3 min 20 s` or `2 h 5 min`."""
    if not math.isfinite(seconds):
        return NONE
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def ratio_text(ratio: float, unit: str) -> str:
    """Returns how much was to go, such as `50 % of the blocks`; a target, which has no ratio, such as `to 8 ms`."""
    if math.isnan(ratio):
        return NONE if unit in ("", *_UNITS) else f"to {unit}"
    return f"{100 * ratio:.4g} % {_UNITS.get(unit, unit)}".strip()


def command(overrides: str) -> str:
    """Returns the command of a run, every word quoted for a shell: the words come from a file and may be anything."""
    return shlex.join(["consensus", "run", *words(overrides)])


def words(overrides: str) -> list[str]:
    """Splits the words of a command as a shell does, at blanks where quotes do not match."""
    try:
        return shlex.split(overrides)
    except ValueError:
        return overrides.split()
