"""Which folders of a tree are splits and which are classes."""

from __future__ import annotations

import os
import re
import shlex
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
# Folders of datasets whose images are not sorted by class.
_ANNOTATIONS = {
    "annotation", "annotations", "annots", "bboxes", "boxes", "gt", "label", "labels", "mask", "masks", "xml", "xmls",
}  # fmt: skip
# Folders that are looked into: opening a thousand takes time.
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
        raise UserError(
            f"{shown(root)} has a folder {shown(found)} but neither test nor val",
            f"put one beside it, or set {_as_root(root / found)}: a fifth becomes the test split",
        )
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
        UserError: fewer than two, folders that cannot be classes, classes without training images, or links to nowhere.
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
    if _are_annotations(classes) or len(classes) < 2:
        inner = [train / name for name in classes if not _is_annotation(name) and len(class_names(train / name)) > 1]
        what = f"{len(classes)} class folders, at least 2 are needed"
        if len(classes) > 1:
            what = f"images and what is noted of them ({enumerated(map(shown, classes))}), not sorted by class"
        hint = f"if its folders are the classes, set {_as_root(inner[0])}" if inner else LAYOUT_HINT
        raise UserError(f"{shown(train)} holds {what}", hint)
    if same := _in_each(train, classes):
        raise UserError(
            f"{shown(train)} has the same folders ({enumerated(map(shown, same))}) in each of "
            f"{enumerated(map(shown, classes))}: which of them are the classes cannot be told",
            f"for the inner ones set {_as_root(train / classes[0])} or name the outer ones train and test; "
            "for the outer ones leave no folders in them",
        )
    for folder in layout.parts.values():
        strangers = sorted(set(class_names(folder)) - set(classes))
        if strangers:
            raise UserError(
                f"{shown(folder)} has classes without training images: {enumerated(map(shown, strangers), 10)}",
                f"add them to {shown(train)} or remove them",
            )


def _as_root(folder: Path) -> str:
    """Returns the setting as it is typed: a name with blanks or brackets is quoted for Hydra and for the shell."""
    path = shown(folder)
    if re.fullmatch(r"[A-Za-z0-9_./+-]+", path):
        return f"dataset.root={path}"
    escaped = path.replace('"', '\\"')
    return shlex.quote(f'dataset.root="{escaped}"')


def _is_annotation(name: str) -> bool:
    words = set(_words(name)) - _FILLERS
    return bool(words) and words <= _ANNOTATIONS


def _is_filler(name: str) -> bool:
    """Says whether all words of a name are such as say nothing."""
    words = set(_words(name))
    return bool(words) and words <= _FILLERS


def _are_annotations(names: list[str]) -> bool:
    """Says whether these are `images` and `labels`, `Images` and `Annotation`, or the like."""
    images = [name for name in names if _is_filler(name)]
    return 0 < len(images) < len(names) and all(_is_annotation(name) for name in set(names).difference(images))


def _in_each(folder: Path, names: list[str]) -> list[str]:
    """Returns the folders, two or more, that the first of some folders all hold alike; none where they differ."""
    first, *others = names[:_LOOKED_INTO]
    inner = _names_in(folder / first)
    return inner if len(inner) > 1 and all(_names_in(folder / name) == inner for name in others) else []


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _parted(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Returns the split that a folder's name speaks of, and the other words in it that say something."""
    words = [word for word in _words(name) if word not in _FILLERS]
    splits = [word for word in words if word in _SPLIT_OF_WORD]
    if len(splits) != 1:
        return None, ()
    return _SPLIT_OF_WORD[splits[0]], tuple(word for word in words if word not in splits)


def _split_of(name: str) -> str | None:
    """Returns the split that a folder's name means: `Test_Images`, `training-set` and `val2017` are splits."""
    split, rest = _parted(name)
    return None if rest else split


def _splits(names: list[str]) -> dict[str, list[str]]:
    """Returns split -> names; where none is named plainly, those that differ in it alone: `seg_train`, `seg_test`."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        split, rest = _parted(name)
        if split is not None:
            found[rest][split].append(name)
    alike = {(): found[()]} if () in found else {k: v for k, v in found.items() if "train" in v and len(v) > 1}
    every = {split: [name for part in alike.values() for name in part.get(split, [])] for split in _SPLITS}
    return {split: same for split, same in every.items() if same}


def _only(root: Path, names: list[str]) -> str:
    if len(names) > 1:
        raise UserError(
            f"{shown(root)} has several folders for one split: {', '.join(map(shown, names))}",
            "keep one of them there, or give classes other names",
        )
    return names[0]


def _unsplit(root: Path, names: list[str], notes: list[str]) -> Layout:
    """Returns the layout of a folder in which none looks like a split."""
    if len(names) == 1:
        wrapped = find_layout(root / names[0])
        if len(wrapped.parts) > 1:
            return Layout(wrapped.parts, notes + wrapped.notes)
    inside = [name for name in names[:_LOOKED_INTO] if "train" in _splits(_names_in(root / name))]
    if len(names) > 1 and inside:
        raise UserError(
            f"{shown(root)} has {len(names)} folders, and folders that look like splits in {shown(inside[0])}",
            f"set dataset.root to the folder that holds the splits; {LAYOUT_HINT}",
        )
    return Layout({"train": root}, notes)


def _inner(folder: Path, part: str) -> Path:
    """Returns the folder of the classes where a split is wrapped once more, as in `train/train` or `train/images`."""
    wrapped = _wrapped(folder, part)
    return wrapped if wrapped is not None and class_names(wrapped) else folder


def _wrapped(folder: Path, part: str) -> Path | None:
    names = class_names(folder)
    if len(names) != 1:
        return None
    if names[0] == folder.name or _split_of(names[0]) == part or _is_filler(names[0]):
        return folder / names[0]
    return None


def _with_labels(root: Path, parts: dict[str, Path], notes: list[str]) -> Layout:
    """Leaves out test images that lie flat: nobody says of which class they are."""
    before = len(notes)
    for part in ("val", "test"):
        if part not in parts:
            continue
        names = class_names(parts[part])
        # The one folder of tiny ImageNet's `val/images` is no class.
        lies = _wrapped(parts[part], part) if set(names).isdisjoint(class_names(parts["train"])) else None
        if not names or lies is not None:
            lies = lies or parts[part]
            del parts[part]
            what = "images without class folders" if _has_images(lies) else "no class folders"
            told = f"{shown(lies)} holds {what}"
            if len(parts) == 1:
                raise UserError(
                    f"{shown(root)} has no labelled test images: {told}",
                    f"sort them into class folders, or set {_as_root(parts['train'])}: a fifth becomes the test split",
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
