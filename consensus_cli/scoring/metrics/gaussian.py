"""Stochastic shape distances between class-conditional Gaussians (Duong et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from consensus_cli.scoring.metrics.algebra import eigh, root
from consensus_cli.scoring.metrics.alignment import COARSEST, Alignment, climbed, compact
from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.statistics.moments import PairStatistics
from consensus_cli.scoring.statistics.second_moments import FactoredMoments

CHUNK_BYTES = 2**28

#: Matrices (d, d) that the solver holds per candidate beside the covariance roots.
WORKING_MATRICES = 16

#: Up to so many features LAPACK works on one matrix at a time: candidates share the cores better than a matrix would.
SHARED_CORES_FEATURES = 512


def gaussian_distance(stats: PairStatistics, alpha: float) -> np.ndarray:
    """√ min over rotations T of the mean over classes of α‖μˣ − μʸT‖² + (2 − α) B²(Σˣ, TᵀΣʸT); (c,), ≥ 0.

    μ and Σ (n − 1) are the mean and covariance of a class, B is the Bures distance; one rotation serves all classes.
    Duong et al. 2023, eq. (5), with α = 2 the means alone (closed form), α = 0 the covariances alone, α = 1 the
    2-Wasserstein distance between the Gaussians. In the unit of the features. Invariant under rotation and reflection
    of either side. For α < 2 not convex: the minimum is a local one, reached from the best rotation of the paired
    samples, from coarse to fine where there are many features (`consensus_cli.scoring.metrics.alignment`).
    """
    if alpha == 2:
        return means_distance(stats)
    plain = gaussians(stats.classes, None)
    original = plain.weighted(alpha)
    # Few enough samples leave room for rotations that pairing never finds.
    deficient = original.roots.shape[-2] < stats.features
    in_axes = deficient or stats.features > COARSEST
    axes = original.in_principal_axes() if in_axes else None
    size = chunk_size(stats)
    chunks = [slice(start, min(start + size, stats.candidates)) for start in range(0, stats.candidates, size)]

    def solve(chunk: slice) -> np.ndarray:
        ablated = gaussians(stats.classes, chunk)
        coupling = (2 - alpha) * within_class_coupling(stats, chunk, plain, ablated)
        ablated = ablated.weighted(alpha)
        if axes is None:
            return aligned_distance(original, ablated, coupling, try_axes=False)
        (x, basis_x), (y, basis_y) = axes, ablated.in_principal_axes()
        return aligned_distance(x, y, basis_y.mT @ coupling @ basis_x, try_axes=deficient)

    if stats.device.type != "cpu" or stats.features > SHARED_CORES_FEATURES:
        return np.concatenate([solve(chunk) for chunk in chunks])
    return np.concatenate(on_all_cores(solve, chunks))


def on_all_cores(solve: Callable[[slice], np.ndarray], chunks: Sequence[slice]) -> list[np.ndarray]:
    """Solves for chunks of candidates at once, each with its part of the threads: small matrices share cores badly."""
    threads = torch.get_num_threads()
    each = max(1, threads // len(chunks))
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            return list(pool.map(solve, chunks))
    finally:
        # PyTorch's own threads are counted for each thread, those of its linear algebra for the whole process.
        torch.set_num_threads(threads)


def chunk_size(stats: PairStatistics) -> int:
    """Returns how many candidates to solve for at once: an even share of the cores, within `CHUNK_BYTES`."""
    per_candidate = 8 * (len(stats.classes) + WORKING_MATRICES) * stats.features**2
    workers = torch.get_num_threads() if stats.device.type == "cpu" else 1
    return max(1, min(-(-stats.candidates // workers), CHUNK_BYTES // per_candidate))


def means_distance(stats: PairStatistics) -> np.ndarray:
    """The distance for α = 2, √ min over rotations T of the mean over classes of 2‖μˣ − μʸT‖²; (c,)."""
    filled = [c for c in stats.classes if c.weight]
    x = torch.cat([class_mean(c, None) for c in filled], dim=-2)
    y = torch.cat([class_mean(c, slice(None)) for c in filled], dim=-2)
    # The means' overlap has the singular values of the product of their triangular factors, which is small.
    _, factor_x = torch.linalg.qr(x.mT, mode="r")
    _, factor_y = torch.linalg.qr(y.mT, mode="r")
    overlap = torch.linalg.svdvals(factor_y @ factor_x.mT).sum(dim=1)
    squares = x.square().sum() + y.square().sum(dim=(1, 2)) - 2 * overlap
    return (2 * squares / len(x)).clamp(min=0.0).sqrt().cpu().numpy()


def aligned_distance(x: ClassGaussians, y: ClassGaussians, coupling: Tensor, *, try_axes: bool) -> np.ndarray:
    """Distances (c,) of weighted Gaussians after the best rotation found.

    `coupling` (c, d, d) of paired Y and X within classes gives the start.
    """
    means = y.means.mT @ x.means
    problem = Alignment(compact(x.roots), compact(y.roots), means)
    energy_x = x.means.square().sum() + x.roots.square().sum()
    energy = energy_x + y.means.square().sum(dim=(1, 2)) + y.roots.square().sum(dim=(1, 2, 3))
    rotation = climbed(problem, means + coupling, energy, try_axes=try_axes)
    squares = (energy - 2 * problem.overlap(rotation)) / len(x.means)
    return squares.clamp(min=0.0).sqrt().cpu().numpy()


@dataclass(frozen=True)
class ClassGaussians:
    """Means (..., K, d) and covariance roots R (..., K, r, d), RᵀR = Σ, of K classes, for any number of streams."""

    means: Tensor
    roots: Tensor

    def weighted(self, alpha: float) -> ClassGaussians:
        """Returns the Gaussians whose distance needs no α any more: means times √α, roots times √(2 − α)."""
        return ClassGaussians(self.means * alpha**0.5, self.roots * (2 - alpha) ** 0.5)

    def in_principal_axes(self) -> tuple[ClassGaussians, Tensor]:
        """Returns the Gaussians in an orthonormal basis (..., d, m) of their span, and the basis.

        The coordinates run from the direction of most variance about zero to that of least, m is the smaller of d and
        the number of means and root rows. Distances do not change: a rotation of the coordinates reaches every
        overlap that a rotation of the features does.
        """
        rows = torch.cat([self.means, self.roots.flatten(-3, -2)], dim=-2)
        basis, triangle = torch.linalg.qr(rows.mT) if rows.shape[-2] < rows.shape[-1] else (None, rows.mT)
        _, axes = eigh(triangle @ triangle.mT)
        axes = axes.flip(-1)
        basis = axes if basis is None else basis @ axes
        # The bases of several streams meet roots that have one dimension more.
        turned = ClassGaussians(
            self.means @ basis, (self.roots.flatten(-3, -2) @ basis).view(*self.roots.shape[:-1], -1)
        )
        return turned, basis


def gaussians(classes: list[FactoredMoments], chunk: slice | None) -> ClassGaussians:
    """Returns the Gaussians of the classes that have samples, roots padded with zero rows to one height.

    Means (c, K, d) and roots (c, K, r, d) of the candidates in `chunk`; of X, without c, where it is None.
    """
    parts = [class_gaussian(c, chunk) for c in classes if c.weight]
    rows = max(part.roots.shape[-2] for part in parts)
    roots = [torch.nn.functional.pad(part.roots, (0, 0, 0, rows - part.roots.shape[-2])) for part in parts]
    return ClassGaussians(torch.cat([part.means for part in parts], dim=-2), torch.cat(roots, dim=-3))


def class_gaussian(moments: FactoredMoments, chunk: slice | None) -> ClassGaussians:
    """Returns one class's Gaussians (..., 1, ·), of X where `chunk` is None.

    The centred rows themselves are a root where they are still held.
    """
    mean, freedom = class_mean(moments, chunk), max(moments.weight - 1, 1)
    if moments.moments:
        second = moments.moments.xx if chunk is None else moments.moments.yy[chunk]
        return ClassGaussians(mean, root(second / freedom)[..., None, :, :])
    rows, weights = moments.rows_of(chunk)
    return ClassGaussians(mean, ((rows - mean) * (weights / freedom).sqrt()[:, None])[..., None, :, :])


def class_mean(moments: FactoredMoments, chunk: slice | None) -> Tensor:
    """Returns one class's mean (..., 1, d), of X where `chunk` is None."""
    if moments.moments:
        return (moments.moments.mean_x if chunk is None else moments.moments.mean_y[chunk])[..., None, :]
    rows, weights = moments.rows_of(chunk)
    return ((weights / weights.sum()) @ rows)[..., None, :]


