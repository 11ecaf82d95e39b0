"""The metrics straight from their definitions, from both representations (n, d), one pair at a time and slow."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.spatial.distance
import scipy.stats
import torch

from consensus_cli.scoring.metrics.linear import aligned_angle, whitening
from consensus_cli.scoring.statistics.moments import PairStatistics


def held_bytes(held):
    """The bytes of all tensors in an object, those that share memory counted once."""
    if isinstance(held, torch.Tensor):
        storage = held.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()} if storage.nbytes() else {}
    if isinstance(held, list | tuple | dict):
        inside = held.values() if isinstance(held, dict) else held
    elif type(held).__module__.startswith("consensus_cli"):
        inside = vars(held).values()
    else:
        return {}
    return {pointer: size for part in inside for pointer, size in held_bytes(part).items()}


def nbytes(held):
    """The bytes that statistics hold."""
    return sum(held_bytes(held).values())


def statistics(x, ys, labels=None, *, batch=64, **options):
    """Statistics of X (n, d) and the candidates' Y (c, n, d), fed in batches in the order given."""
    x, ys = torch.as_tensor(x), torch.as_tensor(np.asarray(ys))
    labels = torch.arange(len(x)) % 2 if labels is None else torch.as_tensor(labels)
    stats = PairStatistics(len(ys), x.shape[1], int(labels.max()) + 1, **options)
    for rows in torch.arange(len(x)).split(batch):
        stats.update(x[rows], ys[:, rows], labels[rows], rows)
    return stats


def centered(x):
    return x - x.mean(axis=0)


def arc(a, b):
    return np.arccos(np.clip(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))


def cka(x, y):
    kernel_x, kernel_y = centered(x) @ centered(x).T, centered(y) @ centered(y).T
    return 1 - np.sum(kernel_x * kernel_y) / np.linalg.norm(kernel_x) / np.linalg.norm(kernel_y)


def unbiased_hsic(x, y):
    """HSIC_1 of Song et al. 2012, eq. (5), from the two kernel matrices with empty diagonals."""
    n, one = len(x), np.ones(len(x))
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    trace = np.trace(k @ m)
    return (
        (trace + (one @ k @ one) * (one @ m @ one) / (n - 1) / (n - 2) - 2 / (n - 2) * one @ k @ m @ one) / n / (n - 3)
    )


def debiased_cka(x, y):
    return 1 - unbiased_hsic(x, y) / np.sqrt(unbiased_hsic(x, x) * unbiased_hsic(y, y))


def permutation(x, y):
    x, y = centered(x), centered(y)
    rows, columns = scipy.optimize.linear_sum_assignment(scipy.spatial.distance.cdist(x.T, y.T, "sqeuclidean"))
    return arc(x[:, rows], y[:, columns])


def wasserstein(x, y):
    return scipy.stats.wasserstein_distance(x.ravel(), y.ravel())


def whitened(fit, rows, alpha):
    eigenvalues, vectors = np.linalg.eigh(centered(fit).T @ centered(fit))
    gains = alpha + (1 - alpha) / np.sqrt(np.maximum(eigenvalues, 1e-7))
    whitening = (vectors * gains) @ vectors.T
    return (fit - fit.mean(axis=0)) @ whitening, (rows - fit.mean(axis=0)) @ whitening


def linear(x, y, alpha, fit_rows=None):
    fit_rows = np.arange(len(x)) % 5 != 4 if fit_rows is None else fit_rows
    fit_x, held_x = whitened(x[fit_rows], x[~fit_rows] if not fit_rows.all() else x, alpha)
    fit_y, held_y = whitened(y[fit_rows], y[~fit_rows] if not fit_rows.all() else y, alpha)
    rotation, _ = scipy.linalg.orthogonal_procrustes(fit_y, fit_x)
    return arc(held_x, held_y @ rotation)


def angular(x, y):
    cosines = np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return np.mean(np.arccos(np.clip(cosines, -1, 1))) / np.pi


def procrustes_size_shape(x, y):
    rotation, _ = scipy.linalg.orthogonal_procrustes(centered(y), centered(x))
    return np.linalg.norm(centered(x) - centered(y) @ rotation) / np.sqrt(len(x))


def squared_bures(a, b):
    """The trace of (a^½ b a^½)^½ is the sum of the square roots of the eigenvalues of ab."""
    return np.trace(a) + np.trace(b) - 2 * np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()


def bures(x, y):
    return np.sqrt(squared_bures(np.cov(x.T), np.cov(y.T)))


def gaussian_objective(x, y, labels, alpha, rotation):
    """The Gaussian distance at one rotation of Y."""
    terms = []
    for label in np.unique(labels):
        a, b = x[labels == label], y[labels == label] @ rotation
        means = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
        terms.append(alpha * means + (2 - alpha) * squared_bures(np.cov(a.T), np.cov(b.T)))
    return np.sqrt(np.mean(terms))


def best_planar_gaussian(x, y, labels, alpha, steps=240):
    """The Gaussian distance of two-dimensional features, by trying rotations and reflections one by one."""
    angles = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    rotations = [np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in angles]
    flipped = [rotation @ np.diag([1.0, -1.0]) for rotation in rotations]
    return min(gaussian_objective(x, y, labels, alpha, rotation) for rotation in rotations + flipped)


def linear_distance_fit_on_all(stats, alpha):
    """The package's linear distance, fitted and evaluated on all samples: a metric (Williams et al. 2021)."""
    moments = [stats.pooled_moments(j) for j in range(stats.candidates)]
    return np.array([aligned_angle(m, m, whitening(m.xx, alpha), whitening(m.yy, alpha)) for m in moments])


REFERENCES = {
    "cka": cka,
    "debiased_cka": debiased_cka,
    "permutation": permutation,
    "wasserstein": wasserstein,
    "linear_alpha0": lambda x, y: linear(x, y, 0),
    "linear_alpha1": lambda x, y: linear(x, y, 1),
    "angular": angular,
    "procrustes_size_shape": procrustes_size_shape,
    "bures": bures,
}
