from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from helpers.image_trees import MakeTree, random_images, write_tree
from helpers.loaded_trees import load
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from consensus_cli.data.files import Geometry, ImageFiles
from consensus_cli.data.share import Share
from consensus_cli.data.source import ImageData
from consensus_cli.data.split import Augmentation, Split
from consensus_cli.errors import UserError


@pytest.fixture
def root(make_tree: MakeTree) -> Path:
    return make_tree({"train": 6, "test": 3})


def streamed(root: Path, cache_dir: Path, workers: int = 0, on_corrupt: str = "error") -> ImageData:
    return load(
        "imagefolder",
        root=root,
        cache_dir=cache_dir,
        streaming=True,
        workers=workers,
        on_corrupt=on_corrupt,
        val_fraction=0,
    )


def epoch(split: Split, seed: int | None, augmentation: Augmentation | None = None) -> tuple[Tensor, Tensor]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    images, labels = zip(*split.batches(5, generator=generator, augmentation=augmentation), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_streamed_images_equal_those_in_memory(root: Path, cache_dir: Path) -> None:
    on_disk = streamed(root, cache_dir)
    in_memory = load("imagefolder", root=root, cache_dir=cache_dir, streaming=False, val_fraction=0)
    assert isinstance(on_disk.train, ImageFiles)
    for one, other in ((on_disk.train, in_memory.train), (on_disk.test, in_memory.test)):
        assert all(torch.equal(a, b) for a, b in zip(epoch(one, None), epoch(other, None), strict=True))
    assert on_disk.mean == in_memory.mean
    assert on_disk.train.image_shape == in_memory.train.image_shape == (3, 12, 12)


@pytest.mark.parametrize("augmentation", [Augmentation(pad=2, flip=True), Augmentation(flip=True, min_area=0.2)])
def test_number_of_workers_changes_nothing(root: Path, cache_dir: Path, augmentation: Augmentation) -> None:
    alone, helped = (epoch(streamed(root, cache_dir, workers).train, 3, augmentation) for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert alone[0].shape == (12, 3, 12, 12)
    assert alone[0].is_contiguous(memory_format=torch.channels_last)
    assert 0 <= alone[0].min() <= alone[0].max() <= 1


def test_generator_alone_decides_an_epoch(root: Path, cache_dir: Path) -> None:
    split, augmentation = streamed(root, cache_dir).train, Augmentation(flip=True, min_area=0.2)
    before = torch.random.get_rng_state()
    first = epoch(split, 0, augmentation)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(split, 0, augmentation), strict=True))
    assert not torch.equal(first[0], epoch(split, 1, augmentation)[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_flips_are_exact_mirrors(root: Path, cache_dir: Path) -> None:
    split = streamed(root, cache_dir).train
    plain, plain_labels = epoch(split, 0)
    flipped, labels = epoch(split, 0, Augmentation(flip=True))
    assert torch.equal(plain_labels, labels)
    same, mirrored = ((flipped == other).flatten(1).all(1) for other in (plain, plain.flip(-1)))
    assert bool((same ^ mirrored).all())
    assert 0 < int(mirrored.sum()) < 12


def test_resized_crop_sees_the_whole_image_not_its_centre(tmp_path: Path, cache_dir: Path) -> None:
    root = write_tree(tmp_path / "wide", {"train": 2, "test": 1}, ("ant", "bee"), size=(100, 300))
    data = load("imagefolder", root=root, cache_dir=cache_dir, streaming=True, workers=0, image_size=80, val_fraction=0)
    assert data.augmentation == Augmentation(flip=True, min_area=0.08)
    images, _ = epoch(data.train, 0, data.augmentation)
    assert images.shape == (4, 3, 80, 80)


def test_augmentation_needs_a_generator(root: Path, cache_dir: Path) -> None:
    with pytest.raises(ValueError, match="augmentation needs a generator"):
        next(streamed(root, cache_dir).train.batches(2, augmentation=Augmentation(flip=True)))


def test_drop_last_and_subset(root: Path, cache_dir: Path) -> None:
    split = streamed(root, cache_dir).train.subset(torch.tensor([7, 0, 3]))
    assert split.labels.tolist() == [1, 0, 0]
    assert [labels.tolist() for _, labels in split.batches(2)] == [[1, 0], [0]]
    assert [labels.tolist() for _, labels in split.batches(2, drop_last=True)] == [[1, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_file_stops_a_streamed_epoch_and_is_named(root: Path, cache_dir: Path, workers: int) -> None:
    data = streamed(root, cache_dir, workers)
    damaged = root / "test" / "bee" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(UserError, match="1 of 6 image files cannot be read") as raised:
        list(data.test.batches(2))
    assert f"{damaged} (damaged: " in raised.value.message


def test_corrupt_files_are_skipped_and_counted(root: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = streamed(root, cache_dir, on_corrupt="skip")
    for number in range(2):
        (root / "test" / "ant" / f"{number}.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        labels = [labels.tolist() for _, labels in data.test.batches(2)]
    assert labels == [[0, 1], [1, 1]]
    assert "2 of 6 image files left out" in caplog.text
    assert "0.png (no known image format)" in caplog.text


@pytest.mark.parametrize(("image_size", "resize_size"), [(32, 32), (64, 64), (224, 256), (112, 128)])
def test_geometry_follows_the_usual_recipes(image_size: int, resize_size: int) -> None:
    assert Geometry.for_size(image_size) == Geometry(image_size, resize_size)


@pytest.mark.parametrize("shape", [(3, 1, 4000), (3, 4000, 1), (3, 1, 1)])
def test_images_of_any_shape_become_squares_without_a_detour(shape: tuple[int, int, int]) -> None:
    levels = torch.arange(max(shape[1:]), dtype=torch.float) / max(shape[1:]) * 255
    image = levels.to(torch.uint8).view(1, *((1, -1) if shape[2] > 1 else (-1, 1))).expand(shape)
    square = Geometry.for_size(224)(image)
    assert square.shape == (3, 224, 224)
    middle = int(image.flatten()[image[0].numel() // 2])
    assert (square.int() - middle).abs().max() <= 1


@pytest.mark.parametrize("longer", [90, 700])
def test_what_lies_far_from_the_centre_of_a_strip_does_not_matter(longer: int) -> None:
    strip = random_images(1, 10, longer, seed=0)[0]
    assert torch.equal(Geometry(24, 24)(strip), Geometry(24, 24)(tvf.center_crop(strip, [10, 60])))


def test_geometry_keeps_the_centre_of_the_longer_side() -> None:
    image = torch.arange(8, dtype=torch.uint8).expand(3, 4, 8)
    assert Geometry(4, 4)(image)[0, 0].tolist() == [2, 3, 4, 5]


def test_the_batches_of_all_processes_are_those_of_one(root: Path, cache_dir: Path) -> None:
    split = streamed(root, cache_dir).train
    alone, first, second = (
        list(
            split.batches(
                2,
                generator=torch.Generator().manual_seed(1),
                augmentation=Augmentation(flip=True),
                drop_last=True,
                share=share,
            )
        )
        for share in (Share(), Share(0, 2), Share(1, 2))
    )
    assert len(alone) == len(first) + len(second) == 6
    for one, other in zip(alone, [batch for pair in zip(first, second, strict=True) for batch in pair], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
