from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.image_trees import encoded, png16, random_images, write_tree
from helpers.loaded_trees import check, load
from PIL import Image
from torchvision.io import encode_png

from consensus_cli.data import hf
from consensus_cli.data.files import ImageFiles
from consensus_cli.data.memory import ImageTensors
from consensus_cli.errors import UserError

PICTURE = {"_type": "Image"}
KIND = {"names": ["ant", "bee"], "_type": "ClassLabel"}


def test_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    [found] = check("hf", name="owner/name", cache_dir=cache_dir)
    assert found.message == "dataset 'hf' needs the package datasets"
    assert "consensus-cli[hf]" in found.hint


def test_name_must_be_given(cache_dir: Path) -> None:
    problems = check("hf", cache_dir=cache_dir)
    assert "dataset 'hf' needs the name of a dataset" in [problem.message for problem in problems]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra [hf]")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_table(path: Path, images: torch.Tensor, features: dict[str, object]) -> None:
    """Writes a table as the hub stores them: encoded images in a Parquet file that describes its columns."""
    import pyarrow
    from pyarrow import parquet

    cells = [{"bytes": encode_png(image).numpy().tobytes(), "path": "image.png"} for image in images]
    table = pyarrow.table({"picture": cells, "kind": [number % 2 for number in range(len(images))]})
    described = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.replace_schema_metadata({"huggingface": described}), path)


@pytest.fixture
def table_folder(tmp_path: Path) -> Path:
    for seed, (part, count) in enumerate({"train": 20, "test": 6}.items()):
        write_table(
            tmp_path / "tables" / f"{part}.parquet",
            random_images(count, 12, 12, seed),
            {"picture": PICTURE, "kind": KIND},
        )
    return tmp_path / "tables"


@pytest.mark.usefixtures("offline")
def test_tables_are_read_and_kept(table_folder: Path, cache_dir: Path) -> None:
    data = load("hf", name=str(table_folder), cache_dir=cache_dir, val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 6)
    assert data.classes == ("ant", "bee")
    assert data.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert isinstance(data.test, ImageTensors)
    assert torch.equal(data.test.images, random_images(6, 12, 12, seed=1))
    seen: list[int] = []
    load(
        "hf",
        name=str(table_folder),
        cache_dir=cache_dir,
        val_fraction=0.2,
        progress=lambda what, done, total: seen.append(done),
    )
    assert seen == []


@pytest.mark.usefixtures("offline")
def test_tables_can_be_streamed(table_folder: Path, cache_dir: Path) -> None:
    data = load("hf", name=str(table_folder), cache_dir=cache_dir, streaming=True, workers=2)
    assert isinstance(data.test, ImageFiles)
    images = torch.cat([images for images, _ in data.test.batches(4)])
    assert torch.equal(images, random_images(6, 12, 12, seed=1).float() / 255)


@pytest.mark.usefixtures("offline")
def test_folders_of_images_are_read_through_their_paths(tmp_path: Path, cache_dir: Path) -> None:
    root = write_tree(tmp_path / "images", {"train": 5, "test": 2}, ("ant", "bee"), (12, 12))
    data = load("hf", name=str(root), cache_dir=cache_dir, val_fraction=0)
    assert data.train.labels.bincount().tolist() == [5, 5]
    assert data.classes == ("ant", "bee")


@pytest.mark.usefixtures("offline")
def test_dataset_that_cannot_be_found_is_reported(tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load("hf", name=str(tmp_path / "nowhere"), cache_dir=cache_dir)


@pytest.mark.usefixtures("offline")
def test_dataset_without_labels_is_reported(tmp_path: Path, cache_dir: Path) -> None:
    features = {"picture": PICTURE, "kind": {"dtype": "int64", "_type": "Value"}}
    write_table(tmp_path / "tables" / "train.parquet", random_images(4, 8, 8, seed=0), features)
    with pytest.raises(UserError, match="no class-label column: picture, kind"):
        load("hf", name=str(tmp_path / "tables"), cache_dir=cache_dir)


@pytest.mark.usefixtures("offline")
def test_dataset_without_training_images_is_reported(tmp_path: Path, cache_dir: Path) -> None:
    write_table(
        tmp_path / "tables" / "test.parquet", random_images(4, 8, 8, seed=0), {"picture": PICTURE, "kind": KIND}
    )
    with pytest.raises(UserError, match="has no split train: test"):
        load("hf", name=str(tmp_path / "tables"), cache_dir=cache_dir)


class FakeTable:
    """As much of a table of the library as is used."""

    def __init__(self, cells: list[dict[str, Any] | None], labels: list[int | None], names: list[str]) -> None:
        self.cells, self.labels = cells, labels
        self.features = {"picture": FakeLibrary.Image(decode=True), "kind": FakeLibrary.ClassLabel(names)}
        self.column_names = list(self.features)
        self._fingerprint = "0123"

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, key: int | str) -> Any:
        return {"picture": self.cells[key]} if isinstance(key, int) else self.labels

    def select_columns(self, names: list[str]) -> FakeTable:
        return self

    def cast_column(self, name: str, feature: object) -> FakeTable:
        return self


