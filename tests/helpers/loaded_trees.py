"""Loading small trees of images as tests do it, and the ways in which it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torchvision.io import write_png

from consensus_cli import data
from consensus_cli.data import ImageData, Progress, Request
from consensus_cli.errors import UserError
from helpers.image_trees import random_images, write_tree

PNG = random_images(1, 12, 12, seed=5)[0]


def load(source: str, *, cache_dir: Path, seed: int = 0, progress: Progress | None = None, **options: Any) -> ImageData:
    """Loads what a request with these options asks for."""
    return data.load(asked(source, **options), cache_dir, seed=seed, progress=progress)


def check(source: str, *, cache_dir: Path, **options: Any) -> list[UserError]:
    """Returns what `load` would refuse before it reads an image."""
    return data.check(asked(source, **options), cache_dir)


def asked(source: str, *, root: Path | None = None, **options: Any) -> Request:
    """Returns a request for the images below a folder."""
    return Request(source, root=None if root is None else str(root), **options)


def loaded(root: Path, on_corrupt: str = "error", streaming: bool = False) -> ImageData:
    assert check("imagefolder", root=root, cache_dir=root.parent / "cache") == []
    return load(
        "imagefolder",
        root=root,
        cache_dir=root.parent / "cache",
        val_fraction=0.25,
        on_corrupt=on_corrupt,
        streaming=streaming,
        workers=0,
    )


def refused(root: Path) -> UserError:
    """Returns the one line with which loading ends; where folders alone show it, the check says the same."""
    with pytest.raises(UserError) as raised:
        load("imagefolder", root=root, cache_dir=root.parent / "cache")
    for found in check("imagefolder", root=root, cache_dir=root.parent / "cache"):
        assert (found.message, found.hint) == (raised.value.message, raised.value.hint)
    return raised.value


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.val), len(data.test)


def tree(root: Path, parts: dict[str, int], classes: tuple[str, ...] = ("ant", "bee")) -> Path:
    return write_tree(root, parts, classes, (12, 12))


def flat(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_png(PNG, str(folder / f"{number}.png"))
