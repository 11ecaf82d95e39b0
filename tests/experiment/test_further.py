"""The words of the study beside one-shot, on small sizes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers.small_study import SMALL
from study import __main__ as command
from study import after, healing
from study.bench import load_bench, right_answers, unpacked
from study.evidence import Evidence
from study.iterative import iterative_table
from study.rows import Rows
from study.tables import TABLES

from consensus_cli.cli.main import main
from consensus_cli.screen import Screen

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_archive_is_unpacked_once_and_the_study_loads_it(photographs, tmp_path):
    root = unpacked(photographs, tmp_path)
    assert sorted(path.name for path in root.iterdir()) == ["test", "train"]
    stamp = root.stat().st_ctime_ns
    assert unpacked(photographs, tmp_path).stat().st_ctime_ns == stamp
    weights = ROOT.parent / "shared" / "data" / "resnet56_cifar10jpeg.safetensors"
    bench = load_bench(root, weights, tmp_path, replace(SMALL, selection_images=10), "cpu")
    assert len(bench.candidates) == 24
    # Trained on them: nearly all of the training images are classified correctly.
    assert right_answers(bench.model, bench.images.train, bench.device, "fp32")[0].mean() > 0.9


@pytest.mark.slow
def test_iterative_protocol_runs_and_its_rows_become_a_table(photographs, evidence, tmp_path):
    root = unpacked(photographs, tmp_path)
    words = [
        "experiment=study_cifar10",
        f"dataset.root={root}",
        f"model.weights={ROOT.parent}/shared/data/resnet56_cifar10jpeg.safetensors",
        f"output_dir={tmp_path / 'out'}",
        "criterion=cka,first",
        "ratio=0.08",
        "metrics.samples_per_class=8",
        "finetune.recalibration_images=32",
        "finetune.batch_size=16",
        "attacks.images=10",
        "evaluate.corruptions=[contrast]",
        "evaluate.corruption_images=10",
        "evaluate.energy_window_s=0.1",
        "evaluate.energy_repeats=1",
        "evaluate.latency_min_run_s=0.02",
    ]
    assert main(["run", "-m", *words]) == 0
    assert command.main(["collect", str(tmp_path / "out"), "--rows", str(tmp_path)]) == 0
    rows = pd.read_csv(tmp_path / "iterative.csv")
    assert rows["criterion"].tolist() == ["cka", "first"]
    assert rows["removed_blocks"][1] == "layer1.1;layer1.2"
    table = iterative_table(replace(evidence, iterative=rows))
    assert "| first | 0.08 | 7.50 | 1 |" in table


@pytest.mark.slow
def test_everything_beside_accuracy_is_measured_once(bench, measured, tmp_path, monkeypatch):
    for name, small in {
        "STEPWISE_DRAWS": 1,
        "ATTACKED_IMAGES": 10,
        "CORRUPTED_IMAGES": 10,
        "LATENCY_RUN_S": 0.02,
        "ENERGY_WINDOW_S": 0.1,
        "ENERGY_IMAGES": 20,
    }.items():
        monkeypatch.setattr(after, name, small)
    rows = shutil.copytree(measured, tmp_path / "rows")
    for measure in (after.measure_tuned, after.measure_stepwise, after.measure_robustness, after.measure_costs):
        measure(bench, rows, Screen())
    before = {path.name: path.read_text() for path in rows.glob("*.csv")}
    for measure in (after.measure_tuned, after.measure_stepwise, after.measure_robustness, after.measure_costs):
        measure(bench, rows, Screen())
    assert {path.name: path.read_text() for path in rows.glob("*.csv")} == before
    found = Evidence.read(rows, SMALL, bench.blocks)
    assert len(found.path("cka", "original")[0]) == 3
    # The first step has nothing to compare but the original network.
    assert found.path("consensus", "current")[0][0] == found.path("consensus", "original")[0][0]
    assert found.path("consensus", "current")[0][0] == found.removed("consensus", 1)[0][0]
    assert set(found.robustness["measure"]) == {"fgsm", "pgd", "corruption"}
    assert (found.costs["macs_reduction_pct"] > 0).all()
    assert "Not measured yet" not in "".join(
        TABLES[name](found) for name in ("stepwise", "step_agreement", "robustness", "costs")
    )
    assert "tuned" in TABLES["first_choice"](found)


@pytest.mark.slow
def test_healing_measures_every_method_once(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(healing, "EPOCHS", (0.2, 0.4))
    monkeypatch.setattr(after, "ATTACKED_IMAGES", 10)
    monkeypatch.setattr(after, "CORRUPTED_IMAGES", 10)
    # Consensus needs more images than there are here.
    first = {order: methods for order, methods in healing.FIRST_DRAW.items() if order != "consensus"}
    monkeypatch.setattr(healing, "FIRST_DRAW", first)
    monkeypatch.setattr(healing, "COMPARED_RATIOS", (0.5,))
    for _ in range(2):
        for measure in (healing.measure, healing.measure_tuned, healing.measure_robustness):
            measure(bench, tmp_path, Screen())
    rows = Rows(tmp_path, "healing").read()
    plans = (first, healing.OTHER_DRAWS, healing.OTHER_IMAGES)
    assert len(rows) == len(bench.plan.ratios) * sum(len(methods) for plan in plans for methods in plan.values())
    assert not rows.duplicated(["draw", "images", "order", "method", "blocks"]).any()
    cka = rows[(rows["order"] == "cka") & (rows["draw"] == 0)]
    by_method = {name: own.set_index("blocks") for name, own in cka.groupby("method")}
    assert (by_method["linear"]["macs"] > by_method["nothing"]["macs"]).all()
    assert (by_method["refit"]["macs"] == by_method["nothing"]["macs"]).all()
    for method in healing.METHODS:
        assert (by_method[method]["removed"] == by_method["nothing"]["removed"]).all()
    tuned, attacked = (Rows(tmp_path, f"healing_{name}").read() for name in ("tuned", "robustness"))
    assert len(tuned) == len(healing.COMPARED) * 2
    assert len(attacked) == len(healing.COMPARED) * 5
