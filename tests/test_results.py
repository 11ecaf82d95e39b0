from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from helpers.results_rows import Row, failed_row, make_row, rejected
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus_cli.errors import UserError
from consensus_cli.storage.results import COLUMNS, append_row, read_rows


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "results.csv"


def test_the_columns_are_named_once_and_carry_units() -> None:
    assert len(set(COLUMNS)) == len(COLUMNS) == 64
    assert COLUMNS[:3] == ("run_id", "status", "started_at")
    assert COLUMNS[-1] == "run_dir"
    assert not [column for column in COLUMNS if column.startswith("latency") and not column.endswith("_ms")]


def test_the_first_row_makes_folder_and_header(results: Path) -> None:
    append_row(results, failed_row(seed=3, ratio=0.5, error="no, sorry"))
    cells = {"run_id": "a", "status": "failed", "started_at": "2025-01-31T12:00:00Z", "seed": "3", "ratio": "0.5"}
    line = ",".join(cells.get(column, "") for column in COLUMNS)
    assert results.read_text() == ",".join(COLUMNS) + ",error\n" + line + ',"no, sorry"\n'


def test_a_further_column_widens_the_header_and_old_rows_keep_their_bytes(results: Path) -> None:
    append_row(results, make_row("a", overrides='x="1,2"\nline'))
    before = results.read_bytes().removesuffix(b"\n")
    header, old = before.split(b"\n", 1)
    append_row(results, make_row("b", cw_eps255=4))
    append_row(results, make_row("c"))
    lines = results.read_bytes()
    assert lines.startswith(header + b",cw_eps255\n" + old + b",\nb,done,")
    rows = read_rows(results)
    assert list(rows.columns) == [*COLUMNS, "cw_eps255"]
    assert list(rows["run_id"]) == ["a", "b", "c"]
    np.testing.assert_array_equal(rows["cw_eps255"], [math.nan, 4.0, math.nan])


def test_columns_come_back_with_their_types(results: Path) -> None:
    append_row(
        results,
        make_row("1e5", git_commit="12e4567", seed=0, ratio=1, extra_on=True, country="NA", macs_base=125747840),
    )
    append_row(results, make_row("007", git_commit="nan", seed=1, ratio=0.5, extra_on=False, score_s=1.5, error="7"))
    rows = read_rows(results)
    assert list(rows["run_id"]) == ["1e5", "007"]
    assert list(rows["git_commit"]) == ["12e4567", "nan"]
    assert rows["country"].isna().tolist() == [False, True]
    assert rows["country"][0] == "NA"
    assert (rows["seed"].dtype, rows["ratio"].dtype, rows["extra_on"].dtype) == ("int64", "float64", "bool")
    assert rows["macs_base"][0] == 125747840
    assert rows["error"][1] == "7"
    assert rows["params_base"].isna().all()
    assert rows["params_base"].dtype == "float64"


def test_a_yes_or_no_column_may_have_empty_cells(results: Path) -> None:
    append_row(results, make_row("a", extra_on=True))
    append_row(results, make_row("b"))
    column = read_rows(results)["extra_on"]
    assert column[0] is True
    assert column.isna().tolist() == [False, True]


