"""Which folders of a tree are splits and which are classes."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from pathlib import Path

from consensus_cli.data.listing import LOST, kinds, shown
from consensus_cli.errors import UserError, enumerated

LAYOUT_HINT = "expected ROOT/train/CLASS/*.jpg with ROOT/test or ROOT/val beside it, or ROOT/CLASS/*.jpg"

_SPLITS = {
    "train": ("train", "training", "trn", "trainset", "traindata", "trainingset", "trainingdata"),
    "val": ("val", "valid", "validation", "valset", "validset", "validationset", "dev", "devset", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "testset", "testdata", "testingset", "testingdata"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
# Words that mean nothing beside the name of a split: `Test_Images`, `training data`, `val2017`.
_FILLERS = {
    "set", "data", "dataset", "split", "folder", "image", "images", "img", "imgs", "pictures", "photos", "files",
}  # fmt: skip
# Folders of datasets whose images are not sorted by class.
_ANNOTATIONS = {
    "annotation", "annotations", "annots", "bboxes", "boxes", "gt", "label", "labels", "mask", "masks", "xml", "xmls",
}  # fmt: skip
# Folders that are looked into: opening a thousand takes time.
_LOOKED_INTO = 20

#: split (`train`, `val`, `test`) -> the folder that holds its class folders; `train` alone where one tree holds all
Parts = dict[str, Path]


def find_layout(root: Path) -> tuple[Parts, list[str]]:
    """Finds the splits of a tree by their usual names, in any case, there or in the one folder that wraps them.

    Returns:
        The splits, all with the same classes, and what was left out or taken for something, in words.

    Raises:
        UserError: folders whose meaning is not clear, fewer than two classes, or classes without training images.
    """
    parts, notes = _find_splits(root)
    _check_classes(parts)
    return parts, notes


def class_names(folder: Path) -> list[str]:
    """Returns the names of the class folders in alphabetical order, without hidden folders and leftovers."""
    return [name for name, kind in kinds(folder).items() if kind == "folder"]


def _find_splits(root: Path) -> tuple[Parts, list[str]]:
    names = class_names(root)
    splits = _splits(names)
    # Folders such as .git belong to the tree without anybody taking them for images.
    left_out = [shown(name) for name, kind in kinds(root).items() if kind.startswith("folder ") and name[0] != "."]
    notes = [f"left out of {shown(root)}: {enumerated(left_out)}"] if left_out else []
    if not splits:
        return _one_tree(root, names, notes)
    named = ", ".join(shown(name) for found in splits.values() for name in found)
    if twice := [found for found in splits.values() if len(found) > 1]:
        raise UserError(
            f"{shown(root)} has several folders for one split: {', '.join(map(shown, twice[0]))}",
            "keep one of them there, or give classes other names",
        )
    if "train" not in splits:
        raise UserError(
            f"{shown(root)} has folders that look like splits ({named}), but no train",
            f"{LAYOUT_HINT}; give classes other names",
        )
    train = root / splits["train"][0]
    if len(splits) > 1:
        if others := sorted(set(names).difference(*splits.values())):
            notes.append(f"left out of {shown(root)}: {enumerated(map(shown, others))}")
        return _labelled(root, {part: _inner(root / found[0], part) for part, found in splits.items()}, notes)
    if len(names) > 1 and not class_names(train):
        return {"train": root}, [*notes, f"{shown(train)} holds images and no folders: it is taken for a class"]
    raise UserError(
        f"{shown(root)} has a folder {named} but neither test nor val",
        f"put one beside it, or set {_as_root(train)}: a fifth becomes the test split",
    )


def _one_tree(root: Path, names: list[str], notes: list[str]) -> tuple[Parts, list[str]]:
    """Returns the layout of a folder in which none looks like a split."""
    if len(names) == 1:
        parts, more = _find_splits(root / names[0])
        if len(parts) > 1:
            return parts, notes + more
    inside = [name for name in names[:_LOOKED_INTO] if "train" in _splits(_names_in(root / name))]
    if len(names) > 1 and inside:
        raise UserError(
            f"{shown(root)} has {len(names)} folders, and folders that look like splits in {shown(inside[0])}",
            f"set dataset.root to the folder that holds the splits; {LAYOUT_HINT}",
        )
    return {"train": root}, notes


def _labelled(root: Path, parts: Parts, notes: list[str]) -> tuple[Parts, list[str]]:
    """Leaves out test images without class folders: nobody knows of which class they are."""
    known = set(class_names(parts["train"]))
    for part in ("val", "test"):
        names = class_names(parts[part]) if part in parts else []
        # The one folder of tiny ImageNet's `val/images` is not a class.
        flat = _wrapped(parts[part], part) if part in parts else None
        if part not in parts or (names and (flat is None or not known.isdisjoint(names))):
            continue
        reason = f"{shown(flat or parts[part])} holds no class folders"
        del parts[part]
        if len(parts) == 1:
            raise UserError(
                f"{shown(root)} has no labelled test images: {reason}",
                f"sort them into class folders, or set {_as_root(parts['train'])}: a fifth becomes the test split",
            )
        notes.append(f"{reason}: left out")
        if part == "test":
            notes.append(f"results are reported on {shown(parts['val'])}")
    return parts, notes


def _check_classes(parts: Parts) -> None:
    train = parts["train"]
    classes = class_names(train)
    for folder in parts.values():
        if lost := [shown(name) for name, kind in kinds(folder).items() if kind == LOST]:
            raise UserError(f"{shown(folder)} holds links to nowhere: {enumerated(lost)}", "mend or remove them")
    images = [name for name in classes if _consists_of(name, _FILLERS)]
    annotated = 0 < len(images) < len(classes) and all(_consists_of(name, _FILLERS | _ANNOTATIONS) for name in classes)
    if annotated or len(classes) < 2:
        inner = [train / name for name in (images if annotated else classes) if len(class_names(train / name)) > 1]
        what = f"{len(classes)} class folders, at least 2 are needed"
        if annotated:
            what = f"images and their annotations ({enumerated(map(shown, classes))}), not sorted by class"
        hint = f"if its folders are the classes, set {_as_root(inner[0])}" if inner else LAYOUT_HINT
        raise UserError(f"{shown(train)} holds {what}", hint)
    first, *others = (_names_in(train / name) for name in classes[:_LOOKED_INTO])
    if len(first) > 1 and all(names == first for names in others):
        raise UserError(
            f"{shown(train)} has the same folders ({enumerated(map(shown, first))}) in each of "
            f"{enumerated(map(shown, classes))}: which of them are the classes is not clear",
            f"for the inner ones set {_as_root(train / classes[0])} or name the outer ones train and test; "
            "for the outer ones leave no folders in them",
        )
    for folder in parts.values():
        if strangers := sorted(set(class_names(folder)).difference(classes)):
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


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _consists_of(name: str, words: set[str]) -> bool:
    return bool(found := set(_words(name))) and found <= words


def _parted(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Returns the split that a folder's name speaks of (`Test_Images`, `val2017`), and the other words that matter."""
    words = [word for word in _words(name) if word not in _FILLERS]
    splits = [word for word in words if word in _SPLIT_OF_WORD]
    if len(splits) != 1:
        return None, ()
    return _SPLIT_OF_WORD[splits[0]], tuple(word for word in words if word not in splits)


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


def _inner(folder: Path, part: str) -> Path:
    """Returns the folder of the classes where a split is wrapped once more, as in `train/train` or `train/images`."""
    wrapped = _wrapped(folder, part)
    return wrapped if wrapped is not None and class_names(wrapped) else folder


def _wrapped(folder: Path, part: str) -> Path | None:
    names = class_names(folder)
    if len(names) != 1:
        return None
    [name] = names
    alike = name == folder.name or _parted(name) == (part, ()) or _consists_of(name, _FILLERS)
    return folder / name if alike else None


def _names_in(folder: Path) -> list[str]:
    try:
        return class_names(folder)
    except OSError:
        # Reported when its files are listed.
        return []
