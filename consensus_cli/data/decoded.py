"""Image files before a run: decoded into memory once, or looked at so that what cannot be read is known beforehand."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from consensus_cli.data import tensor_file
from consensus_cli.data.decoding import UnreadableImageError, is_suspect
from consensus_cli.data.files import NAMED, ImageFiles
from consensus_cli.data.folder import FolderImages
from consensus_cli.data.loading import for_each
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.source import Progress

logger = logging.getLogger(__name__)

# Part of every key: raise it when decoding or resizing changes.
FORMAT_VERSION = 3


def load_decoded(
    split: ImageFiles, cache_dir: Path | None, progress: Progress | None
) -> tuple[ImageTensors, list[str]]:
    """Returns the images of a split in memory, and which files were left out, in words.

    The decoded images are kept in one file of the cache folder, for later runs.

    Raises:
        UserError: files cannot be read and the split does not skip them.
    """
    name = f"images-{_key(f'{FORMAT_VERSION} {split.geometry} {split.images.cache_key(split.indices)}')}.safetensors"
    path = None if cache_dir is None else cache_dir / name
    stored = None if path is None else tensor_file.read(path)
    pixels, kept = _decode_all(split, progress) if stored is None else (stored["pixels"], stored["kept"])
    lost = sorted(set(range(len(split))).difference(kept.tolist()))
    # The cache does not know the reasons; those that a message names are found again.
    reasons = {position: (split.problem(position) or "") if n < NAMED else "" for n, position in enumerate(lost)}
    notes = [split.left_out(reasons)] if lost else []
    if path is not None and stored is None:
        tensor_file.write(path, {"pixels": pixels, "kept": kept})
    return ImageTensors(pixels.permute(0, 3, 1, 2), split.labels[kept]), notes


def without_unreadable(split: ImageFiles, cache_dir: Path, progress: Progress | None) -> tuple[ImageFiles, list[str]]:
    """Returns the files of a split that can be read, and which were left out, in words.

    Files are opened, not decoded, but for those whose ends look odd: files that are not images, and cut ones. That a
    split is sound is noted in the cache folder. Tables are taken as they are.

    Raises:
        UserError: files cannot be read and the split does not skip them.
    """
    images = split.images
    mark = cache_dir / f"sound-{_key(images.cache_key(split.indices))}"
    if not isinstance(images, FolderImages) or mark.is_file():
        return split, []
    found: dict[int, str] = {}

    def check(position: int) -> None:
        if _looks_odd(images.path(int(split.indices[position]))) and (problem := split.problem(position)) is not None:
            found[position] = problem

    for_each(check, len(split), workers=split.workers, progress=progress, doing="checking image files")
    if found:
        note = split.left_out(dict(sorted(found.items())))
        kept = [position for position in range(len(split)) if position not in found]
        return split.subset(torch.tensor(kept, dtype=torch.int64)), [note]
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        logger.warning("the image files will be checked again by the next run: %s", error)
    return split, []


def _key(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _decode_all(split: ImageFiles, progress: Progress | None) -> tuple[Tensor, Tensor]:
    """Returns pixels (m, h, w, 3) uint8 and the positions (m,) of the files that could be read."""
    _, height, width = split.image_shape
    pixels = torch.empty(len(split), height, width, 3, dtype=torch.uint8)
    intact = torch.ones(len(split), dtype=torch.bool)

    def decode_file(position: int) -> None:
        try:
            pixels[position] = split.geometry(split.decoded(position)).permute(1, 2, 0)
        except UnreadableImageError:
            intact[position] = False

    for_each(decode_file, len(split), workers=split.workers, progress=progress, doing="decoding images")
    return (pixels if intact.all() else pixels[intact]), intact.nonzero().flatten()


def _looks_odd(path: str) -> bool:
    try:
        # Without waiting for a writer, where the file is a pipe by now.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            size_bytes = os.fstat(file).st_size
            return is_suspect(size_bytes, os.pread(file, 32, 0), os.pread(file, 64, max(0, size_bytes - 64)))
        finally:
            os.close(file)
    except OSError:
        return True
