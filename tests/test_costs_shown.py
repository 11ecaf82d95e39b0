"""What a network costs is counted or named on screen and in the row; what does not fit it is refused at the start."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.folders import ON_FOLDER, make_folder

from consensus_cli.cli.main import main

OWN = ("model=custom", "experiment=smoke", "prune.granularity=branch", "criterion=first")
LEFT_OUT = "aten::_fft_c2r × 4, aten::_fft_r2c × 4"


@pytest.mark.parametrize(
    ("network", "macs"),
    [("SameNetwork", 4 * 256 * 4 * 4 * 9), ("RowNetwork", 4 * 256 * 16 * (4 + 4))],
)
def test_blocks_share_what_the_network_costs(
    network: str, macs: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["list", "blocks", *OWN, f"model.target=helpers.costly_networks.{network}"]) == 0
    shown = capsys.readouterr()
    assert f"{macs / 1e6:.2f} M MACs in all" in shown.out
    assert shown.out.count(" 25 % ") == 4
    assert "leave out" not in shown.out + shown.err


def test_blocks_whose_cost_is_unknown_are_named_as_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["list", "blocks", *OWN, "model.target=helpers.costly_networks.FrequencyNetwork"]) == 0
    shown = capsys.readouterr()
    assert f"MACs leave out: {LEFT_OUT}" in shown.out + shown.err
    assert "%" not in shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("model.target=helpers.costly_networks.FrequencyNetwork", "prune=macs"),
            f"none that are counted (they leave out {LEFT_OUT})",
        ),
        (("model.target=helpers.costly_networks.ScaleNetwork", "prune=macs"), "ScaleNetwork has none that are counted"),
        (
            ("model.target=helpers.costly_networks.ScaleNetwork", "criterion=weight_norm"),
            "criterion=weight_norm compares weights; 3 of 3 candidates have none: +blocks.1, +blocks.2, +blocks.3",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_network_is_one_line_at_the_start(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *OWN, *words, f"output_dir={tmp_path / 'out'}"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert message in error
    assert hint.startswith("hint: ")
    assert not (tmp_path / "out" / "runs").exists()


def test_attacks_that_need_more_classes_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "images", {"a": "red", "b": "blue"})
    words = [*ON_FOLDER, f"dataset.root={folder}", "attacks=full", f"output_dir={tmp_path / 'out'}"]
    assert main(["run", *words]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: attack 'autoattack' needs 4 classes, the network has 2"
    assert "apgd" in hint
    assert not (tmp_path / "out" / "runs").exists()


def test_a_run_names_what_its_macs_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "model.target=helpers.costly_networks.FrequencyNetwork", "baseline.learning_rate=0.001", "baseline.epochs=1",
        "finetune=none", "attacks=none", "ratio=0.5",
        "evaluate.energy_window_s=0.01", "evaluate.latency_min_run_s=0.01", "evaluate.batch_sizes=[1]",
    )  # fmt: skip
    assert main(["run", *OWN, *words, f"output_dir={tmp_path}"]) == 0
    shown = capsys.readouterr()
    assert f"MACs leave out: {LEFT_OUT}" in shown.out + shown.err
    (row,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/row.json"))
    assert (row["macs_base"], row["macs_uncounted"]) == (0, LEFT_OUT)
    assert pd.read_csv(tmp_path / "results.csv")["macs_uncounted"].tolist() == [LEFT_OUT]


def test_a_run_that_counts_everything_has_it_in_its_row(finished_run: Path) -> None:
    assert json.loads((finished_run / "row.json").read_text())["macs_uncounted"] == "nothing"
