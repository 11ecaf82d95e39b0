"""What the statistics of a scoring pass will take, and how many candidates one pass can serve within a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from consensus_cli.scoring.statistics.moments import HOLDOUT_PERIOD
from consensus_cli.scoring.statistics.quantiles import BINS
from consensus_cli.scoring.statistics.second_moments import row_limit

SINGLE, DOUBLE = 4, 8

#: Share of the budget that statistics may take. The rest is for what is held beside them: the activations during the
#: pass, the metrics' own matrices after it.
STATISTICS_SHARE = 0.5


@dataclass(frozen=True)
class Expected:
    """What `PairStatistics` will be made of, before they exist.

    Attributes:
        features: length d of a representation.
        num_classes: classes of the labels.
        samples: number of samples n.
        keep: groups of statistics.
        exact_samples: samples up to which feature values are kept as they are.
        chunks: parts that the samples are dealt to, as a bootstrap needs them; 1 for none.
    """

    features: int
    num_classes: int
    samples: int
    keep: frozenset[str]
    exact_samples: int
    chunks: int = 1

    def bytes_per_stream(self) -> int:
        """Returns the most bytes that the statistics of one more candidate will hold at any time."""
        whole = self._part_bytes(self.samples)
        if self.chunks == 1:
            return whole
        # The parts stay while a draw from them is put together.
        return whole + self.chunks * self._part_bytes(math.ceil(self.samples / self.chunks))

    def _part_bytes(self, samples: int) -> int:
        held_out, per_class = samples // HOLDOUT_PERIOD, math.ceil(samples / self.num_classes)
        per_group = {
            "pooled": self._second_moments(samples - held_out, cross=True) + self._second_moments(held_out, cross=True),
            # The original is held as a stream, and once more as what the streams are paired with.
            "norms": 3 * DOUBLE * self.features**2,
            "class_conditional": self.num_classes * self._second_moments(per_class, cross=False),
            "quantiles": min(samples, self.exact_samples) * self.features * SINGLE + 2 * DOUBLE * BINS,
            "angular": DOUBLE,
        }
        return sum(per_group[group] for group in self.keep)

    def _second_moments(self, rows: int, *, cross: bool) -> int:
        limit = row_limit(self.features, cross=cross)
        as_rows = min(rows, limit) * self.features * SINGLE
        # Rows turn into second moments one batch after the other: for a moment there are both.
        return as_rows if rows < limit else as_rows + (1 + cross) * DOUBLE * self.features**2


def candidates_per_pass(expected: Expected, candidates: int, memory_gb: float) -> int:
    """Returns how many of the candidates a pass can serve, at least one; every pass but the last serves as many.

    Args:
        expected: what the statistics will be made of.
        candidates: how many there are.
        memory_gb: budget of the whole scoring in GiB, of which the statistics take up to `STATISTICS_SHARE`.
    """
    streams = int(memory_gb * 2**30 * STATISTICS_SHARE / expected.bytes_per_stream())
    # The original representation is one stream more in every pass.
    most = min(max(streams - 1, 1), candidates)
    return math.ceil(candidates / math.ceil(candidates / most))


def left_for_activations_gb(expected: Expected, candidates: int, memory_gb: float) -> float:
    """Returns what the statistics of so many candidates leave of the budget, at least the share not theirs, in GiB."""
    held_gb = (1 + candidates) * expected.bytes_per_stream() / 2**30
    return max(memory_gb - held_gb, memory_gb * (1 - STATISTICS_SHARE))
