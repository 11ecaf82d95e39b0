from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from helpers.results_rows import failed_row, make_row, rejected, tree

from consensus_cli.errors import UserError
from consensus_cli.storage.results import append_row, collect, read_rows
from consensus_cli.storage.rundir import RunDir

START, LATER = "2025-01-31T12:00:00Z", "2025-01-31T12:00:01Z"


def run_dirs(output_dir: Path) -> Iterator[RunDir]:
    """Makes run directories one second apart."""
    start = datetime(2025, 1, 31, 12, tzinfo=UTC)
    for seconds in range(60):
        yield RunDir.create(output_dir, "0123abcd", start + timedelta(seconds=seconds))


def test_collect_rebuilds_the_file_from_run_directories(tmp_path: Path) -> None:
    rows = [
        make_row("c", started_at="2025-01-03", score_s=0.1 + 0.2, overrides='a,"\n'),
        make_row("a", started_at="2025-01-02", cw_pct=math.inf),
        failed_row("b", started_at="2025-01-02", error="out of memory"),
    ]
    for run_dir, row in zip(run_dirs(tmp_path), rows, strict=False):
        run_dir.write_row(row)
    collected = collect(tmp_path)
    assert (collected.rows, collected.changed, collected.problems) == (3, 3, ())
    found = read_rows(tmp_path / "results.csv")
    assert list(found["run_id"]) == ["a", "b", "c"]
    assert found["score_s"][2] == 0.1 + 0.2
    assert found["overrides"][2] == 'a,"\n'
    assert found["cw_pct"][0] == math.inf
    before, inode = tree(tmp_path), (tmp_path / "results.csv").stat().st_ino
    again = collect(tmp_path)
    assert (again.rows, again.changed) == (3, 0)
    assert tree(tmp_path) == before
    assert (tmp_path / "results.csv").stat().st_ino == inode


def test_collect_merges_without_duplicates_and_keeps_other_rows(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    append_row(results, make_row("b", started_at="2025-01-02", seed=5))
    append_row(results, make_row("a", started_at="2025-01-01", status="interrupted"))
    header, first, second = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(header + first + first + second + b"torn")
    for run_dir, row in zip(
        run_dirs(tmp_path),
        [make_row("b", started_at="2025-01-02", seed=5), make_row("a", started_at="2025-01-01", seed=7)],
        strict=False,
    ):
        run_dir.write_row(row)
    collected = collect(tmp_path)
    assert (collected.rows, collected.changed) == (2, 1)
    found = read_rows(results)
    assert list(found["run_id"]) == ["a", "b"]
    assert list(found["status"]) == ["done", "done"]
    assert list(found["seed"]) == [7, 5]
    assert results.read_bytes().endswith(first)
    assert rejected(results) == b"torn\n"


def test_collecting_gives_the_same_whatever_the_rows_were_in(tmp_path: Path) -> None:
    rows = [make_row("a", status=status, started_at=start) for status in ("done", "failed") for start in (LATER, START)]
    contents = set()
    for turn in range(len(rows)):
        output_dir = tmp_path / str(turn)
        for run_dir, row in zip(run_dirs(output_dir), rows[turn:] + rows[:turn], strict=False):
            run_dir.write_row(row)
        collect(output_dir)
        contents.add((output_dir / "results.csv").read_bytes())
    assert len(contents) == 1
    assert b"a,done," + LATER.encode() in contents.pop()


def test_a_run_with_several_rows_gives_them_all(tmp_path: Path) -> None:
    run_dir = next(run_dirs(tmp_path))
    run_dir.row.write_text(
        '[{"run_id":"a","status":"done","started_at":"1"},{"run_id":"b","status":"done","started_at":"2"}]'
    )
    assert collect(tmp_path).rows == 2
    assert list(read_rows(tmp_path / "results.csv")["run_id"]) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"5",
        b'"abc"',
        b"null",
        b"{}",
        b'{"run_id":"z"}',
        b"\xff",
        b"[" * 100_000,
        b'{"run_id":"z","status":"done","started_at":"1","a":[1]}',
        b'[{"run_id":"z","status":"done","started_at":"1"},5]',
    ],
)
def test_an_unreadable_row_is_named_and_the_others_collected(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = (run_dir for run_dir, _ in zip(run_dirs(tmp_path), range(2), strict=False))
    bad.row.write_bytes(content)
    good.write_row(make_row("a"))
    with caplog.at_level(logging.WARNING):
        collected = collect(tmp_path)
    assert collected.rows == 1
    assert len(collected.problems) == 1
    assert str(bad.row) in collected.problems[0]
    assert str(bad.row) in caplog.text


def test_collect_wants_a_folder_and_makes_no_file_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        collect(tmp_path / "missing")
    assert collect(tmp_path).rows == 0
    assert not (tmp_path / "results.csv").exists()
