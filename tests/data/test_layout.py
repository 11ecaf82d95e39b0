"""Folders as people have them: which are splits, which are classes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.loaded_trees import flat, loaded, refused, sizes, tree

from consensus_cli.errors import UserError

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
    "one more word each": ({"X_train": 8, "X_test": 3}, (12, 4, 6)),
    "more words, twice": ({"seg_train/seg_train": 8, "seg_test/seg_test": 3}, (12, 4, 6)),
    "wrapped twice": ({"OID/Dataset/train": 8, "OID/Dataset/validation": 3}, (12, 4, 6)),
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
        ("steam train", "toy train"),
        ("bullet train", "bullet bike"),
        ("mask", "no mask"),
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
        "no labelled test images: .*test holds no class folders",
    ),
    "val lies flat": (
        lambda root: flat(tree(root, {"train": 2}) / "val"),
        "no labelled test images: .*val holds no class folders",
    ),
    "all lies flat": (lambda root: (flat(root / "train"), flat(root / "test")), "no labelled test images"),
    "val lies flat in a folder": (
        lambda root: flat(tree(root, {"train": 2}) / "val" / "images"),
        "no labelled test images: .*val/images holds no class folders",
    ),
    "copies": (
        lambda root: tree(root, {"color": 2, "grayscale": 2}),
        r"has the same folders \(ant, bee\) in each of color, grayscale",
    ),
    "splits in another language": (
        lambda root: tree(root, {"treino": 2, "teste": 2}),
        r"has the same folders \(ant, bee\) in each of teste, treino",
    ),
    "masks in classes": (
        lambda root: tree(root, {"COVID": 2, "Normal": 2}, ("images", "masks")),
        r"has the same folders \(images, masks\) in each of COVID, Normal",
    ),
    "objects": (
        lambda root: tree(root, {"train": 2, "valid": 2}, ("images", "labels")),
        r"train holds images and their annotations \(images, labels\), not sorted by class",
    ),
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


@pytest.mark.parametrize(
    ("parts", "suggested"),
    [({"train": 8}, "train"), ({"folds": 8, "more": 8}, "folds"), ({"Images": 8, "Annotation": 8}, "Images")],
)
def test_the_suggested_folder_works(parts: dict[str, int], suggested: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "images", parts)
    assert f"dataset.root={root / suggested}" in refused(root).hint
    assert sizes(loaded(root / suggested)) == (8, 4, 4)
    odd = tree(tmp_path / "my images (1), été", parts)
    assert f"""'dataset.root="{odd / suggested}"'""" in refused(odd).hint


def test_unlabelled_test_images_are_left_out_and_said(tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {"train": 8, "val": 3})
    flat(root / "test")
    data = loaded(root)
    assert sizes(data) == (12, 4, 6)
    assert data.notes == (
        f"{root}/test holds no class folders: left out",
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


def test_classes_are_in_alphabetical_order_whatever_the_numbers(tmp_path: Path) -> None:
    classes = tuple(str(number) for number in range(12))
    data = loaded(tree(tmp_path / "images", {"train": 1, "test": 1}, classes))
    assert data.classes == ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
