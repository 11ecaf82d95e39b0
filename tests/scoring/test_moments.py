import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.reference import nbytes, statistics

from consensus_cli.errors import UserError
from consensus_cli.scoring.metrics import METRICS, compute
from consensus_cli.scoring.statistics.moments import GROUPS, PairStatistics, held_out

HOLDS_NO_BINS = [name for name in METRICS if name != "wasserstein"]


def pairs(seed, samples=200, features=6, candidates=2, classes=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, features)) @ rng.normal(size=(features, features)) + rng.normal(size=features)
    ys = np.stack([x + 0.3 * (j + 1) * rng.normal(size=x.shape) for j in range(candidates)])
    return x, ys, rng.integers(0, classes, samples)


def fed(x, ys, labels, rows, **options):
    """Statistics of some rows, each under its position in the whole sample."""
    stats = PairStatistics(len(ys), x.shape[1], 3, **options)
    rows = torch.as_tensor(rows)
    stats.update(torch.as_tensor(x)[rows], torch.as_tensor(ys)[:, rows], torch.as_tensor(labels)[rows], rows)
    return stats


def assert_same_distances(a, b, names=tuple(METRICS), rtol=1e-9):
    first, second = compute(names, a), compute(names, b)
    for name in names:
        # The Gaussian solver stops at a relative change of 1e-5 and sees its inputs through a singular value problem.
        loose = 1e-4 if name.startswith("gaussian_alpha") else rtol
        np.testing.assert_allclose(first[name], second[name], rtol=loose, err_msg=name)


def test_one_sample_in_five_is_held_out():
    assert held_out(torch.arange(11)).nonzero().flatten().tolist() == [4, 9]


def test_moments_of_three_rows_by_hand():
    x = np.array([[0.0, 0], [2, 0], [4, 3]])
    ys = np.array([[[1.0, 1], [1, 1], [1, 4]]])
    pooled = statistics(x, ys, [0, 0, 0]).pooled_moments(0)
    assert pooled.weight == 3
    assert pooled.mean_x.tolist() == [2, 1]
    np.testing.assert_allclose(pooled.xx, [[8, 6], [6, 6]], atol=1e-12)
    np.testing.assert_allclose(pooled.yy, [[0, 0], [0, 6]], atol=1e-12)
    np.testing.assert_allclose(pooled.xy, [[0, 6], [0, 6]], atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_streams_keep_the_digits_of_two_passes(offset):
    x, ys, labels = pairs(0)
    x, ys = x + offset, ys - offset
    pooled = statistics(x, ys, labels, batch=7).pooled_moments(1)
    a, b = x - x.mean(axis=0), ys[1] - ys[1].mean(axis=0)
    # 1e6 itself leaves 1e-10 of a unit: sums of squares about zero would leave 1e-4.
    for streamed, two_pass in ((pooled.xx, a.T @ a), (pooled.xy, a.T @ b), (pooled.yy, b.T @ b)):
        np.testing.assert_allclose(streamed, two_pass, rtol=1e-7, atol=1e-7)


def test_every_metric_survives_large_means_where_it_claims_translation_invariance():
    x, ys, labels = pairs(1, samples=240)
    invariant = [
        name for name in METRICS if name not in ("angular", "wasserstein", "gaussian_alpha1", "gaussian_alpha2")
    ]
    assert_same_distances(
        statistics(x, ys, labels), statistics(x + 1e6, ys + 1e6, labels, batch=11), invariant, rtol=1e-6
    )


@pytest.mark.parametrize("features", [6, 90])
def test_four_shards_are_one(features):
    """90 features are more than a class has samples: there the classes hold rows instead of covariances."""
    x, ys, labels = pairs(2, features=features)
    whole = fed(x, ys, labels, range(200))
    shards = [fed(x, ys, labels, np.arange(200)[start::4]) for start in range(4)]
    merged = PairStatistics.combine([PairStatistics.combine(shards[:2]), PairStatistics.combine(shards[2:])])
    assert merged.samples == 200
    assert shards[0].samples == 50
    assert_same_distances(whole, merged)


def test_merging_leaves_both_shards_as_they_were():
    x, ys, labels = pairs(3)
    a, b = fed(x, ys, labels, range(100)), fed(x, ys, labels, range(100, 200))
    before = compute(list(METRICS), a)
    both = PairStatistics.combine([a, b])
    both.update(torch.zeros(1, 6), torch.zeros(2, 1, 6), torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    for name, values in compute(list(METRICS), a).items():
        assert np.array_equal(values, before[name]), name


@pytest.mark.parametrize("features", [6, 90])
def test_combine_counts_each_part_by_its_weight(features):
    x, ys, labels = pairs(4, features=features)
    parts = [fed(x, ys, labels, rows, exact_samples=0) for rows in (range(70), range(70, 120), range(120, 200))]
    repeated = PairStatistics.combine([parts[0], parts[2], parts[2]])
    combined = PairStatistics.combine(parts, [1, 0, 2])
    assert combined.samples == 70 + 160
    assert_same_distances(combined, repeated)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [0.5, 1]])
