"""Pruned on some images, fine-tuned and measured on others, the original likewise."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.folders import make_folder
from helpers.quick import QUICK
from helpers.stopping import stop_run

import consensus_cli as cc
from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.experiment.checks import value_problems
from consensus_cli.experiment.run_hash import run_hash
from consensus_cli.screen import events
from consensus_cli.storage.results import read_rows
from consensus_cli.storage.rundir import RunDir

WORDS = (
    *QUICK,
    "dataset=synthetic",
    "dataset.image_size=16",
    "ratio=[0.17,0.34]",
    "criterion=first",
    "attacks=none",
    "finetune.epochs_per_step=0.1",
    "finetune.final_epochs=0.5",
    "finetune.batch_size=4",
    "evaluate.energy_window_s=0.05",
    "threads=1",
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Images of two classes, and the words that name them."""
    root = make_folder(tmp_path_factory.mktemp("target"), {"red": "red", "blue": "blue"})
    return ("transfer.source=imagefolder", "transfer.name=mine", f"transfer.root={root}")


@pytest.fixture(scope="module")
def whole(target: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer")
    assert main(["run", "--quiet", *WORDS, *target, f"output_dir={folder}"]) == 0
    return folder


def test_rows_are_about_the_other_images(whole: Path) -> None:
    rows = read_rows(whole / "results.csv")
    assert rows["dataset"].tolist() == ["mine"] * 2
    assert rows["pruned_on"].tolist() == ["synthetic"] * 2
    assert rows["blocks_removed"].tolist() == [1, 2]
    # One original for both ratios.
    assert rows["accuracy_base_pct"].nunique() == 1
    assert rows["images_hash"].nunique() == 1
    for _, row in rows.iterrows():
        model = cc.load_pruned(row["run_dir"])
        assert len(model.classes) == 2
        assert sum(p.numel() for p in model.network.parameters()) == row["params_pruned"]
    log = (Path(rows["run_dir"].iloc[-1]) / "run.log").read_text(encoding="utf-8")
    assert log.count("transferred: loss") == 1


def test_a_run_that_was_stopped_ends_the_same(whole: Path, target: tuple[str, ...], tmp_path: Path) -> None:
    seen = 0

    def in_second_evaluation(event: events.Event) -> bool:
        nonlocal seen
        seen += isinstance(event, events.StageStarted) and event.stage == "evaluate"
        return seen == 2

    stopped = stop_run(tmp_path, *WORDS, *target, when=in_second_evaluation, number=signal.SIGTERM)
    assert stopped == signal.SIGTERM
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if RunDir(path).state.exists())
    assert main(["resume", str(folder)]) == 0
    resumed, expected = read_rows(tmp_path / "results.csv"), read_rows(whole / "results.csv")
    for column in ("accuracy_base_pct", "accuracy_pruned_pct", "removed_blocks", "images_hash"):
        assert resumed[column].tolist() == expected[column].tolist()
    identity = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
    assert set(identity["inputs"]) == {"dataset", "transfer"}


def test_images_of_another_size_are_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["transfer.source=digits", f"output_dir={tmp_path}"]
    assert main(["run", *WORDS, *words]) == 2
    assert "pruned on images of 3×16×16, and transfer.source=digits has 1×16×16" in capsys.readouterr().err
    assert main(["run", *WORDS, "transfer.source=cifar10", f"output_dir={tmp_path}"]) == 2
    assert "dataset 'cifar10' is not in" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["finetune=none"], ["finetune=short", "controls=[scratch]"]])
def test_a_transfer_that_cannot_be(words: list[str]) -> None:
    problems = value_problems(compose_run(["transfer.source=cifar10", *words]))
    assert "other images at the end" in problems[0].message


def test_a_transfer_is_another_run_and_where_its_images_lie_is_none() -> None:
    plain, moved = compose_run([]), compose_run(["transfer.source=cifar10", "transfer.root=a"])
    assert run_hash(plain) != run_hash(moved)
    assert run_hash(moved) == run_hash(replace(moved, transfer=replace(moved.transfer, root="b")))
