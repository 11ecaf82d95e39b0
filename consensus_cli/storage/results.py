"""The results file: one row per run, written by many processes, some of which die, and read back without loss.

A writer takes the lock beside the file, reads the file, and replaces it by one with its row as a whole or not at all.
A line that is not a whole row, as a hand or another program may leave, goes to `<name>.rejected` and takes no other
row along. CSV as in RFC 4180, UTF-8; a byte-order mark and CRLF, as spreadsheets write them, are read too.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from consensus_cli.errors import UserError
from consensus_cli.storage.atomic import remove_partial_files, try_writing, write_atomic
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
    "control", "control_of", "pruned_on",
})
# fmt: on
_IDENTITY = ("run_id", "status", "started_at")
UNFINISHED = frozenset({"failed", "interrupted"})

#: one record with its line end, where its quotes are balanced
_RECORD = re.compile(rb'(?:[^"\n]++|"[^"]*+")*+\n')

#: the values of a row as text, by column
Cells = dict[str, str]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collected:
    """What `collect` found: the number of rows in the file now, rows added or replaced, and files it could not use."""

    rows: int
    changed: int
    problems: tuple[str, ...]


def append_row(path: Path, row: Mapping[str, object], *, lock_timeout_s: float = 30.0) -> None:
    """Writes one row to the results file; when this returns, the row is on the disk.

    A finished run is recorded once: another row of it changes nothing. The row of an unfinished run is replaced.

    Args:
        path: the CSV file; made with its folder where absent.
        row: a value for each of `COLUMNS`, None where there is none, and for any further column; a run that failed or
            was interrupted may leave out all but `run_id`, `status` and `started_at` (ISO 8601, UTC).
        lock_timeout_s: how long to wait for other writers.

    Raises:
        ValueError: a column is missing, or a text cannot be written as CSV.
        TypeError: a value is not a str, int, float, bool or None.
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
        header, rows, damaged = _read(file)
        _replace(file, header, _merged([*rows, cells]), damaged)


def read_rows(path: Path, on_damage: Callable[[str], None] = _log.warning) -> pd.DataFrame:
    """Reads the results file: numbers as numbers, NaN for empty cells.

    A file that is missing or empty has no rows. Integers are exact up to 2^53 in a column that has empty cells.

    Args:
        path: the file.
        on_damage: called with one sentence where damaged lines are left out.

    Raises:
        UserError: the file is not a results file.
    """
    header, rows, damaged = _read(path)
    if damaged:
        on_damage(f"{len(damaged)} unfinished or damaged lines of '{path}' are left out.")
    header = header or list(COLUMNS)
    return pd.read_csv(
        io.BytesIO(_encode(header, rows)),
        dtype=dict.fromkeys(_TEXT_COLUMNS.intersection(header), "str"),
        keep_default_na=False,
        na_values={name: [""] if name in _TEXT_COLUMNS else ["", "nan"] for name in header},
        float_precision="round_trip",
    )


def check_writable(path: Path) -> list[UserError]:
    """Returns what would keep a row from being written to `path`; makes no folder and leaves every file as it is."""
    try:
        try_writing(path)
        _read(path)
    except UserError as error:
        return [error]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return [UserError(f"cannot write results to '{path}': {reason}", "choose another folder with output_dir=PATH")]
    return []


def collect(output_dir: Path) -> Collected:
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
    with _locked(file, 30.0):
        header, rows, damaged = _read(file)
        found, problems = _rows_of_runs(output_dir)
        merged = sorted(_merged([*rows, *found]), key=lambda cells: (cells["started_at"], cells["run_id"]))
        _replace(file, header, merged, damaged)
    for problem in problems:
        _log.warning("not collected: %s", problem)
    changed = sum(any(cells is new for new in found) for cells in merged)
    return Collected(len(merged), changed, tuple(problems))


def _cells(row: Mapping[str, object]) -> Cells:
    """Checks a row and returns its values as text, from which they can be read back exactly; None is empty."""
    cells = {}
    for column, value in row.items():
        if not isinstance(value, str | int | float | None):
            raise TypeError(f"column '{column}' takes str, int, float, bool or None, not {type(value).__name__}")
        # Of NumPy's floats and enumerations, too, which print themselves otherwise with repr.
        cells[column] = "" if value is None else str(value)
        for text in (column, cells[column]):
            if "\0" in text or text.encode(errors="replace").decode() != text:
                raise ValueError(f"'{column}' holds a NUL or other characters that cannot be written as UTF-8")
    lacking = [column for column in _IDENTITY if not isinstance(row.get(column), str) or not row[column]]
    if lacking or "" in cells:
        raise ValueError(f"the row lacks {', '.join(lacking) or 'the name of a column'}")
    return cells


