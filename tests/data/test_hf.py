from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from image_trees import random_images, write_tree
from torchvision.io import encode_png

from consensus_cli.data.datasets import check, load
from consensus_cli.data.files import ImageFiles
from consensus_cli.data.memory import ImageTensors
from consensus_cli.errors import UserError

PICTURE = {"_type": "Image"}
KIND = {"names": ["ant", "bee"], "_type": "ClassLabel"}


def test_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    [found] = check("hf", hf_name="owner/name", cache_dir=cache_dir)
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
    data = load("hf", hf_name=str(table_folder), cache_dir=cache_dir, val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 6)
    assert data.classes == ("ant", "bee")
    assert data.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert isinstance(data.test, ImageTensors)
    assert torch.equal(data.test.images, random_images(6, 12, 12, seed=1))
    seen: list[int] = []
    load(
        "hf",
        hf_name=str(table_folder),
        cache_dir=cache_dir,
        val_fraction=0.2,
        progress=lambda what, done, total: seen.append(done),
    )
    assert seen == []


@pytest.mark.usefixtures("offline")
def test_tables_can_be_streamed(table_folder: Path, cache_dir: Path) -> None:
    data = load("hf", hf_name=str(table_folder), cache_dir=cache_dir, streaming=True, workers=2)
    assert isinstance(data.test, ImageFiles)
    images = torch.cat([images for images, _ in data.test.batches(4)])
    assert torch.equal(images, random_images(6, 12, 12, seed=1).float() / 255)


@pytest.mark.usefixtures("offline")
def test_folders_of_images_are_read_through_their_paths(tmp_path: Path, cache_dir: Path) -> None:
    root = write_tree(tmp_path / "images", {"train": 5, "test": 2}, ("ant", "bee"), (12, 12))
    data = load("hf", hf_name=str(root), cache_dir=cache_dir, val_fraction=0)
    assert data.train.labels.bincount().tolist() == [5, 5]
    assert data.classes == ("ant", "bee")


@pytest.mark.usefixtures("offline")
def test_dataset_that_cannot_be_found_is_reported(tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load("hf", hf_name=str(tmp_path / "nowhere"), cache_dir=cache_dir)


@pytest.mark.usefixtures("offline")
def test_dataset_without_labels_is_reported(tmp_path: Path, cache_dir: Path) -> None:
    features = {"picture": PICTURE, "kind": {"dtype": "int64", "_type": "Value"}}
    write_table(tmp_path / "tables" / "train.parquet", random_images(4, 8, 8, seed=0), features)
    with pytest.raises(UserError, match="no class-label column: picture, kind"):
        load("hf", hf_name=str(tmp_path / "tables"), cache_dir=cache_dir)


@pytest.mark.usefixtures("offline")
def test_dataset_without_training_images_is_reported(tmp_path: Path, cache_dir: Path) -> None:
    write_table(
        tmp_path / "tables" / "test.parquet", random_images(4, 8, 8, seed=0), {"picture": PICTURE, "kind": KIND}
    )
    with pytest.raises(UserError, match="has no split train: test"):
        load("hf", hf_name=str(tmp_path / "tables"), cache_dir=cache_dir)
