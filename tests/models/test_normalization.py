"""Means and deviations that cannot be those of images in [0, 1] are refused with the likely reason."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.models.classifier import normalized
from consensus_cli.models.normalization import check_channels, problems

BYTES, ONES = [123.675, 116.28, 103.53], [1.0, 1.0, 1.0]
USUAL = [0.485, 0.456, 0.406]

#: mean, std -> of each problem what the message says, and the hint
WRONG: list[tuple[list[float] | None, list[float] | None, list[tuple[str, str]]]] = [
    (
        BYTES,
        [58.395, 57.12, 57.375],
        [
            ("model.mean=[123.675,116.28,103.53] looks like the scale from 0 to 255", "model.mean=[0.485,0.456,0.406]"),
            ("model.std=[58.395,57.12,57.375] looks like the scale from 0 to 255", "model.std=[0.229,0.224,0.225]"),
        ],
    ),
    (BYTES, ONES, [("model.mean=", "0.485"), ("model.std=[1,1,1] looks like", "[0.003922,0.003922,0.003922]")]),
    (BYTES, [0.229, 0.224, 0.225], [("model.mean=", "divide by 255")]),
    ([127.5], None, [("model.mean=[127.5] looks like", "model.mean=[0.5]")]),
    (None, [255.0], [("model.std=[255] looks like", "model.std=[1]")]),
    (None, [0.0], [("model.std=[0] is out of range", "above 0 and at most 1")]),
    (USUAL, [0.2, -0.2, 0.2], [("model.std=[0.2,-0.2,0.2] is out of range", "above 0")]),
    (None, [1.5], [("model.std=[1.5] is out of range", "at most 1")]),
    ([math.nan], [0.5], [("model.mean=[nan] is out of range", "from 0 to 1")]),
    ([0.5], [math.inf], [("model.std=[inf] is out of range", "above 0")]),
    ([-0.5], [0.5], [("model.mean=[-0.5] is out of range", "from 0 to 1")]),
    (USUAL, [0.2], [("model.mean has 3 numbers, model.std 1", "one number per channel")]),
    ([], None, [("model.mean=[] is empty", "null")]),
]


@pytest.mark.parametrize(("mean", "std", "expected"), WRONG)
def test_what_cannot_be_is_refused(
    mean: list[float] | None, std: list[float] | None, expected: list[tuple[str, str]]
) -> None:
    found = problems(mean, std)
    assert len(found) == len(expected)
    for problem, (message, hint) in zip(found, expected, strict=True):
        assert message in problem.message
        assert hint in problem.hint


@pytest.mark.parametrize(
    ("mean", "std"),
    [(None, None), (USUAL, None), (USUAL, [0.2] * 3), ([0.0], [1.0]), ([0.0] * 3, [1 / 255] * 3), ([0.5], [0.5])],
)
def test_what_can_be_passes(mean: list[float] | None, std: list[float] | None) -> None:
    assert problems(mean, std) == []


@pytest.mark.parametrize(("numbers", "channels"), [(2, 3), (3, 4), (4, 3), (2, 1), (4, 1)])
def test_numbers_that_do_not_fit_the_channels_are_refused(numbers: int, channels: int) -> None:
    with pytest.raises(UserError, match=f"model.mean has {numbers} numbers for images of {channels} channel"):
        check_channels([0.5] * numbers, [0.5], channels)


@pytest.mark.parametrize(("numbers", "channels"), [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_one_number_or_one_per_channel_fits_and_grey_images_take_three(numbers: int, channels: int) -> None:
    check_channels([0.5] * numbers, [0.5], channels)


@pytest.mark.parametrize("training", [True, False])
def test_a_wrapped_network_gets_normalised_images_and_keeps_its_mode(training: bool) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).train(training)
    model = normalized(network, mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.5])
    images = torch.rand(2, 3, 2, 2)
    by_hand = torch.stack([(images[:, 0] - 0.5) / 0.2, (images[:, 1] - 0.4) / 0.25, (images[:, 2] - 0.3) / 0.5], dim=1)
    torch.testing.assert_close(model(images), network(by_hand))
    assert model.network is network
    assert {module.training for module in model.modules()} == {training}
    with pytest.raises(UserError, match="normalises its images already"):
        normalized(model, mean=0.5, std=0.5)


def test_one_number_normalises_all_channels() -> None:
    model = normalized(nn.Flatten(), mean=0.5, std=0.25)
    assert torch.equal(model(torch.ones(1, 3, 1, 1)), torch.full((1, 3), 2.0))
    with pytest.raises(UserError, match="scale from 0 to 255"):
        normalized(nn.Flatten(), mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])
