"""Rows for others to read: images by the dataset's name, weights by their hash, no path of a machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from consensus_cli.experiment.inputs import file_hash

#: settings that name a folder, which says nothing about the result: `dataset.name` tells the images
_FOLDERS = frozenset({"dataset.root", "output_dir", "hydra.sweep.dir", "hydra.run.dir"})
#: columns that say where on a machine something is
_PLACES = frozenset({"run_dir"})
#: a path of the machine, without the quotes, brackets and commas around it
PATH = re.compile(r"(?<![\w.~/\\-])(?:[A-Za-z]:[/\\]|(?:~|\.\.?)?/)[^\s'\",\[\]{}]+")
#: what ends with the name of the file
_FOLDER_OF = re.compile(r".*[/\\]")
#: settings that are files
_FILES = ("model.weights", "finetune.teacher")
_HASH_DIGITS = 16


def publishable(row: Mapping[str, object]) -> dict[str, object]:
    """Returns a row of `results.csv` as it can be published.

    Of the words that led to the run those stay that say what it was; weights in a file that is still there are named by
    the beginning of its SHA-256, `model.weights=sha256:…`, other files by their name. Columns that name a place go.
    """
    kept = {column: value for column, value in row.items() if column not in _PLACES}
    for column, value in kept.items():
        if isinstance(value, str):
            kept[column] = published_words(value) if column == "overrides" else _named(value)
    return kept


def published_words(overrides: str) -> str:
    """Returns the words of a run for others: no folders, weights by their hash, of other paths the file's name."""
    split = [word.partition("=") for word in shlex.split(overrides)]
    return shlex.join(f"{key}{sign}{_value(key, value)}" for key, sign, value in split if key not in _FOLDERS)


def _value(key: str, value: str) -> str:
    if key in _FILES and Path(value).expanduser().is_file():
        return f"sha256:{file_hash(Path(value).expanduser())[:_HASH_DIGITS]}"
    # A value that begins as a path is one to its end, whatever it holds.
    return _FOLDER_OF.sub("", value) if key in _FILES or PATH.match(value) else _named(value)


def _named(value: str) -> str:
    return PATH.sub(lambda path: _FOLDER_OF.sub("", path.group()), value)
