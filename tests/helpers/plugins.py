"""Packages as they lie in an environment once they are installed, as far as entry points go."""

from collections.abc import Mapping
from pathlib import Path


def offer(folder: Path, groups: Mapping[str, Mapping[str, str]]) -> None:
    """Writes the metadata of an installed package `somebodys`.

    Args:
        folder: to be put on `sys.path`.
        groups: group -> name -> `module:object`.
    """
    metadata = folder / "somebodys-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *map(" = ".join, points.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
