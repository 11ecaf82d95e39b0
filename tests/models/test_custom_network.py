"""A network that is not ours, on images of its own, through the command line: nothing in the package knows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.authors_network import CANDIDATES, REFERENCE, AuthorsNetwork, needs_reference
from helpers.quick import QUICK
from torchvision.io import write_png

import consensus_cli
from consensus_cli.cli.main import main

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The first images of every class in `cifar10_subset.npz` as lossless files."""
    stored = np.load(REFERENCE / "cifar10_subset.npz")
    for part, per_class in (("train", 40), ("test", 20)):
        pixels, labels = stored[f"x_{part}"], stored[f"y_{part}"].ravel()
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in np.flatnonzero(labels == label)[:per_class]:
                write_png(torch.from_numpy(pixels[i]).permute(2, 0, 1).contiguous(), str(folder / f"{i}.png"))
    return tmp_path / "images"


@pytest.mark.slow
@needs_reference
def test_the_reference_network_is_pruned_through_the_command_line(images: Path, tmp_path: Path) -> None:
    words = [
        *("model=custom", "model.target=helpers.authors_network.AuthorsNetwork"),
        f"model.weights={REFERENCE / 'resnet56_reference.safetensors'}",
        *("model.mean=[0,0,0]", "model.std=[1,1,1]", "dataset=imagefolder", f"dataset.root={images}"),
        *(
            "finetune=none",
            "finetune.recalibration_images=400",
            "ratio=0.125",
            "attacks=none",
            "metrics.samples_per_class=32",
        ),
    ]
    # The baseline is given, the data are a folder: of the words for a quick run only the windows matter here.
    quick = [word for word in QUICK if word.startswith("evaluate.")]
    assert main(["run", *words, *quick, f"output_dir={tmp_path}"]) == 0

    row = pd.read_csv(tmp_path / "results.csv").iloc[-1]
    assert row["blocks_candidates"] == len(CANDIDATES)
    assert row["accuracy_base_pct"] > 85
    assert row["accuracy_pruned_pct"] > 75
    assert row["macs_reduction_pct"] == pytest.approx(3 * 3.77, abs=0.1)
    pruned = consensus_cli.load_pruned(tmp_path / "runs" / row["run_id"])
    assert type(pruned.network) is AuthorsNetwork
    kept = {name.split(".")[1] for name in pruned.network.state_dict() if name.startswith("blocks.")}
    assert len(kept) == 27 - 3
