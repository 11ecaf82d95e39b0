"""Eigendecompositions of matrices that LAPACK alone does not always get through."""

import numpy as np
import pytest
import torch
from helpers.reference import statistics

from consensus_cli.scoring.metrics import METRICS, compute
from consensus_cli.scoring.metrics.algebra import eigh

FEATURES = 256


def dying_features(seed, samples=306):
    """Features of low rank, most of them dead, the others graded down to the smallest numbers."""
    generator = torch.Generator().manual_seed(seed)
    alive, rank = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 60), (1, 5)))
    smallest = -330 * float(torch.rand((), generator=generator))
    factors = torch.randn(samples, rank, generator=generator), torch.randn(rank, alive, generator=generator)
    features = torch.zeros(samples, FEATURES, dtype=torch.float64)
    columns = torch.randperm(FEATURES, generator=generator)[:alive]
    features[:, columns] = (factors[0] @ factors[1]).relu().double() * torch.logspace(smallest, 0, alive).double()
    return features


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_every_matrix_of_dying_features_is_decomposed(start):
    for seed in range(start, start + 20):
        features = dying_features(seed)
        features = features - features.mean(dim=0)
        matrix = features.mT @ features
        values, vectors = eigh(matrix[None])
        again = (vectors * values[..., None, :]) @ vectors.mT
        assert float((again - matrix).abs().max()) <= 1e-13 * float(matrix.abs().max())


def test_what_is_no_number_is_still_an_error():
    with pytest.raises(torch.linalg.LinAlgError):
        eigh(torch.full((3, 3), torch.nan))


# LAPACK alone gives up on each of these.
@pytest.mark.parametrize("seed", [5, 8, 55])
def test_every_metric_is_finite_for_dying_features(seed):
    original, ablated = dying_features(seed, 400), dying_features(100 + seed, 400)
    stats = statistics(original.numpy(), torch.stack([original, ablated]).numpy(), (torch.arange(400) % 4).numpy())
    for name, distances in compute(list(METRICS), stats).items():
        assert np.isfinite(distances).all(), name
