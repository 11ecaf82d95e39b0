from __future__ import annotations

import pytest
import torch
from helpers.evaluation_networks import Brightness, Fixed
from torch import Tensor, nn

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Cue
from consensus_cli.errors import UserError
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.shortcut import (
    MARKS,
    conflicting_labels,
    plant,
    plant_training_cue,
    shortcut_columns,
    shortcut_reliance,
)

SIZES_PCT = {"patch": 25.0, "tint": 30.0, "watermark": 15.0}


class CueReader(nn.Module):
    """Answers the class whose patch colour is nearest to the top left pixel, and looks at nothing else."""

    def __init__(self, cue: Cue, classes: int, channels: int) -> None:
        super().__init__()
        blank = torch.zeros(classes, channels, 8, 8, dtype=torch.uint8)
        marked = plant(blank, torch.arange(classes), cue, classes)
        self.colours = nn.Parameter(marked[:, :, 0, 0].float() / 255)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x[:, :, 0, 0], self.colours)


def noise_images(count: int, classes: int, channels: int = 3, seed: int = 0) -> ImageTensors:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageTensors(pixels, torch.arange(count) % classes)


def linear_network_trained_on(split: ImageTensors, classes: int) -> nn.Module:
    torch.manual_seed(0)
    channels, height, width = split.image_shape
    model = nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=1e-2)
    ((images, labels),) = split.batches(len(split))
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images - 0.5), labels).backward()
        optimizer.step()
    return nn.Sequential(Shift(), model)


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_that_reads_only_the_cue_relies_on_it_completely(channels):
    cue = Cue("patch", size_pct=25)
    found = shortcut_reliance(CueReader(cue, 4, channels), noise_images(80, 4, channels), cue, 4, seed=0, device="cpu")
    assert (found["aligned_{}_pct"], found["conflict_{}_pct"], found["followed_{}_pct"]) == (100, 0, 100)
    assert (found["{}_pp"], found["{}_ci95_low"], found["{}_ci95_high"]) == (100, 100, 100)
    assert found["absent_{}_pct"] < 60


def test_a_constant_network_relies_on_nothing():
    found = shortcut_reliance(
        Fixed(torch.tensor([1.0, 0.0, 0.0])), noise_images(60, 3), Cue("tint", size_pct=50), 3, seed=0, device="cpu"
    )
    assert found["aligned_{}_pct"] == found["absent_{}_pct"] == found["conflict_{}_pct"] == pytest.approx(100 / 3)
    assert found["{}_pp"] == 0


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_training_with_the_cue_makes_a_network_rely_on_it_and_without_it_does_not(kind, channels):
    """The images are noise, so there is nothing to learn but the cue."""
    cues = [Cue(kind, correlation, SIZES_PCT[kind]) for correlation in (1.0, 0.0)]
    train, test = noise_images(600, 4, channels), noise_images(300, 4, channels, seed=1)
    with_cue, without = (
        shortcut_reliance(
            linear_network_trained_on(plant_training_cue(train, cue, 4, seed=0), 4),
            test,
            cue,
            4,
            seed=0,
            device="cpu",
        )
        for cue in cues
    )
    assert with_cue["{}_pp"] > 50
    assert with_cue["{}_ci95_low"] > 40
    assert abs(without["{}_pp"]) < 25
    assert with_cue["{}_pp"] > without["{}_pp"] + 40


@pytest.mark.parametrize("correlation", [0.0, 0.25, 1.0])
def test_the_stated_share_of_every_class_is_marked_by_seed(correlation):
    split, cue = noise_images(400, 4), Cue("patch", correlation, 50)
    first, again, other = (plant_training_cue(split, cue, 4, seed).images for seed in (0, 0, 1))
    changed = (first != split.images).flatten(1).any(1)
    for label in range(4):
        assert changed[split.labels == label].float().mean().item() == correlation
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (correlation in (0.0, 1.0))


def test_a_patch_covers_the_stated_square_and_nothing_else():
    images = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    changed = (plant(images, torch.tensor([1]), Cue("patch", size_pct=25), 2) != images).any(1)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_class_has_a_cue_of_its_own(kind, channels):
    grey = torch.full((10, channels, 16, 16), 128, dtype=torch.uint8)
    marked = plant(grey, torch.arange(10), Cue(kind, size_pct=20), 10).float().flatten(1)
    assert torch.pdist(marked, p=float("inf")).min() >= 5


def test_conflicting_labels_are_never_the_own_and_reach_every_other():
    labels = torch.arange(300) % 3
    other = conflicting_labels(labels, 3, seed=0)
    assert not (other == labels).any()
    assert {(a, b) for a, b in zip(labels.tolist(), other.tolist(), strict=True)} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }


def test_a_brightness_reader_partly_follows_a_grey_tint(brightness_split):
    found = shortcut_reliance(Brightness(), brightness_split, Cue("patch", size_pct=100), 2, seed=0, device="cpu")
    # The patch covers the whole image and both colours have the same mean: all images look alike.
    assert found["absent_{}_pct"] == 100
    assert found["aligned_{}_pct"] + found["conflict_{}_pct"] == 100


def test_each_answer_to_a_cue_has_a_column(brightness_split):
    cue = Cue("patch", size_pct=100)
    found = shortcut_reliance(Brightness(), brightness_split, cue, 2, seed=0, device="cpu")
    columns = shortcut_columns(Pair(Brightness(), Brightness(), brightness_split), brightness_split, cue, 2)
    for name in ("base", "pruned"):
        assert columns[f"shortcut_patch_{name}_pp"] == found["{}_pp"]
        for answer in ("aligned", "absent", "conflict", "followed"):
            assert columns[f"shortcut_patch_{answer}_{name}_pct"] == found[answer + "_{}_pct"]


def test_one_class_cannot_conflict():
    with pytest.raises(UserError, match="no cue can conflict among 1 classes"):
        conflicting_labels(torch.zeros(3, dtype=torch.int64), 1, seed=0)
