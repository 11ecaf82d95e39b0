"""The whole line on real images: one run, its row, its files, and the same again."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.loaded_trees import load
from helpers.quick import QUICK

import consensus_cli
from consensus_cli import training
from consensus_cli.cli.main import main
from consensus_cli.data import Augmentation
from consensus_cli.evaluation.accuracy import accuracy_pct, predict
from consensus_cli.evaluation.cost.complexity import complexity
from consensus_cli.experiment import row as recording
from consensus_cli.experiment.tracking import Tracker
from consensus_cli.storage.results import COLUMNS
from consensus_cli.storage.rundir import RunDir


@pytest.fixture(scope="module")
def row(outputs: Path) -> dict[str, Any]:
    return dict(pd.read_csv(outputs / "results.csv").iloc[0])


def test_every_column_is_filled(outputs: Path) -> None:
    rows = pd.read_csv(outputs / "results.csv")
    assert len(rows) == 2
    assert list(rows.columns[: len(COLUMNS)]) == list(COLUMNS)
    # Empty unless other programs took the cores.
    assert not rows.drop(columns="threads_lowered").isna().any().any()


def test_the_numbers_fit_together(row: dict[str, Any]) -> None:
    assert row["status"] == "done"
    assert (row["blocks_candidates"], row["blocks_removed"]) == (6, 3)
    assert len(row["removed_blocks"].split(";")) == 3
    assert row["macs_reduction_pct"] == pytest.approx(100 * (1 - row["macs_pruned"] / row["macs_base"]))
    assert row["accuracy_delta_pp"] == pytest.approx(row["accuracy_pruned_pct"] - row["accuracy_base_pct"])
    assert row["test_images"] == 100
    assert row["attacked_images"] == 20
    assert row["energy_inference_base_kwh"] > 0
    assert row["co2_epoch_pruned_kg"] > 0
    assert row["energy_run_kwh"] > row["energy_epoch_base_kwh"]
    for network in ("base", "pruned"):
        for size in (1, 128):
            latency_ms = row[f"latency_b{size}_{network}_ms"]
            assert row[f"throughput_b{size}_{network}_images_per_s"] == pytest.approx(1000 * size / latency_ms)
        assert row[f"energy_epoch_{network}_iqr_kwh"] >= 0
    # Weights are most of a file; a forward pass holds at least the weights and its images.
    assert row["file_size_pruned_mib"] == pytest.approx(4 * row["params_pruned"] / 2**20, rel=0.2)
    assert row["file_size_pruned_mib"] < row["file_size_base_mib"]
    assert row["peak_memory_b128_base_mib"] > row["peak_memory_b1_base_mib"] > 4 * row["params_base"] / 2**20
    assert row["idle_w"] > 0
    assert 0 < row["attacks_s"] < row["evaluate_s"]
    for attack in ("fgsm", "pgd"):
        assert row[f"{attack}_base_pct"] <= row["clean_base_pct"]
        assert row[f"{attack}_delta_pp"] == pytest.approx(row[f"{attack}_pruned_pct"] - row[f"{attack}_base_pct"])


def test_the_same_run_removes_the_same_blocks_and_is_as_accurate(outputs: Path) -> None:
    first, second = (record for _, record in pd.read_csv(outputs / "results.csv").iterrows())
    for column in ("removed_blocks", "accuracy_base_pct", "accuracy_pruned_pct", "macs_pruned", "pgd_pruned_pct"):
        assert first[column] == second[column]
    assert first["run_id"] != second["run_id"]
    assert len(list((outputs / "baselines").glob("*.safetensors"))) == 1
    logs = [(outputs / "runs" / run["run_id"] / "run.log").read_text() for run in (first, second)]
    assert ["baseline: reused" in log for log in logs] == [False, True]


def test_the_block_with_the_lowest_sum_goes(outputs: Path, row: dict[str, Any]) -> None:
    """The authors' code sorted the ranks and applied them by position: the first candidate always went."""
    scores = pd.read_csv(outputs / "runs" / row["run_id"] / "scores.csv")
    assert list(scores.columns) == ["step", "block", "metric", "distance", "rank", "sum"]
    assert scores["metric"].nunique() == 8
    for step, name in enumerate(row["removed_blocks"].split(";"), start=1):
        at_step = scores[scores["step"] == step]
        recomputed = at_step.pivot(index="block", columns="metric", values="distance").rank().sum(axis=1)
        assert recomputed[name] == recomputed.min()
        assert at_step.set_index("block")["sum"].groupby(level=0).first().to_dict() == recomputed.to_dict()


