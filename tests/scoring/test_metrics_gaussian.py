import itertools

import numpy as np
import pytest
import torch
from helpers.reference import best_planar_gaussian, gaussian_objective, statistics
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from consensus_cli.scoring.metrics import compute
from consensus_cli.scoring.metrics.alignment import (
    COARSEST,
    MAX_STEPS,
    MIN_STEPS,
    Alignment,
    Ascent,
    best_rotation,
    climbed,
    polar,
    step_limit,
)
from consensus_cli.scoring.metrics.gaussian import gaussian_distance, gaussians, on_all_cores

LABELS = np.arange(120) % 3
ALPHAS = {"gaussian_alpha0": 0, "gaussian_alpha1": 1, "gaussian_alpha2": 2}


def representations(seed, features, count=1):
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.2, 2, size=(3, 1, features))
    x = rng.normal(size=(120, features)) * scales[LABELS, 0] + rng.normal(size=(3, features))[LABELS]
    ys = [x @ ortho_group.rvs(features, random_state=seed + j) for j in range(count)]
    return x, np.stack([y + 0.3 * rng.normal(size=x.shape) for y in ys])


def problem_of(seed, features=8, count=3):
    x, ys = representations(seed, features, count)
    classes = statistics(x, ys, LABELS).classes
    root_x, root_y = gaussians(classes, None).roots, gaussians(classes, slice(None)).roots
    energy = root_x.square().sum() + root_y.square().sum(dim=(1, 2, 3))
    means = torch.zeros(count, features, features, dtype=torch.float64)
    start = polar(torch.randn(count, features, features, generator=torch.Generator().manual_seed(seed)).double())
    return Alignment(root_x, root_y, means), start, energy


@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize("seed", range(3))
def test_plane_minimum_is_that_of_trying_every_rotation(name, seed):
    x, ys = representations(seed, features=2)
    found = compute([name], statistics(x, ys, LABELS))[name][0]
    tried = best_planar_gaussian(x, ys[0], LABELS, ALPHAS[name])
    assert tried * 0.95 < found <= tried * (1 + 1e-5)


def test_one_dimension_by_hand():
    """One class of {−1, 1} against {0, 4}: means 0 and 2, deviations √2 and √8."""
    stats = statistics(np.array([[-1.0], [1]]), np.array([[[0.0], [4]]]), [0, 0])
    found = compute(list(ALPHAS), stats)
    assert found["gaussian_alpha2"][0] == pytest.approx(np.sqrt(2 * 2**2))
    assert found["gaussian_alpha0"][0] == pytest.approx(np.sqrt(2 * (np.sqrt(8) - np.sqrt(2)) ** 2))
    assert found["gaussian_alpha1"][0] == pytest.approx(np.sqrt(2**2 + (np.sqrt(8) - np.sqrt(2)) ** 2))


@pytest.mark.parametrize("alpha", [0, 1])
def test_no_worse_than_any_of_many_rotations(alpha):
    x, ys = representations(5, features=4)
    found = gaussian_distance(statistics(x, ys, LABELS), alpha)[0]
    tried = [gaussian_objective(x, ys[0], LABELS, alpha, t) for t in ortho_group.rvs(4, size=50, random_state=0)]
    assert found <= min(tried)


@pytest.mark.parametrize("seed", range(5))
def test_overlap_never_falls(seed):
    problem, start, _ = problem_of(seed)
    ascent, overlaps = Ascent(start), []
    for _ in range(40):
        ascent.record(*problem.step(ascent.point))
        overlaps.append(problem.overlap(ascent.points[-1]))
        ascent.advance(torch.ones(len(start), dtype=torch.bool))
    for before, after in itertools.pairwise(overlaps):
        assert (after >= before * (1 - 1e-7)).all()
    assert (overlaps[-1] > overlaps[0] * 1.01).all()


def test_an_extrapolation_that_loses_is_replaced_by_the_plain_step():
    problem, start, _ = problem_of(0)
    ascent = Ascent(start)
    everything = torch.ones(len(start), dtype=torch.bool)
    for _ in range(3):
        ascent.record(*problem.step(ascent.point))
        ascent.advance(everything)
    accepted, image = ascent.points[-1], ascent.images[-1]
    ascent.point = torch.where(torch.arange(3)[:, None, None] == 1, -start, ascent.point)
    gained = ascent.record(torch.tensor([1e9, -1e9, 1e9], dtype=torch.float64), image)
    assert ascent.failed.tolist() == [False, True, False]
    assert gained[1] == 0
    assert torch.equal(ascent.points[-1][1], accepted[1])
    ascent.advance(everything)
    assert torch.equal(ascent.point[1], image[1])


def test_a_step_is_a_rotation_that_gains_as_much_as_an_svd_says():
    problem, start, _ = problem_of(1)
    overlap, image = problem.step(start)
    np.testing.assert_allclose(overlap, problem.overlap(start), rtol=1e-6)
    np.testing.assert_allclose(image @ image.mT, np.broadcast_to(np.eye(8), (3, 8, 8)), atol=1e-12)


def test_solution_does_not_depend_on_what_else_is_in_the_batch():
    problem, start, energy = problem_of(2)
    together = best_rotation(problem, start, energy)
    for j in range(3):
        row = torch.tensor([j])
        alone = best_rotation(problem.rows(row), start[row], energy[row])
        np.testing.assert_allclose(alone[0], together[j], atol=1e-6)


