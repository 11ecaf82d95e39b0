from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.loaded_trees import load
from sklearn.datasets import load_digits

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.source import ImageData


def images_of(data: ImageData) -> list[torch.Tensor]:
    splits = [data.train, data.val, data.test]
    assert all(isinstance(split, ImageTensors) for split in splits)
    return [split.images for split in splits if isinstance(split, ImageTensors)]


def test_every_digit_is_in_exactly_one_split(cache_dir: Path) -> None:
    images = torch.cat(images_of(load("digits", cache_dir=cache_dir, image_size=8)))
    originals = (torch.from_numpy(load_digits().images) * 255 / 16).round().to(torch.uint8)
    assert sorted(images.flatten(1).tolist()) == sorted(originals.flatten(1).tolist())


def test_splits_are_stratified_and_the_same_for_every_seed(cache_dir: Path) -> None:
    data, again = (load("digits", cache_dir=cache_dir, seed=seed) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(images_of(data), images_of(again), strict=True))
    assert (len(data.train), len(data.val), len(data.test)) == (1293, 145, 359)
    assert set(data.test.labels.bincount().tolist()) <= {35, 36, 37}


def test_images_span_the_whole_range_at_the_default_size(cache_dir: Path) -> None:
    data = load("digits", cache_dir=cache_dir)
    assert data.train.image_shape == (1, 16, 16)
    images = next(data.train.batches(len(data.train)))[0]
    assert (images.min(), images.max()) == (0, 1)
    assert data.classes == tuple("0123456789")


def test_mean_and_deviation_normalise_the_training_images(cache_dir: Path) -> None:
    data = load("digits", cache_dir=cache_dir)
    images = next(data.train.batches(len(data.train)))[0]
    normalised = (images - data.mean[0]) / data.std[0]
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-5)
    assert float(normalised.std()) == pytest.approx(1, abs=1e-4)


def test_digits_are_never_mirrored(cache_dir: Path) -> None:
    augmentation = load("digits", cache_dir=cache_dir).augmentation
    assert (augmentation.pad, augmentation.flip) == (1, False)


def test_no_file_is_written(cache_dir: Path) -> None:
    load("digits", cache_dir=cache_dir)
    assert not cache_dir.exists()


def test_limits_take_equally_many_of_each_class_and_follow_the_seed(cache_dir: Path) -> None:
    data = load("digits", cache_dir=cache_dir, limit_train=50, limit_test=20, seed=0)
    assert data.train.labels.bincount().tolist() == [5] * 10
    assert data.test.labels.bincount().tolist() == data.val.labels.bincount().tolist() == [2] * 10
    other = load("digits", cache_dir=cache_dir, limit_train=50, seed=1)
    assert not torch.equal(images_of(data)[0], images_of(other)[0])


def test_validation_can_be_left_out(cache_dir: Path) -> None:
    data = load("digits", cache_dir=cache_dir, val_fraction=0)
    assert (len(data.train), len(data.val), len(data.test)) == (1438, 0, 359)
    assert list(data.val.batches(8)) == []
