from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.loaded_trees import check, load

from consensus_cli.config.composition import compose_run
from consensus_cli.data import DATASETS, Cue, Request
from consensus_cli.data.datasets import resize_size
from consensus_cli.errors import ConfigError, UserError
from consensus_cli.evaluation.robustness.shortcut import MARKS
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
        "images",
        "svhn",
        "synthetic",
    ]


def test_unknown_name_suggests_the_nearest(cache_dir: Path) -> None:
    [found] = check("cifar-10", cache_dir=cache_dir)
    assert found.message == "unknown dataset 'cifar-10'"
    assert found.hint.startswith("did you mean 'cifar10'?")
    with pytest.raises(UserError, match="unknown dataset"):
        load("cifar-10", cache_dir=cache_dir)


def test_what_lies_in_memory_cannot_be_streamed(cache_dir: Path) -> None:
    [found] = check("digits", cache_dir=cache_dir, streaming=True)
    assert found.message == "dataset 'digits' lives in memory and cannot be streamed"
    assert "dataset.streaming=null" in found.hint
    with pytest.raises(UserError, match="cannot be streamed"):
        load("digits", cache_dir=cache_dir, streaming=True)


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    words = ["dataset=imagefolder", f"dataset.root={tmp_path / 'nowhere'}", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(ConfigError) as raised:
        checks.check(compose_run([*words, "dataset.limit_train=0", "dataset.val_fraction=2"]))
    assert [problem.message.split(" ")[0] for problem in raised.value.problems] == [
        "dataset.val_fraction=2.0",
        "dataset.limit_train=0",
        "dataset.root:",
    ]


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("image_size=4", "dataset.image_size=4 is out of range", "8 to 16384"),
        ("image_size=16385", "dataset.image_size=16385 is out of range", "8 to 16384"),
        ("limit_train=0", "dataset.limit_train=0 is out of range", "at least 1"),
        ("limit_test=-3", "dataset.limit_test=-3 is out of range", "at least 1"),
        ("workers=-1", "dataset.workers=-1 is out of range", "at least 0"),
        ("val_fraction=1", "dataset.val_fraction=1.0 is out of range", "at least 0 and below 1"),
        ("val_fraction=-0.1", "dataset.val_fraction=-0.1 is out of range", "at least 0 and below 1"),
        ("on_corrupt=skp", "unknown dataset.on_corrupt 'skp'", "did you mean 'skip'?"),
        ("cue.kind=patsch", "unknown dataset.cue.kind 'patsch'", "did you mean 'patch'?"),
        ("cue.correlation=1.5", "dataset.cue.correlation=1.5 is out of range", "0 to 1"),
        ("cue.correlation=-0.1", "dataset.cue.correlation=-0.1 is out of range", "0 to 1"),
        ("cue.size_pct=0", "dataset.cue.size_pct=0.0 is out of range", "above 0 and at most 100"),
        ("cue.size_pct=101", "dataset.cue.size_pct=101.0 is out of range", "above 0 and at most 100"),
    ],
)
def test_a_wrong_value_is_named_with_a_hint(override: str, message: str, hint: str) -> None:
    [found] = checks.value_problems(compose_run([f"dataset.{override}"]))
    assert found.message == message
    assert hint in found.hint


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


def test_the_request_is_known_without_pytorch() -> None:
    code = "import sys, consensus_cli.config.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_kinds_of_cue_are_those_that_can_be_planted() -> None:
    [kind] = [field for field in fields(Cue) if field.name == "kind"]
    assert set(kind.metadata["choices"]) == set(MARKS)


@pytest.mark.parametrize(
    ("source", "image_size", "resized"),
    [("cifar10", 224, 224), ("digits", 128, 128), ("imagefolder", 224, 256), ("imagefolder", 64, 64), ("hf", 224, 256)],
)
def test_what_is_cropped_is_resized_to_more(source: str, image_size: int, resized: int) -> None:
    assert resize_size(Request(source=source), image_size) == resized
