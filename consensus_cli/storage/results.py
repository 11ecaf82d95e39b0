"""The results file: one row per run, written by many processes, some of which die, and read back without loss.

A writer holds a lock beside the file, appends one line and flushes it to disk. Everything else that changes the file
(a wider header, a damaged line set aside, a row that replaces an earlier one) is a rewrite that happens whole or not
at all. Rows that stand keep their bytes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from consensus_cli.errors import UserError
from consensus_cli.storage.atomic import remove_partial_files, write_atomic
from consensus_cli.storage.csv_table import (
    IDENTITY,
    UNFINISHED,
    Outcome,
    Table,
    check_text,
    encode_row,
    format_value,
    parse_table,
)
from consensus_cli.storage.rundir import RESULTS_NAME, row_files

# fmt: off
COLUMNS: tuple[str, ...] = (
    "run_id", "status", "started_at", "duration_s", "version", "git_commit", "overrides",
    "seed", "device", "threads", "torch_version",
    "model", "dataset", "images_hash", "criterion", "metrics", "samples_per_class", "ratio", "ratio_unit",
    "blocks_candidates", "blocks_removed", "removed_blocks",
    "macs_base", "macs_pruned", "macs_reduction_pct", "macs_uncounted",
    "params_base", "params_pruned", "params_reduction_pct",
    "accuracy_base_pct", "accuracy_pruned_pct", "accuracy_delta_pp", "test_images",
    "latency_b1_base_ms", "latency_b1_pruned_ms", "latency_b128_base_ms", "latency_b128_pruned_ms",
    "energy_inference_base_kwh", "energy_inference_pruned_kwh", "energy_inference_reduction_pct",
    "energy_epoch_base_kwh", "energy_epoch_pruned_kwh", "energy_epoch_reduction_pct",
    "co2_inference_base_kg", "co2_inference_pruned_kg", "co2_epoch_base_kg", "co2_epoch_pruned_kg",
    "energy_source", "country", "energy_run_kwh", "co2_run_kg",
    "fgsm_eps255", "fgsm_base_pct", "fgsm_pruned_pct", "fgsm_delta_pp",
    "pgd_eps255", "pgd_base_pct", "pgd_pruned_pct", "pgd_delta_pp", "attacked_images",
    "score_s", "finetune_s", "evaluate_s", "run_dir",
)

# A commit such as 1234567 or 12e4567 must not be read as a number.
_TEXT_COLUMNS = frozenset({
    "run_id", "status", "started_at", "version", "git_commit", "overrides", "device",
    "torch_version", "model", "dataset", "images_hash", "criterion", "metrics",
    "ratio_unit", "removed_blocks", "macs_uncounted", "energy_source", "country", "run_dir", "error",
})
# fmt: on
_INTEGER = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|inf)|nan")
_BOOLEANS = {"True": True, "False": False}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Appended:
    """What became of a row.

    Attributes:
        outcome: "appended"; "replaced" where it took the place of an earlier row with its `run_id`; "kept" where that
            earlier row stands, because it is of a finished run.
        rejected: number of damaged lines that were moved to `<name>.rejected`.
    """

    outcome: Outcome
    rejected: int


@dataclass(frozen=True)
class Collected:
    """What `collect` found: the number of rows in the file now, rows added or replaced, and files it could not use."""

    rows: int
    changed: int
    problems: tuple[str, ...]


def append_row(path: Path, row: Mapping[str, object], *, lock_timeout_s: float = 30.0) -> Appended:
    """Writes one row to the results file; when this returns, the row is on the disk.

    Args:
        path: the CSV file; made with its folder where absent.
        row: a value for each of `COLUMNS`, None where there is none, and for any further column; a run that failed or
            was interrupted may leave out all but `run_id`, `status` and `started_at` (ISO 8601, UTC).
        lock_timeout_s: how long to wait for other writers.

    Raises:
        ValueError: a column is missing, or a text cannot be written as CSV.
        TypeError: a value is no str, int, float, bool or None.
        UserError: the file is not a results file, or stays locked.
        OSError: the file cannot be written, such as on a full disk; what it held is intact.
    """
    cells = _cells(row)
    missing = [column for column in COLUMNS if column not in row]
    if missing and row["status"] not in UNFINISHED:
        raise ValueError(f"the row of a finished run lacks {', '.join(missing)}")
    file = path.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file, lock_timeout_s):
        _, table = _load(file)
        widened = table.widen([*COLUMNS, *cells])
        record = table.record(cells)
        outcome = table.put(record)
        _set_aside(file, table.damaged)
        if outcome == "replaced" or table.damaged or (outcome == "appended" and widened):
            write_atomic(file, table.render())
        elif outcome == "appended":
            _append_bytes(file, record.raw)
    if outcome != "appended":
        _log.info("run %s is already in '%s': %s", row["run_id"], path, outcome)
    return Appended(outcome, len(table.damaged))


def read_rows(path: Path) -> pd.DataFrame:
    """Reads the results file: numbers as numbers, NaN for empty cells.

    A damaged line, or one that is just being written, is left out with a warning; a file that is missing or empty has
    no rows. Integers are exact up to 2^53 in a column that has empty cells.

    Raises:
        UserError: the file is not a results file.
    """
    _, table = _load(path)
    if table.damaged:
        _log.warning("left %d unfinished or damaged lines of '%s' out", len(table.damaged), path)
    header = table.header or COLUMNS
    return pd.DataFrame({name: _typed(name, table.column(name) if table.header else []) for name in header})


def check_writable(path: Path) -> list[UserError]:
    """Returns what would keep a row from being written to `path`; makes no folder and leaves every file as it is."""
    hint = "choose another folder with output_dir=PATH"
    try:
        folder = _nearest_folder(path.absolute().parent)
        # The superuser passes every permission bit, so only an attempt tells.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-") as probe:
            probe.write(encode_row(COLUMNS))
            probe.flush()
            os.fsync(probe.fileno())
        if path.exists():
            with path.open("r+b"):
                _load(path)
    except UserError as error:
        return [error]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return [UserError(f"cannot write results to '{path}': {reason}", hint)]
    return []


def collect(output_dir: Path, *, lock_timeout_s: float = 30.0) -> Collected:
    """Brings `results.csv` in line with the run directories below `output_dir`, copied there from any machine.

    Rows of the file whose run directory is gone stay. Each run has one row; rows are ordered by start. A second call
    changes nothing.

    Raises:
        UserError: there is no such folder, the file is not a results file, or it stays locked.
        OSError: the file cannot be written; what it held is intact.
    """
    if not output_dir.is_dir():
        raise UserError(f"there is no folder '{output_dir}'", "give the folder that holds runs/")
    file = (output_dir / RESULTS_NAME).resolve()
    with _locked(file, lock_timeout_s):
        data, table = _load(file)
        rows, problems = _rows_of_runs(output_dir)
        if data or rows:
            table.widen(COLUMNS)
        changed = 0
        for cells in rows:
            table.widen(cells)
            changed += table.put(table.record(cells)) != "kept"
        merged = table.merged()
        _set_aside(file, table.damaged)
        if merged.header and merged.render() != data:
            write_atomic(file, merged.render())
    for problem in problems:
        _log.warning("not collected: %s", problem)
    return Collected(len(merged.records), changed, tuple(problems))


def _cells(row: Mapping[str, object]) -> dict[str, str]:
    """Checks a row and returns its values as text."""
    for column in row:
        check_text("a column's name", column)
    cells = {column: format_value(column, value) for column, value in row.items()}
    lacking = [column for column in IDENTITY if not isinstance(row.get(column), str) or not row[column]]
    if lacking or "" in cells:
        raise ValueError(f"the row lacks {', '.join(lacking) or 'the name of a column'}")
    return cells


def _rows_of_runs(output_dir: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Reads the row of every run directory; a file with several rows holds a list of them."""
    rows: list[dict[str, str]] = []
    problems: list[str] = []
    for file in row_files(output_dir):
        try:
            content = json.loads(file.read_bytes())
            found = [_cells(row) for row in (content if isinstance(content, list) else [content])]
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            problems.append(f"'{file}': {error}")
        else:
            rows += found
    return rows, problems