class FakeLibrary:
    @dataclass
    class Image:
        decode: bool

    @dataclass
    class ClassLabel:
        names: list[str]

    class exceptions:  # noqa: N801 (the library's name)
        DatasetsError = ValueError

    def __init__(self, tables: dict[str, FakeTable]) -> None:
        self.tables = tables

    def load_dataset(self, name: str, cache_dir: str) -> dict[str, FakeTable]:
        return self.tables


def table_of(files: list[bytes], labels: list[int | None]) -> FakeTable:
    return FakeTable([{"bytes": data, "path": None} for data in files], labels, ["ant", "bee"])


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, FakeTable]], None]:
    def put(tables: dict[str, FakeTable]) -> None:
        monkeypatch.setattr(hf, "_library", lambda: FakeLibrary(tables))
        monkeypatch.setattr(hf.importlib.util, "find_spec", lambda _: True)

    return put


def png_files(count: int) -> list[bytes]:
    return [encode_png(image).numpy().tobytes() for image in random_images(count, 12, 12, seed=0)]


@pytest.mark.parametrize("streaming", [False, True])
def test_cells_are_decoded_as_files_are(
    offer: Callable[[dict[str, FakeTable]], None], tmp_path: Path, cache_dir: Path, streaming: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
    deep = png16(pixels.astype(np.uint16) * 257)
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes(deep)
    test = table_of([deep, encoded(Image.fromarray(pixels), "TIFF")], [0, 1])
    test.cells.append({"bytes": None, "path": str(odd)})
    test.labels.append(1)
    offer({"train": table_of(png_files(8), [0, 1] * 4), "test": test})
    data = load("hf", name="owner/name", cache_dir=cache_dir, streaming=streaming, workers=0)
    images = torch.cat([images for images, _ in data.test.batches(2)])
    assert torch.equal(images, (torch.from_numpy(pixels).float() / 255).expand(3, 3, -1, -1))
    assert data.notes == ()


@pytest.mark.parametrize("streaming", [False, True])
def test_cells_that_cannot_be_read_are_named_by_their_rows(
    offer: Callable[[dict[str, FakeTable]], None], cache_dir: Path, streaming: bool
) -> None:
    train = table_of(png_files(6), [0, 1] * 3)
    train.cells[1], train.cells[2] = None, {"bytes": b"", "path": None}
    offer({"train": train, "test": table_of(png_files(2), [0, 1])})

    def read_all() -> None:
        data = load("hf", name="o/n", cache_dir=cache_dir, streaming=streaming, workers=0, val_fraction=0)
        list(data.train.batches(6))

    with pytest.raises(UserError, match="2 of 6 image files cannot be read") as raised:
        read_all()
    assert "o/n train row 1 (no image), o/n train row 2 (empty)" in raised.value.message


def test_images_without_labels_are_left_out_and_said(
    offer: Callable[[dict[str, FakeTable]], None], cache_dir: Path
) -> None:
    files = png_files(8)
    offer(
        {
            "train": table_of(files, [0, 1, None, 0, -1, 1, 0, 1]),
            "validation": table_of(files[:4], [0, 1, 0, 1]),
            "test": table_of(files[:2], [-1, -1]),
            "extra": table_of(files[:2], [0, 1]),
        }
    )
    data = load("hf", name="o/n", cache_dir=cache_dir, val_fraction=0)
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(
        next(data.train.batches(6))[0], random_images(8, 12, 12, seed=0)[[0, 1, 3, 5, 6, 7]].float() / 255
    )
    assert len(data.test) == 4
    assert data.notes == (
        "o/n: left out of its splits: extra",
        "o/n train: 2 of 8 images have no label: left out",
        "o/n test: 2 of 2 images have no label: left out",
    )
    offer({"train": table_of(files[:2], [-1, None])})
    with pytest.raises(UserError, match="no labelled training images"):
        load("hf", name="o/n", cache_dir=cache_dir)
