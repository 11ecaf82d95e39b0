from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from consensus_cli.evaluation.statistics import (
    alternating,
    paired_change,
    paired_reduction_pct,
    paired_saving,
    readings_needed,
)


def test_interval_is_that_of_the_normal_approximation_for_many_images():
    first = torch.ones(1000, dtype=torch.bool)
    second = torch.arange(1000) >= 100
    change = paired_change(first, second, seed=0)
    half = 1.96 * 100 * math.sqrt(0.1 * 0.9 / 1000)
    assert change.delta_pp == pytest.approx(-10)
    assert change.ci95_low_pp == pytest.approx(-10 - half, abs=0.3)
    assert change.ci95_high_pp == pytest.approx(-10 + half, abs=0.3)


def test_pairing_removes_what_both_share():
    right = torch.arange(400) % 2 == 0
    assert paired_change(right, right, seed=0) == paired_change(right, right.clone(), seed=1)
    assert paired_change(right, right, seed=0).ci95_low_pp == 0


def test_change_is_antisymmetric_and_seeded():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 300, generator=generator) > 0.4
    there, back = paired_change(first, second, seed=4), paired_change(second, first, seed=4)
    assert there == paired_change(first, second, seed=4)
    assert there.delta_pp == pytest.approx(-back.delta_pp)
    assert there.ci95_low_pp == pytest.approx(-back.ci95_high_pp, abs=0.5)


def test_unequal_or_empty_samples_are_no_pairs():
    with pytest.raises(ValueError, match="no pairs"):
        paired_change(torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool), seed=0)
    with pytest.raises(ValueError, match="no pairs"):
        paired_change(torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool), seed=0)


def test_one_image_has_no_spread():
    change = paired_change(torch.tensor([True]), torch.tensor([False]), seed=0)
    assert (change.ci95_low_pp, change.delta_pp, change.ci95_high_pp) == (-100, -100, -100)


def test_a_reduction_is_the_median_of_the_pairs_and_neighbours_cancel():
    assert paired_reduction_pct([10, 20, 40], [5, 10, 39]) == 50
    busy = [1.0, 3.0, 1.0, 1.0, 3.0]
    assert paired_reduction_pct(busy, [0.75 * reading for reading in busy]) == pytest.approx(25)
    assert math.isnan(paired_reduction_pct([0.0], [1.0]))
    with pytest.raises(ValueError, match="no pairs"):
        paired_reduction_pct([1.0], [1.0, 2.0])


def test_what_is_measured_in_turn_goes_forwards_and_backwards_and_shuffled_where_there_are_more_than_two():
    assert [alternating(["a", "b"], turn) for turn in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]
    turns = [alternating(list("abcdef"), turn) for turn in range(20)]
    assert all(sorted(turn) == list("abcdef") for turn in turns)
    assert all(there == back[::-1] for there, back in zip(turns[::2], turns[1::2], strict=True))
    assert len({tuple(turn) for turn in turns}) > 15


def test_a_saving_by_hand():
    # Ratios 0.50, 0.55, …, 0.90: the interval of the median of nine at 95 % is from the second to the eighth.
    before = [2.0] * 9
    after = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
    found = paired_saving(before, after)
    assert found == pytest.approx((0.3, 0.15, 0.45))
    assert not found.is_noise
    assert paired_saving(after, after) == (0, 0, 0)


def test_too_few_readings_have_no_interval():
    assert readings_needed(0.95) == 6
    few, enough = [1.0] * 5, [1.0] * 6
    assert paired_saving(few, few) == (0, -math.inf, math.inf)
    assert paired_saving(enough, enough) == (0, 0, 0)
    for confidence in (0.5, 0.9, 0.99, 1 - 0.05 / 24):
        needed = readings_needed(confidence)
        assert math.isfinite(paired_saving([1.0] * needed, [1.0] * needed, confidence).low)
        assert math.isinf(paired_saving([1.0] * (needed - 1), [1.0] * (needed - 1), confidence).low)
    with pytest.raises(ValueError, match="no pairs"):
        paired_saving([1.0], [])


def test_the_interval_of_a_saving_holds_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        # Heavy tails, as other programs give latencies.
        noise = np.exp(0.1 * generator.standard_t(2, size=(2, 25)))
        found = paired_saving(list(noise[0]), list(0.7 * noise[1]))
        held += found.low <= 0.3 <= found.high
    assert 0.93 < held / 400 <= 1
