"""A look at both ends of every file before images are streamed: what cannot be read is told before the training."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from consensus_cli.data.decoding import is_suspect
from consensus_cli.data.files import ImageFiles
from consensus_cli.data.folder import FolderImages
from consensus_cli.data.loading import for_each
from consensus_cli.data.source import Progress


def without_unreadable(split: ImageFiles, cache_dir: Path, progress: Progress | None) -> tuple[ImageFiles, list[str]]:
    """Returns the files of a split that can be read, and which were left out, in words.

    Files are opened, not decoded, but for those whose ends look odd: files that are no images, and cut ones. That a
    split is sound is kept in the cache folder.

    Args:
        split: the files; of tables nothing is checked.
        cache_dir: folder of decoded images.
        progress: told about the check.

    Raises:
        UserError: if files cannot be read and the split does not skip them.
    """
    if not isinstance(split.images, FolderImages):
        return split, []
    mark = cache_dir / f"sound-{_key(split)}"
    if mark.is_file():
        return split, []
    unreadable = _unreadable(split, split.images, progress)
    if not unreadable:
        _leave(mark)
        return split, []
    note = split.left_out(unreadable)
    kept = [position for position in range(len(split)) if position not in unreadable]
    return split.subset(torch.tensor(kept, dtype=torch.int64)), [note]


def _unreadable(split: ImageFiles, images: FolderImages, progress: Progress | None) -> dict[int, str]:
    found: dict[int, str] = {}
    indices = split.indices.tolist()

    def check(position: int) -> None:
        if _looks_odd(images.path(indices[position])) and (problem := split.problem(position)) is not None:
            found[position] = problem

    for_each(check, len(split), workers=split.workers, progress=progress, doing="checking image files")
    return dict(sorted(found.items()))


def _looks_odd(path: str) -> bool:
    try:
        # Without waiting for a writer, where the file is a pipe by now.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        size_bytes = os.fstat(file).st_size
        return is_suspect(size_bytes, os.pread(file, 32, 0), os.pread(file, 64, max(0, size_bytes - 64)))
    except OSError:
        return True
    finally:
        os.close(file)


def _key(split: ImageFiles) -> str:
    return hashlib.sha256(split.images.cache_key(split.indices).encode()).hexdigest()[:24]


def _leave(mark: Path) -> None:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        # The next run looks again.
        return
