"""Decoding all files of a split into memory, once: later runs read the result from one file."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from consensus_cli.data.decoding import UnreadableImageError
from consensus_cli.data.files import NAMED, ImageFiles
from consensus_cli.data.loading import for_each
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.source import Progress

logger = logging.getLogger(__name__)

# Part of every key: raise it when decoding or resizing changes.
FORMAT_VERSION = 2


def load_decoded(
    split: ImageFiles, cache_dir: Path | None, progress: Progress | None
) -> tuple[ImageTensors, list[str]]:
    """Returns the images of a split in memory, and which files were left out, in words.

    Args:
        split: the files.
        cache_dir: folder where decoded images are kept; None keeps none.
        progress: told about the decoding.

    Raises:
        UserError: if files cannot be read and the split does not skip them.
    """
    path = None if cache_dir is None else cache_dir / f"images-{_key(split)}.safetensors"
    stored = None if path is None else _read_cache(path, split)
    pixels, kept = _decode_all(split, progress) if stored is None else stored
    notes = [split.left_out(_unreadable(split, kept))] if len(kept) < len(split) else []
    if path is not None and stored is None:
        _write_cache(path, pixels, kept)
    return ImageTensors(pixels.permute(0, 3, 1, 2), split.labels[kept]), notes


def _key(split: ImageFiles) -> str:
    content = f"{FORMAT_VERSION} {split.geometry} {split.images.cache_key(split.indices)}"
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _decode_all(split: ImageFiles, progress: Progress | None) -> tuple[Tensor, Tensor]:
    """Returns pixels (m, h, w, 3) uint8 and the positions (m,) of the files that could be read."""
    total = len(split)
    _, height, width = split.image_shape
    pixels = torch.empty(total, height, width, 3, dtype=torch.uint8)
    intact = torch.ones(total, dtype=torch.bool)

    def decode_file(position: int) -> None:
        try:
            pixels[position] = split.geometry(split.decoded(position)).permute(1, 2, 0)
        except UnreadableImageError:
            intact[position] = False

    for_each(decode_file, total, workers=split.workers, progress=progress, doing="decoding images")
    kept = intact.nonzero().flatten()
    return (pixels if len(kept) == total else pixels[kept]), kept


def _unreadable(split: ImageFiles, kept: Tensor) -> dict[int, str]:
    """Returns the positions of the files that could not be read, the first with the reason: the cache knows none."""
    intact = set(kept.tolist())
    lost = [position for position in range(len(split)) if position not in intact]
    return {position: (split.problem(position) or "") if n < NAMED else "" for n, position in enumerate(lost)}


def _read_cache(path: Path, split: ImageFiles) -> tuple[Tensor, Tensor] | None:
    """Returns what `_write_cache` wrote; None if there is no such file or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            pixels, kept = file.get_tensor("pixels"), file.get_tensor("kept")
            checksum = (file.metadata() or {}).get("crc32")
    except (SafetensorError, OSError):
        checksum = None
    if checksum is None or checksum != _checksum(pixels, kept):
        logger.warning("decoding the images again: the cache file %s is damaged", path)
        return None
    return pixels, kept


def _write_cache(path: Path, pixels: Tensor, kept: Tensor) -> None:
    """Writes under another name first, so that a run that is interrupted leaves no half file."""
    tensors = {"pixels": pixels, "kept": kept}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".images-") as folder:
            unfinished = Path(folder) / path.name
            save_file(tensors, unfinished, metadata={"crc32": _checksum(pixels, kept)})
            unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        logger.warning("the decoded images are not kept for the next run: %s", error)


def _checksum(pixels: Tensor, kept: Tensor) -> str:
    return f"{zlib.crc32(kept.numpy().data, zlib.crc32(pixels.numpy().data)):08x}"
