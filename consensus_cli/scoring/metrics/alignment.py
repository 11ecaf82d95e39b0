"""The rotation that best aligns two families of covariances and means, batched over candidates and classes.

For a rotation T the overlap is ⟨M, T⟩ + Σ_k ‖Rʸ_k T Rˣ_kᵀ‖_*, to be maximised. The nuclear norm is the largest inner
product with a rotation Q_k, so alternating between the Q_k (polar factors) and T (a polar factor again) never lowers
the overlap. Anderson's extrapolation (Walker and Ni 2011) of that map saves two thirds of its steps; an extrapolated
point that lowers the overlap is thrown away for the plain one, so the sequence stays monotone.

A step costs the cube of the number of dimensions. In coordinates of the principal axes the leading half of them decides
most of the rotation, so that a large problem is climbed by halves: the more dimensions, the fewer steps are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from consensus_cli.scoring.metrics.algebra import eigh

RELATIVE_CHANGE = 1e-5
MAX_STEPS = 200
MIN_STEPS = 2
MEMORY = 3

#: Up to so many dimensions all `MAX_STEPS` are affordable, and halving a problem would save nothing.
COARSEST = 128
SINGULAR_FLOOR = 1e-14


def polar(matrix: Tensor) -> Tensor:
    """Returns the rotation or reflection T that maximises ⟨matrix, T⟩, (..., d, d)."""
    u, _, vh = torch.linalg.svd(matrix)
    return u @ vh


@dataclass(frozen=True)
class Alignment:
    """Roots of X's (K, r, d) and Y's (c, K, r, d) covariances, and the means' overlap M (c, d, d)."""

    root_x: Tensor
    root_y: Tensor
    means: Tensor

    def rows(self, active: Tensor) -> Alignment:
        """Returns the problem of some of the candidates."""
        return Alignment(self.root_x, self.root_y[active], self.means[active])

    def leading(self, size: int) -> Alignment:
        """Returns the problem in the first `size` coordinates of both sides."""
        return Alignment(
            compact(self.root_x[..., :size]),
            compact(self.root_y[..., :size]),
            self.means[:, :size, :size],
        )

    def products(self, rotation: Tensor) -> Tensor:
        """Returns Rʸ_k T Rˣ_kᵀ for rotations (c, d, d); (c, K, r, r)."""
        turned = self.root_y.flatten(1, 2) @ rotation
        return turned.unflatten(1, self.root_y.shape[1:3]) @ self.root_x.mT

    def overlap(self, rotation: Tensor) -> Tensor:
        """Returns the overlap (c,) at rotations (c, d, d)."""
        nuclear = torch.linalg.svdvals(self.products(rotation)).sum(dim=(1, 2))
        return (self.means * rotation).sum(dim=(1, 2)) + nuclear

    def step(self, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the overlap (c,) at rotations (c, d, d), and the rotations that one alternation leads to."""
        product = self.products(rotation)
        # Several times faster than an SVD. Directions below the floor are shrunk instead of rotated fully: they
        # weigh nothing in the overlap, and a shrunk Q_k bounds the nuclear norm from below all the same.
        squares, vectors = eigh(product.mT @ product)
        squares = torch.maximum(squares, squares[..., -1:] * SINGULAR_FLOOR).clamp(min=torch.finfo(squares.dtype).tiny)
        rotations = (product @ vectors) * squares.rsqrt()[..., None, :] @ vectors.mT
        coupled = self.root_y.flatten(1, 2).mT @ (rotations @ self.root_x).flatten(1, 2)
        overlap = (self.means * rotation).sum(dim=(1, 2)) + squares.sqrt().sum(dim=(1, 2))
        return overlap, polar(self.means + coupled)


def compact(roots: Tensor) -> Tensor:
    """Returns roots (..., r, d) of the same covariances with at most d rows."""
    return torch.linalg.qr(roots, mode="r").R if roots.shape[-2] > roots.shape[-1] else roots


def climbed(problem: Alignment, coupling: Tensor, energy: Tensor, *, try_axes: bool) -> Tensor:
    """Returns the rotations (c, d, d) that an ascent from coarse to fine reaches.

    The coordinates of both sides run from the direction of most variance to that of least. The leading half of them
    is solved first, down to `COARSEST`; the other half starts from the best rotation of its own coupling.

    Args:
        problem: the covariances and means.
        coupling: (c, d, d) cross covariance of paired samples, Y by X; its polar factor is where the ascent starts.
        energy: (c,) as `best_rotation` takes it.
        try_axes: ascend also from principal axes laid on principal axes, and keep the better end.
    """
    size = coupling.shape[-1]
    limit = step_limit(size)
    if size > COARSEST:
        half = size // 2
        coarse = climbed(problem.leading(half), coupling[:, :half, :half], energy, try_axes=try_axes)
        start = torch.zeros_like(coupling)
        start[:, :half, :half] = coarse
        start[:, half:, half:] = polar(coupling[:, half:, half:])
        return best_rotation(problem, start, energy, limit)
    found = best_rotation(problem, polar(coupling), energy, limit)
    if not try_axes:
        return found
    signs = torch.where(coupling.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(coupling)
    other = best_rotation(problem, torch.diag_embed(signs), energy, limit)
    better = problem.overlap(other) > problem.overlap(found)
    return torch.where(better[:, None, None], other, found)


def step_limit(size: int) -> int:
    """Returns how many steps an ascent in `size` dimensions may take: about the same work in any."""
    return max(MIN_STEPS, int(MAX_STEPS * min(1.0, (COARSEST / size) ** 3)))


def best_rotation(problem: Alignment, start: Tensor, energy: Tensor, max_steps: int = MAX_STEPS) -> Tensor:
    """Returns the rotations (c, d, d) that a monotone ascent of the overlap reaches from `start`.

    The distance is (energy − 2 overlap), energy (c,); a candidate stops when a step changes it by less than
    `RELATIVE_CHANGE`, or after `max_steps`.
    """
    best = start.clone()
    active = torch.arange(len(start), device=start.device)
    moving = torch.ones_like(active, dtype=torch.bool)
    ascent = Ascent(start)
    for number in range(max_steps):
        if number:
            ascent.advance(moving)
        overlap, image = problem.rows(active).step(ascent.point)
        gained = ascent.record(overlap, image)
        distance = (energy[active] - 2 * overlap).clamp(min=0.0)
        moving = ascent.failed | (2 * gained > RELATIVE_CHANGE * distance + SINGULAR_FLOOR**0.5 * energy[active])
        # The image of an accepted point loses nothing against it: one more step that is already paid for.
        best[active] = ascent.images[-1]
        active = active[moving]
        if not len(active):
            break
    return best


class Ascent:
    """The last accepted points (c, d, d) of a fixed-point map and their images, and the next point to try."""

    def __init__(self, start: Tensor) -> None:
        self.point = start
        self.overlap = torch.full((len(start),), -torch.inf, dtype=start.dtype, device=start.device)
        self.failed: Tensor
        self.points: list[Tensor] = []
        self.images: list[Tensor] = []

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
