"""Folders of small images in which everything but the pixels is alike, and a network of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

#: what makes a run on such a folder last about a second
ON_FOLDER = (
    "experiment=smoke",
    "dataset=imagefolder",
    "dataset.limit_train=null",
    "dataset.limit_test=null",
    "dataset.workers=0",
    "metrics.samples_per_class=4",
    "criterion=first",
    "attacks=none",
    "finetune=none",
    "ratio=0.17",
    "baseline.epochs=6",
    "evaluate.energy_window_s=0.02",
    "evaluate.latency_min_run_s=0.01",
    "evaluate.batch_sizes=[1]",
)

COLOURS = {"red": (220, 40, 40), "blue": (40, 40, 220)}

#: a class of one's own, for digits
OWN_NETWORK = """
from consensus_cli.models.resnet import ResNet


class Own(ResNet):
    def __init__(self):
        super().__init__(2, 10, 1)
"""


def make_folder(root: Path, names: dict[str, str], *, seed: int = 0) -> Path:
    """Fills `root/<class>/NN.png` with 24 noisy pictures of 8 pixels for each class, name -> colour."""
    for name, colour in names.items():
        (root / name).mkdir(parents=True)
        for i in range(24):
            noise = np.random.default_rng([seed, i]).integers(-30, 31, (8, 8, 3))
            pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    return root
