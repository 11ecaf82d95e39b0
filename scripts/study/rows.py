"""CSV files that grow by whole rows, so that a study can be stopped at any time and continued."""

from __future__ import annotations

import base64
import csv
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from consensus_cli.errors import UserError
from study.plan import METRICS

#: how a network does under an attack or on corrupted images, beside the original
_ROBUSTNESS = ("measure", "images", "base_pct", "pruned_pct", "delta_pp", "ci95_low_pp", "ci95_high_pp")
#: file -> columns; `removed` and `order` hold names of blocks, joined by `;`
FILES: dict[str, tuple[str, ...]] = {
    "scores": ("draw", "samples_per_class", "block", *METRICS),
    "orders": ("criterion", "draw", "order"),
    "accuracy": (
        "treatment",
        "part",
        "removed",
        "images",
        "correct_images",
        "accuracy_pct",
        "device",
        "precision",
        "right",
    ),
    "paths": (
        "criterion",
        "against",
        "draw",
        "step",
        "removed",
        "candidates",
        "mean_tau",
        "metrics_agreeing",
        "selection_accuracy_pct",
    ),
    "robustness": ("removed", *_ROBUSTNESS),
    # Of the results page (`scripts/results`).
    "checks": (
        "run_id",
        "attack",
        "eps255",
        "images",
        "base_pct",
        "pruned_pct",
        "delta_pp",
        "ci95_low",
        "ci95_high",
    ),
    # Of `scripts/bench_targets.py`.
    "targets": (
        *("network", "way", "seed", "blocks_candidates", "blocks_removed", "removed_blocks", "threads"),
        *("macs_reduction_pct", "accuracy_base_pct", "accuracy_pruned_pct", "test_images"),
        *("goal_latency_saved_pct", "goal_latency_saved_low_pct", "goal_latency_saved_high_pct", "run_id"),
        *("saved_pct", "saved_low_pct", "saved_high_pct"),
    ),
    "healing": (
        "draw",
        "images",
        "order",
        "method",
        "blocks",
        "removed",
        "test_images",
        "accuracy_pct",
        "macs",
        "precision",
    ),
    "healing_tuned": ("blocks", "method", "epochs", "peak_rate", "test_images", "accuracy_pct"),
    "healing_robustness": ("blocks", "method", *_ROBUSTNESS),
    "healing_vit": (
        "granularity",
        "replace",
        "refit",
        "blocks_removed",
        "blocks_candidates",
        "seed",
        "macs_base",
        "macs_pruned",
        "test_images",
        "accuracy_base_pct",
        "accuracy_pruned_pct",
    ),
    "costs": (
        "removed",
        "macs",
        "macs_reduction_pct",
        "params_reduction_pct",
        "latency_b1_base_ms",
        "latency_b1_pruned_ms",
        "latency_b128_base_ms",
        "latency_b128_pruned_ms",
        "energy_base_mwh_per_1000_images",
        "energy_pruned_mwh_per_1000_images",
        "energy_source",
        "threads",
    ),
}
_TEXT = ("run_id", "attack", "removed", "order", "right", "block", "criterion", "against")


class Rows:
    """One of `FILES` in a folder.

    Args:
        folder: where the file is, or will be with its first row.
        name: key of `FILES`.

    Raises:
        UserError: the file there has other columns.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.csv"
        self.columns = FILES[name]
        if self.path.is_file():
            _drop_half_row(self.path)
            found = self.path.read_text(encoding="utf-8").partition("\n")[0]
            if found != ",".join(self.columns):
                raise UserError(f"{self.path} has other columns than this study", "move it away to start anew")

    def read(self) -> pd.DataFrame:
        """Returns all rows, none where there is no file yet; an empty text stays a text."""
        if not self.path.is_file():
            return pd.DataFrame(columns=list(self.columns))
        return pd.read_csv(self.path, dtype=dict.fromkeys(set(_TEXT) & set(self.columns), str)).fillna(
            dict.fromkeys(set(_TEXT) & set(self.columns), "")
        )

    def add(self, *rows: Mapping[str, object]) -> None:
        """Appends rows at once. Raises ValueError where a row has other columns."""
        for row in rows:
            if set(row) != set(self.columns):
                raise ValueError(f"{self.path.name}: columns {sorted(set(row) ^ set(self.columns))}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.is_file()
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)


def joined(blocks: Collection[str]) -> str:
    """Returns names of blocks as one field."""
    return ";".join(blocks)


def split(field: str) -> tuple[str, ...]:
    """Returns the names of blocks in a field."""
    return tuple(field.split(";")) if field else ()


def pack(right: np.ndarray) -> str:
    """Returns answers (n,) bool as text: bits, deflated, in base 64."""
    return base64.b64encode(zlib.compress(np.packbits(right).tobytes(), 9)).decode("ascii")


def unpack(text: str, images: int) -> np.ndarray:
    """Returns the answers (n,) bool in a text of `pack`."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(bits, count=images).astype(bool)


def _drop_half_row(path: Path) -> None:
    """Cuts off what an interrupted write left behind the last line end."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        path.write_bytes(content[:whole])