def test_the_run_directory_rebuilds_the_pruned_network(outputs: Path, row: dict[str, Any]) -> None:
    folder = outputs / "runs" / row["run_id"]
    model = consensus_cli.load_pruned(folder)
    assert not model.training
    assert complexity(model, (1, 16, 16)).macs == row["macs_pruned"]
    images = load("digits", cache_dir=outputs, image_size=16, limit_train=300, limit_test=100)
    assert accuracy_pct(predict(model, images.test, "cpu")) == pytest.approx(row["accuracy_pruned_pct"])
    removed = row["removed_blocks"].split(";")
    assert not any(name.startswith(f"{block}.") for name in model.network.state_dict() for block in removed)
    assert json.loads((folder / "row.json").read_text())["run_id"] == row["run_id"]
    assert "removed" in (folder / "run.log").read_text()
    assert (folder / "checkpoints" / "baseline.safetensors").stat().st_size > 0
    assert "ratio: 0.5" in (folder / "config.yaml").read_text()


def test_the_classes_are_named_in_the_order_of_the_logits(finished_run: Path, tmp_path: Path) -> None:
    digits = tuple("0123456789")
    structure = RunDir(finished_run).pruned_structure
    assert tuple(json.loads(structure.read_text())["classes"]) == digits
    assert consensus_cli.load_pruned(finished_run).classes == digits
    # An earlier version named none.
    copy = RunDir(shutil.copytree(finished_run, tmp_path / "copy"))
    content = json.loads(structure.read_text())
    del content["classes"]
    copy.pruned_structure.write_text(json.dumps(content))
    assert consensus_cli.load_pruned(copy.path).classes == ()


#: the whole line in about a second
SHORT = (
    *QUICK,
    "criterion=first",
    "finetune=none",
    "attacks=none",
    "ratio=0.17",
    "evaluate.energy_window_s=0.02",
    "evaluate.batch_sizes=[1]",
)


