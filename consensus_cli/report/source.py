"""The runs that a report is about, in one table that has every column the report reads, whatever the source lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from consensus_cli.errors import UserError
from consensus_cli.report.series import add_series
from consensus_cli.storage.csv_table import UNFINISHED, parse_table
from consensus_cli.storage.results import read_rows
from consensus_cli.storage.rundir import RESULTS_NAME, RunDir, row_files

_TEXTS = (
    "run_id", "status", "started_at", "version", "git_commit", "overrides", "device", "torch_version", "model",
    "dataset", "images_hash", "criterion", "metrics", "aggregation", "precision", "scoring_precision", "ratio_unit",
    "removed_blocks", "macs_uncounted", "energy_source", "energy_estimated", "country", "run_dir", "error",
)  # fmt: skip
_NUMBERS = (
    "duration_s", "seed", "threads", "samples_per_class", "ratio", "blocks_candidates", "blocks_removed",
    "macs_base", "macs_pruned", "macs_reduction_pct", "params_base", "params_pruned", "params_reduction_pct",
    "accuracy_base_pct", "accuracy_pruned_pct", "accuracy_delta_pp", "test_images", "attacked_images",
    "latency_b1_base_ms", "latency_b1_pruned_ms", "latency_b128_base_ms", "latency_b128_pruned_ms",
    "energy_inference_base_kwh", "energy_inference_pruned_kwh", "energy_inference_reduction_pct",
    "energy_epoch_base_kwh", "energy_epoch_pruned_kwh", "energy_epoch_reduction_pct",
    "co2_inference_base_kg", "co2_inference_pruned_kg", "co2_epoch_base_kg", "co2_epoch_pruned_kg",
    "energy_run_kwh", "co2_run_kg", "other_load_pct",
    "energy_baseline_kwh", "energy_score_kwh", "energy_finetune_kwh", "energy_evaluate_kwh",
)  # fmt: skip
#: columns that only newer versions write, or only some runs: their absence is no defect of the source
_OPTIONAL = frozenset({
    "aggregation", "precision", "scoring_precision", "energy_estimated", "error", "images_hash", "macs_uncounted",
    "energy_baseline_kwh", "energy_score_kwh", "energy_finetune_kwh", "energy_evaluate_kwh", "other_load_pct",
})  # fmt: skip
_NUMBER_ENDINGS = ("_pct", "_pp", "_eps255", "_ci95_low", "_ci95_high", "_kwh", "_kg", "_ms", "_s", "_mib", "_w")


@dataclass(frozen=True)
class Runs:
    """The runs of one source.

    Attributes:
        source: the file or folder they come from.
        rows: one line per run, numbered from 0; text is never missing but may be empty, numbers may be NaN. Beside the
            columns of the results file: `task` (model on dataset), `series` (what the seeds and ratios share),
            `finished`, `latency_b1_reduction_pct` and `latency_b128_reduction_pct`.
        notes: what the source lacks or what could not be read, one sentence each.
    """

    source: Path
    rows: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def finished(self) -> pd.DataFrame:
        """The runs that came to their end."""
        return self.rows[self.rows["finished"]]

    def folder(self, row: pd.Series) -> Path | None:
        """Returns the run directory of a row: beside the source, or where the row says it was; None where it is gone.

        Outputs are copied between machines, so the place beside the source is looked at first.
        """
        root = self.source if self.source.is_dir() else self.source.parent
        candidates = [root / "runs" / Path(row["run_id"]).name, root] if row["run_id"] else []
        if row["run_dir"]:
            candidates.append(Path(row["run_dir"]))
        return next((path for path in candidates if _holds(path, row["run_id"])), None)


def load(source: Path) -> Runs:
    """Reads the runs of a results file, of the folder that holds one, or of a single run directory.

    Raises:
        UserError: there is nothing at `source`, or it holds no runs.
    """
    rows, notes = _read(source)
    table, more = complete(rows)
    if table.empty:
        notes.append("There are no runs yet.")
    return Runs(source, table, (*notes, *more))


def complete(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Returns the rows with every column that the report reads, and a note for each kind of thing that was amiss."""
    notes = []
    missing = [name for name in (*_TEXTS, *_NUMBERS) if name not in rows and name not in _OPTIONAL]
    if missing:
        notes.append(f"Columns that the results lack, left empty here: {', '.join(missing)}.")
    columns = {name: _text(rows[name]) if name in rows else pd.Series("", rows.index, dtype="str") for name in _TEXTS}
    numeric = [*_NUMBERS, *(name for name in map(str, rows) if name.endswith(_NUMBER_ENDINGS) and name not in _NUMBERS)]
    damaged = []
    for name in numeric:
        given = rows[name] if name in rows else pd.Series(np.nan, rows.index)
        columns[name] = pd.to_numeric(given, errors="coerce").astype("float64").replace([np.inf, -np.inf], np.nan)
        if (columns[name].isna() & given.notna() & ~given.astype(str).isin(["nan", "inf", "-inf", ""])).any():
            damaged.append(name)
    if damaged:
        notes.append(f"Text where numbers belong, read as empty: {', '.join(damaged)}.")
    table = pd.DataFrame(columns).reset_index(drop=True)
    for size in ("b1", "b128"):
        ratio = table[f"latency_{size}_pruned_ms"] / table[f"latency_{size}_base_ms"].where(lambda ms: ms > 0)
        # Rows of newer versions hold the reduction as measured block by block.
        computed, name = 100 * (1 - ratio), f"latency_{size}_reduction_pct"
        table[name] = table[name].fillna(computed) if name in table else computed
    table["finished"] = ~table["status"].isin(UNFINISHED)
    return add_series(table), notes


