"""Images that nobody sorted: the original network's answers stand for their classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import consensus_cli as cc
from consensus_cli.cli.main import main
from consensus_cli.models.resnet import resnet

FEW = 60
QUICK = (
    "experiment=no_training",
    "model=resnet20",
    "dataset=images",
    "dataset.workers=0",
    "metrics.samples_per_class=8",
    "attacks=none",
    "evaluate.energy_window_s=0.02",
    "evaluate.latency_min_run_s=0.01",
    "evaluate.batch_sizes=[1]",
    "threads=1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in it and one level below, and weights that answer with more than one class."""
    folder = tmp_path_factory.mktemp("unsorted")
    generator = np.random.default_rng(0)
    for number in range(FEW):
        colour = generator.integers(0, 256, 3)
        pixels = np.clip(colour + generator.normal(0, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
        image = folder / "images" / ("" if number % 3 else "more") / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(image)
    torch.manual_seed(0)
    network = resnet(20)
    # So that batch norm knows such images, and answers differ.
    network.train()(torch.rand(64, 3, 16, 16))
    with torch.no_grad():
        network.fc.weight.mul_(20)
        answers = network.eval()(torch.rand(64, 3, 16, 16))
        network.fc.bias.sub_(answers.mean(0))
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder


def words(place: Path, output_dir: Path, *more: str) -> list[str]:
    root, weights = f"dataset.root={place / 'images'}", f"model.weights={place / 'weights.safetensors'}"
    return ["run", *QUICK, root, weights, f"output_dir={output_dir}", *more]


def test_accuracy_is_agreement_with_the_original(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(place, tmp_path, "model.num_classes=10", "ratio=0.5")) == 0
    assert "accuracy is agreement with it" in capsys.readouterr().out
    row = pd.read_csv(tmp_path / "results.csv").iloc[0]
    assert (row["dataset"], row["blocks_removed"], row["replace"], row["test_images"]) == ("images", 3, "linear", 12)
    assert row["accuracy_base_pct"] == 100
    assert row["accuracy_pruned_pct"] == pytest.approx(100 - row["disagreement_pct"])
    assert cc.load_pruned(tmp_path / "runs" / row["run_id"])(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_the_same_images_under_another_name_are_the_same_run(place: Path, tmp_path: Path) -> None:
    assert main(words(place, tmp_path, "model.num_classes=10", "ratio=0.2", "prune.refit=false")) == 0
    (place / "images").rename(place / "elsewhere")
    try:
        other = [word.replace("/images", "/elsewhere") for word in words(place, tmp_path)]
        assert main([*other, "model.num_classes=10", "ratio=0.2", "prune.refit=false", "if_done=skip"]) == 0
    finally:
        (place / "elsewhere").rename(place / "images")
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), ("how many classes", "model.num_classes")),
        (("model.num_classes=10", "model.weights=null"), ("no trained network", "model.weights=FILE")),
        (("model.num_classes=10", "dataset.cue.kind=patch"), ("a cue marks classes", "with classes")),
        (("model.num_classes=10", "dataset.root={empty}"), ("holds no images", "at any depth")),
        (("model.num_classes=10", "dataset.root={empty}/none"), ("no such folder", "at any depth")),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: tuple[str, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    asked = [word.format(empty=tmp_path / "empty") for word in more]
    assert main(words(place, tmp_path / "out", *asked)) == 2
    shown = capsys.readouterr().err
    assert all(words in shown for words in said)
    assert "Traceback" not in shown
    assert not (tmp_path / "out" / "results.csv").exists()


def test_blocks_are_listed_without_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = ["list", "blocks", "model=resnet20", "dataset=images", f"dataset.root={place / 'images'}"]
    assert main([*listed, "model.num_classes=10"]) == 0
    assert "layer2.1" in capsys.readouterr().out
