"""The eigendecomposition that metrics share."""

from __future__ import annotations

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
