"""Linear algebra that metrics share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns eigenvalues (..., d), ascending, and eigenvectors (..., d, d) of symmetric matrices (..., d, d).

    LAPACK's divide and conquer does not converge on some matrices of nearly dead features, whose entries run down to
    the smallest numbers there are: about one in fifteen of those in the test. A ridge of the size of the rounding
    error of the largest entries changes nothing that was known of the matrix, and lifts its dust out of that range.

    Raises:
        torch.linalg.LinAlgError: a matrix holds something that is not a finite number.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        dust = torch.finfo(matrix.dtype).eps * matrix.diagonal(dim1=-2, dim2=-1).abs().amax(dim=-1)
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        values, vectors = torch.linalg.eigh(matrix + dust[..., None, None] * identity)
    return values, vectors


def root(matrix: Tensor) -> Tensor:
    """Returns R with RᵀR = matrix, for positive semidefinite matrices (..., d, d) of any rank."""
    eigenvalues, vectors = eigh(matrix)
    return eigenvalues.clamp(min=0.0).sqrt()[..., None] * vectors.mT


def angle(inner: float, energy_x: float, energy_y: float) -> float:
    """Returns arccos(⟨A, B⟩ / (‖A‖ ‖B‖)) in radians, in [0, π], from ⟨A, B⟩, ‖A‖² and ‖B‖².

    Two zero matrices are the same (0); a zero one and any other have nothing in common (π/2).
    """
    if energy_x <= 0 or energy_y <= 0:
        return 0.0 if energy_x <= 0 and energy_y <= 0 else math.pi / 2
    return math.acos(min(1.0, max(-1.0, inner / (math.sqrt(energy_x) * math.sqrt(energy_y)))))