def attacks(rows: pd.DataFrame) -> list[str]:
    """Returns the names of the attacks that any of the rows has an accuracy under."""
    names = [str(name).removesuffix("_eps255") for name in rows if str(name).endswith("_eps255")]
    return [name for name in names if f"{name}_pruned_pct" in rows and rows[f"{name}_pruned_pct"].notna().any()]


def _read(source: Path) -> tuple[pd.DataFrame, list[str]]:
    if source.is_file():
        return _from_table(source)
    if (source / RESULTS_NAME).is_file():
        return _from_table(source / RESULTS_NAME)
    single = RunDir(source).row
    files = [single] if single.is_file() else row_files(source)
    if not files and RunDir(source).config.is_file():
        raise UserError(f"the run '{source}' has not ended: it has no row", "consensus resume continues it")
    if not files:
        raise UserError(
            f"'{source}' holds no {RESULTS_NAME} and no runs", "give a results.csv, its folder, or a run directory"
        )
    rows, notes = [], []
    for file in files:
        content = read_json(file)
        found = content if isinstance(content, list) else [content]
        rows += [row for row in found if isinstance(row, Mapping)]
        if not all(isinstance(row, Mapping) for row in found):
            notes.append(f"'{file}' holds no row.")
    return pd.DataFrame(rows), notes


def read_json(file: Path) -> Any:
    """Returns the content of a JSON file, None where it cannot be read."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _from_table(file: Path) -> tuple[pd.DataFrame, list[str]]:
    rows = read_rows(file)
    damaged = len(parse_table(file.read_bytes()).damaged)
    return rows, [f"{damaged} unfinished or damaged lines of '{file}' are left out."] if damaged else []


def _text(column: pd.Series) -> pd.Series:
    return column.map(lambda value: "" if pd.isna(value) else str(value)).astype("str")


def _holds(folder: Path, run_id: str) -> bool:
    """Says whether a folder is the directory of a run; what a row names as its folder may be anything."""
    try:
        return folder.name == run_id and folder.is_dir()
    except (OSError, ValueError):
        return False
