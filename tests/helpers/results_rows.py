"""Rows and files for the tests of the results file."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

from consensus_cli.storage.results import COLUMNS

Row = dict[str, object]


def make_row(run_id: str = "a", **values: object) -> Row:
    """A finished row whose other columns are empty."""
    identity = {"run_id": run_id, "status": "done", "started_at": "2025-01-31T12:00:00Z"}
    return dict.fromkeys(COLUMNS) | identity | values


def failed_row(run_id: str = "a", **values: object) -> Row:
    return {"run_id": run_id, "status": "failed", "started_at": "2025-01-31T12:00:00Z", **values}


def rejected(results: Path) -> bytes:
    file = results.with_name("results.csv.rejected")
    return file.read_bytes() if file.exists() else b""


def tree(folder: Path) -> dict[str, bytes]:
    """The files below a folder and what they hold."""
    return {str(file): file.read_bytes() if file.is_file() else b"" for file in folder.rglob("*")}


def errno_with_file_limit(limit_bytes: int, write: Callable[[], object]) -> int:
    """Calls `write` while no file can grow beyond a size, as on a full disk; returns its errno, 0 without an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal that comes with it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        write()
    except OSError as error:
        return error.errno or 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return 0
