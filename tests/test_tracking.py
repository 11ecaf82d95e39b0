"""A run can be followed in the tool that a team watches anyway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wandb
from helpers.quick import QUICK
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from consensus_cli.cli.main import main
from consensus_cli.errors import UserError
from consensus_cli.experiment import tracking
from consensus_cli.experiment.tracking import Tracker, check_tracker

SHORT = (*QUICK, "criterion=last", "attacks=none", "ratio=0.34", "baseline.epochs=1")


@pytest.mark.slow
def test_tensorboard_gets_losses_scores_and_the_row(tmp_path: Path) -> None:
    assert main(["run", *SHORT, "tracker=tensorboard", f"output_dir={tmp_path}"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    row = json.loads((run / "row.json").read_text())
    assert events.Scalars("row/accuracy_pruned_pct")[0].value == pytest.approx(row["accuracy_pruned_pct"], rel=1e-6)
    assert len([tag for tag in tags if tag.startswith("scores/")]) == 6
    assert [event.step for event in events.Scalars("scores/layer1.1")] == [0, 1]
    (accuracies,) = (events.Scalars(tag) for tag in tags if tag.startswith("accuracy/"))
    # Before pruning, after each removal, after the final fine-tuning.
    assert [event.step for event in accuracies] == [0, 1, 2, 2]
    assert all(0 <= event.value <= 100 for event in accuracies)
    updates = [event.step for event in events.Scalars("train/loss")]
    assert updates == sorted(set(updates))
    # Of 300 images: an epoch of the baseline in batches of 32, then in batches of 64 half of one after each removal and
    # three at the end.
    assert updates[-1] == 9 + 2 + 2 + 3 * 4


def test_mlflow_gets_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = Tracker("mlflow", tmp_path / "run", {"seed": 0, "model": {"name": "resnet20"}, "ratio": None})
    tracker.loss(0.5, updates=3)
    tracker.scores({"layer1.1": 4}, removed=0)
    tracker.accuracy(75.0, "validation", removed=1)
    tracker.row({"accuracy_pruned_pct": 90.0, "model": "resnet20"}, removed=1)
    tracker.finish()
    written = {file.name: file.read_text().split()[1:] for file in tmp_path.glob("mlruns/*/*/metrics/*/*")}
    assert {name: tuple(map(float, values)) for name, values in written.items()} == {
        "loss": (0.5, 3),
        "layer1.1": (4, 0),
        "validation_pct": (75, 1),
        "accuracy_pruned_pct": (90, 1),
    }
    (parameter,) = tmp_path.glob("mlruns/*/*/params/model.name")
    assert parameter.read_text() == "resnet20"


def test_wandb_drops_nothing_although_removed_blocks_are_fewer_than_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    defined: dict[str, object] = {}
    define = wandb.Run.define_metric

    def noted(run: wandb.Run, name: str, **more: object) -> object:
        defined[name] = more["step_metric"]
        return define(run, name, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(wandb.Run, "define_metric", noted)
    (tmp_path / "run").mkdir()
    tracker = Tracker("wandb", tmp_path / "run", {"seed": 0})
    tracker.loss(0.5, updates=30)
    tracker.scores({"layer1.1": 4}, removed=0)
    tracker.accuracy(75.0, "validation", removed=1)
    tracker.row({"accuracy_pruned_pct": 90.0, "model": "resnet20"}, removed=1)
    summary = dict(tracker._tracker.run.summary)
    tracker.finish()
    assert (defined["train/*"], defined["scores/*"]) == ("updates", "removed_blocks")
    assert "ignored" not in capfd.readouterr().err
    logged = {key: value for key, value in summary.items() if not key.startswith("_")}
    assert logged == {
        "train/loss": 0.5,
        "updates": 30,
        "scores/layer1.1": 4,
        "accuracy/validation_pct": 75,
        "row/accuracy_pruned_pct": 90,
        "removed_blocks": 1,
    }


def test_a_tracker_that_is_not_installed_is_reported_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the library wandb") as caught:
        check_tracker("wandb")
    assert "consensus-cli[wandb]" in caught.value.hint
    monkeypatch.undo()
    assert main(["run", *SHORT, "tracker=neptune", f"output_dir={tmp_path}"]) == 2
    assert "unknown tracker 'neptune'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
