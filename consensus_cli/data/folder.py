"""Folders of image files, one folder per class, and ImageNet as one of them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consensus_cli.data.files import LARGEST_UNCROPPED_SIZE, EncodedImages, Geometry, ImageFiles, decode
from consensus_cli.data.sampling import stratified_split
from consensus_cli.data.source import SPLIT_SEED, Parts, Request, hold_out
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Where one tree holds all images.
TEST_FRACTION = 0.2
LARGEST_DEFAULT_SIZE = 224
LAYOUT_HINT = "expected ROOT/train/CLASS/*.jpg with ROOT/test or ROOT/val beside it, or ROOT/CLASS/*.jpg"


@dataclass(frozen=True)
class FolderImages:
    """Image files below one folder (satisfies `EncodedImages`).

    Attributes:
        folder: what the paths are relative to.
        paths: of the files, in the order of the images.
        stamps: size in bytes and time of change in ns of each file, (n, 2) int64.
    """

    folder: Path
    paths: list[str]
    stamps: Tensor

    def read(self, index: int) -> Tensor:
        """Returns the bytes of one file, (m,) uint8."""
        # PyTorch's own reader takes no name that is not UTF-8.
        try:
            return torch.from_numpy(np.fromfile(self.name(index), dtype=np.uint8))
        except OSError as error:
            raise RuntimeError(str(error)) from error

    def name(self, index: int) -> str:
        """Returns the path of one file."""
        return str(self.folder / self.paths[index])

    def fingerprint(self, indices: Tensor) -> str:
        """Returns the SHA-256 of the relative paths, sizes and times of change of files; takes 1 s for a million."""
        # No path holds a zero byte; names need not be text in UTF-8.
        names = "\0".join([self.paths[index] for index in indices.tolist()])
        digest = hashlib.sha256(os.fsencode(names))
        digest.update(self.stamps[indices].contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder of images sorted into classes (a `Source`).

    Attributes:
        name: as the user calls it.
        image_size: in pixels, where the user asks for none; None for the shorter side of the first image, at
            most 224.
        mean: per channel, of images in [0, 1]; None to measure it.
        std: per channel, of images in [0, 1]; None to measure it.
    """

    name: str
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    streams = True
    uses_hf_name = False

    def check(self, request: Request) -> list[UserError]:
        """Looks at the folders, not at the files in them."""
        if request.root is None:
            return [UserError(f"dataset '{self.name}' needs a folder", "set dataset.root=DIR")]
        if not request.root.is_dir():
            return [UserError(f"dataset.root: no such folder: {request.root}", LAYOUT_HINT)]
        try:
            _check_classes(_layout(request.root))
        except UserError as problem:
            return [problem]
        return []

    def read(self, request: Request) -> Parts:
        """Lists the files of each split; decodes at most a few to learn their size."""
        assert request.root is not None
        layout = _layout(request.root)
        classes = class_names(layout["train"])
        listed = {part: _list_files(folder, classes) for part, folder in layout.items()}
        images, labels = listed["train"]
        size = request.image_size or self.image_size or usual_size(images, len(labels))
        geometry = Geometry.for_size(size)
        splits = {
            part: ImageFiles(
                images,
                torch.arange(len(labels)),
                labels,
                geometry,
                on_corrupt=request.on_corrupt,
                workers=request.workers,
            )
            for part, (images, labels) in listed.items()
        }
        train, val, test = divide(splits, request.val_fraction)
        return Parts(train, val, test, tuple(classes), usual_augmentation(size), self.mean, self.std)


def divide(splits: dict[str, ImageFiles], val_fraction: float) -> tuple[ImageFiles, ImageFiles, ImageFiles]:
    """Returns training, validation and test images; those that are missing are held out of the others.

    With `val` but no `test`, as in ImageNet, `val` is what results are reported on.
    """
    train = splits["train"]
    if "test" in splits and "val" in splits:
        return train, splits["val"], splits["test"]
    if "test" in splits:
        test = splits["test"]
    elif "val" in splits:
        test = splits["val"]
    else:
        rest, last = stratified_split(train.labels, (1 - TEST_FRACTION, TEST_FRACTION), SPLIT_SEED)
        train, test = train.subset(rest), train.subset(last)
    kept, held_out = hold_out(train.labels, val_fraction)
    return train.subset(kept), train.subset(held_out), test


def usual_augmentation(image_size: int) -> Augmentation:
    """Returns padded crops for small images, resized crops for large ones, and flips."""
    if image_size <= LARGEST_UNCROPPED_SIZE:
        return Augmentation(pad=image_size // 8, flip=True)
    return Augmentation(flip=True, min_area=0.08)


def usual_size(images: EncodedImages, count: int) -> int:
    """Returns the shorter side in pixels, at most 224, of the first of `count` images that can be decoded.

    Raises:
        UserError: if none of the first ten can.
    """
    tried = range(min(10, count))
    for index in tried:
        try:
            return min(*decode(images, index).shape[1:], LARGEST_DEFAULT_SIZE)
        except RuntimeError:
            continue
    names = ", ".join(images.name(index) for index in tried)
    raise UserError(
        f"none of the first image files can be decoded: {names}", "check the files, or set dataset.image_size"
    )


def class_names(folder: Path) -> list[str]:
    """Returns the names of the class folders in alphabetical order; hidden folders are none."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _layout(root: Path) -> dict[str, Path]:
    """Returns the folder of each split; `train` alone where one tree holds all images."""
    if not (root / "train").is_dir():
        return {"train": root}
    layout = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if len(layout) == 1:
        raise UserError(f"{root} has a folder train but neither test nor val", LAYOUT_HINT)
    return layout


def _check_classes(layout: dict[str, Path]) -> None:
    classes = class_names(layout["train"])
    if len(classes) < 2:
        raise UserError(f"{layout['train']} holds {len(classes)} class folders, at least 2 are needed", LAYOUT_HINT)
    for folder in layout.values():
        strangers = sorted(set(class_names(folder)) - set(classes))
        if strangers:
            raise UserError(
                f"{folder} has classes without training images: {', '.join(strangers[:10])}",
                f"add them to {layout['train']} or remove them",
            )


def _list_files(folder: Path, classes: list[str]) -> tuple[FolderImages, Tensor]:
    files: list[tuple[str, tuple[int, int]]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        # A class may be absent from the test images.
        found = _walk(str(folder), name) if (folder / name).is_dir() else []
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(f"{folder} holds no images", f"image files end in {', '.join(IMAGE_SUFFIXES)}; {LAYOUT_HINT}")
    stamps = torch.tensor([stamp for _, stamp in files], dtype=torch.int64)
    images = FolderImages(folder, [path for path, _ in files], stamps)
    return images, torch.tensor(labels, dtype=torch.int64)


def _walk(folder: str, relative: str) -> list[tuple[str, tuple[int, int]]]:
    """Returns (path, (size in bytes, time of change in ns)) of the visible image files at any depth, sorted.

    Plain strings and one directory scan: `Path` objects would take seconds for 60,000 files.
    """
    found: list[tuple[str, tuple[int, int]]] = []
    with os.scandir(os.path.join(folder, relative)) as entries:  # noqa: PTH118
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{relative}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _walk(folder, path)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                status = entry.stat()
                found.append((path, (status.st_size, status.st_mtime_ns)))
    return found


FOLDERS = {
    "imagefolder": Folder("imagefolder"),
    "imagenet": Folder("imagenet", image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
