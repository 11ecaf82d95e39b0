from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from helpers.results_rows import errno_with_file_limit

from consensus_cli.errors import UserError
from consensus_cli.storage.atomic import remove_partial_files, write_atomic
from consensus_cli.storage.rundir import RunDir, config_hash, row_files

NOON = datetime(2025, 1, 31, 12, 0, 5, tzinfo=UTC)
HASH = "0123abcd" * 8


def test_a_run_directory_is_named_by_utc_time_and_hash(tmp_path: Path) -> None:
    local = NOON.astimezone(timezone(timedelta(hours=5)))
    run_dir = RunDir.create(tmp_path / "new" / "outputs", HASH, local)
    assert run_dir.path == tmp_path / "new" / "outputs" / "runs" / "20250131T120005Z-0123abcd"
    assert (run_dir.path / "checkpoints").is_dir()


def test_runs_of_the_same_second_get_numbers(tmp_path: Path) -> None:
    names = [RunDir.create(tmp_path, HASH, NOON).path.name for _ in range(3)]
    assert names == [f"20250131T120005Z-0123abcd{suffix}" for suffix in ("", "-2", "-3")]


def _create_many(output_dir: Path, count: int) -> list[str]:
    return [RunDir.create(output_dir, HASH, NOON).path.name for _ in range(count)]


def test_processes_that_start_together_never_share_a_directory(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        names = [name for made in pool.starmap(_create_many, [(tmp_path, 10)] * 4) for name in made]
    assert len(set(names)) == len(names) == len(list((tmp_path / "runs").iterdir())) == 40


def test_every_file_is_documented(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "output.md").read_text(encoding="utf-8")
    assert [f for f in RunDir(tmp_path).files() if f"`{f.relative_to(tmp_path)}" not in text] == []


def test_every_file_has_its_own_name_inside_the_directory(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    names = [str(file.relative_to(tmp_path)) for file in run_dir.files()]
    assert names == [
        "identity.json",
        "config.yaml",
        "scores.csv",
        "costs.csv",
        "run.log",
        "row.json",
        "answers.json",
        "certificate.json",
        "summary.md",
        ".lock",
        "checkpoints/state.safetensors",
        "checkpoints/trainings",
        "checkpoints/baseline.safetensors",
        "checkpoints/pruned.safetensors",
        "checkpoints/pruned.rejected.safetensors",
        "checkpoints/pruned.json",
        "comparison.svg",
        "removal.svg",
    ]


def test_open_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run directory: it holds no config\.yaml"):
        RunDir.open(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert RunDir.open(tmp_path).path == tmp_path


@pytest.mark.parametrize("linked", ["run.log", "checkpoints"])
def test_open_refuses_files_that_lead_outside(tmp_path: Path, linked: str) -> None:
    (tmp_path / "outside").mkdir()
    run_dir = RunDir.create(tmp_path, HASH, NOON)
    run_dir.config.write_text("seed: 0\n")
    if linked == "checkpoints":
        run_dir.pruned_checkpoint.parent.rmdir()
    (run_dir.path / linked).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out of its run directory"):
        RunDir.open(run_dir.path)


def test_a_written_row_reads_back_exactly(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, HASH, NOON)
    row = {"run_id": "a", "x": 0.1 + 0.2, "n": math.nan, "i": -math.inf, "none": None, "text": 'é,"\n', "on": True}
    run_dir.write_row(row)
    assert repr(json.loads(run_dir.row.read_text())) == repr(row)
    assert row_files(tmp_path) == [run_dir.row]


def test_row_files_are_in_order_and_need_no_runs(tmp_path: Path) -> None:
    assert row_files(tmp_path) == []
    later, earlier, _unfinished = (RunDir.create(tmp_path, HASH, NOON + timedelta(hours=hours)) for hours in (1, 0, 2))
    later.write_row({})
    earlier.write_row({})
    assert row_files(tmp_path) == [earlier.row, later.row]


@pytest.mark.parametrize(
    ("data", "content"), [("zweite é\n", "zweite é\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")]
)
def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path, data: bytes | str, content: bytes) -> None:
    file = tmp_path / "state.json"
    file.write_text("first, and longer than the second")
    write_atomic(file, data)
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_write_atomic_keeps_permissions_and_follows_the_umask(tmp_path: Path) -> None:
    shared, new = tmp_path / "shared", tmp_path / "new"
    shared.touch()
    shared.chmod(0o664)
    old_mask = os.umask(0o027)
    try:
        write_atomic(shared, "x")
        write_atomic(new, "x")
    finally:
        os.umask(old_mask)
    assert (shared.stat().st_mode & 0o777, new.stat().st_mode & 0o777) == (0o664, 0o640)


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text("earlier")
    assert errno_with_file_limit(1000, lambda: write_atomic(file, b"x" * 1001)) == errno.EFBIG
    assert file.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_rename_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "folder", "x")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_only_parts_of_the_named_file_are_removed(tmp_path: Path) -> None:
    for name in (".state.json.12-ab.part", ".row.json.12-ab.part", ".state.json.lock", "state.json"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path / "state.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".row.json.12-ab.part",
        ".state.json.lock",
        "state.json",
    ]


def test_the_hash_does_not_depend_on_order_or_excluded_keys() -> None:
    config = {"seed": 0, "prune": {"step": 1, "ratio": 0.5}, "output_dir": "a"}
    moved = {"output_dir": "b", "prune": {"ratio": 0.5, "step": 1}, "seed": 0}
    assert config_hash(config, ["output_dir"]) == config_hash(moved, ["output_dir"])
    assert config_hash(config) != config_hash(moved)
    assert config["output_dir"] == "a"


def test_the_hash_is_the_same_in_every_version() -> None:
    # sha256 of {"a":[1,2.5,null],"b":true}
    expected = "5bfed00731eb76e3e9217d76fb62e4e7e9c588f33fb29cd3234a5204672b3f47"
    assert config_hash({"b": True, "a": [1, 2.5, None]}) == expected


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"seed": False}, {"seed": "0"}, {"seed": None}, {"seed": 0, "more": None}, {}]
)
def test_the_hash_tells_configurations_apart(other: dict[str, object]) -> None:
    assert config_hash({"seed": 0}) != config_hash(other)


def test_a_nested_key_is_excluded_and_a_wrong_one_refused() -> None:
    config = {"evaluate": {"threads": 2, "eps": 8}, "seed": 0}
    assert config_hash(config, ["evaluate.threads"]) == config_hash({"evaluate": {"eps": 8}, "seed": 0})
    assert config["evaluate"] == {"threads": 2, "eps": 8}
    with pytest.raises(KeyError, match="thread"):
        config_hash(config, ["evaluate.thread"])
    with pytest.raises(TypeError):
        config_hash({"path": Path("x")})
