from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from consensus_cli.data.memory import AugmentationDraw, ImageTensors, augment, draw_augmentation
from consensus_cli.data.share import Share
from consensus_cli.data.source import channel_statistics
from consensus_cli.data.split import Augmentation


def split_of(count: int = 10, channels: int = 3, size: int = 6) -> ImageTensors:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return ImageTensors(images, torch.arange(count))


def epoch(split: ImageTensors, seed: int | None, augmentation: Augmentation | None = None) -> tuple[Tensor, Tensor]:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    images, labels = zip(*split.batches(4, generator=generator, augmentation=augmentation), strict=True)
    return torch.cat(images), torch.cat(labels)


def draw(pad: int, top: int, left: int, flip: bool) -> AugmentationDraw:
    return AugmentationDraw(pad, torch.tensor([top]), torch.tensor([left]), torch.tensor([flip]), box=None)


def test_batches_without_generator_are_the_images_in_order() -> None:
    split = split_of()
    images, labels = epoch(split, seed=None)
    assert torch.equal(images, split.images.float() / 255)
    assert torch.equal(labels, split.labels)


@pytest.mark.parametrize("augmentation", [None, Augmentation(pad=2, flip=True)])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_float_channels_last_in_unit_range(augmentation: Augmentation | None, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for images, labels in split_of(channels=channels).batches(4, generator=generator, augmentation=augmentation):
        assert images.shape[1:] == (channels, 6, 6)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= images.min() <= images.max() <= 1
        assert labels.dtype == torch.int64


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_last_batch(drop_last: bool, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = split_of().batches(4, generator=generator, augmentation=Augmentation(pad=1), drop_last=drop_last)
    assert [len(labels) for _, labels in batches] == sizes


def test_shuffling_keeps_images_with_their_labels() -> None:
    split = split_of()
    images, labels = epoch(split, seed=1)
    assert labels.tolist() != list(range(10))
    assert sorted(labels.tolist()) == list(range(10))
    assert torch.equal(images, split.images[labels].float() / 255)


def test_generator_alone_decides_an_epoch() -> None:
    split, augmentation = split_of(), Augmentation(pad=2, flip=True)
    before = torch.random.get_rng_state()
    first = epoch(split, 5, augmentation)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(split, 5, augmentation), strict=True))
    assert not torch.equal(first[0], epoch(split, 6, augmentation)[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_generator_gives_a_new_epoch_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (next(iter(split_of().batches(10, generator=generator)))[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_augmentation_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="augmentation needs a generator"):
        next(split_of().batches(4, augmentation=Augmentation(flip=True)))


def test_empty_augmentation_changes_nothing() -> None:
    split = split_of()
    images, labels = epoch(split, 2, Augmentation())
    assert torch.equal(images, split.images[labels].float() / 255)


def test_flip_is_an_exact_mirror_of_about_half_of_the_images() -> None:
    split = split_of(count=400)
    images, labels = epoch(split, 0, Augmentation(flip=True))
    original = split.images[labels].float() / 255
    same = (images == original).flatten(1).all(1)
    mirrored = (images == original.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_crops_are_windows_of_the_padded_image_and_all_offsets_occur() -> None:
    split, pad = split_of(count=300), 1
    images, labels = epoch(split, 0, Augmentation(pad=pad))
    padded = functional.pad(split.images[labels], [pad] * 4).float() / 255
    windows = torch.stack([padded[..., y : y + 6, x : x + 6] for y in range(3) for x in range(3)])
    matches = (windows == images).flatten(2).all(2)  # (9, n)
    assert bool(matches.any(0).all())
    assert bool((matches.sum(1) > 10).all())


def test_crop_by_hand() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    assert augment(image, draw(pad=1, top=1, left=1, flip=False)).tolist() == [[[[1, 2], [3, 4]]]]
    assert augment(image, draw(pad=1, top=0, left=0, flip=False)).tolist() == [[[[0, 0], [0, 1]]]]
    assert augment(image, draw(pad=1, top=2, left=1, flip=True)).tolist() == [[[[4, 3], [0, 0]]]]


def test_resized_crop_of_the_whole_image_changes_nothing() -> None:
    images = split_of().images
    whole = AugmentationDraw(
        pad=0,
        top=torch.zeros(10, dtype=torch.int64),
        left=torch.zeros(10, dtype=torch.int64),
        flip=torch.zeros(10, dtype=torch.bool),
        box=torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(10, 1),
    )
    assert torch.equal(augment(images, whole), images)


def test_resized_crop_enlarges_the_drawn_box() -> None:
    left_half_dark = torch.tensor([0, 0, 200, 200], dtype=torch.uint8).expand(1, 1, 4, 4)
    right = draw(pad=0, top=0, left=0, flip=False)
    right = AugmentationDraw(0, right.top, right.left, right.flip, box=torch.tensor([[0.875, 0.5, 0.25, 1.0]]))
    assert augment(left_half_dark, right).unique().tolist() == [200]


def test_resized_boxes_stay_inside_and_keep_their_area() -> None:
    drawn = draw_augmentation(Augmentation(min_area=0.25), 2000, torch.Generator().manual_seed(0))
    assert drawn.box is not None
    centre, size = drawn.box[:, :2], drawn.box[:, 2:]
    assert bool((centre - size / 2 >= -1e-6).all())
    assert bool((centre + size / 2 <= 1 + 1e-6).all())
    # Boxes wider or higher than the image are cut, so the smallest area may fall below the share by 4/3 at most.
    assert float(size.prod(1).min()) >= 0.25 * 0.75 - 1e-6
    assert 0.5 < float(size.prod(1).mean()) < 0.7


def test_subset_keeps_the_order_asked_for() -> None:
    split = split_of()
    subset = split.subset(torch.tensor([7, 2]))
    assert subset.labels.tolist() == [7, 2]
    assert torch.equal(subset.images, split.images[[7, 2]])
    assert subset.image_shape == (3, 6, 6)
    assert len(subset) == 2


def test_wrong_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageTensors(torch.zeros(2, 3, 4, 4, dtype=torch.int64), torch.zeros(2))
    with pytest.raises(ValueError, match="2 images with labels"):
        ImageTensors(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3))


def test_channel_statistics_by_hand() -> None:
    images = torch.tensor([[[[0, 255]], [[51, 51]]]], dtype=torch.uint8)
    mean, std = channel_statistics(ImageTensors(images, torch.zeros(1)))
    assert mean == pytest.approx((0.5, 0.2))
    assert std == pytest.approx((0.5, 0.0), abs=1e-9)


@pytest.mark.gpu
def test_epoch_on_the_gpu_equals_the_epoch_on_the_cpu() -> None:
    split, augmentation = split_of(), Augmentation(pad=2, flip=True)
    on_cpu = epoch(split, 3, augmentation)
    generator = torch.Generator().manual_seed(3)
    resident = split.to("cuda")
    batches = list(resident.batches(4, "cuda", generator=generator, augmentation=augmentation))
    assert all(images.is_cuda and labels.is_cuda for images, labels in batches)
    # A GPU divides by 255 by multiplying with the reciprocal: the last bit may differ.
    torch.testing.assert_close(torch.cat([images for images, _ in batches]).cpu(), on_cpu[0], rtol=1.2e-7, atol=0)
    assert torch.equal(torch.cat([labels for _, labels in batches]).cpu(), on_cpu[1])


@pytest.mark.gpu
def test_nothing_inside_an_epoch_waits_for_the_gpu() -> None:
    batches = (
        split_of(count=64)
        .to("cuda")
        .batches(8, "cuda", generator=torch.Generator().manual_seed(0), augmentation=Augmentation(pad=2, flip=True))
    )
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(batches)) == 7
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_not_every_process_gets_is_left_out_or_else_shared_unevenly() -> None:
    split = split_of(count=26)
    even = [[len(labels) for _, labels in split.batches(4, drop_last=True, share=Share(r, 3))] for r in range(3)]
    uneven = [[len(labels) for _, labels in split.batches(4, share=Share(r, 3))] for r in range(3)]
    assert even == [[4, 4], [4, 4], [4, 4]]
    assert uneven == [[4, 4, 2], [4, 4], [4, 4]]


def test_the_processes_augment_as_one_does() -> None:
    split, augmentation = split_of(count=24), Augmentation(pad=1, flip=True)
    alone, first, second = (
        [
            images
            for images, _ in split.batches(
                4, generator=torch.Generator().manual_seed(4), augmentation=augmentation, drop_last=True, share=share
            )
        ]
        for share in (Share(), Share(0, 2), Share(1, 2))
    )
    assert all(torch.equal(a, b) for a, b in zip(alone[0::2], first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[1::2], second, strict=True))