@pytest.mark.parametrize(("features", "kept"), [(150, 123), (30, 30)])
def test_principal_axes_leave_distances_as_they_are(features, kept):
    x, ys = representations(3, features, count=2)
    full = gaussians(statistics(x, ys, LABELS).classes, slice(None))
    small, basis = full.in_principal_axes()
    assert basis.shape == (2, features, kept)
    assert small.roots.shape == (2, 3, full.roots.shape[2], kept)
    np.testing.assert_allclose(full.roots @ full.roots.mT, small.roots @ small.roots.mT, atol=1e-9)
    np.testing.assert_allclose(small.means @ basis.mT, full.means, atol=1e-9)
    energies = (small.means.square().sum(dim=1) + small.roots.square().sum(dim=(1, 2))).numpy()
    assert (np.diff(energies) <= 1e-9).all()


@pytest.mark.parametrize("features", [2, 4, 8])
def test_one_class_has_a_closed_form(features):
    """A rotation then lines up the principal axes."""
    x, ys = representations(3, features)
    found = gaussian_distance(statistics(x, ys, np.zeros(120, dtype=int)), 0)[0]
    spreads_x, spreads_y = (np.linalg.svd(a - a.mean(axis=0), compute_uv=False) for a in (x, ys[0]))
    assert found == pytest.approx(np.sqrt(2 * np.sum((spreads_x - spreads_y) ** 2) / 119), rel=1e-2)


def test_fewer_samples_than_features_reach_the_closed_form_from_the_principal_axes():
    """With a single class a rotation that lines up the principal axes is the best; pairing alone stops above it."""
    x, ys = representations(3, 50, count=2)
    x, ys, labels = x[:30], ys[:, :30], np.zeros(30, dtype=int)
    found = gaussian_distance(statistics(x, ys, labels), 0)
    spreads_x = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    spreads_y = np.linalg.svd(ys - ys.mean(axis=1, keepdims=True), compute_uv=False)
    np.testing.assert_allclose(found, np.sqrt(2 * ((spreads_x - spreads_y) ** 2).sum(axis=1) / 29), rtol=1e-5)


def test_steps_fall_with_the_cube_of_the_dimensions():
    assert [step_limit(COARSEST * times) for times in (0.5, 1, 2, 4, 8)] == [MAX_STEPS, MAX_STEPS, 25, 3, MIN_STEPS]


@pytest.mark.parametrize("seed", range(2))
def test_coarse_to_fine_ends_where_all_steps_at_once_do(seed):
    """160 features, all of them spanned, of ever less variance, as those of networks are."""
    rng = np.random.default_rng(seed)
    labels, spread = np.arange(240) % 3, np.arange(1, 161) ** -0.7
    x = (rng.normal(size=(3, 160))[labels] + rng.normal(size=(240, 160))) * spread
    ys = x[None] + 0.4 * spread * rng.normal(size=(1, 240, 160))
    classes = statistics(x, ys, labels).classes
    (side_x, basis_x), (side_y, basis_y) = (
        gaussians(classes, None).in_principal_axes(),
        gaussians(classes, slice(None)).in_principal_axes(),
    )
    y_by_x = (ys - ys.mean(axis=1, keepdims=True)).transpose(0, 2, 1) @ (x - x.mean(axis=0))
    coupling = basis_y.mT @ torch.from_numpy(y_by_x) @ basis_x
    problem = Alignment(side_x.roots, side_y.roots, torch.zeros_like(coupling))
    energy = side_x.roots.square().sum() + side_y.roots.square().sum(dim=(1, 2, 3))
    by_halves = problem.overlap(climbed(problem, coupling, energy, try_axes=False))
    at_once = problem.overlap(best_rotation(problem, polar(coupling), energy))
    distance, expected = energy - 2 * by_halves, energy - 2 * at_once
    assert coupling.shape[-1] == 160
    assert 0 < distance <= expected * 1.01


@pytest.mark.parametrize("alpha", [0, 1])
def test_fewer_samples_than_features_still_beat_the_rotation_of_the_pairs(alpha):
    x, ys = representations(3, features=150)
    paired = orthogonal_procrustes(ys[0] - ys[0].mean(axis=0), x - x.mean(axis=0))[0]
    found = gaussian_distance(statistics(x, ys, LABELS), alpha)[0]
    assert 0 < found < gaussian_objective(x, ys[0], LABELS, alpha, paired)


def test_classes_of_unequal_size_and_empty_ones():
    x, ys = representations(4, features=4)
    labels = np.where(LABELS == 2, 5, LABELS)
    labels[6:] = np.where(labels[6:] == 5, 0, labels[6:])
    values = compute(list(ALPHAS), statistics(x, ys, labels))
    for name, alpha in ALPHAS.items():
        identity = gaussian_objective(x, ys[0], labels, alpha, np.eye(4))
        assert 0 < values[name][0] <= identity


def test_chunks_share_the_threads_and_the_count_comes_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        used = on_all_cores(lambda chunk: np.array([chunk.start, torch.get_num_threads()]), [slice(2, 3), slice(4, 5)])
        assert [values.tolist() for values in used] == [[2, 1], [4, 1]]
        assert torch.get_num_threads() == 3
        assert on_all_cores(lambda chunk: np.array([torch.get_num_threads()]), [slice(1)])[0] == [3]
        with pytest.raises(ZeroDivisionError):
            on_all_cores(lambda chunk: np.array([1 / 0]), [slice(0)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