@contextmanager
def _locked(file: Path, timeout_s: float) -> Iterator[None]:
    lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"'{file}' is still locked by another process after {timeout_s:g} s",
            "see whether a run hangs; the row is kept in its run directory: `consensus collect` adds it later",
        ) from None
    try:
        remove_partial_files(file)
        yield
    finally:
        lock.release()


def _nearest_folder(folder: Path) -> Path:
    """Returns `folder`, or the nearest one above it that exists, in which the rest can be made."""
    try:
        folder.stat()
    except FileNotFoundError:
        if folder.is_symlink():
            raise
        return _nearest_folder(folder.parent)
    return folder


def _load(file: Path) -> tuple[bytes, Table]:
    data = file.read_bytes() if file.exists() else b""
    try:
        return data, parse_table(data)
    except ValueError as error:
        raise UserError(
            f"'{file}' is not a results file: {error}",
            "name a results.csv, or where a run is to write one, another output_dir",
        ) from error


def _set_aside(file: Path, damaged: list[bytes]) -> None:
    if damaged:
        rejected = file.with_name(f"{file.name}.rejected")
        _append_bytes(rejected, b"".join(line.removesuffix(b"\n") + b"\n" for line in damaged))
        _log.warning("moved %d damaged lines of '%s' to '%s'", len(damaged), file, rejected)


def _append_bytes(file: Path, data: bytes) -> None:
    """Appends all of `data` and flushes it to the disk, or leaves the file as it was."""
    with file.open("ab", buffering=0) as out:
        size_bytes = out.seek(0, os.SEEK_END)
        try:
            written_bytes = 0
            while written_bytes < len(data):
                written_bytes += out.write(data[written_bytes:])
            os.fsync(out.fileno())
        except BaseException:
            out.truncate(size_bytes)
            raise


def _typed(name: str, texts: list[str]) -> pd.Series:
    """Returns a column as the narrowest type that all of its texts have, NaN where empty."""
    filled = [text for text in texts if text]
    if name in _TEXT_COLUMNS:
        return pd.Series([text or None for text in texts], dtype="str")
    if all(_INTEGER.fullmatch(text) for text in filled):
        return pd.Series([int(text) if text else None for text in texts], dtype=None if filled else "float64")
    if all(_FLOAT.fullmatch(text) for text in filled):
        return pd.Series([float(text or "nan") for text in texts], dtype="float64")
    if all(text in _BOOLEANS for text in filled):
        return pd.Series([_BOOLEANS.get(text) for text in texts])
    return pd.Series([text or None for text in texts], dtype="str")
