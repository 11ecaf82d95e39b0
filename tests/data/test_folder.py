from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from helpers.image_trees import MakeTree, random_images, write_tree
from helpers.loaded_trees import check, load
from safetensors.torch import save_file
from torchvision.io import decode_image, write_png

from consensus_cli.data import datasets
from consensus_cli.data.files import ImageFiles
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.split import Augmentation, Split
from consensus_cli.errors import ConfigError, UserError


def pixels(split: Split) -> list[list[int]]:
    assert isinstance(split, ImageTensors)
    return sorted(split.images.flatten(1).tolist())


def problem(root: Path | None, cache_dir: Path) -> UserError:
    """Returns the one thing that is wrong, and makes sure that loading raises the same."""
    [found] = check("imagefolder", root=root, cache_dir=cache_dir)
    with pytest.raises(UserError) as raised:
        load("imagefolder", root=root, cache_dir=cache_dir)
    assert (raised.value.message, raised.value.hint) == (found.message, found.hint)
    return found


def test_train_and_test_folders(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 10, "test": 4}, classes=("cat", "ant", "bee"))
    data = load("imagefolder", root=root, cache_dir=cache_dir, val_fraction=0.2)
    assert data.classes == ("ant", "bee", "cat")
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert data.val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    first = decode_image(str(root / "test" / "ant" / "0.png"))
    assert torch.equal(next(data.test.batches(1))[0][0], first.float() / 255)
    assert data.augmentation == Augmentation(pad=1, flip=True)


def test_val_folder_is_the_test_set_where_there_is_no_other(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 10, "val": 3})
    data = load("imagefolder", root=root, cache_dir=cache_dir, val_fraction=0.1)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 6)


def test_three_folders_are_taken_as_they_are(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 10, "val": 3, "test": 2})
    data = load("imagefolder", root=root, cache_dir=cache_dir, val_fraction=0.5)
    assert (len(data.train), len(data.val), len(data.test)) == (20, 6, 4)


def test_one_tree_is_split_the_same_way_for_every_seed(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({".": 20})
    data, again = (load("imagefolder", root=root, cache_dir=cache_dir, val_fraction=0.25, seed=s) for s in (0, 1))
    assert (len(data.train), len(data.val), len(data.test)) == (24, 8, 8)
    assert data.test.labels.bincount().tolist() == [4, 4]
    assert pixels(data.test) == pixels(again.test)
    every = pixels(data.train) + pixels(data.val) + pixels(data.test)
    assert len({tuple(image) for image in every}) == 40


def test_files_at_any_depth_count_and_hidden_or_other_files_do_not(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 2, "test": 2})
    deep = root / "train" / "ant" / "more" / "and more"
    deep.mkdir(parents=True)
    write_png(random_images(1, 12, 12, seed=9)[0], str(deep / "9.png"))
    for name in ("._0.png", "notes.txt"):
        (root / "train" / "ant" / name).write_text("no image")
    (root / "train" / ".thumbnails").mkdir()
    data = load("imagefolder", root=root, cache_dir=cache_dir, val_fraction=0)
    assert data.train.labels.bincount().tolist() == [3, 2]
    assert data.notes == (f"2 entries of {root}/train left out: 1 .txt, 1 hidden; in ant (2)",)


def test_images_of_many_sizes_become_squares(tmp_path: Path, cache_dir: Path) -> None:
    root = tmp_path / "images"
    write_tree(root, {"train": 2}, ("ant",), size=(20, 50))
    write_tree(root, {"train": 2}, ("bee",), size=(70, 30))
    write_tree(root, {"test": 1}, ("ant", "bee"), size=(16, 16))
    assert load("imagefolder", root=root, cache_dir=cache_dir).train.image_shape == (3, 20, 20)
    assert load("imagefolder", root=root, cache_dir=cache_dir, image_size=16).test.image_shape == (3, 16, 16)


def test_grey_images_get_three_channels(tmp_path: Path, cache_dir: Path) -> None:
    root = write_tree(tmp_path / "images", {"train": 4, "test": 2}, ("ant", "bee"), size=(8, 8))
    write_png(torch.full((1, 8, 8), 7, dtype=torch.uint8), str(root / "test" / "ant" / "0.png"))
    data = load("imagefolder", root=root, cache_dir=cache_dir)
    assert torch.equal(next(data.test.batches(1))[0], torch.full((1, 3, 8, 8), 7 / 255))