def _rows_of_runs(output_dir: Path) -> tuple[list[Cells], list[str]]:
    """Reads the row of every run directory; a file with several rows holds a list of them."""
    rows: list[Cells] = []
    problems: list[str] = []
    for file in row_files(output_dir):
        try:
            content = json.loads(file.read_bytes())
            rows += [_cells(row) for row in (content if isinstance(content, list) else [content])]
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            problems.append(f"'{file}': {error}")
    return rows, problems


def _merged(rows: Iterable[Cells]) -> list[Cells]:
    """Returns one row for each run, at the place of its first.

    Of two rows of a run a finished one stands before an unfinished one, and the one that started later before the
    earlier one; an unfinished one is brought up to date.
    """
    standing: dict[str, Cells] = {}
    for new in rows:
        old = standing.setdefault(new["run_id"], new)
        new_rank, old_rank = ((cells["status"] not in UNFINISHED, cells["started_at"]) for cells in (new, old))
        updated = not new_rank[0] and any(text != old.get(column, "") for column, text in new.items())
        if new_rank > old_rank or (new_rank == old_rank and updated):
            standing[new["run_id"]] = new
    return list(standing.values())


@contextmanager
def _locked(file: Path, timeout_s: float) -> Iterator[None]:
    try:
        with FileLock(file.with_name(f".{file.name}.lock"), timeout=timeout_s):
            remove_partial_files(file)
            yield
    except Timeout:
        raise UserError(
            f"'{file}' is still locked by another process after {timeout_s:g} s",
            "see whether a run hangs; the row is kept in its run directory: `consensus collect` adds it later",
        ) from None


def _read(file: Path) -> tuple[list[str], list[Cells], list[bytes]]:
    """Returns the header, the rows and the damaged lines of a results file, nothing where there is none.

    A row that lacks its line end is damaged even if its fields are complete: its last value may have been cut.
    """
    data = file.read_bytes().removeprefix(codecs.BOM_UTF8) if file.exists() else b""
    header: list[str] = []
    rows: list[Cells] = []
    damaged: list[bytes] = []
    position = 0
    while position < len(data):
        match = _RECORD.match(data, position)
        raw = match.group() if match else b""
        values = _fields(raw) if raw else None
        if not header:
            if not values or not all(values) or len({*values}) < len(values) or not {*_IDENTITY} <= {*values}:
                raise UserError(
                    f"'{file}' is not a results file: the first line is not the header of a results file",
                    "name a results.csv, or where a run is to write one, another output_dir",
                )
            header = values
        elif values and len(values) == len(header) and values != header:
            rows.append(dict(zip(header, values, strict=True)))
        elif values != []:
            # Only this line is given up: an unbalanced quote must not take all rows below it along.
            end = data.find(b"\n", position) + 1 or len(data)
            damaged.append(data[position:end])
            position = end
            continue
        position += len(raw)
    return header, rows, damaged


def _fields(record: bytes) -> list[str] | None:
    """Returns the fields of one record, none of an empty line; None if it is malformed."""
    try:
        return next(csv.reader([record.decode()], strict=True))
    except (csv.Error, UnicodeDecodeError):
        return None


def _replace(file: Path, header: Sequence[str], rows: Sequence[Cells], damaged: Sequence[bytes]) -> None:
    """Replaces the file where that changes it; sets its damaged lines aside before."""
    if damaged:
        rejected = file.with_name(f"{file.name}.rejected")
        earlier = rejected.read_bytes() if rejected.exists() else b""
        write_atomic(rejected, earlier + b"".join(line.removesuffix(b"\n") + b"\n" for line in damaged))
        _log.warning("moved %d damaged lines of '%s' to '%s'", len(damaged), file, rejected)
    columns = dict.fromkeys([*header, *COLUMNS, *(column for cells in rows for column in cells)])
    content = _encode([*columns], rows)
    if (header or rows) and (not file.exists() or file.read_bytes() != content):
        write_atomic(file, content)


def _encode(header: Sequence[str], rows: Iterable[Cells]) -> bytes:
    lines = []
    for values in (header, *([cells.get(column, "") for column in header] for cells in rows)):
        line = io.StringIO()
        # Before Python 3.13 the writer quotes a carriage return only where it belongs to the line end.
        csv.writer(line, lineterminator="\r\n").writerow(values)
        lines.append(line.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines).encode()
