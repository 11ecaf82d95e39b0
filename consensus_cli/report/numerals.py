"""Numbers as text: a dash where there is none."""

from __future__ import annotations

import math

import numpy as np

NONE = "–"


def fixed(value: float, digits: int = 2, unit: str = "", sign: bool = False) -> str:
    """Returns a number with so many decimals and its unit, `–` for NaN."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return f"{text} {unit}".strip().replace("-", "−")


def significant(value: float, digits: int = 3, unit: str = "") -> str:
    """Returns a number with so many significant digits and its unit, `–` for NaN."""
    if not math.isfinite(value):
        return NONE
    rounded = np.format_float_positional(value, precision=digits, fractional=False, trim="-")
    return f"{rounded} {unit}".strip().replace("-", "−")


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