def within_class_coupling(
    stats: PairStatistics, chunk: slice, original: ClassGaussians, ablated: ClassGaussians
) -> Tensor:
    """Returns Σ over classes of the cross covariance of paired Y and X, from the pooled one; (c, d, d).

    Samples are paired, so this is a coupling of the Gaussians: the rotation that is best for it is a good start. The
    covariance is the classes' common one, scaled to their number.
    """
    weights = torch.tensor([c.weight for c in stats.classes if c.weight], dtype=torch.float64, device=stats.device)
    couplings = []
    for j, mean_y in zip(range(stats.candidates)[chunk], ablated.means, strict=True):
        pooled = stats.pooled_moments(j)
        between = ((mean_y - pooled.mean_y) * weights[:, None]).mT @ (original.means - pooled.mean_x)
        freedom = max(pooled.weight - len(weights), 1)
        couplings.append((pooled.xy.mT - between) * (len(weights) / freedom))
    return torch.stack(couplings)


def gaussian(name: str, alpha: float) -> Metric:
    """Returns the metric of one α."""
    return Metric(
        name,
        "gaussian",
        partial(gaussian_distance, alpha=alpha),
        frozenset({"class_conditional"} if alpha == 2 else {"class_conditional", "pooled"}),
        min_samples_per_class=2,
    )


GAUSSIAN_ALPHA0 = gaussian("gaussian_alpha0", 0.0)
GAUSSIAN_ALPHA1 = gaussian("gaussian_alpha1", 1.0)
GAUSSIAN_ALPHA2 = gaussian("gaussian_alpha2", 2.0)
