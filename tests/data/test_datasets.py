from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consensus_cli.config.composition import compose_run
from consensus_cli.data.datasets import DATASETS, check, load
from consensus_cli.errors import ConfigError, UserError
from consensus_cli.experiment import checks


def test_registry_names_every_dataset() -> None:
    assert sorted(DATASETS) == [
        "cifar10",
        "cifar100",
        "digits",
        "fashion_mnist",
        "hf",
        "imagefolder",
        "imagenet",
        "svhn",
    ]


def test_unknown_name_suggests_the_nearest(cache_dir: Path) -> None:
    [found] = check("cifar-10", cache_dir=cache_dir)
    assert found.message == "unknown dataset 'cifar-10'"
    assert found.hint.startswith("did you mean 'cifar10'?")
    with pytest.raises(UserError, match="unknown dataset"):
        load("cifar-10", cache_dir=cache_dir)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"image_size": 4}, "dataset.image_size=4 is too small", "at least 8 pixels"),
        ({"limit_train": 0}, "dataset.limit_train=0 is too small", "at least 1 images"),
        ({"limit_test": -3}, "dataset.limit_test=-3 is too small", "at least 1 images"),
        ({"workers": -1}, "dataset.workers=-1 is too small", "at least 0 workers"),
        ({"val_fraction": 1.0}, "dataset.val_fraction=1.0 is not a share of the training images", "less than 1"),
        ({"val_fraction": -0.1}, "dataset.val_fraction=-0.1 is not a share of the training images", "at least 0"),
        ({"on_corrupt": "skp"}, "unknown value of dataset.on_corrupt 'skp'", "did you mean 'skip'?"),
        ({"streaming": True}, "dataset 'digits' lives in memory and cannot be streamed", "dataset.streaming=null"),
        ({"hf_name": "mnist"}, "dataset 'digits' takes no dataset.name", "dataset=hf"),
    ],
)
def test_wrong_argument_is_named_with_a_hint(
    arguments: dict[str, Any], message: str, hint: str, cache_dir: Path
) -> None:
    [found] = check("digits", cache_dir=cache_dir, **arguments)
    assert found.message == message
    assert hint in found.hint
    with pytest.raises(UserError, match=message.split("=", maxsplit=1)[0]):
        load("digits", cache_dir=cache_dir, **arguments)


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load("imagefolder", cache_dir=tmp_path, root=tmp_path / "nowhere", limit_train=0, val_fraction=2)
    assert [problem.message.split(" ")[0] for problem in raised.value.problems] == [
        "dataset.limit_train=0",
        "dataset.val_fraction=2",
        "dataset.root:",
    ]


def test_nothing_is_wrong_with_the_default(cache_dir: Path) -> None:
    assert check("digits", cache_dir=cache_dir) == []


@pytest.mark.parametrize(
    "override",
    [
        "dataset.image_size=4",
        "dataset.image_size=7",
        "dataset.image_size=0",
        "model.image_size=7",
        "model.image_size=0",
        "dataset.val_fraction=1",
        "dataset.val_fraction=-0.5",
        "dataset.val_fraction=nan",
        "dataset.on_corrupt=skp",
        "dataset.limit_train=0",
        "dataset.limit_test=0",
        "dataset.workers=-1",
    ],
)
def test_a_value_out_of_range_is_told_once_before_a_run(override: str, tmp_path: Path) -> None:
    key, value = override.split("=")
    with pytest.raises(ConfigError) as raised:
        checks.check(compose_run([override, f"output_dir={tmp_path}"]))
    [problem] = raised.value.problems
    assert key in problem.message
    assert value in problem.message


@pytest.mark.parametrize(
    "override", ["dataset.image_size=8", "model.image_size=8", "dataset.val_fraction=0", "dataset.workers=0"]
)
def test_the_smallest_values_are_allowed(override: str, tmp_path: Path) -> None:
    checks.check(compose_run([override, f"output_dir={tmp_path}"]))
