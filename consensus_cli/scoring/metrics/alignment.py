"""The rotation that best aligns two families of covariances and means, batched over candidates and classes.

For a rotation T the overlap is ⟨M, T⟩ + w Σ_k ‖Rʸ_k T Rˣ_kᵀ‖_*, to be maximised. The nuclear norm is the largest inner
product with a rotation Q_k, so alternating between the Q_k (polar factors) and T (a polar factor again) never lowers
the overlap. Anderson's extrapolation (Walker and Ni 2011) of that map saves two thirds of its steps; an extrapolated
point that lowers the overlap is thrown away for the plain one, so the sequence stays monotone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RELATIVE_CHANGE = 1e-5
MAX_STEPS = 200
MEMORY = 3
SINGULAR_FLOOR = 1e-14


def polar(matrix: Tensor) -> Tensor:
    """Returns the rotation or reflection T that maximises ⟨matrix, T⟩, (..., d, d)."""
    u, _, vh = torch.linalg.svd(matrix)
    return u @ vh


@dataclass(frozen=True)
class Alignment:
    """Roots of X's (K, r, d) and Y's (c, K, r, d) covariances, the means' overlap M (c, d, d) and the weight w."""

    root_x: Tensor
    root_y: Tensor
    means: Tensor
    weight: float

    def rows(self, active: Tensor) -> Alignment:
        """Returns the problem of some of the candidates."""
        return Alignment(self.root_x, self.root_y[active], self.means[active], self.weight)

    def overlap(self, rotation: Tensor) -> Tensor:
        """Returns the overlap (c,) at rotations (c, d, d)."""
        nuclear = torch.linalg.svdvals(self.root_y @ rotation[:, None] @ self.root_x.mT).sum(dim=(1, 2))
        return (self.means * rotation).sum(dim=(1, 2)) + self.weight * nuclear

    def step(self, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the overlap (c,) at rotations (c, d, d), and the rotations that one alternation leads to."""
        product = self.root_y @ rotation[:, None] @ self.root_x.mT
        # Several times faster than an SVD. Directions below the floor are shrunk instead of rotated fully: they
        # weigh nothing in the overlap, and a shrunk Q_k bounds the nuclear norm from below all the same.
        squares, vectors = torch.linalg.eigh(product.mT @ product)
        squares = torch.maximum(squares, squares[..., -1:] * SINGULAR_FLOOR).clamp(min=torch.finfo(squares.dtype).tiny)
        rotations = (product @ vectors) * squares.rsqrt()[..., None, :] @ vectors.mT
        coupled = (self.root_y.mT @ rotations @ self.root_x).sum(dim=1)
        overlap = (self.means * rotation).sum(dim=(1, 2)) + self.weight * squares.sqrt().sum(dim=(1, 2))
        return overlap, polar(self.means + self.weight * coupled)


def best_rotation(problem: Alignment, start: Tensor, energy: Tensor) -> Tensor:
    """Returns the rotations (c, d, d) that a monotone ascent of the overlap reaches from `start`.

    The distance is (energy − 2 overlap), energy (c,); a candidate stops when a step changes it by less than
    `RELATIVE_CHANGE`.
    """
    best = start.clone()
    active = torch.arange(len(start), device=start.device)
    ascent = Ascent(start)
    for _ in range(MAX_STEPS):
        overlap, image = problem.rows(active).step(ascent.point)
        gained = ascent.record(overlap, image)
        distance = (energy[active] - 2 * overlap).clamp(min=0.0)
        moving = ascent.failed | (2 * gained > RELATIVE_CHANGE * distance + SINGULAR_FLOOR**0.5 * energy[active])
        best[active] = ascent.accepted
        if not moving.any():
            break
        active = active[moving]
        ascent.advance(moving)
    return best


class Ascent:
    """The last accepted points (c, d, d) of a fixed-point map and their images, and the next point to try."""

    def __init__(self, start: Tensor) -> None:
        self.point = start
        self.overlap = torch.full((len(start),), -torch.inf, dtype=start.dtype, device=start.device)
        self.failed = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self.points: list[Tensor] = []
        self.images: list[Tensor] = []

    @property
    def accepted(self) -> Tensor:
        """The best points so far."""
        return self.points[-1]

    def record(self, overlap: Tensor, image: Tensor) -> Tensor:
        """Takes in the overlap and image of the tried point where it did not lose; returns what it gained, (c,)."""
        self.failed = overlap < self.overlap
        point = self.point
        if self.failed.any():
            # A failed extrapolation forgets its history: the next point is then the plain image of the last good one.
            failed = self.failed[:, None, None]
            point = torch.where(failed, self.points[-1], point)
            image = torch.where(failed, self.images[-1], image)
            self.points = [torch.where(failed, point, old) for old in self.points]
            self.images = [torch.where(failed, image, old) for old in self.images]
        self.points, self.images = [*self.points[1 - MEMORY :], point], [*self.images[1 - MEMORY :], image]
        gained = torch.where(self.failed, 0.0, overlap - self.overlap)
        self.overlap = torch.where(self.failed, self.overlap, overlap)
        return gained

    def advance(self, moving: Tensor) -> None:
        """Drops the candidates that no longer move and extrapolates the others' next point."""
        self.overlap = self.overlap[moving]
        self.points = [point[moving] for point in self.points]
        self.images = [image[moving] for image in self.images]
        image, residual = self.images[-1], self.images[-1] - self.points[-1]
        if len(self.points) == 1:
            self.point = image
            return
        older = list(zip(self.points[:-1], self.images[:-1], strict=True))
        image_steps = torch.stack([(image - i).flatten(1) for _, i in older], dim=2)
        residual_steps = torch.stack([(residual - (i - p)).flatten(1) for p, i in older], dim=2)
        gram = residual_steps.mT @ residual_steps
        ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).amax(dim=1) + torch.finfo(gram.dtype).tiny ** 0.5
        gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        mixture = torch.linalg.solve(gram, residual_steps.mT @ residual.flatten(1)[..., None])
        correction = (image_steps @ mixture).view_as(image)
        unchanged = correction.abs().amax(dim=(1, 2), keepdim=True) == 0
        self.point = torch.where(unchanged, image, polar(image - correction))
