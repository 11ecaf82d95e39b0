from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from consensus_cli.data.batches import LoaderImages
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import UserError

IMAGES = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LEVELS = (IMAGES * 255).round() / 255
LABELS = torch.arange(10) % 3


def pairs(images: Tensor = IMAGES, labels: Tensor = LABELS) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(images.split(4), labels.split(4), strict=True)


def whole(split: LoaderImages) -> tuple[Tensor, Tensor]:
    images, labels = zip(*split.batches(3), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("values", [IMAGES, LEVELS], ids=["any values", "multiples of 1/255"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_generator_gives_the_same_images_in_every_pass(values: Tensor, dtype: torch.dtype) -> None:
    split = LoaderImages(pairs(values.to(dtype)))
    for _ in range(2):
        images, labels = whole(split)
        assert torch.equal(images, values)
        assert torch.equal(labels, LABELS)
    assert len(split) == 10
    assert split.image_shape == (3, 4, 4)


def test_images_of_files_take_a_byte_per_value() -> None:
    assert LoaderImages(pairs(LEVELS)).images.dtype == torch.uint8
    assert LoaderImages(pairs(IMAGES)).images.dtype == torch.float32
    mixed = torch.cat([LEVELS[:4], IMAGES[4:]])
    assert torch.equal(whole(LoaderImages(pairs(mixed)))[0], mixed)


def test_a_loader_that_shuffles_is_read_once() -> None:
    split = LoaderImages(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=True))
    first, again = whole(split), whole(split)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert split.fingerprint() == split.fingerprint()


def test_a_loader_may_fill_the_same_memory_again() -> None:
    def reusing() -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = torch.empty(2, 3, 4, 4), torch.empty(2, dtype=torch.int64)
        for start in range(0, 10, 2):
            images.copy_(IMAGES[start : start + 2])
            labels.copy_(LABELS[start : start + 2])
            yield images, labels

    images, labels = whole(LoaderImages(reusing()))
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


def test_a_network_that_changes_its_input_does_not_change_the_split() -> None:
    split = LoaderImages(pairs())
    for images, _ in split.batches(4):
        images.zero_()
    assert torch.equal(whole(split)[0], IMAGES)


@pytest.mark.parametrize("values", [IMAGES, LEVELS])
def test_augmentation_keeps_the_range(values: Tensor) -> None:
    split = LoaderImages(pairs(values))
    augmentation = Augmentation(pad=1, flip=True, min_area=0.3)
    for images, _ in split.batches(4, generator=torch.Generator().manual_seed(0), augmentation=augmentation):
        assert 0 <= images.min() <= images.max() <= 1
        assert images.shape[1:] == (3, 4, 4)


def test_a_crop_and_a_flip_move_float_images_without_changing_a_value() -> None:
    split = LoaderImages(pairs())
    batches = split.batches(10, generator=torch.Generator().manual_seed(0), augmentation=Augmentation(flip=True))
    (images, labels), *_ = batches
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(labels, LABELS[order])
    mirrored = [image.equal(original.flip(-1)) for image, original in zip(images, IMAGES[order], strict=True)]
    kept = [image.equal(original) for image, original in zip(images, IMAGES[order], strict=True)]
    assert mirrored == [not same for same in kept]
    assert set(mirrored) == {True, False}


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "no images"),
        ([(IMAGES[:0], LABELS[:0])], "no images"),
        ([(IMAGES * 2 - 1, LABELS)], "outside"),
        ([(IMAGES * torch.nan, LABELS)], "outside"),
        ([((IMAGES * 255).to(torch.uint8), LABELS)], r"torch\.uint8"),
        ([(IMAGES, LABELS.float())], r"torch\.float32"),
        ([(IMAGES, LABELS[:4])], r"\(4,\)"),
        ([(IMAGES[0], LABELS)], "one whole number per image"),
        ([(IMAGES[:, 0], LABELS)], r"not \(b, c, h, w\)"),
        ([(IMAGES, LABELS - 1)], "label -1"),
        ([IMAGES], "pairs"),
        ([{"image": IMAGES, "label": LABELS}], "pairs"),
        ([(IMAGES, LABELS), (IMAGES[..., :2], LABELS)], "differ in shape"),
        ([(IMAGES, LABELS.tolist())], "pairs"),
    ],
)
def test_what_a_loader_must_not_yield(loader: list[tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        LoaderImages(loader)
    assert raised.value.hint


def test_normalised_images_are_sent_to_the_first_layer() -> None:
    with pytest.raises(UserError, match=r"values from -0\.995 to 2\.99") as raised:
        LoaderImages(pairs(IMAGES * 4 - 1))
    assert "cc.normalized(model, mean, std)" in str(raised.value.hint)
