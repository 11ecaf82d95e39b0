"""What tells one set of images from another, wherever it lies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.image_trees import MakeTree, random_images, write_tree
from helpers.loaded_trees import load
from PIL import Image
from torchvision.io import write_png

from consensus_cli.data import memory
from consensus_cli.data.hf import TableImages
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.source import ImageData


def tensors() -> ImageTensors:
    return ImageTensors(random_images(7, 5, 4, seed=0), torch.arange(7))


def folder(root: Path, cache_dir: Path, streaming: bool) -> ImageData:
    return load("imagefolder", root=root, cache_dir=cache_dir, streaming=streaming, workers=0, val_fraction=0.5)


@pytest.mark.parametrize("chunk_bytes", [1, 100, 2**24])
def test_memory_format_and_size_of_the_parts_change_nothing(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "HASHED_AT_ONCE_BYTES", chunk_bytes)
    one = tensors()
    other = ImageTensors(one.images.contiguous(memory_format=torch.channels_last), one.labels)
    view = ImageTensors(torch.cat([one.images, one.images], dim=3)[..., :4], one.labels.repeat(2)[:7])
    assert one.fingerprint() == other.fingerprint() == view.fingerprint()
    assert len(bytes.fromhex(one.fingerprint())) == 32


def test_every_pixel_label_shape_and_the_order_count() -> None:
    one = tensors()
    pixel = one.images.clone()
    pixel[6, 2, 4, 3] ^= 1
    others = [
        ImageTensors(pixel, one.labels),
        ImageTensors(one.images, one.labels.flip(0)),
        ImageTensors(one.images.reshape(7, 3, 4, 5), one.labels),
        ImageTensors(one.images.transpose(2, 3), one.labels),
        one.subset(torch.tensor([1, 0, 2, 3, 4, 5, 6])),
        one.subset(torch.arange(6)),
        one.subset(torch.arange(0)),
    ]
    found = [split.fingerprint() for split in (one, *others)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("streaming", [True, False])
def test_the_same_folder_elsewhere_is_the_same(make_tree: MakeTree, tmp_path: Path, streaming: bool) -> None:
    root = make_tree({"train": 4, "test": 2})
    copy = shutil.copytree(root, tmp_path / "another" / "place")
    one, other = (folder(place, tmp_path / name, streaming) for name, place in (("a", root), ("b", copy)))
    assert one.fingerprint() == other.fingerprint()
    assert replace(one, name="another name").fingerprint() == one.fingerprint()


def rename_a_class(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "bee").rename(root / part / "wasp")


def swap_two_classes(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "ant").rename(root / part / "x")
        (root / part / "bee").rename(root / part / "ant")
        (root / part / "x").rename(root / part / "bee")


def rewrite_a_test_image(root: Path) -> None:
    write_png(torch.zeros(3, 12, 12, dtype=torch.uint8), str(root / "test" / "ant" / "0.png"))


def add_a_training_image(root: Path) -> None:
    shutil.copy2(root / "train" / "ant" / "0.png", root / "train" / "ant" / "9.png")


CHANGES = [rename_a_class, swap_two_classes, rewrite_a_test_image, add_a_training_image]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_another_folder_is_another(
    change: Callable[[Path], None], streaming: bool, make_tree: MakeTree, cache_dir: Path
) -> None:
    root = make_tree({"train": 4, "test": 2})
    before = folder(root, cache_dir, streaming)
    change(root)
    assert folder(root, cache_dir, streaming).fingerprint() != before.fingerprint()


def test_streamed_files_are_known_by_size_and_time_and_by_the_image_size(make_tree: MakeTree, cache_dir: Path) -> None:
    root = make_tree({"train": 4, "test": 2})
    first = folder(root, cache_dir, streaming=True).test
    known = {first.fingerprint(), first.subset(torch.arange(3)).fingerprint()}
    known.add(load("imagefolder", root=root, cache_dir=cache_dir, streaming=True, image_size=10).test.fingerprint())
    file = root / "test" / "bee" / "1.png"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    known.add(folder(root, cache_dir, streaming=True).test.fingerprint())
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    known.add(folder(root, cache_dir, streaming=True).test.fingerprint())
    assert len(known) == 5


def test_nothing_is_kept_of_another_folder_with_the_same_names_sizes_and_times(tmp_path: Path) -> None:
    """As archives give them that hold uncompressed images, all of one date."""
    roots = [write_tree(tmp_path / name, {".": 5}, ("ant", "bee"), (12, 12)) for name in "ab"]
    for level, root in enumerate(roots):
        for file in root.rglob("*.png"):
            Image.new("RGB", (12, 12), (level, level, level)).save(file.with_suffix(".bmp"))
            os.utime(file.with_suffix(".bmp"), (0, 0))
            file.unlink()
    one, other = (folder(root, tmp_path / "cache", streaming=False) for root in roots)
    assert (one.mean, other.mean) == ((0, 0, 0), (1 / 255,) * 3)
    changed = roots[0] / "ant" / "0.bmp"
    changed.write_bytes((roots[1] / "ant" / "0.bmp").read_bytes())
    os.utime(changed, (0, 0))
    assert folder(roots[0], tmp_path / "cache", streaming=False).fingerprint() != one.fingerprint()


@pytest.mark.parametrize("streaming", [True, False])
def test_names_that_are_no_utf8_have_a_fingerprint(make_tree: MakeTree, cache_dir: Path, streaming: bool) -> None:
    root = make_tree({"train": 4, "test": 2})
    strange = os.fsencode(root) + b"/train/caf\xe9"
    os.mkdir(strange)  # noqa: PTH102 (a name in bytes)
    shutil.copy(os.fsencode(root / "train" / "ant" / "0.png"), strange + b"/\xe8.png")
    first = folder(root, cache_dir, streaming).fingerprint()
    os.rename(strange, os.fsencode(root) + b"/train/caf\xea")  # noqa: PTH104
    assert folder(root, cache_dir, streaming).fingerprint() != first


def test_statistics_and_classes_count_up_to_nine_digits(make_tree: MakeTree, cache_dir: Path) -> None:
    data = folder(make_tree({"train": 4, "test": 2}), cache_dir, streaming=True)
    same = replace(data, mean=tuple(value * (1 + 1e-13) for value in data.mean))
    assert same.fingerprint() == data.fingerprint()
    others = [
        replace(data, classes=("ant", "wasp")),
        replace(data, mean=(0.5, 0.5, 0.5)),
        replace(data, std=data.mean),
        replace(data, val=data.test, test=data.val),
    ]
    assert len({other.fingerprint() for other in (data, *others)}) == 5


def test_tables_are_known_by_the_librarys_fingerprint_and_the_rows() -> None:
    class Table:
        def __init__(self, known_as: str) -> None:
            self._fingerprint = known_as

    one, other = (TableImages(Table(known_as), "image", "a label") for known_as in ("1234", "5678"))
    rows = [torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0])]
    found = [images.fingerprint(chosen) for images in (one, other) for chosen in rows]
    assert len(set(found)) == 6
    assert one.fingerprint(rows[0]) == replace(one, label="another label").fingerprint(rows[0])


def test_trees_of_one_seed_are_the_same_in_memory(tmp_path: Path) -> None:
    roots = [write_tree(tmp_path / name, {"train": 4, "test": 2}, ("ant", "bee"), (12, 12)) for name in "ab"]
    one, other = (folder(root, tmp_path / "cache", streaming=False).fingerprint() for root in roots)
    assert one == other