def test_imagenet_keeps_its_known_statistics_and_size(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 4, "val": 2}, classes=("n01440764", "n01443537"), size=(30, 40))
    data = load("imagenet", root=root, cache_dir=cache_dir, streaming=True, workers=0)
    assert data.train.image_shape == (3, 224, 224)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert len(data.test) == 4
    assert next(data.test.batches(2))[0].shape == (2, 3, 224, 224)


def test_size_decides_between_memory_and_disk(
    make_tree: MakeTree, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree({"train": 4, "test": 2})
    size_bytes = 12 * 12 * 12 * 3
    for limit_bytes, kind in ((size_bytes, ImageTensors), (size_bytes - 1, ImageFiles)):
        monkeypatch.setattr(datasets, "MEMORY_LIMIT_BYTES", limit_bytes)
        assert isinstance(load("imagefolder", root=root, cache_dir=cache_dir, workers=0).train, kind)


def test_limits_come_before_decoding(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 20, "test": 10})
    seen: list[tuple[str, int, int]] = []
    data = load(
        "imagefolder",
        root=root,
        cache_dir=cache_dir,
        limit_train=6,
        limit_test=2,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (len(data.val), len(data.test)) == (2, 2)
    assert seen == [("decoding images", 6, 6), ("decoding images", 2, 2), ("decoding images", 2, 2)]


def test_second_load_decodes_nothing(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 6, "test": 2})
    first = load("imagefolder", root=root, cache_dir=cache_dir)
    seen: list[int] = []
    again = load("imagefolder", root=root, cache_dir=cache_dir, progress=lambda what, done, total: seen.append(done))
    assert seen == []
    assert pixels(first.train) == pixels(again.train)
    assert torch.equal(first.train.labels, again.train.labels)
    assert (first.mean, first.std) == (again.mean, again.std)


def test_changed_file_is_decoded_again(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 6, "test": 2})
    load("imagefolder", root=root, cache_dir=cache_dir)
    write_png(torch.zeros(3, 12, 12, dtype=torch.uint8), str(root / "test" / "ant" / "0.png"))
    assert not next(load("imagefolder", root=root, cache_dir=cache_dir).test.batches(1))[0].any()


@pytest.mark.parametrize("damage", ["truncated", "one byte changed", "empty", "other tensors"])
def test_damaged_cache_is_built_again(
    make_tree: MakeTree, cache_dir: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree({"train": 6, "test": 2})
    first = load("imagefolder", root=root, cache_dir=cache_dir)
    for path in cache_dir.glob("images-*.safetensors"):
        whole = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(whole[:-10])
        elif damage == "one byte changed":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        elif damage == "empty":
            path.write_bytes(b"")
        else:
            save_file({"pixels": torch.zeros(2)}, path)
    with caplog.at_level(logging.WARNING):
        second = load("imagefolder", root=root, cache_dir=cache_dir)
    assert caplog.text.count("is damaged") == 3
    assert pixels(first.train) == pixels(second.train)
    caplog.clear()
    # Whatever level other libraries have given the root logger.
    with caplog.at_level(logging.WARNING):
        load("imagefolder", root=root, cache_dir=cache_dir)
    assert caplog.text == ""


def test_unwritable_cache_costs_time_only(
    make_tree: MakeTree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree({"train": 6, "test": 2})
    occupied = tmp_path / "occupied"
    occupied.write_text("a file, no folder")
    data = load("imagefolder", root=root, cache_dir=occupied)
    assert len(data.test) == 4
    assert "not kept for the next run" in caplog.text
    assert occupied.read_text() == "a file, no folder"


def damage_images(root: Path, count: int) -> list[Path]:
    damaged = sorted((root / "train" / "ant").glob("*.png"))[:count]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    return damaged


def test_corrupt_files_are_an_error_that_names_ten(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 20, "test": 2})
    damaged = damage_images(root, 12)
    with pytest.raises(UserError, match=r"12 of 40 image files cannot be read.* and 2 more") as raised:
        load("imagefolder", root=root, cache_dir=cache_dir, val_fraction=0, image_size=12)
    assert sum(str(path) in raised.value.message for path in damaged) == 10
    assert "dataset.on_corrupt=skip" in raised.value.hint
    assert raised.value.message.count("(damaged: ") == 10


def test_corrupt_files_of_all_splits_are_told_together(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 4, "val": 2, "test": 2})
    for part in ("train", "test"):
        (root / part / "bee" / "0.png").write_bytes(b"")
    for streaming in (False, True):
        with pytest.raises(ConfigError) as raised:
            load("imagefolder", root=root, cache_dir=cache_dir, streaming=streaming)
        assert [problem.message for problem in raised.value.problems] == [
            f"1 of 8 image files cannot be read: {root}/train/bee/0.png (empty)",
            f"1 of 4 image files cannot be read: {root}/test/bee/0.png (empty)",
        ]


