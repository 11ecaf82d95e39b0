import numpy as np
import pytest
import torch
from helpers.reference import nbytes, wasserstein

from consensus_cli.scoring.statistics.quantiles import BINS, ValueDistributions, grid

CPU = torch.device("cpu")


def bags(values, exact_samples, batch=50):
    """Distributions of streams (s, n, d) fed in batches."""
    values = torch.as_tensor(values)
    distributions = ValueDistributions(values.shape[0], values.shape[2], CPU, exact_samples)
    for chunk in values.split(batch, dim=1):
        distributions.absorb(chunk)
    return distributions


def sample(seed, streams=3, samples=400, features=5):
    rng = np.random.default_rng(seed)
    shifts, scales = rng.normal(size=(streams, 1, 1)), rng.uniform(0.5, 3, size=(streams, 1, 1))
    return np.maximum(rng.normal(size=(streams, samples, features)) * scales + shifts, 0)


def exact(values):
    return np.array([wasserstein(values[0], y) for y in values[1:]])


@pytest.mark.parametrize("seed", range(3))
def test_exact_below_the_limit(seed):
    values = sample(seed)
    kept = bags(values, 400)
    assert kept.exact
    np.testing.assert_allclose(kept.distances(), exact(values), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_sketch_falls_short_by_at_most_a_bin(seed):
    values = sample(seed)
    binned = bags(values, 399)
    assert not binned.exact
    shortfall = exact(values) - binned.distances().numpy()
    assert (shortfall >= -1e-9).all()
    assert (shortfall <= binned.histogram.width).all()
    assert binned.histogram.width <= 2 * np.ptp(values) / (BINS - 2)


def test_sketch_bound_holds_where_every_value_shares_one_bin():
    """An outlier makes the bins wide; the streams then differ only inside one bin, where they cross."""
    values = np.zeros((2, 100, 1))
    values[0, :50], values[1, :] = 0.2, 0.1
    values[:, 0] = 1000.0
    binned = bags(values, 0)
    assert binned.histogram.width > 0.1
    assert 0 <= exact(values)[0] - float(binned.distances()[0]) <= binned.histogram.width


def test_separate_distributions_are_exact_in_the_sketch():
    """Bins hold sums: where distribution functions do not cross, nothing is lost."""
    values = sample(1, streams=2)
    values[1] += 0.7 + 2 * values[0]
    np.testing.assert_allclose(bags(values, 0).distances(), exact(values), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_sketch_does_not_depend_on_order_or_shards(scale):
    values = sample(7) * scale
    whole = bags(values, 0)
    reversed_order = bags(values[:, ::-1].copy(), 0, batch=13)
    merged = bags(values[:, :90], 0)
    merged.add(bags(values[:, 90:], 1000), 1)
    for other in (reversed_order, merged):
        assert (other.histogram.exponent, other.histogram.start) == (whole.histogram.exponent, whole.histogram.start)
        assert torch.equal(other.histogram.counts, whole.histogram.counts)
        np.testing.assert_allclose(other.distances(), whole.distances(), rtol=1e-9)


def test_small_shards_stay_exact_together():
    values = sample(3)
    merged = bags(values[:, :150], 400)
    merged.add(bags(values[:, 150:], 400), 1)
    assert merged.exact
    np.testing.assert_allclose(merged.distances(), exact(values), rtol=1e-12)


def test_weight_counts_a_part_several_times():
    values = sample(4)
    weighted = bags(values[:, :100], 0)
    weighted.add(bags(values[:, 100:], 1000), 3)
    repeated = bags(np.concatenate([values[:, :100], *[values[:, 100:]] * 3], axis=1), 0)
    assert torch.equal(weighted.histogram.counts, repeated.histogram.counts)
    np.testing.assert_allclose(weighted.distances(), repeated.distances(), rtol=1e-9)


def test_constant_bags():
    assert bags(np.zeros((2, 10, 3)), 0).distances().tolist() == [0.0]
    apart = np.stack([np.full((10, 3), 5.0), np.full((10, 3), 5.5)])
    np.testing.assert_allclose(bags(apart, 0).distances(), [0.5], rtol=1e-12)


def test_a_stream_of_no_values_adds_nothing():
    binned = bags(sample(2), 0)
    before = binned.distances()
    binned.add(ValueDistributions(3, 5, CPU, 0), 1)
    assert torch.equal(binned.distances(), before)


def test_grid_covers_its_range_with_the_finest_dyadic_bins():
    assert grid(0.0, BINS - 1.0) == (0, 0)
    assert grid(0.0, float(BINS)) == (1, 0)
    assert grid(-1.0, 1.0) == (-11, -2048)
    exponent, start = grid(1e9, 1e9 + 1e-3)
    assert start * 2.0**exponent <= 1e9 < 1e9 + 1e-3 < (start + BINS) * 2.0**exponent


def test_memory_of_the_sketch_does_not_grow():
    small, large = bags(sample(5), 0), bags(sample(5, samples=4000), 0)
    assert nbytes(small) == nbytes(large)
