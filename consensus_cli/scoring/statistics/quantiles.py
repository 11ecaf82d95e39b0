"""Bags of feature values, exact up to a number of samples and a fixed-size histogram beyond it.

The histogram's bins have a dyadic width w = 2^k and lie on multiples of it, so that widening joins whole bins and the
result does not depend on the order or the shards in which values arrive. A bin holds the count of its values and the
sum of their distances from its left edge: with both, the integral of a distribution function over the bin is exact,
and only bins in which two distribution functions cross contribute an error to the Wasserstein distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 8192
MANTISSA_BITS = 50


class Histogram:
    """Counts of the values of s streams over a common grid of `BINS` bins of dyadic width.

    Bin i covers [(start + i)·width, (start + i + 1)·width). The grid is the finest that covers all values so far.
    """

    def __init__(self, streams: int, device: torch.device) -> None:
        self.counts = torch.zeros(streams, BINS, dtype=torch.float64, device=device)
        self.offsets = torch.zeros_like(self.counts)
        self.low, self.high = math.inf, -math.inf
        self.exponent, self.start = 0, 0

    @property
    def width(self) -> float:
        """Width of a bin, in the unit of the features."""
        return 2.0**self.exponent

    def absorb(self, values: Tensor, weight: float = 1.0) -> None:
        """Adds values (s, m), each counted `weight` times."""
        if not values.numel():
            return
        self._cover(float(values.min()), float(values.max()))
        scaled = values.double() / self.width
        cells = scaled.floor()
        bins = (cells - self.start).long()
        streams = len(self.counts)
        flat = (bins + BINS * torch.arange(streams, device=bins.device)[:, None]).flatten()
        shape, cells_total = self.counts.shape, self.counts.numel()
        self.counts += torch.bincount(flat, minlength=cells_total).view(shape) * weight
        offsets = (scaled - cells).flatten() * (self.width * weight)
        self.offsets += torch.bincount(flat, weights=offsets, minlength=cells_total).view(shape)

    def add(self, other: Histogram, weight: float) -> None:
        """Adds another's values, each counted `weight` times."""
        if other.low > other.high:
            return
        self._cover(other.low, other.high)
        counts, offsets = other._regridded(self.exponent, self.start)
        self.counts += counts * weight
        self.offsets += offsets * weight

    def _cover(self, low: float, high: float) -> None:
        """Widens the grid until it covers [low, high] as well."""
        low, high = min(low, self.low), max(high, self.high)
        if (low, high) == (self.low, self.high):
            return
        exponent, start = grid(low, high)
        if self.low <= self.high:
            self.counts, self.offsets = self._regridded(exponent, start)
        self.low, self.high, self.exponent, self.start = low, high, exponent, start

    def _regridded(self, exponent: int, start: int) -> tuple[Tensor, Tensor]:
        """Returns counts and offsets on a grid that is as coarse or coarser and covers all occupied bins."""
        left = torch.arange(self.start, self.start + BINS, device=self.counts.device)
        wider = left >> (exponent - self.exponent)
        offsets = self.offsets + self.counts * (left - (wider << (exponent - self.exponent))) * self.width
        # Bins outside the new grid are empty: the grid covers every value seen.
        target = (wider - start).clamp(0, BINS - 1)
        zeros = torch.zeros_like(self.counts)
        return zeros.index_add(1, target, self.counts), zeros.index_add(1, target, offsets)

    def distances(self) -> Tensor:
        """Wasserstein-1 distance of each further stream to stream 0, (s - 1,).

        At most the exact one, and at least that less one bin width.
        """
        totals = self.counts.sum(dim=1, keepdim=True)
        mass = self.counts / totals
        below = torch.cumsum(mass, dim=1) - mass
        integral = self.width * (below + mass) - self.offsets / totals
        return (integral[1:] - integral[0]).abs().sum(dim=1)


def grid(low: float, high: float) -> tuple[int, int]:
    """Returns exponent k and start of the finest grid of `BINS` bins of width 2^k that covers [low, high].

    The width stays above the spacing of float64 numbers of this size, so that bin numbers are exact.
    """
    magnitude = max(abs(low), abs(high))
    finest = math.frexp(magnitude)[1] - MANTISSA_BITS if magnitude else 0
    exponent = max(finest, math.frexp((high - low) / BINS)[1] - 1) if high > low else finest
    while math.floor(high / 2.0**exponent) - math.floor(low / 2.0**exponent) >= BINS:
        exponent += 1
    return exponent, math.floor(low / 2.0**exponent)


class ValueDistributions:
    """Bags of all n·d feature values of s streams: the values themselves up to `exact_samples` samples, then bins.

    A bag that counts a part several times (a bootstrap draw) goes to the bins at once.
    """

    def __init__(self, streams: int, features: int, device: torch.device, exact_samples: int) -> None:
        self.streams, self.features, self.device, self.exact_samples = streams, features, device, exact_samples
        self.samples = 0
        self.chunks: list[Tensor] = []
        self.histogram: Histogram | None = None

    @property
    def exact(self) -> bool:
        """Whether the values themselves are still held."""
        return self.histogram is None

    def absorb(self, values: Tensor) -> None:
        """Adds a batch of representations (s, b, d)."""
        self.samples += values.shape[1]
        if self.exact and self.samples <= self.exact_samples:
            self.chunks.append(values)
        else:
            self._binned().absorb(values.flatten(1))

    def add(self, other: ValueDistributions, weight: int) -> None:
        """Adds another's samples, each counted `weight` times."""
        if self.exact and other.exact and weight == 1 and self.samples + other.samples <= self.exact_samples:
            self.chunks.extend(other.chunks)
        else:
            histogram = self._binned()
            for chunk in other.chunks:
                histogram.absorb(chunk.flatten(1), weight)
            if other.histogram:
                histogram.add(other.histogram, weight)
        self.samples += other.samples * weight

    def _binned(self) -> Histogram:
        if self.histogram is None:
            self.histogram = Histogram(self.streams, self.device)
            while self.chunks:
                self.histogram.absorb(self.chunks.pop().flatten(1))
        return self.histogram

    def distances(self) -> Tensor:
        """Wasserstein-1 distance of each further bag to that of stream 0, (s - 1,), in the unit of the features."""
        if self.histogram:
            return self.histogram.distances()
        first = self._sorted(0)
        return torch.stack([(self._sorted(j) - first).abs().mean() for j in range(1, self.streams)])

    def _sorted(self, stream: int) -> Tensor:
        return torch.cat([chunk[stream].flatten() for chunk in self.chunks]).sort().values.double()
