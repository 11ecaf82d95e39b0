import numpy as np
import pytest
import torch

from consensus_cli.scoring.metrics import statistics_needed
from consensus_cli.scoring.ranking.bootstrap import RankStability, rank_stability, resampled_distances
from consensus_cli.scoring.statistics.moments import PairStatistics

METRICS = ("cka", "angular", "wasserstein")
CHUNKS = 12


def chunks_of_noisy_blocks(noise: list[float], samples: int = 240) -> list[PairStatistics]:
    """Statistics of representations that each block's removal disturbs by so much noise."""
    generator = torch.Generator().manual_seed(1)
    original = torch.randn(samples, 6, generator=generator)
    scale = torch.tensor(noise)[:, None, None]
    ablated = original + scale * torch.randn(len(noise), samples, 6, generator=generator)
    labels = torch.arange(samples) % 2
    parts = [PairStatistics(len(noise), 6, 2, keep=statistics_needed(METRICS)) for _ in range(CHUNKS)]
    for number, part in enumerate(parts):
        mine = torch.arange(samples) // 5 % CHUNKS == number
        part.update(original[mine], ablated[:, mine], labels[mine], torch.arange(samples)[mine])
    return parts


def stability(noise: list[float], seed: int = 0, **options) -> RankStability:
    names = [f"block{i}" for i in range(len(noise))]
    resampled = resampled_distances(chunks_of_noisy_blocks(noise), METRICS, resamples=40, seed=seed)
    return rank_stability(names, resampled, weights={}, **options)


@pytest.mark.parametrize("aggregation", ["rank_sum", "kemeny"])
def test_blocks_far_apart_keep_their_rank_in_every_resample(aggregation):
    found = stability([2.0, 0.02, 0.2], aggregation=aggregation)
    assert found.low.tolist() == found.high.tolist() == [3, 1, 2]
    assert found.least_share.tolist() == [0, 1, 0]
    assert found.resamples == 40


def test_blocks_alike_share_the_minimum():
    found = stability([0.2, 2.0, 0.2])
    assert found.low.tolist() == [1, 3, 1]
    assert found.high.tolist() == [2, 3, 2]
    assert found.least_share.sum() == pytest.approx(1)
    assert 0 < found.least_share[0] < 1


def test_draws_follow_the_seed():
    shares = [tuple(stability([0.2, 0.2, 0.21], seed=seed).least_share) for seed in (0, 0, 1)]
    assert shares[0] == shares[1] != shares[2]


@pytest.mark.parametrize(("parts", "resamples"), [(1, 10), (4, 0)])
def test_too_little_to_draw_from_is_refused(parts, resamples):
    with pytest.raises(ValueError, match=f"needs 2 chunks and 1 resample, got {parts} and {resamples}"):
        resampled_distances(chunks_of_noisy_blocks([0.1])[:parts], METRICS, resamples=resamples, seed=0)


def test_percentile_interval_leaves_out_the_rarest_positions():
    found = stability([0.20, 0.22, 0.24, 0.26])
    assert (found.low <= found.high).all()
    assert np.all((found.low >= 1) & (found.high <= 4))
    assert (found.high - found.low).max() > 0
