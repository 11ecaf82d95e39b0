"""Folders of image files, one folder per class, and ImageNet as one of them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consensus_cli.data.decoding import UnreadableImageError, read_file, side_lengths
from consensus_cli.data.files import LARGEST_UNCROPPED_SIZE, EncodedImages, Geometry, ImageFiles
from consensus_cli.data.layout import LAYOUT_HINT, class_names, find_layout
from consensus_cli.data.listing import counted, list_class, shown
from consensus_cli.data.request import Request
from consensus_cli.data.source import ImageData, Source, divide
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import UserError, enumerated
from consensus_cli.models.spec import IMAGE_SIZES

LARGEST_DEFAULT_SIZE = 224
SIZES_LOOKED_AT = 101

_ANY_DEPTH = "dataset.root=DIR holds the images, at any depth: JPEG, PNG, WebP, TIFF, BMP, GIF, …"


@dataclass(frozen=True)
class FolderImages:
    """Image files below one folder (satisfies `EncodedImages`).

    Attributes:
        folder: what the paths are relative to.
        paths: of the files, in the order of the images.
        stamps: of each file as in `Listing`, (n, 3) int64.
    """

    folder: Path
    paths: list[str]
    stamps: Tensor

    def read(self, index: int) -> Tensor:
        """Returns the bytes of one file, (m,) uint8."""
        return read_file(self.path(index))

    def path(self, index: int) -> str:
        """Returns the path of one file, which may hold bytes that are no text."""
        return os.path.join(self.folder, self.paths[index])  # noqa: PTH118

    def name(self, index: int) -> str:
        """Returns the path of one file as text."""
        return shown(self.path(index))

    def fingerprint(self, indices: Tensor) -> str:
        """Returns the SHA-256 of the relative paths, sizes and times of change of files; takes 1 s for a million."""
        return self._hash(indices, "", self.stamps[:, :2])

    def cache_key(self, indices: Tensor) -> str:
        """Returns a hash of where the files are besides: unpacked archives may have the same names, sizes and times."""
        return self._hash(indices, str(self.folder.resolve()), self.stamps)

    def _hash(self, indices: Tensor, place: str, stamps: Tensor) -> str:
        # No path holds a zero byte; names need not be text in UTF-8.
        names = "\0".join([place, *(self.paths[index] for index in indices.tolist())])
        digest = hashlib.sha256(os.fsencode(names))
        digest.update(stamps[indices].contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Folder:
    """A folder of images sorted into classes (a `Source`).

    Attributes:
        name: as the user calls it.
        image_size: in pixels, where the user asks for none; None for the usual size of the training images, at most
            224.
        mean, std: per channel, of images in [0, 1]; empty to measure them.
    """

    name: str
    image_size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    streams = True

    def check(self, request: Request, cache_dir: Path) -> list[UserError]:
        """Looks at the folders, not at the files in them."""
        if problems := _root_problems(self.name, request, LAYOUT_HINT):
            return problems
        assert request.folder is not None
        try:
            _layout(request.folder)
        except UserError as problem:
            return [problem]
        return []

    def read(self, request: Request, cache_dir: Path) -> ImageData:
        """Lists the files of each split; of a few it reads the size.

        Raises:
            UserError: a class without training images, a split without images, or a folder that cannot be opened.
        """
        assert request.folder is not None
        parts, notes = _layout(request.folder)
        classes = class_names(parts["train"])
        listed = {}
        for part, folder in parts.items():
            images, labels, more = _list_files(
                folder, classes, needs_all=part == "train", on_corrupt=request.on_corrupt
            )
            listed[part] = images, torch.arange(len(labels)), labels
            notes += more
        shown_classes = tuple(map(shown, classes))
        found = from_files(self.name, listed, request, shown_classes, notes=notes, usual=self.image_size)
        return replace(found, mean=self.mean, std=self.std)


@dataclass(frozen=True)
class UnsortedFolder:
    """A folder of images without classes, at any depth (a `Source`); all labels are 0."""

    streams = True

    def check(self, request: Request, cache_dir: Path) -> list[UserError]:
        """Looks at the folder, not at what is in it."""
        return _root_problems("images", request, _ANY_DEPTH)

    def read(self, request: Request, cache_dir: Path) -> ImageData:
        """Lists the files; a fifth of them is tested on.

        Raises:
            UserError: no images, or a folder that cannot be opened.
        """
        assert request.folder is not None
        root = request.folder.resolve()
        images, labels, notes = _list_files(
            root.parent, [root.name], needs_all=True, on_corrupt=request.on_corrupt, hint=_ANY_DEPTH
        )
        # Known by their places in the folder, whatever its name.
        paths = [path.removeprefix(f"{root.name}/") for path in images.paths]
        listed = {"train": (replace(images, folder=root, paths=paths), torch.arange(len(labels)), labels)}
        return from_files("images", listed, request, (), notes=notes)


def _root_problems(name: str, request: Request, hint: str) -> list[UserError]:
    if request.folder is None:
        return [UserError(f"dataset '{name}' needs a folder", "set dataset.root=DIR")]
    if request.folder.is_dir():
        return []
    if request.folder.exists():
        unpack = "unpack it, if it is an archive, and give the folder that it holds"
        return [UserError(f"dataset.root: {shown(request.folder)} is a file, no folder", unpack)]
    return [UserError(f"dataset.root: no such folder: {shown(request.folder)}", hint)]


def from_files(
    name: str,
    listed: Mapping[str, tuple[EncodedImages, Tensor, Tensor]],
    request: Request,
    classes: tuple[str, ...],
    *,
    notes: Sequence[str],
    usual: int | None = None,
) -> ImageData:
    """Returns image files as a dataset.

    Args:
        name: of the dataset.
        listed: `train`, `val` or `test` -> files, the indices of those that belong to it, (n,) int64, and their labels.
        request: how the images are wanted.
        classes: names by label.
        notes: as in `ImageData`.
        usual: image size in pixels where the request has none; None for the usual size of the training images.
    """
    images, indices, _ = listed["train"]
    size = request.image_size or usual or usual_size(images, indices)
    geometry, on_corrupt, workers = Geometry.for_size(size), request.on_corrupt, request.workers
    files = {part: ImageFiles(*found, geometry, on_corrupt, workers) for part, found in listed.items()}
    train, val, test = divide(files, request.val_fraction)
    return ImageData(name, train, val, test, classes, usual_augmentation(size), notes=tuple(notes))


def usual_augmentation(image_size: int) -> Augmentation:
    """Returns padded crops for small images, resized crops for large ones, and flips."""
    if image_size <= LARGEST_UNCROPPED_SIZE:
        return Augmentation(pad=image_size // 8, flip=True)
    return Augmentation(flip=True, min_area=0.08)


def usual_size(images: EncodedImages, indices: Tensor) -> int:
    """Returns the median of the shorter sides in pixels, from 8 to 224, of some of the images at `indices`.

    Raises:
        UserError: if none of them is an image.
    """
    count = len(indices)
    looked_at = torch.linspace(0, count - 1, min(count, SIZES_LOOKED_AT)).round().long()
    sides, problems = [], []
    for index in indices[looked_at].tolist():
        try:
            sides.append(min(side_lengths(images.read(index))))
        except UnreadableImageError as error:
            problems.append(f"{images.name(index)} ({error})")
    if not sides:
        raise UserError(
            f"none of {len(looked_at)} image files looked at can be read: {enumerated(problems)}",
            "replace or fetch the files",
        )
    # The lower one of two medians: a side that an image has.
    median = sorted(sides)[(len(sides) - 1) // 2]
    return max(IMAGE_SIZES[0], min(median, LARGEST_DEFAULT_SIZE))


def _layout(root: Path) -> tuple[dict[str, Path], list[str]]:
    try:
        return find_layout(root)
    except OSError as error:
        raise _closed([f"{shown(error.filename)} ({(error.strerror or str(error)).lower()})"]) from error


def _closed(folders: list[str]) -> UserError:
    return UserError(
        f"folders cannot be opened: {enumerated(folders)}",
        "change their permissions, or set dataset.on_corrupt=skip to leave out those inside classes",
    )


def _list_files(
    folder: Path, classes: list[str], *, needs_all: bool, on_corrupt: str, hint: str = LAYOUT_HINT
) -> tuple[FolderImages, Tensor, list[str]]:
    """Returns files and labels of a split, and what is to be said about it."""
    listings = {name: list_class(folder, name) for name in classes}
    closed = [place for listing in listings.values() for place in listing.closed]
    if closed and on_corrupt == "error":
        raise _closed(closed)
    paths = [path for listing in listings.values() for path in listing.paths]
    empty = {
        shown(name): counted(listing.left_out) or "no files" for name, listing in listings.items() if not listing.paths
    }
    if empty and (needs_all or not paths):
        what = "has class folders without images" if paths else "holds no images"
        raise UserError(
            f"{shown(folder)} {what}: {enumerated(f'{name} ({found})' for name, found in empty.items())}",
            "remove them, or put images into them: JPEG, PNG, WebP, TIFF, BMP, GIF, …" if paths else hint,
        )
    notes = []
    left_out = sum((listing.left_out for listing in listings.values()), Counter[str]())
    if left_out:
        where = {shown(name): listing.left_out.total() for name, listing in listings.items() if listing.left_out}
        what = "1 entry" if left_out.total() == 1 else f"{left_out.total()} entries"
        where_text = counted(where, "{name} ({count})")
        notes.append(f"{what} of {shown(folder)} left out: {counted(left_out)}; in {where_text}")
    if closed:
        notes.append(f"folders left out, for they cannot be opened: {enumerated(closed)}")
    if empty:
        notes.append(f"{shown(folder)} has no images of {enumerated(empty)}")
    stamps = np.concatenate([np.array(listing.stamps) for listing in listings.values()]).reshape(-1, 3)
    counts = torch.tensor([len(listing.paths) for listing in listings.values()])
    labels = torch.repeat_interleave(torch.arange(len(classes)), counts)
    return FolderImages(folder, paths, torch.from_numpy(stamps)), labels, notes


FOLDERS: dict[str, Source] = {
    "imagefolder": Folder("imagefolder"),
    "images": UnsortedFolder(),
    "imagenet": Folder("imagenet", image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
