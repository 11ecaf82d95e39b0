"""Accuracy of a baseline and a pruned network on corrupted images, made on the fly or read from published archives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli.data.files import Geometry, ImageFiles
from consensus_cli.data.folder import FolderImages, class_names
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.split import Split
from consensus_cli.errors import UserError, unknown_name
from consensus_cli.evaluation.accuracy import accuracy_pct, predict
from consensus_cli.evaluation.distortions import DISTORTIONS, SEVERITIES, distort
from consensus_cli.evaluation.mode import Progress, evaluation_mode

_CIFAR_C_IMAGES = 10_000


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Accuracy of both networks on images with one corruption at one severity.

    Attributes:
        corruption: its name.
        severity: from 1 (mild) to 5.
        images: number of images.
        base_pct: accuracy of the baseline.
        pruned_pct: accuracy of the pruned network.
    """

    corruption: str
    severity: int
    images: int
    base_pct: float
    pruned_pct: float

    @property
    def delta_pp(self) -> float:
        """Pruned minus base, in percentage points."""
        return self.pruned_pct - self.base_pct


def corruption_accuracy(
    base: nn.Module,
    pruned: nn.Module,
    split: Split,
    *,
    corruptions: Sequence[str],
    severities: Sequence[int] = SEVERITIES,
    seed: int,
    device: torch.device | str,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> list[CorruptionAccuracy]:
    """Evaluates both networks on the same corrupted images, one row per corruption and severity.

    Args:
        base: the network before pruning, on `device`.
        pruned: the network after pruning, on `device`.
        split: the clean images.
        corruptions: names in `DISTORTIONS`.
        severities: from 1 to 5.
        seed: with the batch size it decides every random choice; each row has its own random numbers.
        device: where the networks are.
        batch_size: images at once.
        progress: told after each row.

    Raises:
        UserError: for an unknown corruption or severity.
    """
    check_corruptions(corruptions, severities)
    rows: list[CorruptionAccuracy] = []
    total = len(corruptions) * len(severities)
    for name in corruptions:
        for severity in severities:
            row = list(DISTORTIONS).index(name) * len(SEVERITIES) + severity
            generator = torch.Generator().manual_seed(1000 * seed + row)
            batches = _distorted(split.batches(batch_size, device), name, severity, generator)
            base_pct, pruned_pct = _accuracies_pct((base, pruned), batches)
            rows.append(CorruptionAccuracy(name, severity, len(split), base_pct, pruned_pct))
            if progress is not None:
                progress(f"corrupting: {name}", len(rows), total)
    return rows


def archive_accuracy(
    base: nn.Module,
    pruned: nn.Module,
    split: Split,
    *,
    name: str,
    severity: int,
    device: torch.device | str,
) -> CorruptionAccuracy:
    """Evaluates both networks on images that were corrupted, or collected anew, by others."""
    base_pct, pruned_pct = (accuracy_pct(predict(model, split, device)) for model in (base, pruned))
    return CorruptionAccuracy(name, severity, len(split), base_pct, pruned_pct)


def mean_accuracy_pct(rows: Sequence[CorruptionAccuracy]) -> tuple[float, float]:
    """Returns the mean of the rows, all of one weight, for the baseline and the pruned network.

    Raises:
        ValueError: if there are no rows.
    """
    if not rows:
        raise ValueError("no corruptions to average")
    return sum(r.base_pct for r in rows) / len(rows), sum(r.pruned_pct for r in rows) / len(rows)


def check_corruptions(corruptions: Iterable[str], severities: Iterable[int]) -> None:
    """Checks names and severities before anything is computed.

    Raises:
        UserError: for the first that does not exist.
    """
    for name in corruptions:
        if name not in DISTORTIONS:
            raise unknown_name("corruption", name, DISTORTIONS)
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"there is no corruption severity {severity}", "severities are 1, 2, 3, 4 and 5")


def read_cifar_c(folder: Path, corruption: str, severity: int) -> ImageTensors:
    """Reads one severity of CIFAR-10-C or CIFAR-100-C (`<corruption>.npy` and `labels.npy`, 10,000 images each).

    Raises:
        UserError: if a file is missing or no array of such images.
    """
    check_corruptions([], [severity])
    images, labels = _array(folder / f"{corruption}.npy"), _array(folder / "labels.npy")
    rows = slice((severity - 1) * _CIFAR_C_IMAGES, severity * _CIFAR_C_IMAGES)
    return _in_memory(images[rows], labels[rows], folder)


def read_shifted(images: Path, labels: Path | None = None) -> ImageTensors:
    """Reads a test set collected anew: CIFAR-10.1 (two `.npy` files) or CIFAR-10.2 (one `.npz`).

    Args:
        images: `.npy` of images (n, h, w, 3) uint8, or `.npz` that holds `images` and `labels`.
        labels: `.npy` of labels (n,) where `images` is `.npy`.

    Raises:
        UserError: if a file is missing or holds no such images.
    """
    if labels is not None:
        return _in_memory(_array(images), _array(labels), images)
    try:
        with np.load(images, allow_pickle=False) as archive:
            return _in_memory(archive["images"], archive["labels"], images)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{images} is no archive of images and labels", "give the .npz of CIFAR-10.2, or .npy files of both"
        ) from error


def read_imagenet_c(folder: Path, corruption: str, severity: int, image_size: int) -> ImageFiles:
    """Reads one severity of ImageNet-C: `<corruption>/<severity>/<class>/*.JPEG`, classes in alphabetical order.

    Raises:
        UserError: if there is no such folder or no image in it.
    """
    root = folder / corruption / str(severity)
    names = class_names(root) if root.is_dir() else []
    files = [(path, label) for label, name in enumerate(names) for path in sorted((root / name).glob("*.JPEG"))]
    if not files:
        raise UserError(f"there are no images in {root}", "expected <corruption>/<severity>/<class>/*.JPEG")
    stamps = [(path.stat().st_size, path.stat().st_mtime_ns) for path, _ in files]
    images = FolderImages(root, [str(path.relative_to(root)) for path, _ in files], stamps)
    labels = torch.tensor([label for _, label in files])
    geometry = Geometry.for_size(image_size)
    return ImageFiles(images, torch.arange(len(files)), labels, geometry, on_corrupt="error", workers=None)


def _distorted(
    batches: Iterable[tuple[Tensor, Tensor]], name: str, severity: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield distort(images, name, severity, generator), labels


def _accuracies_pct(models: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Corrupts each batch once and shows it to every network."""
    correct, images = [0] * len(models), 0
    with evaluation_mode(*models), torch.inference_mode():
        for batch, labels in batches:
            images += len(labels)
            for position, model in enumerate(models):
                correct[position] += int((model(batch).argmax(1) == labels).sum())
    return [100 * count / images for count in correct]


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read as an array", "give the folder or file of the unpacked archive"
        ) from error


def _in_memory(images: np.ndarray, labels: np.ndarray, path: Path) -> ImageTensors:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path} holds images of shape {images.shape} {images.dtype} with labels of shape {labels.shape}",
            "images are (n, h, w, 3) uint8 with n labels",
        )
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    return ImageTensors(pixels, torch.from_numpy(np.array(labels)))
