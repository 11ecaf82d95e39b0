"""Changes between two networks that were measured on the same images, or in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

_RESAMPLES, _MAX_DRAWN = 2000, 10_000_000


class Change(NamedTuple):
    """The change of a share of images, in percentage points, with the ends of its 95 % interval."""

    delta_pp: float
    ci95_low_pp: float
    ci95_high_pp: float


def paired_change(first: Tensor, second: Tensor, seed: int) -> Change:
    """Returns by how much more often the second answers, (n,), are right than the first, about the same images.

    Percentile bootstrap over images (Efron & Tibshirani 1993, chapter 13): each resample draws images, not
    answers, so what the two networks have in common cancels.

    Raises:
        ValueError: if the two are not about the same number of images, or there are none.
    """
    if first.shape != second.shape or first.numel() == 0:
        raise ValueError(f"{tuple(first.shape)} and {tuple(second.shape)} are no pairs")
    delta = second.double().sub(first.double()).numpy()
    if len(delta) == 1 or np.all(delta == delta[0]):
        value = 100 * float(delta[0])
        return Change(value, value, value)
    from scipy.stats import bootstrap

    interval = bootstrap(
        (delta,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _MAX_DRAWN // len(delta)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Change(100 * float(delta.mean()), 100 * float(interval.low), 100 * float(interval.high))


def paired_reduction_pct(before: Sequence[float], after: Sequence[float]) -> float:
    """Returns by how many percent one thing is below another that was measured in turn with it.

    100 · (1 − median of after_i / before_i), of readings (n,). Those that are neighbours in time share what else the
    machine does, so that their ratio is steadier than the ratio of the medians. NaN where a reading of `before` is 0.

    Raises:
        ValueError: if they are no pairs.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} readings are no pairs")
    if 0 in before:
        return float("nan")
    return 100 * (1 - float(np.median(np.divide(after, before))))


def alternating(names: Sequence[str], turn: int) -> Sequence[str]:
    """Returns the order of what is measured in turn 0, 1, …: forwards, then backwards, so that a drift cancels.

    Of more than two, every two turns have an order of their own, drawn at random: none follows the same one each time.
    """
    if len(names) > 2:
        names = np.random.default_rng(turn // 2).permutation(np.array(names)).tolist()
    return names if turn % 2 == 0 else names[::-1]


class Saving(NamedTuple):
    """The share in (−∞, 1] by which one reading is below another that was taken in turn with it, with its interval."""

    share: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether it may as well be nothing: the interval spans zero."""
        return self.low <= 0 <= self.high


def paired_saving(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Saving:
    """Returns by which share readings (n,) are below others that were taken in turn with them.

    1 − median of after_i / before_i, of readings (n,), with the interval of that median.

    Raises:
        ValueError: if they are no pairs.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} readings are no pairs")
    ratios = np.divide(after, before)
    low, high = median_interval(ratios, confidence)
    return Saving(1 - float(np.median(ratios)), 1 - high, 1 - low)


def median_interval(readings: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the interval of the median of readings (n,) by order statistics (Conover 1999, section 3.2).

    It assumes nothing of how they are distributed. Where they are too few for the confidence (see `readings_needed`),
    it is infinite.
    """
    from scipy.stats import quantile_test

    low, high = quantile_test(readings, p=0.5).confidence_interval(confidence)
    return (-math.inf if math.isnan(low) else float(low)), (math.inf if math.isnan(high) else float(high))


def readings_needed(confidence: float) -> int:
    """Returns how many readings an interval of a median by order statistics takes: the fewest with 2 · ½ⁿ ≤ 1 − c."""
    return math.ceil(1 - math.log2(1 - confidence))
