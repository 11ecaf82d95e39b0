from __future__ import annotations

import math

import pytest
import torch

from consensus_cli.evaluation.statistics import paired_change, paired_reduction_pct


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
