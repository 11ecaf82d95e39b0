import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.plugins import offer
from helpers.reference import statistics

from consensus_cli.errors import UserError
from consensus_cli.scoring.metrics import (
    METRICS,
    check_requirements,
    compute,
    families_of,
    register_metric,
    statistics_needed,
)
from consensus_cli.scoring.ranking.criteria import CRITERIA, register_criterion
from consensus_cli.scoring.score import metrics_needed
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
    assert families_of(["linear_alpha0", "linear_alpha1"]) == {"linear_alpha0": "linear", "linear_alpha1": "linear"}
    assert len(set(families_of(PAPER).values())) == 5


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


def test_an_unknown_metric_is_refused_with_the_nearest():
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


@pytest.fixture
def offered_metric(tmp_path, monkeypatch):
    """The package of the docs' example, as if it were installed: its module and its entry point."""
    text = DOCS.read_text(encoding="utf-8")
    source = re.search(r"```python\n# my_package/metrics\.py\n(.*?)```", text, re.DOTALL).group(1)
    points = re.search(r"```toml\n(.*?)```", text, re.DOTALL).group(1)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "metrics.py").write_text(source, encoding="utf-8")
    offer(tmp_path, tomllib.loads(points)["project"]["entry-points"])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mean_shift"
    METRICS.data.pop("mean_shift", None)
    for module in ("my_package.metrics", "my_package"):
        sys.modules.pop(module, None)


def test_worked_example_of_the_docs_runs(offered_metric):
    """The docs' file and entry point, of a package that is installed."""
    x, _ = pair()
    assert offered_metric in METRICS
    assert offered_metric in list(METRICS)
    values = compute([offered_metric], statistics(x, np.stack([x, x + 3]), keep=statistics_needed([offered_metric])))
    np.testing.assert_allclose(values[offered_metric], [0, 6], atol=1e-12)


def test_a_registered_metric_is_one_like_any_other(offered_metric):
    metric = replace(METRICS[offered_metric], name="my_shift", family="mine")
    register_metric(metric)
    try:
        assert families_of(["my_shift", "cka"]) == {"my_shift": "mine", "cka": "cka"}
        assert requirements(["my_shift"], 0, 1) == ["metric 'my_shift' needs 1 samples, got 0"]
        register_metric(replace(metric, family="replaced"))
        assert families_of(["my_shift"]) == {"my_shift": "replaced"}
    finally:
        del METRICS["my_shift"]


def test_a_metric_or_criterion_that_cannot_be_one_is_refused():
    metric = METRICS["cka"]
    for wrong, problem in (
        (metric, "there is a metric 'cka' already"),
        (replace(metric, name="my-metric"), "'my-metric' cannot name a metric"),
    ):
        with pytest.raises(UserError, match=problem):
            register_metric(wrong)
    for name, criterion, problem in (
        ("random", len, "there is a criterion 'random' already"),
        ("cka", len, "'cka' has the name of a metric"),
        ("consensus", len, "'consensus' has the name of a metric"),
        ("mine", 3, "'mine' is a int, not a function"),
    ):
        with pytest.raises(UserError, match=problem):
            register_criterion(name, criterion)


@pytest.mark.parametrize(
    ("registry", "point", "problem"),
    [
        (METRICS, "no_such_module:METRIC", "cannot be loaded: ModuleNotFoundError"),
        (METRICS, "math:no_such_thing", "cannot be loaded: AttributeError"),
        (METRICS, "math:pi", "is a float, not a Metric"),
        (METRICS, "consensus_cli.scoring.metrics.cka:CKA", "calls itself 'cka'"),
        (CRITERIA, "math:pi", r"is a float, not a function \(network, blocks, generator\)"),
    ],
)
def test_a_broken_package_is_named_in_one_line(tmp_path, monkeypatch, registry, point, problem):
    offer(tmp_path, {registry.group: {"broken": point}})
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "broken" in registry
    with pytest.raises(UserError, match=f"'broken' of the package somebodys {problem}") as caught:
        registry["broken"]
    assert "\n" not in caught.value.message


def test_a_criterion_of_a_package_ranks(tmp_path, monkeypatch):
    offer(tmp_path, {"consensus_cli.criteria": {"theirs": "consensus_cli.scoring.ranking.criteria:last"}})
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert CRITERIA["theirs"] is CRITERIA["last"]
        assert metrics_needed("theirs", {}) == {}
    finally:
        CRITERIA.data.pop("theirs", None)


@pytest.mark.parametrize("name", METRICS)
def test_docs_have_a_row_for_each_metric(name):
    text = DOCS.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    assert f"| {METRICS[name].family} |" in row
    assert all(f"`{group}`" in row for group in METRICS[name].needs)