def test_combine_refuses_weights_that_no_sample_has(weights):
    x, ys, labels = pairs(5)
    parts = [fed(x, ys, labels, range(100)), fed(x, ys, labels, range(100, 200))]
    with pytest.raises(ValueError, match="whole weight"):
        PairStatistics.combine(parts, weights)


def test_size_does_not_depend_on_the_sample_count():
    """The golden setting (24 candidates would only repeat it): 2,560 samples against twenty times as many."""
    generator = torch.Generator().manual_seed(0)
    sizes = {}
    stats, peak = PairStatistics(2, 64, 10), 0
    for start in range(0, 51_200, 1280):
        x = torch.randn(1280, 64, generator=generator)
        index = torch.arange(start, start + 1280)
        stats.update(x, torch.stack([x, 2 * x]), index % 10, index)
        peak = max(peak, nbytes(stats))
        sizes[stats.samples] = peak
    assert sizes[51_200] <= 1.1 * sizes[2560]


def test_rows_of_a_class_become_a_covariance_once_they_outnumber_features():
    x, ys, labels = pairs(6, features=8)
    few, many = fed(x, ys, labels, range(9)), fed(x, ys, labels, range(200))
    assert all(c.moments is None for c in few.classes)
    assert all(c.moments is not None and not c.rows for c in many.classes)


def test_the_original_is_held_once():
    x, ys, labels = pairs(7, candidates=1, features=50)
    one = nbytes(fed(x, ys, labels, range(200), keep=frozenset({"class_conditional"})))
    three = nbytes(fed(x, np.repeat(ys, 3, axis=0), labels, range(200), keep=frozenset({"class_conditional"})))
    assert three < 2.1 * one


def test_groups_that_are_not_kept_are_neither_held_nor_readable():
    x, ys, labels = pairs(8)
    stats = fed(x, ys, labels, range(200), keep=frozenset({"angular"}))
    assert nbytes(stats) == 2 * 8
    for read in (
        lambda: stats.pooled_moments(0),
        lambda: stats.norms,
        lambda: stats.values,
        lambda: stats.classes,
    ):
        with pytest.raises(ValueError, match="was not accumulated"):
            read()
    with pytest.raises(ValueError, match=r"unknown groups .*'median'"):
        PairStatistics(1, 2, 2, keep=GROUPS | {"median"})


def test_shapes_that_disagree_are_named():
    stats = PairStatistics(2, 3, 2)
    with pytest.raises(ValueError, match=r"ablated has shape \(2, 5, 4\), expected \(2, 5, 3\)"):
        stats.update(torch.zeros(5, 3), torch.zeros(2, 5, 4), torch.zeros(5), torch.zeros(5))
    with pytest.raises(ValueError, match="labels outside 0 to 1"):
        stats.update(torch.zeros(1, 3), torch.zeros(2, 1, 3), torch.tensor([2]), torch.zeros(1))


def test_statistics_of_other_shapes_do_not_merge():
    with pytest.raises(ValueError, match="cannot be combined"):
        PairStatistics.combine([PairStatistics(2, 3, 2), PairStatistics(2, 4, 2)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_the_users_to_mend(bad):
    ablated = torch.zeros(2, 4, 3)
    ablated[1, 2, 0] = bad
    with pytest.raises(UserError, match="NaN or infinite"):
        PairStatistics(2, 3, 2).update(torch.zeros(4, 3), ablated, torch.zeros(4, dtype=torch.int64), torch.arange(4))


def test_float32_rows_give_the_distances_of_float64_rows():
    x, ys, labels = pairs(9, features=90)
    single = statistics(x.astype(np.float32), ys.astype(np.float32), labels)
    double = statistics(x.astype(np.float32).astype(float), ys.astype(np.float32).astype(float), labels)
    assert_same_distances(single, double, HOLDS_NO_BINS)


MEASURED = """
import resource, sys
import torch
from consensus_cli.scoring import metrics
from consensus_cli.scoring.statistics.moments import PairStatistics

generator, samples, names = torch.Generator().manual_seed(0), int(sys.argv[1]), sys.argv[2].split(",")

def measure(samples):
    stats = PairStatistics(24, 64, 10, keep=metrics.statistics_needed(names))
    for start in range(0, samples, 256):
        index = torch.arange(start, min(start + 256, samples))
        x = torch.randn(len(index), 64, generator=generator)
        y = x + 0.1 * torch.arange(24)[:, None, None] * torch.randn(24, len(index), 64, generator=generator)
        stats.update(x, y, index % 10, index)
    metrics.compute(names, stats)

measure(256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
measure(samples)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_the_process_needs_no_more_memory_for_twenty_times_the_samples():
    """Moments and all metrics of 24 candidates, beyond what libraries and a first small round take."""
    growth_kib = {}
    for samples in (2560, 50_000):
        words = [sys.executable, "-c", MEASURED, str(samples), ",".join(METRICS)]
        growth_kib[samples] = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert growth_kib[50_000] <= 1.1 * growth_kib[2560]
