from __future__ import annotations

import pytest
import torch
from helpers.evaluation_networks import Brightness, Fixed, small_conv_net

from consensus_cli.errors import UserError
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.corruption import (
    check_corruptions,
    corruption_accuracy,
    corruption_columns,
    mean_accuracy_pct,
)
from consensus_cli.evaluation.robustness.distortions import DISTORTIONS, SEVERITIES, distort


def photograph(count: int = 4, size: int = 32, channels: int = 3) -> torch.Tensor:
    """Smooth blobs with some texture and edges, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    images = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    images[:, :, size // 2 :, : size // 4] = 0.9
    return (255 * images).round() / 255


def distance(name: str, severity: int, images: torch.Tensor, seed: int = 0) -> float:
    return (distort(images, name, severity, torch.Generator().manual_seed(seed)) - images).abs().mean().item()


@pytest.mark.parametrize("name", sorted(DISTORTIONS))
def test_corruptions_change_images_more_with_severity_and_keep_their_range(name):
    images = photograph()
    changes = [distance(name, severity, images) for severity in SEVERITIES]
    assert changes[0] > 0
    assert changes[-1] > changes[0]
    distorted = distort(images, name, 5, torch.Generator().manual_seed(0))
    assert distorted.shape == images.shape
    assert distorted.dtype == torch.float32
    assert distorted.min() >= 0
    assert distorted.max() <= 1
    torch.testing.assert_close(255 * distorted, (255 * distorted).round())


@pytest.mark.parametrize("name", sorted(DISTORTIONS))
@pytest.mark.parametrize(("size", "channels"), [(16, 1), (28, 1), (96, 3)])
def test_corruptions_suit_any_size_and_grey_images(name, size, channels):
    images = photograph(2, size, channels)
    assert distort(images, name, 3, torch.Generator().manual_seed(0)).shape == images.shape


@pytest.mark.parametrize("name", sorted(DISTORTIONS))
def test_the_seed_decides(name):
    images = photograph()
    first, again, other = (distort(images, name, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    random = name in {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog"}
    assert torch.equal(first, other) != random


def test_noise_has_the_stated_strength():
    grey = torch.full((8, 3, 64, 64), 0.5)
    residue = distort(grey, "gaussian_noise", 5, torch.Generator().manual_seed(0)) - grey
    assert residue.std().item() == pytest.approx(0.1, rel=0.02)
    shot = distort(grey, "shot_noise", 3, torch.Generator().manual_seed(0)) - grey
    assert shot.std().item() == pytest.approx((0.5 / 100) ** 0.5, rel=0.02)
    salted = distort(grey, "impulse_noise", 5, torch.Generator().manual_seed(0))
    assert ((salted == 0) | (salted == 1)).float().mean().item() == pytest.approx(0.07, abs=0.005)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "gaussian_blur", "pixelate", "contrast"])
def test_flat_images_stay_flat_under_blur_and_contrast(name):
    grey = torch.full((2, 3, 32, 32), 100 / 255)
    torch.testing.assert_close(distort(grey, name, 5, torch.Generator().manual_seed(0)), grey)


def test_brightness_and_contrast_by_hand():
    pixel = torch.tensor([102.0, 34.0, 0.0]).view(1, 3, 1, 1) / 255
    bright = distort(pixel, "brightness", 4, torch.Generator())
    assert (255 * bright).flatten().round().tolist() == [153, 51, 0]  # 0.2 lifts the value by 51, the hue stays
    edge = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(
        distort(edge, "contrast", 2, torch.Generator()).flatten(), torch.tensor([64.0, 191.0]) / 255
    )


def test_both_networks_see_the_same_corrupted_images(noise_split):
    split, model, seen = noise_split(30, 4), small_conv_net(), []
    rows = corruption_accuracy(
        Pair(model, model, split, progress=lambda *step: seen.append(step)),
        ["fog", "jpeg_compression"],
        severities=[1, 5],
        batch_size=8,
    )
    assert list(rows) == [
        ("fog", 1),
        ("fog", 5),
        ("jpeg_compression", 1),
        ("jpeg_compression", 5),
    ]
    assert all(base_pct == pruned_pct for base_pct, pruned_pct in rows.values())
    assert seen[-1] == ("corrupting: jpeg_compression", 4, 4)


def test_a_brightness_reader_fails_under_brightness_and_a_constant_network_under_nothing(brightness_split):
    constant = Fixed(torch.tensor([0.0, 1.0]))
    pair = Pair(Brightness(), constant, brightness_split)
    rows = corruption_accuracy(pair, ["brightness"])
    # 0.05 lifts every level by 12.75: class 0 from level 115 up is lost, six of ten; 0.1 lifts all of it.
    assert [base_pct for base_pct, _ in rows.values()] == [70, 50, 50, 50, 50]
    assert mean_accuracy_pct(rows) == (54, 50)
    columns = corruption_columns(pair, ["brightness"], 20)
    assert columns["corrupted_images"] == 20
    assert columns["own_corruption_mean_delta_pp"] == -4
    assert [columns[f"own_corruption_brightness_s{severity}_base_pct"] for severity in (1, 2)] == [70, 50]


def test_without_corruptions_there_are_no_columns(brightness_split):
    assert corruption_columns(Pair(Brightness(), Brightness(), brightness_split), [], 20) == {}


def test_unknown_corruptions_are_refused():
    with pytest.raises(UserError, match="unknown corruption 'snow'"):
        check_corruptions(["snow"])
