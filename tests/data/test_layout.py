"""Folders as people have them: which are splits, which are classes, what is left out, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_trees import random_images, write_tree
from torchvision.io import write_png

from consensus_cli.data import listing
from consensus_cli.data.datasets import check, load
from consensus_cli.data.source import ImageData
from consensus_cli.errors import UserError

PNG = random_images(1, 12, 12, seed=5)[0]


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


# folders with images per class -> images in training, validation and test, two classes
SPLITS: dict[str, tuple[dict[str, int], tuple[int, int, int]]] = {
    "Train, Test": ({"Train": 8, "Test": 3}, (12, 4, 6)),
    "TRAIN, TEST": ({"TRAIN": 8, "TEST": 3}, (12, 4, 6)),
    "training, testing": ({"training": 8, "testing": 3}, (12, 4, 6)),
    "train, valid, test": ({"train": 8, "valid": 2, "test": 3}, (16, 4, 6)),
    "train, valid": ({"train": 8, "valid": 3}, (12, 4, 6)),
    "train, validation": ({"train": 8, "validation": 3}, (12, 4, 6)),
    "train, dev, test": ({"train": 8, "dev": 2, "test": 3}, (16, 4, 6)),
    "Train_set, Test_set": ({"Train_set": 8, "Test_set": 3}, (12, 4, 6)),
    "TrainingSet, TestSet": ({"TrainingSet": 8, "TestSet": 3}, (12, 4, 6)),
    "trainset, testset": ({"trainset": 8, "testset": 3}, (12, 4, 6)),
    "training images, test images": ({"training images": 8, "test images": 3}, (12, 4, 6)),
    "train-data, val-data": ({"train-data": 8, "val-data": 3}, (12, 4, 6)),
    "train2017, val2017": ({"train2017": 8, "val2017": 3}, (12, 4, 6)),
    "wrapped": ({"dataset/train": 8, "dataset/test": 3}, (12, 4, 6)),
    "twice the same name": ({"training_set/training_set": 8, "test_set/test_set": 3}, (12, 4, 6)),
    "images inside": ({"train/images": 8, "test/images": 3}, (12, 4, 6)),
    "no splits": ({".": 20}, (24, 8, 8)),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_known_by_their_usual_names(name: str, tmp_path: Path) -> None:
    parts, expected = SPLITS[name]
    data = loaded(tree(tmp_path / "images", parts))
    assert sizes(data) == expected
    assert data.classes == ("ant", "bee")
    assert data.notes == ()


@pytest.mark.parametrize(
    "classes",
    [
        ("test tube", "train station"),
        ("validated", "trained"),
        ("images", "drawings"),
        ("1", "0", "10"),
        ("devil", "angel"),
    ],
)
def test_classes_that_sound_like_splits_are_classes(classes: tuple[str, ...], tmp_path: Path) -> None:
    assert loaded(tree(tmp_path / "images", {".": 8}, classes)).classes == tuple(sorted(classes))


# what is there, message
UNCLEAR: dict[str, tuple[Callable[[Path], None], str]] = {
    "train alone": (lambda root: tree(root, {"train": 2}), "has a folder train but neither test nor val"),
    "train beside classes": (
        lambda root: tree(root, {"Train": 2, "extra": 2}),
        "has a folder Train but neither test nor val",
    ),
    "test beside classes": (
        lambda root: tree(tree(root, {".": 2}), {"test": 2}),
        r"folders that look like splits \(test\), but no train",
    ),
    "flat test beside classes": (
        lambda root: flat(tree(root, {".": 2}) / "Test"),
        r"folders that look like splits \(Test\), but no train",
    ),
    "two of one": (
        lambda root: tree(root, {"train": 2, "val": 2, "valid": 2}),
        "several folders for one split: val, valid",
    ),
    "upper and lower": (lambda root: tree(root, {"train": 2, "Train": 2, "test": 2}), "one split: Train, train"),
    "splits in classes": (
        lambda root: tree(root, {"ant": 2, "bee": 2}, ("train", "test")),
        "has 2 folders, and folders that look like splits in ant",
    ),
    "wrapped beside others": (
        lambda root: tree(tree(root, {"images/train": 2, "images/test": 2}), {"labels": 2}),
        "has 2 folders, and folders that look like splits in images",
    ),
    "test lies flat": (
        lambda root: flat(tree(root, {"train": 2}) / "test"),
        "no labelled test images: .*test holds images without class folders",
    ),
    "val lies flat": (
        lambda root: flat(tree(root, {"train": 2}) / "val"),
        "no labelled test images: .*val holds images without class folders",
    ),
    "all lies flat": (lambda root: (flat(root / "train"), flat(root / "test")), "no labelled test images"),
    "wrapped classes": (lambda root: tree(root, {"photos": 2}), "holds 1 class folders"),
    "class without images": (
        lambda root: tree(tree(root, {"train": 2, "test": 2}), {"train": 0}, ("wasp", "moth")),
        r"class folders without images: moth \(no files\), wasp \(no files\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_trees_that_cannot_be_understood_are_refused_by_name(name: str, tmp_path: Path) -> None:
    make, message = UNCLEAR[name]
    make(tmp_path / "images")
    problem = refused(tmp_path / "images")
    assert str(tmp_path / "images") in problem.message
    with pytest.raises(UserError, match=message):
        raise problem
    assert problem.hint


def test_the_folder_of_wrapped_classes_is_suggested(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"photos": 8})
    assert f"dataset.root={root / 'photos'}" in refused(root).hint
    assert sizes(loaded(root / "photos")) == (8, 4, 4)


def test_unlabelled_test_images_are_left_out_and_said(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"train": 8, "val": 3})
    flat(root / "test")
    data = loaded(root)
    assert sizes(data) == (12, 4, 6)
    assert data.notes == (
        f"{root}/test holds images without class folders: left out",
        f"results are reported on {root}/val",
    )


def test_a_class_of_trains_is_a_class_and_said(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {".": 8}, ("bus", "train"))
    data = loaded(root)
    assert data.classes == ("bus", "train")
    assert data.notes == (f"{root}/train holds images and no folders: it is taken for a class",)


def test_other_folders_beside_splits_are_left_out_and_said(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"train": 8, "test": 3, "extra": 2})
    assert loaded(root).notes == (f"left out of {root}: extra",)


@pytest.mark.parametrize("leftover", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", ".git"])
def test_leftovers_are_never_classes_or_images(leftover: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {".": 20})
    flat(root / leftover / "ant")
    flat(root / "ant" / leftover)
    data = loaded(root)
    assert data.classes == ("ant", "bee")
    assert sizes(data) == (24, 8, 8)
    root_note = [] if leftover.startswith(".") else [f"left out of {root}: {leftover}"]
    assert list(data.notes) == [*root_note, f"1 entry of {root} left out: 1 folder {leftover}; in ant (1)"]


def test_what_is_left_out_is_counted_by_kind_and_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"train": 8, "test": 3})
    for name in ("a.txt", "b.TXT", "c.heic", "Thumbs.db", ".DS_Store", "README"):
        (root / "train" / "bee" / name).write_text("x")
    (root / "train" / "ant" / "d.txt").write_text("x")
    os.mkfifo(root / "train" / "ant" / "pipe.png")
    assert loaded(root).notes == (
        f"8 entries of {root}/train left out: 3 .txt, 1 .heic, 1 Thumbs.db, 1 hidden, 1 not a file and 1 more; "
        "in bee (6), ant (2)",
    )


def test_a_class_in_a_format_that_is_not_read_is_refused_with_it(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"train": 2, "test": 2})
    for path in (root / "train" / "bee").iterdir():
        path.rename(path.with_suffix(".heic"))
    assert "class folders without images: bee (2 .heic)" in refused(root).message


@pytest.mark.parametrize("suffix", ["jfif", "bmp", "gif", "tif", "TIFF", "ppm", "pgm", "webp", "JPG", "jpe"])
def test_common_suffixes_are_read(suffix: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"train": 8, "test": 3})
    for path in sorted((root / "train" / "bee").iterdir()):
        path.rename(path.with_suffix(f".{suffix}"))
    data = loaded(root)
    assert sizes(data) == (12, 4, 6)
    assert data.notes == ()


NAMES = [b"caf\xe9", b"a b", b"a,b", b"a;b", b"a=b", b'a"b', b"-dash", "été 🦉".encode(), b"a\nb", b"%s{}"]


@pytest.mark.parametrize("streaming", [False, True])
def test_files_and_classes_of_any_name_are_read(tmp_path: Path, streaming: bool) -> None:
    root = tree(tmp_path / "images", {"train": 2, "test": 2})
    for name in NAMES:
        for part in (b"train", b"test"):
            folder = os.fsencode(root) + b"/" + part + b"/" + name
            os.mkdir(folder)  # noqa: PTH102 (a name in bytes)
            for copy in NAMES:
                shutil.copy(root / "train" / "ant" / "0.png", folder + b"/" + copy + b".png")
    data = loaded(root, streaming=streaming)
    assert len(data.test) == 2 * 2 + len(NAMES) ** 2
    assert len(data.classes) == len(NAMES) + 2
    assert "caf\\xe9" in data.classes
    "\n".join((*data.classes, *data.notes, data.fingerprint())).encode()
    images = sum(len(images) for images, _ in data.test.batches(16))
    assert images == len(data.test)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_cannot_be_opened_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    root = tree(tmp_path / "images", {"train": 8, "test": 2})
    (root / "train" / "ant" / "lost.png").symlink_to("../nowhere.png")
    (root / "train" / "ant" / "loop.png").symlink_to("loop.png")
    strange = os.fsencode(root) + b"/train/ant/caf\xe9.png"
    os.symlink("nowhere", strange)  # noqa: PTH211
    (root / "train" / "bee" / "forbidden.png").touch()
    read = np.fromfile

    def forbidding(path: str, dtype: type) -> np.ndarray:
        if path.endswith("forbidden.png"):
            raise PermissionError(13, "Permission denied")
        return read(path, dtype=dtype)

    # The tests may run as root, to whom nothing is forbidden.
    monkeypatch.setattr(np, "fromfile", forbidding)
    with pytest.raises(UserError, match="4 of 20 image files cannot be read") as raised:
        load("imagefolder", root=root, cache_dir=tmp_path / "a", streaming=streaming, workers=0, val_fraction=0)
    for named in (
        f"{root}/train/ant/caf\\xe9.png (a link to nowhere)",
        f"{root}/train/ant/lost.png (a link to nowhere)",
        f"{root}/train/ant/loop.png (too many levels of symbolic links)",
        f"{root}/train/bee/forbidden.png (permission denied)",
    ):
        assert named in raised.value.message
    data = loaded(root, on_corrupt="skip", streaming=streaming)
    assert len(data.train) + len(data.val) == 16
    assert len(data.notes) >= 1


def test_folders_that_cannot_be_opened_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "images", {"train": 8, "test": 2})
    (root / "train" / "ant" / "closed").mkdir()
    scan = os.scandir

    def forbidding(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(listing.os, "scandir", forbidding)
    assert f"cannot be opened: {root}/train/ant/closed (permission denied)" in refused(root).message
    data = loaded(root, on_corrupt="skip")
    assert data.notes == (f"folders left out, for they cannot be opened: {root}/train/ant/closed (permission denied)",)
    closed = tree(tmp_path / "closed", {".": 2})
    assert f"cannot be opened: {closed} (permission denied)" in refused(closed).message


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    elsewhere = tree(tmp_path / "elsewhere", {".": 4}, ("cat", "dog"))
    root = tree(tmp_path / "images", {"train": 4, "test": 4})
    for part in ("train", "test"):
        (root / part / "cat").symlink_to(elsewhere / "cat", target_is_directory=True)
    (root / "train" / "ant" / "up").symlink_to("../ant", target_is_directory=True)
    (root / "train" / "bee" / "above").symlink_to("../../train", target_is_directory=True)
    data = loaded(root)
    assert data.classes == ("ant", "bee", "cat")
    assert (data.train.labels.bincount() + data.val.labels.bincount()).tolist() == [4, 4, 4]
    assert data.notes == (f"2 entries of {root}/train left out: 2 looping link; in ant (1), bee (1)",)


def test_a_class_that_links_to_nowhere_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"train": 4, "test": 4})
    (root / "train" / "cat").symlink_to("../../elsewhere/cat", target_is_directory=True)
    (root / "train" / "dog").symlink_to("dog")
    assert refused(root).message == f"{root}/train holds links to nowhere: cat, dog"


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"train": 4, "test": 4})
    flat(root / "train" / "ant" / "dir.jpg", 4)
    data = loaded(root)
    assert (data.train.labels.bincount() + data.val.labels.bincount()).tolist() == [8, 4]


def test_classes_are_in_alphabetical_order_whatever_the_numbers(tmp_path: Path) -> None:
    classes = tuple(str(number) for number in range(12))
    data = loaded(tree(tmp_path / "images", {"train": 1, "test": 1}, classes))
    assert data.classes == ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
