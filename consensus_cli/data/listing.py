"""The image files of a class: found at any depth, and everything else named."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from consensus_cli.data.decoding import IMAGE_SUFFIXES
from consensus_cli.errors import enumerated

#: what systems, archives and this tool leave behind (lower case), besides everything that begins with a dot
_LEFTOVERS = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "$recycle.bin", "lost+found",
    "system volume information", "paxheader", "paxheaders", "__pycache__", "outputs",
}  # fmt: skip

LOST = "link to nowhere"


@dataclass
class Listing:
    """Files of one class, in alphabetical order within each folder.

    Attributes:
        paths: of the image files, relative to the folder of the split.
        stamps: size in bytes, time of change and time of the last change of its entry on this disk, in ns, of each, one
            after the other; 0 for a link to nowhere.
        left_out: kind (`.txt`, `hidden`, …) -> number of files that are not images, or not read.
        closed: folders that cannot be opened, with the reason.
    """

    paths: list[str] = field(default_factory=list)
    stamps: array[int] = field(default_factory=lambda: array("q"))
    left_out: Counter[str] = field(default_factory=Counter)
    closed: list[str] = field(default_factory=list)

    def walk(self, folder: str, relative: str, seen: set[tuple[int, int]]) -> None:
        """Adds the image files of a folder at any depth.

        Plain strings and one scan of each folder: `Path` objects would take seconds for 60,000 files.

        Args:
            folder: of the split.
            relative: path of the class's folder in it.
            seen: the folders above and those that were looked at, to which links may lead back.
        """
        place = os.path.join(folder, relative)  # noqa: PTH118
        try:
            identity = _identity(place)
            if identity in seen:
                self.left_out["looping link"] += 1
                return
            seen.add(identity)
            with os.scandir(place) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            self.closed.append(f"{shown(place)} ({(error.strerror or str(error)).lower()})")
            return
        for entry in entries:
            kind = _kind(entry)
            if kind == "folder":
                self.walk(folder, f"{relative}/{entry.name}", seen)
            elif kind == "image":
                self.paths.append(f"{relative}/{entry.name}")
                self.stamps.extend(_stamp(entry))
            else:
                self.left_out[kind] += 1


def list_class(folder: Path, name: str) -> Listing:
    """Returns the files of one class below the folder of a split; none where it has no such class."""
    listing = Listing()
    if (folder / name).is_dir():
        above = folder.resolve()
        listing.walk(str(folder), name, {_identity(str(place)) for place in (above, *above.parents)})
    return listing


def kinds(folder: Path) -> dict[str, str]:
    """Returns name -> `folder`, `image`, or the reason why it is neither, of what lies in a folder, sorted."""
    with os.scandir(folder) as entries:
        return dict(sorted((entry.name, _kind(entry)) for entry in entries))


def shown(path: str | Path) -> str:
    """Returns a path as one line that can be printed: bytes that are not UTF-8 as `\\xe9`, line ends as `\\n`."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return re.sub(r"[\0-\x1f\x7f]", lambda found: repr(found[0])[1:-1], text)


def counted(counts: Mapping[str, int], form: str = "{count} {name}") -> str:
    """Returns the most frequent of some names with their counts, such as `40 .txt, 3 hidden`."""
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return enumerated(form.format(name=name, count=count) for name, count in frequent)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:
        # A link to itself.
        is_folder = is_file = False
    if entry.name.startswith(".") or entry.name.lower() in _LEFTOVERS:
        kind = "hidden" if entry.name.startswith(".") else shown(entry.name)
        return f"folder {shown(entry.name)}" if is_folder else kind
    if is_folder:
        return "folder"
    if not is_file and not entry.is_symlink():
        return "not a file"
    if entry.name.lower().endswith(IMAGE_SUFFIXES):
        return "image"
    if not is_file:
        return LOST
    return shown(os.path.splitext(entry.name)[1].lower()) or "without suffix"  # noqa: PTH122


def _identity(place: str) -> tuple[int, int]:
    status = os.stat(place)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int, int]:
    try:
        status = entry.stat()
    except OSError:
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
