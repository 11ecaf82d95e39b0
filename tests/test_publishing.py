"""Rows that are published say what was run, and nothing of the machine that ran it."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path

import pytest
from publishing import PATH, publishable, published_words

ROOT = Path(__file__).parents[1]
_OTHERS_PATH = re.compile(r"(?<!\w)[A-Za-z]:\\|(?<![\w])~/")


def committed() -> list[Path]:
    places = ("docs", "conf", "consensus_cli", "scripts", "tests")
    return sorted(file for place in places for file in (ROOT / place).rglob("*.csv"))


@pytest.mark.parametrize(
    ("overrides", "published"),
    [
        ("dataset.root=/data/x seed=0 output_dir=out hydra/launcher=joblib", "seed=0 hydra/launcher=joblib"),
        ("model.weights=/home/me/r.safetensors", "model.weights=r.safetensors"),
        ("'model.weights=~/a b/c d.pt' dataset.name=owner/name", "'model.weights=c d.pt' dataset.name=owner/name"),
        (r"'model.weights=C:\Users\me\r.pt' a=b", "model.weights=r.pt a=b"),
        ("model.weights=me/models/r.pt finetune.teacher=D:/t.pt", "model.weights=r.pt finetune.teacher=t.pt"),
        ("'evaluate.shift={a: /x/y.npz, b: ../z}' a=b", "'evaluate.shift={a: y.npz, b: z}' a=b"),
    ],
)
def test_published_words_name_no_path_of_a_machine(overrides: str, published: str) -> None:
    assert published_words(overrides) == published


def test_weights_are_named_by_their_content_and_images_by_their_name(tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"weights")
    row = {
        "run_id": "a",
        "overrides": f"model.weights={weights} dataset.root={tmp_path} dataset.name=cifar10jpeg",
        "run_dir": f"{tmp_path}/runs/a",
        "error": f"RunFailedError: cannot write '{tmp_path}/runs/a/row.json'",
        "accuracy_base_pct": 88.0,
        "control": None,
    }
    digest = hashlib.sha256(b"weights").hexdigest()[:16]
    assert publishable(row) == {
        "run_id": "a",
        "overrides": f"model.weights=sha256:{digest} dataset.name=cifar10jpeg",
        "error": "RunFailedError: cannot write 'row.json'",
        "accuracy_base_pct": 88.0,
        "control": None,
    }


def test_there_are_committed_rows() -> None:
    assert ROOT / "docs" / "study" / "iterative.csv" in committed()


@pytest.mark.parametrize("file", committed(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_committed_row_holds_an_absolute_path(file: Path) -> None:
    with file.open(encoding="utf-8", newline="") as rows:
        cells = {cell for row in csv.reader(rows) for cell in row}
    # Packed answers are base 64, which has slashes.
    texts = {cell for cell in cells if not re.fullmatch(r"[A-Za-z0-9+/]{60,}={0,2}", cell)}
    assert [
        text for text in texts if _OTHERS_PATH.search(text) or [p for p in PATH.findall(text) if p[0] in "/~"]
    ] == []


def test_published_study_names_its_weights_by_hash() -> None:
    text = (ROOT / "docs" / "study" / "iterative.csv").read_text(encoding="utf-8")
    assert "model.weights=sha256:" in text
    assert ".safetensors" not in text
