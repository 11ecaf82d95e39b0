"""The files of a class as people have them: what is read, what is left out, and what cannot be opened."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.image_trees import random_images, write_tree
from helpers.loaded_trees import flat, load, loaded, refused, sizes, tree
from torchvision.io import write_png

from consensus_cli.data import listing
from consensus_cli.errors import UserError


@pytest.mark.parametrize(
    "leftover", ["__MACOSX", "@eaDir", "#recycle", "System Volume Information", "outputs", ".ipynb_checkpoints", ".git"]
)
def test_leftovers_are_never_classes_or_images(leftover: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "images", {".": 20})
    flat(root / leftover / "ant")
    flat(root / "ant" / leftover)
    data = loaded(root)
    assert data.classes == ("ant", "bee")
    assert sizes(data) == (24, 8, 8)
    root_note = [] if leftover.startswith(".") else [f"left out of {root}: {leftover}"]
    assert list(data.notes) == [*root_note, f"1 entry of {root} left out: 1 folder {leftover}; in ant (1)"]


def test_names_are_shown_in_one_line() -> None:
    assert listing.shown("a\nb\t\x1b[1m\udce9 é") == "a\\nb\\t\\x1b[1m\\xe9 é"


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


SIZES = {
    "of one size": ([(40, 60)] * 5, 40),
    "the first is tiny": ([(1, 1)] + [(40, 40)] * 4, 40),
    "the first is a strip": ([(1, 4000)] + [(40, 40)] * 4, 40),
    "the last is large": ([(40, 50)] * 4 + [(900, 900)], 40),
    "two sizes": ([(20, 50), (70, 30)] * 2, 20),
    "all are tiny": ([(3, 5)] * 3, 8),
    "all are large": ([(500, 400)] * 3, 224),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_usual_size_of_the_images_decides(name: str, tmp_path: Path, cache_dir: Path) -> None:
    sizes, expected = SIZES[name]
    for part in ("train/ant", "train/bee", "test/ant"):
        (tmp_path / part).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes):
            write_png(random_images(1, height, width, seed=number)[0], str(tmp_path / part / f"{number}.png"))
    data = load("imagefolder", root=tmp_path, cache_dir=cache_dir)
    assert data.train.image_shape == data.test.image_shape == (3, expected, expected)


def test_the_size_is_looked_for_all_over_the_folder(tmp_path: Path, cache_dir: Path) -> None:
    write_tree(tmp_path, {"train": 120}, ("ant", "bee"), size=(9, 9))
    write_tree(tmp_path, {"test": 1}, ("ant", "bee"), size=(9, 9))
    for number in range(100):
        write_png(random_images(1, 12, 12, seed=number)[0], str(tmp_path / "train" / "ant" / f"{number}.png"))
    assert load("imagefolder", root=tmp_path, cache_dir=cache_dir).train.image_shape == (3, 9, 9)
