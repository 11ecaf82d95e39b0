"""Stochastic shape distances between class-conditional Gaussians (Duong et al. 2023)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from consensus_cli.scoring.metrics.alignment import Alignment, best_rotation, polar
from consensus_cli.scoring.metrics.bures import root
from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.moments import PairStatistics
from consensus_cli.scoring.second_moments import ClassMoments

CHUNK_BYTES = 2**28


def gaussian_distance(stats: PairStatistics, alpha: float) -> np.ndarray:
    """√ min over rotations T of the mean over classes of α‖μˣ − μʸT‖² + (2 − α) B²(Σˣ, TᵀΣʸT); (c,), ≥ 0.

    μ and Σ (n − 1) are the mean and covariance of a class, B is the Bures distance; one rotation serves all classes.
    Duong et al. 2023, eq. (5), with α = 2 the means alone (closed form), α = 0 the covariances alone, α = 1 the
    2-Wasserstein distance between the Gaussians. In the unit of the features. Invariant under rotation and reflection
    of either side. For α < 2 not convex: the minimum is a local one, reached from the best rotation of the paired
    samples, so that it is no worse than what pairing alone finds.
    """
    size = chunk_size(stats)
    starts = range(0, stats.candidates, size)
    chunks = [slice(start, min(start + size, stats.candidates)) for start in starts]
    if stats.device.type != "cpu":
        return np.concatenate([chunk_distance(stats, chunk, alpha) for chunk in chunks])
    # LAPACK works on one small matrix at a time: candidates share the cores better than each matrix would.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return np.concatenate(list(pool.map(lambda chunk: chunk_distance(stats, chunk, alpha), chunks)))


def chunk_size(stats: PairStatistics) -> int:
    """Returns how many candidates to solve for at once: an even share of the cores, within `CHUNK_BYTES` of roots."""
    per_candidate = 8 * len(stats.classes) * stats.features**2
    workers = torch.get_num_threads() if stats.device.type == "cpu" else 1
    return max(1, min(-(-stats.candidates // workers), CHUNK_BYTES // per_candidate))


def chunk_distance(stats: PairStatistics, chunk: slice, alpha: float) -> np.ndarray:
    """Distances of the candidates in `chunk`."""
    gaussians = class_gaussians(stats.classes, chunk)
    coupling = within_class_coupling(stats, chunk, gaussians)
    if gaussians.rank() < stats.features:
        gaussians, coupling = in_row_span(gaussians, coupling)
    weight = 2.0 - alpha
    means = gaussians.mean_y.mT @ gaussians.mean_x
    problem = Alignment(gaussians.root_x, gaussians.root_y, alpha * means, weight)
    energy = alpha * (gaussians.mean_x.square().sum() + gaussians.mean_y.square().sum(dim=(1, 2)))
    energy = energy + weight * (gaussians.root_x.square().sum() + gaussians.root_y.square().sum(dim=(1, 2, 3)))
    start = polar(alpha * means + weight * coupling)
    rotation = best_rotation(problem, start, energy) if weight else start
    squares = (energy - 2 * problem.overlap(rotation)) / len(gaussians.mean_x)
    return squares.clamp(min=0.0).sqrt().cpu().numpy()


@dataclass(frozen=True)
class ClassGaussians:
    """Means and covariance roots R (RᵀR = Σ) of K classes, those of Y for c candidates.

    `mean_x: (K, d)`, `mean_y: (c, K, d)`, `root_x: (K, r, d)`, `root_y: (c, K, r, d)`.
    """

    mean_x: Tensor
    mean_y: Tensor
    root_x: Tensor
    root_y: Tensor

    def rank(self) -> int:
        """Returns a bound of the dimensions that all means and roots of one side span."""
        return self.root_x.shape[0] * (self.root_x.shape[1] + 1)


def class_gaussians(classes: list[ClassMoments], chunk: slice) -> ClassGaussians:
    """Returns the Gaussians of the classes that have samples, for the candidates in `chunk`."""
    parts = [class_gaussian(c, chunk) for c in classes if c.weight]
    rows = max(part.root_x.shape[1] for part in parts)

    def padded(roots: Tensor) -> Tensor:
        return torch.nn.functional.pad(roots, (0, 0, 0, rows - roots.shape[-2]))

    return ClassGaussians(
        mean_x=torch.cat([part.mean_x for part in parts]),
        mean_y=torch.cat([part.mean_y for part in parts], dim=1),
        root_x=torch.cat([padded(part.root_x) for part in parts]),
        root_y=torch.cat([padded(part.root_y) for part in parts], dim=1),
    )


def class_gaussian(moments: ClassMoments, chunk: slice) -> ClassGaussians:
    """Returns one class's Gaussians (K = 1). The rows themselves are a root where they are still held."""
    freedom = max(moments.weight - 1, 1)
    if moments.moments:
        m = moments.moments
        return ClassGaussians(
            m.mean_x[None], m.mean_y[chunk, None], root(m.xx[None] / freedom), root(m.yy[chunk, None] / freedom)
        )
    x, y, weights = moments.joined_rows()
    x, y, share = x.double(), y[chunk].double(), weights / weights.sum()
    mean_x, mean_y = share @ x, share @ y
    scale = (weights / freedom).sqrt()[:, None]
    return ClassGaussians(
        mean_x[None], mean_y[:, None], ((x - mean_x) * scale)[None], ((y - mean_y[:, None]) * scale)[:, None]
    )


