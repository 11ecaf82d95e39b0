from __future__ import annotations

from pathlib import Path

import pytest
from helpers.image_trees import MakeTree, write_tree


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    def make(
        parts: dict[str, int], classes: tuple[str, ...] = ("ant", "bee"), size: tuple[int, int] = (12, 12)
    ) -> Path:
        return write_tree(tmp_path / "images", parts, classes, size)

    return make


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"
