"""The papers' presets run, also where their images are not, and say so."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from consensus_cli import data
from consensus_cli.cli.main import main
from consensus_cli.config import conf_files
from consensus_cli.config.composition import compose_run
from consensus_cli.data import Request
from consensus_cli.pruning.schedule import blocks_to_remove

TRANSFER = "paper/transfer_cifar100_to_cifar10"
PRESETS = [name for name in conf_files.choices("experiment") if name.startswith("paper/")]


@pytest.mark.parametrize("preset", PRESETS)
def test_smoke_runs_every_preset(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--quiet", f"experiment={preset}", "budget=smoke", "threads=1"]) == 0
    shown = capsys.readouterr()
    said = (shown.out + shown.err).count("synthetic images stand in for it, as dataset.if_missing=synthetic says")
    assert said == 1 + (preset == TRANSFER)
    row = pd.read_csv("outputs/results.csv").iloc[0]
    assert (row["status"], row["dataset"]) == ("done", "synthetic")
    assert row["blocks_removed"] == blocks_to_remove(0.3, row["blocks_candidates"])
    assert {"pgd_eps1_pruned_pct", "fgsm_pruned_pct", "own_corruption_mean_pruned_pct"} <= set(row.index)


def test_without_smoke_missing_images_are_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "experiment=paper/cifar10_resnet56", "budget=short"]) == 2
    assert "dataset 'cifar10' is not in data" in capsys.readouterr().err


def test_images_that_are_there_are_used(tmp_path: Path) -> None:
    request = Request(source="imagefolder", name="mine", root=str(tmp_path), if_missing="synthetic")
    assert data.available(request, tmp_path).source == "synthetic"
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
    assert data.available(request, tmp_path) is request
    assert data.available(Request(source="cifar10", name="cifar10"), tmp_path).source == "cifar10"


def test_budgets_are_the_recipes_they_name() -> None:
    full = compose_run(["experiment=paper/cifar10_resnet56"])
    short = compose_run(["experiment=paper/cifar10_resnet56", "budget=short"])
    assert (full.finetune.epochs_per_step, full.finetune.final_epochs, full.finetune.schedule) == (10, 200, "step")
    assert (full.baseline.epochs, full.baseline.milestones) == (200, [0.5, 0.75])
    assert (short.finetune.epochs_per_step, short.finetune.final_epochs, short.finetune.schedule) == (0, 20, "onecycle")
    assert short.ratios == full.ratios
    alone = compose_run(["experiment=paper/cifar10_resnet56", "budget=smoke", "finetune=none", "ratio=0.5"])
    assert (alone.finetune.final_epochs, alone.ratio) == (0, 0.5)
    assert compose_run(["budget=null"]) == compose_run([])