def within_class_coupling(stats: PairStatistics, chunk: slice, gaussians: ClassGaussians) -> Tensor:
    """Returns Σ over classes of the cross covariance of paired Y and X, from the pooled one; (c, d, d).

    Samples are paired, so this is a coupling of the Gaussians: the rotation that is best for it is a good start. The
    covariance is the classes' common one, scaled to their number.
    """
    weights = torch.tensor([c.weight for c in stats.classes if c.weight], dtype=torch.float64, device=stats.device)
    couplings = []
    for j, mean_y in zip(range(stats.candidates)[chunk], gaussians.mean_y, strict=True):
        pooled = stats.pooled_moments(j)
        between = ((mean_y - pooled.mean_y) * weights[:, None]).mT @ (gaussians.mean_x - pooled.mean_x)
        freedom = max(pooled.weight - len(weights), 1)
        couplings.append((pooled.xy.mT - between) * (len(weights) / freedom))
    return torch.stack(couplings)


def in_row_span(gaussians: ClassGaussians, coupling: Tensor) -> tuple[ClassGaussians, Tensor]:
    """Returns the same Gaussians in coordinates of the space that each side spans, of fewer dimensions than features.

    Distances do not change: a rotation of the coordinates reaches every overlap that a rotation of the features does.
    """
    mean_x, root_x, basis_x = spanned(gaussians.mean_x, gaussians.root_x)
    mean_y, root_y, basis_y = spanned(gaussians.mean_y, gaussians.root_y)
    return ClassGaussians(mean_x, mean_y, root_x, root_y), basis_y.mT @ coupling @ basis_x


def spanned(means: Tensor, roots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns means (..., K, m) and roots (..., K, r, m) in an orthonormal basis (..., d, m) of their span."""
    rows = torch.cat([means, roots.flatten(-3, -2)], dim=-2)
    basis, coordinates = torch.linalg.qr(rows.mT)
    classes = means.shape[-2]
    return coordinates.mT[..., :classes, :], coordinates.mT[..., classes:, :].unflatten(-2, roots.shape[-3:-1]), basis


def gaussian(name: str, alpha: float) -> Metric:
    """Returns the metric of one α."""
    return Metric(
        name,
        "gaussian",
        partial(gaussian_distance, alpha=alpha),
        frozenset({"class_conditional", "pooled"}),
        min_samples_per_class=2,
    )


GAUSSIAN_ALPHA0 = gaussian("gaussian_alpha0", 0.0)
GAUSSIAN_ALPHA1 = gaussian("gaussian_alpha1", 1.0)
GAUSSIAN_ALPHA2 = gaussian("gaussian_alpha2", 2.0)
