from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.results_rows import errno_with_file_limit, make_row, rejected, tree

from consensus_cli.errors import UserError
from consensus_cli.storage.results import COLUMNS, append_row, check_writable, collect, read_rows

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "results.csv"


TORN = {
    "no line end": b"z,done,2025",
    "complete fields but no line end": b"z,done,2025-01-31T12:00:00Z" + b"," * (len(COLUMNS) - 3),
    "too few fields": b"z,done\n",
    "too many fields": b"z" * 3 + b"," * len(COLUMNS) + b"\n",
    "unbalanced quote": b'z,"done\n',
    "cut inside a character": "z,é".encode()[:-1],
    "not UTF-8": b"z,\xff\xfe" + b"," * (len(COLUMNS) - 2) + b"\n",
    "text after a quote": b'"z"z' + b"," * (len(COLUMNS) - 1) + b"\n",
    "zeros of a power cut": b"\0" * 100,
    "spaces": b"   ",
    "two lines": b'z,"a\nb',
    "a second header": ",".join(COLUMNS).encode() + b"\n",
}


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN.keys())
def test_a_torn_line_is_set_aside(results: Path, torn: bytes, caplog: pytest.LogCaptureFixture) -> None:
    append_row(results, make_row("a"))
    whole = results.read_bytes()
    results.write_bytes(whole + torn)
    assert list(read_rows(results)["run_id"]) == ["a"]
    assert "damaged lines" in caplog.text
    assert results.read_bytes() == whole + torn
    append_row(results, make_row("b"))
    assert results.read_bytes().startswith(whole + b"b,done,")
    assert rejected(results).removesuffix(b"\n") == torn.removesuffix(b"\n")
    assert list(read_rows(results)["run_id"]) == ["a", "b"]
    append_row(results, make_row("c"))
    assert rejected(results).removesuffix(b"\n") == torn.removesuffix(b"\n")


def test_damage_in_the_middle_takes_no_other_row_along(results: Path) -> None:
    for run_id in "abc":
        append_row(results, make_row(run_id, overrides='"quoted,"\nsecond line'))
    whole = results.read_bytes()
    results.write_bytes(whole.replace(b"\nb,done,", b'\nz,"torn\nb,done,'))
    append_row(results, make_row("d"))
    assert results.read_bytes().startswith(whole)
    assert list(read_rows(results)["run_id"]) == ["a", "b", "c", "d"]
    assert rejected(results) == b'z,"torn\n'


def test_what_is_set_aside_adds_up(results: Path) -> None:
    append_row(results, make_row("a"))
    for run_id in "bc":
        with results.open("ab") as file:
            file.write(f"torn {run_id}".encode())
        append_row(results, make_row(run_id))
    assert rejected(results) == b"torn b\ntorn c\n"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"], ids=["empty", "only a byte-order mark"])
def test_an_emptied_file_starts_anew(results: Path, content: bytes) -> None:
    results.parent.mkdir()
    results.write_bytes(content)
    assert read_rows(results).shape == (0, len(COLUMNS))
    append_row(results, make_row("a"))
    assert list(read_rows(results)["run_id"]) == ["a"]


FOREIGN = [
    b"a,b\n1,2\n",
    b"\xff\xfer\0u\0",
    b"run_id,status\n",
    b"run_id,status,started_at,run_id\n",
    b'"run_id',
    b"\n",
]


@pytest.mark.parametrize("content", [*FOREIGN, b"run_id,status,started_at,", b"run_id,status,started_at,\n"])
def test_a_file_of_something_else_is_not_touched(results: Path, content: bytes) -> None:
    results.parent.mkdir()
    results.write_bytes(content)
    problems = check_writable(results)
    assert [problem.message for problem in problems] == [
        f"'{results}' is not a results file: the first line is not the header of a results file"
    ]
    assert "output_dir" in problems[0].hint
    for use in (lambda: append_row(results, make_row()), lambda: read_rows(results), lambda: collect(results.parent)):
        with pytest.raises(UserError, match="is not a results file"):
            use()
    assert results.read_bytes() == content
    assert rejected(results) == b""


def test_what_a_killed_writer_left_is_removed(results: Path) -> None:
    append_row(results, make_row("a"))
    results.with_name(".results.csv.77-ab12.part").write_text("half")
    append_row(results, make_row("b"))
    assert sorted(file.name for file in results.parent.iterdir()) == [".results.csv.lock", "results.csv"]


@pytest.mark.parametrize("column", ["overrides", "wider"], ids=["append", "rewrite"])
@pytest.mark.parametrize("torn", [b"", b"torn"], ids=["whole", "torn"])
def test_a_full_disk_leaves_the_file_as_it_was(results: Path, column: str, torn: bytes) -> None:
    append_row(results, make_row("a"))
    before = results.read_bytes() + torn
    results.write_bytes(before)
    row = make_row("b", **{column: "x" * 2000})
    assert errno_with_file_limit(len(before) + 1000, lambda: append_row(results, row)) == errno.EFBIG
    assert results.read_bytes() == before
    assert not list(results.parent.glob(".*.part"))
    append_row(results, row)
    assert list(read_rows(results)["run_id"]) == ["a", "b"]


def test_a_disk_without_room_for_the_torn_line_changes_nothing(results: Path) -> None:
    append_row(results, make_row("a"))
    before = results.read_bytes() + b"t" * 500
    results.write_bytes(before)
    assert errno_with_file_limit(100, lambda: append_row(results, make_row("b"))) == errno.EFBIG
    assert results.read_bytes() == before
    assert rejected(results) == b""


@pytest.mark.parametrize("existing", [False, True])
def test_checking_a_good_place_changes_nothing(results: Path, tmp_path: Path, existing: bool) -> None:
    if existing:
        append_row(results, make_row("a"))
    before = tree(tmp_path)
    assert check_writable(results) == []
    assert tree(tmp_path) == before


def test_bad_places_are_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "taken" / "results.csv").mkdir(parents=True)
    reasons = {
        tmp_path / "file" / "results.csv": "Not a directory",
        tmp_path / "file" / "deeper" / "results.csv": "Not a directory",
        tmp_path / "gone" / "results.csv": "No such file or directory",
        tmp_path / "taken" / "results.csv": "Is a directory",
        tmp_path / ("x" * 300) / "results.csv": "File name too long",
        tmp_path / "nul\0" / "results.csv": "embedded null byte",
        Path("/proc/outputs/results.csv"): "No such file or directory",
    }
    before = tree(tmp_path / "taken")
    for path, reason in reasons.items():
        problems = check_writable(path)
        assert [problem.message for problem in problems] == [f"cannot write results to '{path}': {reason}"]
        assert "output_dir=" in problems[0].hint
    assert tree(tmp_path / "taken") == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser passes permission bits")
def test_a_folder_without_permission_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    problems = check_writable(tmp_path / "outputs" / "results.csv")
    tmp_path.chmod(0o755)
    assert "Permission denied" in problems[0].message


def test_no_completed_append_is_lost_when_writers_are_killed() -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "stress_results.py"),
        "--processes",
        "4",
        "--appends",
        "12",
        "--kills",
        "2",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every completed append is there once" in done.stdout
