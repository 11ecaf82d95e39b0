"""Small archives in the published forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.io import write_jpeg


def cifar_c(folder: Path, labels: np.ndarray, levels: np.ndarray, corruptions: tuple[str, ...] = ("fog",)) -> Path:
    """Flat images of 8×8: those of severity s have the grey levels `levels[s − 1]`."""
    folder.mkdir(parents=True)
    for corruption in corruptions:
        np.save(folder / f"{corruption}.npy", flat(levels.reshape(-1)))
    np.save(folder / "labels.npy", np.tile(labels, 5))
    return folder


def flat(levels: np.ndarray, size: int = 8) -> np.ndarray:
    """Images (n, h, w, 3) uint8 of one grey level each."""
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (len(levels), size, size, 3))


def imagenet_c(folder: Path, images_of_class: dict[str, int], corruptions: tuple[str, ...] = ("fog",)) -> Path:
    """One severity per corruption; images of the first class are dark, of the last bright."""
    for corruption in corruptions:
        for label, (name, count) in enumerate(images_of_class.items()):
            root = folder / corruption / "3" / name
            root.mkdir(parents=True)
            for number in range(count):
                level = 50 + 150 * label
                write_jpeg(torch.full((3, 70, 80), level, dtype=torch.uint8), str(root / f"{number}.JPEG"))
    return folder