def test_numbers_of_other_libraries_and_enumerations_are_written_plainly(results: Path) -> None:
    class Device(StrEnum):
        CPU = "cpu"

    append_row(results, make_row("a", score_s=np.float64(0.1), device=Device.CPU))
    line = results.read_text().splitlines()[1]
    assert ",cpu," in line
    assert ",0.1," in line
    assert "np." not in line


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30) | st.sampled_from(
    [",", '"', "\n", "\r", "\r\n", '"a,"\n', "nan", "None", "é;ü", "\ufeff", " ", "=1+1", "1_0"]
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8).map(
    "x_".__add__
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "overrides": texts,
                "removed_blocks": texts,
                "score_s": st.floats(),
                "duration_s": st.floats() | st.none(),
                "seed": st.integers(0, 2**63 - 1),
                "extra": st.dictionaries(names, st.floats(), max_size=3),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_values_in_any_columns_round_trip(tmp_path_factory: pytest.TempPathFactory, drawn: list[Row]) -> None:
    results = tmp_path_factory.mktemp("round") / "results.csv"
    written: list[Row] = []
    for number, values in enumerate(drawn):
        extra = values.pop("extra")
        assert isinstance(extra, dict)
        written.append(make_row(f"run{number}", **values) | extra)
        append_row(results, written[-1])
    rows = read_rows(results)
    assert len(rows) == len(written)
    for number, row in enumerate(written):
        for column in rows.columns:
            value, found = row.get(column), rows[column][number]
            if value in (None, "") or (isinstance(value, float) and math.isnan(value)):
                assert pd.isna(found), (column, value, found)
            else:
                assert found == value, (column, value, found)
                assert not isinstance(value, float) or math.copysign(1, found) == math.copysign(1, value)
    assert rejected(results) == b""


def test_there_are_no_rows_without_a_file(results: Path) -> None:
    rows = read_rows(results)
    assert rows.empty
    assert tuple(rows.columns) == COLUMNS


@pytest.mark.parametrize("extra", [{}, {"cw_pct": 1.5}], ids=["append", "widen"])
def test_a_file_saved_by_a_spreadsheet_is_continued(results: Path, extra: Row) -> None:
    append_row(results, make_row("a", overrides="x,y"))
    results.write_bytes(b"\xef\xbb\xbf" + results.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    append_row(results, make_row("b", **extra))
    rows = read_rows(results)
    assert list(rows["run_id"]) == ["a", "b"]
    assert rows["overrides"][0] == "x,y"
    assert rows["run_dir"].isna().all()
    assert rejected(results) == b""
    assert list(pd.read_csv(results)["run_id"]) == ["a", "b"]


def test_a_file_of_an_earlier_version_gets_the_new_columns(results: Path) -> None:
    results.parent.mkdir()
    results.write_text("run_id,status,started_at,old\nz,done,2024-01-01T00:00:00Z,5\n")
    append_row(results, make_row("a", seed=1))
    rows = read_rows(results)
    assert list(rows.columns) == ["run_id", "status", "started_at", "old", *COLUMNS[3:]]
    assert rows["old"][0] == 5
    assert rows["seed"][1] == 1


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (make_row(overrides="a\0b"), ValueError, "'overrides' holds a NUL"),
        (make_row(overrides="\ud800"), ValueError, "'overrides' holds .* cannot be written as UTF-8"),
        (make_row(removed_blocks=["a"]), TypeError, "'removed_blocks' takes .* not list"),
        (make_row(seed=np.int64(3)), TypeError, "'seed' takes .* not int64"),
        (make_row() | {"": 1}, ValueError, "lacks the name of a column"),
        (make_row() | {"a\0": 1}, ValueError, "'a\0' holds a NUL"),
        (make_row(run_id=None), ValueError, "lacks run_id"),
        (make_row(started_at=5), ValueError, "lacks started_at"),
        ({"run_id": "a", "started_at": "now"}, ValueError, "lacks status"),
        ({k: v for k, v in make_row().items() if k not in {"seed", "run_dir"}}, ValueError, "lacks seed, run_dir"),
    ],
)
def test_a_row_that_is_a_bug_is_refused(results: Path, row: Row, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        append_row(results, row)
    assert not results.parent.exists()


START, LATER = "2025-01-31T12:00:00Z", "2025-01-31T12:00:01Z"


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (("done", START), ("done", START), "kept"),
        (("done", START), ("failed", LATER), "kept"),
        (("done", START), ("interrupted", START), "kept"),
        (("interrupted", START), ("done", START), "replaced"),
        (("failed", LATER), ("done", START), "replaced"),
        (("failed", START), ("interrupted", START), "replaced"),
        (("failed", LATER), ("failed", START), "kept"),
        (("done", START), ("done", LATER), "replaced"),
    ],
)
def test_a_run_has_one_row(results: Path, first: tuple[str, str], second: tuple[str, str], outcome: str) -> None:
    append_row(results, make_row("before"))
    append_row(results, make_row("a", status=first[0], started_at=first[1], seed=1))
    append_row(results, make_row("after"))
    append_row(results, make_row("a", status=second[0], started_at=second[1], seed=2))
    rows = read_rows(results)
    assert list(rows["run_id"]) == ["before", "a", "after"]
    stands = second if outcome == "replaced" else first
    assert (rows["status"][1], rows["started_at"][1]) == stands
    assert rows["seed"][1] == (2 if outcome == "replaced" else 1)


def test_a_row_that_is_there_changes_no_byte(results: Path) -> None:
    append_row(results, make_row("a"))
    before = results.read_bytes()
    append_row(results, make_row("a", new_column=1))
    assert results.read_bytes() == before


def test_a_held_lock_is_named(results: Path) -> None:
    append_row(results, make_row("a"))
    before = results.read_bytes()
    with FileLock(results.with_name(".results.csv.lock")), pytest.raises(UserError) as caught:
        append_row(results, make_row("b"), lock_timeout_s=0.2)
    assert caught.value.message == f"'{results.resolve()}' is still locked by another process after 0.2 s"
    assert "consensus collect" in caught.value.hint
    assert results.read_bytes() == before
    append_row(results, make_row("b"), lock_timeout_s=0.2)
    assert list(read_rows(results)["run_id"]) == ["a", "b"]


def test_a_link_to_the_file_stays_a_link(results: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to(results)
    append_row(link, make_row("a"))
    append_row(link, make_row("b", wider=1))
    assert link.is_symlink()
    assert list(read_rows(results)["run_id"]) == ["a", "b"]
