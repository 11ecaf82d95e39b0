"""What each metric claims of itself, over seeds: zero, symmetry, invariances, triangle inequality, definition."""

import numpy as np
import pytest
from helpers.reference import REFERENCES, linear, linear_distance_fit_on_all, statistics
from scipy.stats import ortho_group

from consensus_cli.scoring.metrics import METRICS, compute

SEEDS = range(3)
SAMPLES, FEATURES, CLASSES = 120, 5, 3
GAUSSIANS = ("gaussian_alpha0", "gaussian_alpha1", "gaussian_alpha2")
LABELS = np.arange(SAMPLES) % CLASSES


def representations(seed, count=2, features=FEATURES):
    """Related representations (count, n, d) with class means, correlated features and spreads of their own."""
    rng = np.random.default_rng(seed)
    means = 2 * rng.normal(size=(CLASSES, features))
    base = means[LABELS] + rng.normal(size=(SAMPLES, features)) @ rng.normal(size=(features, features))
    mixers = [np.eye(features) + 0.4 * rng.normal(size=(features, features)) for _ in range(count)]
    return np.stack([base @ m + 0.5 * rng.normal(size=base.shape) + rng.normal(size=features) for m in mixers])


def distance(name, x, y):
    return compute([name], statistics(x, y[None], LABELS))[name][0]


def rotation(seed):
    return ortho_group.rvs(FEATURES, random_state=seed)


def relabelled(seed):
    return np.eye(FEATURES)[np.random.default_rng(seed).permutation(FEATURES)]


def invertible(seed):
    rng = np.random.default_rng(seed)
    left, right = ortho_group.rvs(FEATURES, size=2, random_state=seed)
    return left * rng.uniform(0.5, 2, FEATURES) @ right


TRANSFORMS = {
    "rotation": lambda x, seed: x @ rotation(seed),
    "permutation": lambda x, seed: x @ relabelled(seed),
    "invertible": lambda x, seed: x @ invertible(seed),
    "scaling": lambda x, seed: 3.0 * x,
    "translation": lambda x, seed: x + np.random.default_rng(seed).normal(size=FEATURES),
}
# Invariances of one side alone.
INVARIANT = {
    "cka": ("rotation", "permutation", "scaling", "translation"),
    "debiased_cka": ("rotation", "permutation", "scaling", "translation"),
    "linear_alpha0": ("rotation", "permutation", "invertible", "scaling", "translation"),
    "linear_alpha1": ("rotation", "permutation", "scaling", "translation"),
    "permutation": ("permutation", "scaling", "translation"),
    "procrustes_size_shape": ("rotation", "permutation", "translation"),
    "gaussian_alpha0": ("rotation", "permutation", "translation"),
    "gaussian_alpha1": ("rotation", "permutation"),
    "gaussian_alpha2": ("rotation", "permutation"),
    "wasserstein": ("permutation",),
    "angular": ("scaling",),
    "bures": ("translation",),
}
NOT_INVARIANT = {
    "cka": ("invertible",),
    "debiased_cka": ("invertible",),
    "linear_alpha1": ("invertible",),
    "permutation": ("rotation",),
    "procrustes_size_shape": ("scaling",),
    "gaussian_alpha0": ("scaling",),
    "gaussian_alpha1": ("scaling", "translation"),
    "gaussian_alpha2": ("scaling", "translation"),
    "wasserstein": ("scaling", "translation"),
    "angular": ("rotation", "translation"),
    "bures": ("rotation", "scaling"),
}
# Invariances of both sides changed alike.
JOINTLY_INVARIANT = {"angular": ("rotation",), "bures": ("rotation",)}
TRUE_METRICS = ("permutation", "wasserstein", "angular", "procrustes_size_shape", "bures", "gaussian_alpha2")


def tolerance(name):
    return 1e-3 if name in ("gaussian_alpha0", "gaussian_alpha1") else 1e-6


def cases(table):
    return [(name, transform) for name, transforms in table.items() for transform in transforms]


def test_every_metric_states_its_invariances():
    assert set(INVARIANT) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", SEEDS)
