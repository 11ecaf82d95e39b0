"""Angular distance after the best linear alignment (Williams et al. 2021, generalised shape metrics)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from consensus_cli.scoring.metrics.algebra import angle, eigh
from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.statistics.moments import PairStatistics
from consensus_cli.scoring.statistics.second_moments import PairMoments

SMALLEST_EIGENVALUE = 1e-7
UNDETERMINED = 1e-10


def linear_distance(stats: PairStatistics, alpha: float) -> np.ndarray:
    """Angle in radians between the held-out rows of X and Y, aligned on the other rows; (c,), in [0, π].

    Columns are centred and each side multiplied by its regularised whitening Z = V diag(α + (1−α) λ^(−1/2)) Vᵀ, where
    XᵀX = V diag(λ) Vᵀ with λ ≥ 1e-7; then the best rotation between the two. Means, whitening and rotation come from
    the samples that are not held out, the angle from the held-out fifth. Williams et al. 2021, section 2.3.
    α = 1 (Procrustes) is invariant under rotation, translation and isotropic scaling of either side, α = 0 under any
    invertible affine map. Held out, it is symmetric but no longer a metric: the triangle inequality may fail.
    """
    whitening_x = whitening(stats.fit_moments(0).xx, alpha)
    distances = []
    for j in range(stats.candidates):
        fit = stats.fit_moments(j)
        held_out = stats.held_out_moments(j).about(fit.mean_x, fit.mean_y)
        distances.append(aligned_angle(fit, held_out, whitening_x, whitening(fit.yy, alpha)))
    return np.array(distances)


def whitening(second_moment: Tensor, alpha: float) -> Tensor | None:
    """Returns Z (d, d) of a second moment (d, d), up to a scale that no angle depends on; None for the identity."""
    if alpha == 1:
        return None
    eigenvalues, vectors = eigh(second_moment)
    gains = alpha + (1 - alpha) * eigenvalues.clamp(min=SMALLEST_EIGENVALUE).rsqrt()
    return (vectors * gains) @ vectors.mT


def aligned_angle(fit: PairMoments, evaluate: PairMoments, zx: Tensor | None, zy: Tensor | None) -> float:
    """Angle between the rows behind `evaluate`, whitened by `zx` and `zy` and rotated as fits those behind `fit`."""
    overlap = transformed(zx, fit.xy, zy)
    # Directions that no fit row reaches keep their features: without this the SVD would rotate them arbitrarily.
    tie_break = UNDETERMINED * overlap.norm() * torch.eye(len(overlap), dtype=overlap.dtype, device=overlap.device)
    u, _, vh = torch.linalg.svd(overlap + tie_break)
    inner = torch.sum((u @ vh) * transformed(zx, evaluate.xy, zy))
    energy_x = transformed(zx, evaluate.xx, zx).trace()
    energy_y = transformed(zy, evaluate.yy, zy).trace()
    return angle(float(inner), float(energy_x), float(energy_y))


def transformed(left: Tensor | None, matrix: Tensor, right: Tensor | None) -> Tensor:
    """Returns left · matrix · right, each factor the identity where it is None."""
    product = matrix if left is None else left @ matrix
    return product if right is None else product @ right


LINEAR_ALPHA0 = Metric(
    "linear_alpha0",
    "linear",
    partial(linear_distance, alpha=0.0),
    frozenset({"pooled"}),
    min_samples=10,
    # With fewer rows some linear map fits any two representations exactly.
    fit_rows_cover_features=True,
)
LINEAR_ALPHA1 = Metric(
    "linear_alpha1", "linear", partial(linear_distance, alpha=1.0), frozenset({"pooled"}), min_samples=10
)