@pytest.mark.parametrize("streaming", [False, True])
def test_corrupt_files_can_be_skipped(make_tree: MakeTree, cache_dir: Path, streaming: bool) -> None:
    root = make_tree({"train": 8, "test": 2})
    damage_images(root, 3)
    for _ in range(2):  # decoded, then from the cache
        data = load(
            "imagefolder", root=root, cache_dir=cache_dir, streaming=streaming, on_corrupt="skip", val_fraction=0
        )
        assert data.train.labels.tolist() == [0] * 5 + [1] * 8
        [note] = data.notes
        assert note.startswith("3 of 16 image files left out, for they cannot be read: ")
        assert note.count("(damaged: ") == 3
    with pytest.raises(UserError, match="3 of 16"):
        load("imagefolder", root=root, cache_dir=cache_dir, streaming=streaming, val_fraction=0)


def test_size_cannot_be_learned_from_corrupt_files(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 6, "test": 2})
    for path in (root / "train").glob("*/*.png"):
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(UserError, match="none of 12 image files looked at can be read") as raised:
        load("imagefolder", root=root, cache_dir=cache_dir)
    assert "ant/0.png (a Git LFS pointer" in raised.value.message


def test_folder_must_be_given(cache_dir: Path) -> None:
    found = problem(None, cache_dir)
    assert (found.message, found.hint) == ("dataset 'imagefolder' needs a folder", "set dataset.root=DIR")


def test_folder_must_exist(tmp_path: Path, cache_dir: Path) -> None:
    assert problem(tmp_path / "nowhere", cache_dir).message == f"dataset.root: no such folder: {tmp_path / 'nowhere'}"


def test_an_archive_is_no_folder(tmp_path: Path, cache_dir: Path) -> None:
    (tmp_path / "images.zip").touch()
    found = problem(tmp_path / "images.zip", cache_dir)
    assert found.message == f"dataset.root: {tmp_path / 'images.zip'} is a file, no folder"
    assert found.hint.startswith("unpack it")


@pytest.mark.parametrize("streaming", [True, False])
def test_something_must_be_left_to_test_on(make_tree: MakeTree, cache_dir: Path, streaming: bool) -> None:
    root = make_tree({".": 2})
    with pytest.raises(UserError, match="no test images are left"):
        load("imagefolder", root=root, cache_dir=cache_dir, streaming=streaming)
    root = make_tree({"train": 4, "test": 1})
    for file in root.glob("test/*/*"):
        file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"no test images are left; 2 of 2 image files left out, .*no known image"):
        load("imagefolder", root=root, cache_dir=cache_dir, streaming=streaming, on_corrupt="skip")


def test_folder_must_hold_classes(tmp_path: Path, cache_dir: Path) -> None:
    assert "holds 0 class folders" in problem(tmp_path, cache_dir).message
    (tmp_path / "ant").mkdir()
    assert "holds 1 class folders" in problem(tmp_path, cache_dir).message


def test_train_alone_is_not_enough(make_tree: MakeTree, cache_dir: Path) -> None:
    assert "neither test nor val" in problem(make_tree({"train": 2}), cache_dir).message


def test_classes_of_the_test_images_must_be_known(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 2, "test": 2})
    (root / "test" / "wasp").mkdir()
    assert "classes without training images: wasp" in problem(root, cache_dir).message


def test_class_may_be_absent_from_the_test_images(tmp_path: Path, cache_dir: Path) -> None:
    write_tree(tmp_path / "images", {"train": 4}, ("ant", "bee"), (8, 8))
    root = write_tree(tmp_path / "images", {"test": 2}, ("bee",), (8, 8))
    data = load("imagefolder", root=root, cache_dir=cache_dir)
    assert data.test.labels.tolist() == [1, 1]
    assert data.notes == (f"{root}/test has no images of ant",)


def test_class_folders_without_images_are_reported(tmp_path: Path, cache_dir: Path) -> None:
    for part in ("train/ant", "train/bee", "test/ant"):
        (tmp_path / part).mkdir(parents=True)
    with pytest.raises(UserError, match="train holds no images"):
        load("imagefolder", root=tmp_path, cache_dir=cache_dir)
