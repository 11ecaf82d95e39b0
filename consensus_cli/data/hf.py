"""Image classification datasets of the Hugging Face hub, or in its layout on disk, through their own library."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consensus_cli.data.decoding import UnreadableImageError, read_file
from consensus_cli.data.folder import from_files
from consensus_cli.data.request import Request
from consensus_cli.data.source import ImageData
from consensus_cli.errors import UserError, first_line
from consensus_cli.models.ranges import MISSING

# The hub's names for the splits, by ours, in order of preference.
SPLIT_NAMES = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}


@dataclass(frozen=True)
class TableImages:
    """Encoded images in one column of a Hugging Face table (satisfies `EncodedImages`).

    Attributes:
        table: a `datasets.Dataset` whose column holds `{"bytes": …, "path": …}`.
        column: name of the column.
        label: what to call the table in a message.
    """

    table: Any
    column: str
    label: str

    def read(self, index: int) -> Tensor:
        """Returns the bytes of one image, (m,) uint8."""
        cell = self.table[index][self.column]
        if cell is None:
            raise UnreadableImageError("no image")
        if cell["bytes"] is None:
            return read_file(cell["path"])
        return torch.from_numpy(np.frombuffer(bytearray(cell["bytes"]), dtype=np.uint8))

    def name(self, index: int) -> str:
        """Returns the table and the row."""
        return f"{self.label} row {index}"

    def fingerprint(self, indices: Tensor) -> str:
        """Returns the SHA-256 of the library's own fingerprint of the table, and of the numbers of the rows."""
        digest = hashlib.sha256(f"{self.table._fingerprint} {self.column}\n".encode())
        digest.update(indices.contiguous().numpy().data)
        return digest.hexdigest()

    def cache_key(self, indices: Tensor) -> str:
        """Returns the same: the library knows tables by what they were made from."""
        return self.fingerprint(indices)


class HuggingFace:
    """Datasets with an image column and a class-label column (a `Source`)."""

    streams = True

    def check(self, request: Request, cache_dir: Path) -> list[UserError]:
        """Finds out whether the library is installed and a dataset is named."""
        problems = []
        if request.name == MISSING:
            problems.append(
                UserError("dataset 'hf' needs the name of a dataset", "set dataset.name=OWNER/NAME or a folder")
            )
        if importlib.util.find_spec("datasets") is None:
            problems.append(
                UserError("dataset 'hf' needs the package datasets", "install it: pip install 'consensus-cli[hf]'")
            )
        return problems

    def read(self, request: Request, cache_dir: Path) -> ImageData:
        """Fetches the tables, or finds them on disk, and reads their labels; images stay encoded.

        Raises:
            UserError: if the dataset cannot be fetched, or is no image classification dataset with `train` images.
        """
        tables, notes = _load_tables(request.name, cache_dir)
        image_column, label_column = _columns(tables["train"], request.name)
        listed = {}
        for part, table in tables.items():
            images, labels = _labelled(table, image_column, label_column, f"{request.name} {part}")
            known = (labels >= 0).nonzero().flatten()
            if len(known) < len(labels):
                notes.append(
                    f"{images.label}: {len(labels) - len(known)} of {len(labels)} images have no label: left out"
                )
            if len(known):
                listed[part] = images, known, labels[known]
        if "train" not in listed:
            raise UserError(f"{request.name} has no labelled training images", "choose a dataset with labels")
        classes = tuple(tables["train"].features[label_column].names)
        return from_files("hf", listed, request, classes, notes=notes)


def _library() -> Any:
    return importlib.import_module("datasets")


def _load_tables(name: str, cache_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the table of each split, and what is to be said about others."""
    library = _library()
    try:
        loaded = library.load_dataset(name, cache_dir=str(cache_dir / "hf"))
    # What the library and the hub's client raise for names, files and hosts; the client's errors are OSErrors.
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise UserError(
            f"Hugging Face dataset '{name}' cannot be loaded: {first_line(error)}",
            "check dataset.name and the connection, or give a folder that holds the dataset",
        ) from error
    tables = {}
    for part, names in SPLIT_NAMES.items():
        present = [split for split in names if split in loaded]
        if present:
            tables[part] = loaded[present[0]]
    if "train" not in tables:
        raise UserError(
            f"Hugging Face dataset '{name}' has no split train: {', '.join(loaded)}",
            "choose a dataset with training images",
        )
    others = sorted(set(loaded).difference(*SPLIT_NAMES.values()))
    return tables, [f"{name}: left out of its splits: {', '.join(others)}"] if others else []


def _columns(table: Any, name: str) -> tuple[str, str]:
    library = _library()
    images = [key for key, feature in table.features.items() if isinstance(feature, library.Image)]
    labels = [key for key, feature in table.features.items() if isinstance(feature, library.ClassLabel)]
    if not images or not labels:
        missing = "image" if not images else "class-label"
        raise UserError(
            f"Hugging Face dataset '{name}' has no {missing} column: {', '.join(table.column_names)}",
            "choose a dataset for image classification",
        )
    return images[0], labels[0]


def _labelled(table: Any, image_column: str, label_column: str, label: str) -> tuple[TableImages, Tensor]:
    encoded = table.select_columns([image_column]).cast_column(image_column, _library().Image(decode=False))
    # What is not known is null, or -1.
    labels = [-1 if known is None else known for known in table[label_column][:]]
    return TableImages(encoded, image_column, label), torch.tensor(labels, dtype=torch.int64)