@pytest.mark.parametrize("error", [RuntimeError("no font"), OSError(errno.ENOSPC, "No space left on device")])
def test_the_row_is_saved_before_the_pictures_and_whatever_becomes_of_them(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(run_dir: RunDir, row: dict[str, Any]) -> None:
        saved = json.loads(run_dir.row.read_text())
        assert saved == row
        assert saved["status"] == "done"
        assert list(pd.read_csv(tmp_path / "results.csv")["run_id"]) == [run_dir.path.name]
        assert len(pd.read_csv(run_dir.scores))
        assert not run_dir.state.exists()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(recording, "write_summary", fail)
        assert main(["run", *SHORT, f"output_dir={tmp_path}"]) == 0
    warning = f"the row is saved, but not the whole summary: {type(error).__name__}: "
    assert f"warning: {warning}" in capsys.readouterr().out
    run = RunDir(next((tmp_path / "runs").iterdir()))
    assert f"WARNING {warning}" in run.log.read_text()
    assert list(pd.read_csv(tmp_path / "results.csv")["status"]) == ["done"]
    assert not run.summary.exists()

    # What is missing is made up for when the run is next asked for.
    assert main(["resume", str(run.path)]) == 0
    assert "| accuracy |" in run.summary.read_text()
    assert run.comparison_figure.is_file()
    assert run.removal_figure.is_file()
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1


def test_a_tracker_that_fails_in_the_end_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no\nserver")

    for method in ("row", "finish"):
        monkeypatch.setattr(Tracker, method, fail)
    assert main(["run", *SHORT, f"output_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("tracker=none failed: ConnectionError: no server") == 2
    assert list(pd.read_csv(tmp_path / "results.csv")["status"]) == ["done"]


def test_a_baseline_criterion_and_a_macs_target(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    augmentations = []
    recalibrate = training.recalibrate_batch_norm

    def noted(*words: object, **more: object) -> None:
        augmentations.append(more["augmentation"])
        recalibrate(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "recalibrate_batch_norm", noted)
    words = [
        "criterion=last",
        "prune=macs",
        "ratio=0.2",
        "finetune=none",
        "attacks=none",
        "prune.step=2",
        "finetune.recalibration_images=64",
    ]
    assert main(["run", *QUICK, *words, f"output_dir={outputs}"]) == 0
    row = pd.read_csv(outputs / "results.csv").iloc[-1]
    assert row["removed_blocks"].split(";")[0] == "layer3.2"
    assert row["macs_reduction_pct"] >= 20
    assert row["metrics"] == "none"
    assert pd.isna(row["fgsm_base_pct"])
    # Batch norm is measured anew on images like those of training: digits are cropped, not mirrored.
    assert augmentations
    assert set(augmentations) == {Augmentation(pad=1)}
    # The second block of a step is compared with those still there, not with the one that has just gone.
    log = (outputs / "runs" / row["run_id"] / "run.log").read_text()
    told = re.findall(r"removed .* importance (\S+) \(next (\S+)\)", log)
    assert len(told) >= 2
    assert all(float(own) < float(following) for own, following in told)


def test_the_original_network_can_be_the_measure(outputs: Path) -> None:
    words = ["criterion=cka", "scoring.against=original", "finetune.final_epochs=0", "attacks=none", "ratio=0.34"]
    assert main(["run", *QUICK, *words, f"output_dir={outputs}"]) == 0
    row = pd.read_csv(outputs / "results.csv").iloc[-1]
    scores = pd.read_csv(outputs / "runs" / row["run_id"] / "scores.csv")
    assert set(scores["metric"]) == {"cka"}
    assert torch.isfinite(torch.tensor(scores["distance"].to_numpy())).all()
    # Compared with the original, a network that already lacks a block is further away whatever goes next.
    assert scores.groupby("step")["distance"].min()[2] > scores.groupby("step")["distance"].min()[1]


@pytest.mark.slow
def test_corruptions_and_a_planted_cue_have_columns(outputs: Path) -> None:
    words = [
        "dataset.cue.kind=patch",
        "baseline.epochs=12",
        "evaluate.corruptions=[brightness,pixelate]",
        "evaluate.corruption_images=40",
        "evaluate.batch_sizes=[4]",
    ]
    words += ["criterion=first", "finetune=none", "attacks=none", "ratio=0.17"]
    assert main(["run", *QUICK, *words, f"output_dir={outputs}"]) == 0
    row = pd.read_csv(outputs / "results.csv").iloc[-1]
    names = [
        f"own_corruption_{name}_s{severity}_base_pct" for name in ("brightness", "pixelate") for severity in range(1, 6)
    ]
    assert row["own_corruption_mean_base_pct"] == pytest.approx(row[names].astype(float).mean())
    assert row["corrupted_images"] == 40
    assert row["latency_b4_base_ms"] > 0
    assert pd.isna(row["latency_b1_base_ms"])
    # A network that has seen the cue in every training image leans on it.
    assert row["shortcut_patch_base_pp"] > 20
    assert row["removed_blocks"] == "layer1.1"


def test_in_a_sweep_a_failed_run_leaves_its_row_and_the_next_one_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["criterion=first", "attacks=none", "ratio=0.17", "baseline.learning_rate=0.1,1e30"]
    assert main(["run", "-m", *QUICK, *words[::-1], f"output_dir={tmp_path}"]) == 1
    rows = pd.read_csv(tmp_path / "results.csv").set_index("status")
    told = capsys.readouterr().err
    assert "baseline.learning_rate=1e+30" in told
    assert "error: training diverged: training the baseline: the training loss is" in told
    assert "at update" in told
    assert "hint: lower finetune.learning_rate (for a baseline, baseline.learning_rate)" in told
    assert sorted(rows.index) == ["done", "failed"]
    assert "TrainingDivergedError" in rows.loc["failed", "error"]
    assert "baseline.learning_rate=1e+30" in rows.loc["failed", "overrides"]
    assert rows.loc["done", "blocks_removed"] == 1


@pytest.mark.slow
def test_a_sweep_trains_one_baseline_per_seed(tmp_path: Path) -> None:
    assert main(["run", "-m", *QUICK, "ratio=0.17,0.34", "seed=0,1", f"output_dir={tmp_path}"]) == 0
    rows = pd.read_csv(tmp_path / "results.csv")
    assert sorted(zip(rows["ratio"], rows["seed"], strict=True)) == [(0.17, 0), (0.17, 1), (0.34, 0), (0.34, 1)]
    assert len(list((tmp_path / "baselines").glob("*.safetensors"))) == 2
