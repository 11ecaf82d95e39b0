import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.reference import statistics

from consensus_cli.errors import UserError
from consensus_cli.scoring import metrics
from consensus_cli.scoring.metrics import METRICS, check_requirements, compute, statistics_needed
from consensus_cli.scoring.statistics.moments import GROUPS

PAPER = {
    "cka",
    "linear_alpha0",
    "linear_alpha1",
    "permutation",
    "gaussian_alpha0",
    "gaussian_alpha1",
    "gaussian_alpha2",
    "wasserstein",
}
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def pair():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    return x, np.stack([x + 0.1 * rng.normal(size=x.shape), x + rng.normal(size=x.shape)])


def test_names_and_families():
    assert set(METRICS) == PAPER | {"debiased_cka", "angular", "procrustes_size_shape", "bures"}
    assert all(name == metric.name for name, metric in METRICS.items())
    assert metrics.FAMILIES["linear_alpha0"] == metrics.FAMILIES["linear_alpha1"] == "linear"
    assert len({metrics.FAMILIES[name] for name in PAPER}) == 5


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_computes_from_just_the_groups_it_names(name):
    x, ys = pair()
    groups = statistics_needed([name])
    values = compute([name], statistics(x, ys, keep=groups))[name]
    assert values.shape == (2,)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, compute([name], statistics(x, ys))[name], rtol=1e-12)
    assert values[0] < values[1]
    for group in groups:
        with pytest.raises(ValueError, match=f"'{group}' was not accumulated"):
            compute([name], statistics(x, ys, keep=GROUPS - {group}))


def test_groups_of_several_metrics_are_joined():
    assert statistics_needed([]) == frozenset()
    assert statistics_needed(["cka", "angular"]) == {"pooled", "angular"}
    assert statistics_needed(list(METRICS)) == GROUPS


def test_unknown_metric_is_told_with_the_nearest():
    with pytest.raises(UserError, match="unknown metric 'gausian_alpha0'") as caught:
        statistics_needed(["gausian_alpha0"])
    assert "did you mean 'gaussian_alpha0'?" in caught.value.hint


def requirements(names, samples_per_class, num_classes, features=None):
    problems = check_requirements(
        names, samples=samples_per_class * num_classes, per_class=samples_per_class, features=features
    )
    assert all(problem.hint for problem in problems)
    return [problem.message for problem in problems]


def test_too_few_samples_name_the_metric_what_it_needs_and_what_it_got():
    assert requirements(["cka", "gaussian_alpha1"], 1, 10) == [
        "metric 'gaussian_alpha1' needs 2 samples per class, got 1"
    ]
    assert requirements(["linear_alpha1", "debiased_cka"], 1, 3) == [
        "metric 'linear_alpha1' needs 10 samples, got 3",
        "metric 'debiased_cka' needs 4 samples, got 3",
    ]
    assert requirements(["linear_alpha0", "linear_alpha1"], 7, 10, features=64) == [
        "metric 'linear_alpha0' needs at least as many fit samples (four fifths) as features, 64, got 56 of 70"
    ]
    assert requirements(list(METRICS), 8, 10, features=64) == []
    assert requirements(["linear_alpha0"], 2, 10) == []


@pytest.mark.parametrize("name", METRICS)
def test_requirements_are_enough(name):
    """With just the samples that a metric asks for it is finite."""
    rng = np.random.default_rng(1)
    metric = METRICS[name]
    samples = max(2, metric.min_samples, 2 * metric.min_samples_per_class)
    assert requirements([name], samples // 2, 2, features=3) == []
    x = rng.normal(size=(samples, 3))
    assert np.isfinite(compute([name], statistics(x, x[None] + rng.normal(size=x.shape)))[name]).all()


def test_worked_example_of_the_docs_runs(tmp_path, monkeypatch):
    """The docs' file is written, imported and registered by the docs' own line."""
    text = DOCS.read_text(encoding="utf-8")
    source = re.search(r"```python\n# consensus_cli/scoring/metrics/mean_shift\.py\n(.*?)```", text, re.DOTALL).group(1)
    (tmp_path / "mean_shift.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mean_shift", raising=False)
    from mean_shift import MEAN_SHIFT

    monkeypatch.setitem(METRICS, MEAN_SHIFT.name, MEAN_SHIFT)
    x, _ = pair()
    values = compute(["mean_shift"], statistics(x, np.stack([x, x + 3]), keep=statistics_needed(["mean_shift"])))
    np.testing.assert_allclose(values["mean_shift"], [0, 6], atol=1e-12)
    assert "\n        MEAN_SHIFT,\n" in text


@pytest.mark.parametrize("name", METRICS)
def test_docs_have_a_row_for_each_metric(name):
    text = DOCS.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    assert f"| {METRICS[name].family} |" in row
    assert all(f"`{group}`" in row for group in METRICS[name].needs)