def test_zero_for_identical_and_positive_for_different_representations(name, seed):
    x, y = representations(seed)
    assert 0 <= distance(name, x, x) < 1e-6
    assert distance(name, x, y) > 1e-3


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", SEEDS)
def test_symmetric(name, seed):
    x, y = representations(seed)
    assert distance(name, x, y) == pytest.approx(distance(name, y, x), rel=tolerance(name))


@pytest.mark.parametrize(("name", "transform"), cases(INVARIANT))
def test_invariant_under_what_it_claims(name, transform):
    for seed in SEEDS:
        x, y = representations(seed)
        moved = distance(name, x, TRANSFORMS[transform](y, seed))
        assert moved == pytest.approx(distance(name, x, y), rel=tolerance(name))


@pytest.mark.parametrize(("name", "transform"), cases(NOT_INVARIANT))
def test_sees_what_it_does_not_claim(name, transform):
    x, y = representations(0)
    moved = distance(name, x, TRANSFORMS[transform](y, 0))
    assert abs(moved / distance(name, x, y) - 1) > 1e-3


@pytest.mark.parametrize(("name", "transform"), cases(JOINTLY_INVARIANT))
def test_invariant_where_both_sides_change_alike(name, transform):
    for seed in SEEDS:
        x, y = representations(seed)
        moved = distance(name, TRANSFORMS[transform](x, seed), TRANSFORMS[transform](y, seed))
        assert moved == pytest.approx(distance(name, x, y), rel=1e-6)


@pytest.mark.parametrize("name", TRUE_METRICS)
def test_triangle_inequality(name):
    for seed in SEEDS:
        x, y, z = representations(seed, count=3)
        assert distance(name, x, z) <= distance(name, x, y) + distance(name, y, z) + 1e-9


@pytest.mark.parametrize("alpha", [0, 1])
def test_linear_on_all_rows_is_a_metric_and_follows_its_definition(alpha):
    for seed in SEEDS:
        x, y, z = representations(seed, count=3)
        from_x = linear_distance_fit_on_all(statistics(x, [y, z]), alpha)
        from_y = linear_distance_fit_on_all(statistics(y, [z]), alpha)
        assert from_x[1] <= from_x[0] + from_y[0] + 1e-9
        assert from_x[0] == pytest.approx(linear(x, y, alpha, np.ones(SAMPLES, dtype=bool)), rel=1e-9)


@pytest.mark.parametrize("name", REFERENCES)
def test_statistics_give_what_the_definition_gives(name):
    for seed in SEEDS:
        x, *ys = representations(seed, count=4)
        fast = compute([name], statistics(x, ys, LABELS, batch=17))[name]
        np.testing.assert_allclose(fast, [REFERENCES[name](x, y) for y in ys], rtol=1e-9)


def test_angles_between_zero_rows_are_defined():
    x = np.zeros((4, 2))
    x[2:] = [[1.0, 0], [1, 0]]
    y = np.array([[0.0, 0], [1, 0], [0, 1], [-1, 0]])
    # Equal, nothing in common, a right angle, a half turn.
    assert distance_of_four("angular", x, y) == pytest.approx((0 + 0.5 + 0.5 + 1) / 4)


def distance_of_four(name, x, y):
    return compute([name], statistics(x, y[None], np.zeros(4, dtype=int)))[name][0]


@pytest.mark.parametrize("name", METRICS)
def test_finite_with_dead_features_and_fewer_samples_than_features(name):
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(24, 40)), 0)
    x[:, 30:] = 0
    ys = np.stack([np.maximum(x + 0.1 * rng.normal(size=x.shape), 0), x, np.zeros_like(x), np.ones_like(x)])
    values = compute([name], statistics(x, ys, np.arange(24) % 3))[name]
    assert np.isfinite(values).all()
    assert values[0] > 1e-6
    # α = 0 whitens what it fits: with fewer rows than features nothing but noise is left, see check_requirements.
    assert values[1] < 1e-6 or name == "linear_alpha0"
    both_dead = compute([name], statistics(np.zeros_like(x), np.zeros_like(x)[None], np.arange(24) % 3))[name]
    assert both_dead[0] == pytest.approx(1.0 if name == "debiased_cka" else 0.0)
