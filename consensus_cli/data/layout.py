"""Which folders of a tree are splits and which are classes."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from consensus_cli.data.listing import enumerated, is_image, is_leftover, shown
from consensus_cli.errors import UserError

LAYOUT_HINT = "expected ROOT/train/CLASS/*.jpg with ROOT/test or ROOT/val beside it, or ROOT/CLASS/*.jpg"

_SPLITS = {
    "train": ("train", "training", "trn", "trainset", "traindata", "trainingset", "trainingdata"),
    "val": ("val", "valid", "validation", "valset", "validset", "validationset", "dev", "devset", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "testset", "testdata", "testingset", "testingdata"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
# Words that say nothing beside the name of a split: `Test_Images`, `training data`, `val2017`.
_FILLERS = {
    "set", "data", "dataset", "split", "folder", "image", "images", "img", "imgs", "pictures", "photos", "files",
}  # fmt: skip
# Folders into which it is looked for splits: opening a thousand takes time.
_LOOKED_INTO = 20


@dataclass
class Layout:
    """Where the images of a dataset lie.

    Attributes:
        parts: split (`train`, `val`, `test`) -> the folder that holds its class folders; `train` alone where one tree
            holds all images.
        notes: what was left out, or taken for something, in words.
    """

    parts: dict[str, Path]
    notes: list[str] = field(default_factory=list)


def find_layout(root: Path) -> Layout:
    """Finds the splits of a tree by their usual names, in any case, there or in the one folder that wraps them.

    Raises:
        UserError: folders that look like splits, but what is what cannot be told.
    """
    names = class_names(root)
    splits = _splits(names)
    notes = _leftovers(root)
    if "train" in splits and len(splits) > 1:
        others = sorted(set(names) - {name for found in splits.values() for name in found})
        if others:
            notes.append(f"left out of {shown(root)}: {enumerated(map(shown, others))}")
        return _with_labels(root, {part: _inner(root / _only(root, splits[part]), part) for part in splits}, notes)
    if not splits:
        return _unsplit(root, names, notes)
    (first, *_), *_ = splits.values()
    if list(splits) == ["train"] and len(names) > 1 and len(splits["train"]) == 1 and not class_names(root / first):
        notes.append(f"{shown(root / first)} holds images and no folders: it is taken for a class")
        return Layout({"train": root}, notes)
    if list(splits) == ["train"]:
        found = _only(root, splits["train"])
        raise UserError(f"{shown(root)} has a folder {shown(found)} but neither test nor val", LAYOUT_HINT)
    found = ", ".join(shown(name) for names in splits.values() for name in names)
    raise UserError(
        f"{shown(root)} has folders that look like splits ({found}), but no train",
        f"{LAYOUT_HINT}; give classes other names",
    )


def class_names(folder: Path) -> list[str]:
    """Returns the names of the class folders in alphabetical order; hidden folders and leftovers are none."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not is_leftover(entry.name) and _is_folder(entry))


def check_classes(layout: Layout) -> None:
    """Checks that there are classes, the same in every split.

    Raises:
        UserError: fewer than two, classes without training images, or links to nowhere.
    """
    train = layout.parts["train"]
    classes = class_names(train)
    for folder in layout.parts.values():
        with os.scandir(folder) as entries:
            lost = sorted(entry.name for entry in entries if _is_lost(entry))
        if lost:
            raise UserError(
                f"{shown(folder)} holds links to nowhere: {enumerated(map(shown, lost))}", "mend or remove them"
            )
    if len(classes) < 2:
        inner = [train / name for name in classes if len(class_names(train / name)) > 1]
        hint = f"if its folders are the classes, set dataset.root={shown(inner[0])}" if inner else LAYOUT_HINT
        raise UserError(f"{shown(train)} holds {len(classes)} class folders, at least 2 are needed", hint)
    for folder in layout.parts.values():
        strangers = sorted(set(class_names(folder)) - set(classes))
        if strangers:
            raise UserError(
                f"{shown(folder)} has classes without training images: {enumerated(map(shown, strangers), 10)}",
                f"add them to {shown(train)} or remove them",
            )


def _split_of(name: str) -> str | None:
    """Returns the split that a folder's name means: `Test_Images`, `training-set` and `val2017` are splits."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = [word for word in re.findall(r"[^\W\d_]+", apart) if word not in _FILLERS]
    return _SPLIT_OF_WORD.get(words[0]) if len(words) == 1 else None


def _splits(names: list[str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for name in names:
        split = _split_of(name)
        if split is not None:
            found[split].append(name)
    return {split: found[split] for split in _SPLITS if split in found}


def _only(root: Path, names: list[str]) -> str:
    if len(names) > 1:
        raise UserError(
            f"{shown(root)} has several folders for one split: {', '.join(map(shown, names))}",
            "keep one of them there, or give classes other names",
        )
    return names[0]


def _unsplit(root: Path, names: list[str], notes: list[str]) -> Layout:
    """Returns the layout of a folder in which none looks like a split."""
    inside = [name for name in names[:_LOOKED_INTO] if "train" in _splits(_names_in(root / name))]
    if len(names) == 1 and inside:
        wrapped = find_layout(root / names[0])
        return Layout(wrapped.parts, notes + wrapped.notes)
    if inside:
        raise UserError(
            f"{shown(root)} has {len(names)} folders, and folders that look like splits in {shown(inside[0])}",
            f"set dataset.root to the folder that holds the splits; {LAYOUT_HINT}",
        )
    return Layout({"train": root}, notes)


def _inner(folder: Path, part: str) -> Path:
    """Returns the folder of the classes where a split is wrapped once more, as in `train/train` or `train/images`."""
    names = class_names(folder)
    if len(names) == 1 and class_names(folder / names[0]):
        split, words = _split_of(names[0]), set(re.findall(r"[a-z]+", names[0].lower()))
        if split == part or (words and words <= _FILLERS):
            return folder / names[0]
    return folder


def _with_labels(root: Path, parts: dict[str, Path], notes: list[str]) -> Layout:
    """Leaves out test images that lie flat: nobody says of which class they are."""
    before = len(notes)
    for part in ("val", "test"):
        if part in parts and not class_names(parts[part]):
            what = "images without class folders" if _has_images(parts[part]) else "no class folders"
            told = f"{shown(parts.pop(part))} holds {what}"
            if len(parts) == 1:
                raise UserError(
                    f"{shown(root)} has no labelled test images: {told}",
                    f"sort them into class folders, or set dataset.root={shown(parts['train'])}: a fifth becomes the "
                    "test split",
                )
            notes.append(f"{told}: left out")
    if len(notes) > before and "test" not in parts:
        notes.append(f"results are reported on {shown(parts['val'])}")
    return Layout(parts, notes)


def _leftovers(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if is_leftover(entry.name) and _is_folder(entry))
    # Folders such as .git belong to the tree without anybody taking them for images.
    told = [shown(name) for name in names if not name.startswith(".")]
    return [f"left out of {shown(root)}: {enumerated(told)}"] if told else []


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def _names_in(folder: Path) -> list[str]:
    try:
        return class_names(folder)
    except OSError:
        # Told when its files are listed.
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself.
        return False


def _is_lost(entry: os.DirEntry[str]) -> bool:
    if is_leftover(entry.name) or is_image(entry.name) or not entry.is_symlink():
        return False
    try:
        return not entry.is_dir() and not entry.is_file()
    except OSError:
        return True
