"""Batch norm measured again: of which images, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import CPU, bright_or_dark, small_network
from torch import nn

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.split import Augmentation
from consensus_cli.training import recalibrate_batch_norm


def test_recalibration_measures_the_images_and_changes_no_weight() -> None:
    model = small_network().eval()
    weights = [p.clone() for p in model.parameters()]
    split = bright_or_dark()
    recalibrate_batch_norm(model, split, images=128, batch_size=32, device=CPU, augmentation=Augmentation(), seed=0)
    pixels = next(split.batches(128))[0].flatten(1)
    torch.testing.assert_close(model[1].running_mean, pixels.mean(0))  # type: ignore[index]
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert not any(module.training for module in model.modules())


def test_recalibration_of_fewer_images_sees_only_those() -> None:
    model = small_network()
    recalibrate_batch_norm(
        model, bright_or_dark(), images=2, batch_size=32, device=CPU, augmentation=Augmentation(), seed=0
    )
    assert model[1].num_batches_tracked == 1  # type: ignore[index]


def test_recalibration_sees_the_borders_that_random_crops_show_in_training() -> None:
    white = ImageTensors(torch.full((256, 1, 4, 4), 255, dtype=torch.uint8), torch.zeros(256, dtype=torch.int64))
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16))
    recalibrate_batch_norm(
        model, white, images=256, batch_size=64, device=CPU, augmentation=Augmentation(pad=2), seed=0
    )
    corner, inner = model[1].running_mean.view(4, 4)[[0, 1], [0, 1]].tolist()  # type: ignore[union-attr, operator]
    # Of the offsets 0 to 4 in either direction, three show the corner pixel and four the one beside it.
    assert corner == pytest.approx((3 / 5) ** 2, abs=0.1)
    assert inner == pytest.approx((4 / 5) ** 2, abs=0.1)


def test_a_recalibration_that_breaks_off_leaves_the_network_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), RunsOut()).eval()
    with pytest.raises(MemoryError):
        recalibrate_batch_norm(
            model, bright_or_dark(), images=64, batch_size=32, device=CPU, augmentation=Augmentation(), seed=0
        )
    assert model[1].momentum == 0.1
    assert not any(module.training for module in model.modules())


class RunsOut(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise MemoryError
