"""The benchmarks run, and print what they promise."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.quick import QUICK
from torch import nn

from consensus_cli.cli.main import main


def printed(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
    # pytest puts scripts/ on the path (pyproject.toml).
    importlib.import_module(name).main()
    return capsys.readouterr().out


def test_both_loops_are_timed_in_one_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model resnet20 --images 32 --image-size 8 --batch-size 8 --epochs 1 --workers 0 --device cpu --profile"
    output = printed("bench_training", words.split(), monkeypatch, capsys)
    plain, ours = (float(re.search(rf"^{name}: ([\d.]+) images/s", output, re.M)[1]) for name in ("plain loop", "ours"))  # type: ignore[index]
    ratio = float(re.search(r"ours / plain loop: ([\d.]+)", output)[1])  # type: ignore[index]
    assert ratio == pytest.approx(ours / plain, rel=0.02, abs=0.01)
    assert re.search(r"one prune step .*: [\d.]+ s", output)
    assert re.search(r"peak memory: \d+ MiB", output)
    assert "aten::" in output


def test_both_loops_end_at_accuracies_that_can_be_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--model resnet20 --image-size 8 --images 300 --test-images 100 --epochs 3 --learning-rate 0.05 --batch-size 16"
    )
    output = printed("bench_accuracy", [*words.split(), "--seeds", "0,1", "--workers", "0"], monkeypatch, capsys)
    seeds = re.findall(
        r"^seed \d: plain loop ([\d.]+) % .* ours ([\d.]+) % .* ours − plain ([+-][\d.]+) pp", output, re.M
    )
    assert len(seeds) == 2
    for plain, ours, difference in seeds:
        assert float(ours) - float(plain) == pytest.approx(float(difference), abs=0.02)
        # Both have learned something: ten classes, chance is 10 %.
        assert min(float(plain), float(ours)) > 30
    (mean,) = re.findall(r"^ours: mean ([\d.]+) %", output, re.M)
    assert float(mean) == pytest.approx(sum(float(ours) for _, ours, _ in seeds) / 2, abs=0.02)


@pytest.mark.slow
def test_a_whole_run_is_divided_into_its_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = printed("bench_run", [*QUICK, "attacks=none"], monkeypatch, capsys)
    whole_s = float(re.search(r": ([\d.]+) s$", output.splitlines()[0])[1])  # type: ignore[index]
    parts_s = [float(line.split(" s ")[0].split()[-1]) for line in output.splitlines()[1:6]]
    assert sum(parts_s) == pytest.approx(whole_s, abs=0.3)
    assert min(parts_s) >= 0
    assert sum(part_s > 0 for part_s in parts_s) >= 4
    assert re.search(r"peak memory \d+ MiB", output)


@pytest.mark.slow
def test_the_ways_to_recover_are_compared_in_equal_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path), "--seeds", "0", "--recalibration-images", "64", "--", *QUICK, "criterion=last"]
    table = printed("bench_recovery", [*words, "ratio=0.17"], monkeypatch, capsys)
    rows = pd.read_csv(tmp_path / "recovery.csv")
    assert rows["way"].tolist() == ["plain", "recalibration", "distillation", "both"]
    assert (rows["blocks_removed"] == 1).all()
    assert table == (tmp_path / "recovery.md").read_text()
    assert len(table.splitlines()) == 6


@pytest.mark.slow
def test_the_deep_cifar_experiment_in_small(tmp_path: Path) -> None:
    """What is meant for a GPU, on a CPU: five of the six blocks of a ResNet20, one epoch after each."""
    small = ["model=resnet20", "dataset=digits", "dataset.limit_train=300", "dataset.limit_test=100", "attacks=none"]
    small += [
        "metrics.samples_per_class=16",
        "baseline.epochs=2",
        "finetune.final_epochs=1",
        "evaluate.energy_window_s=0.2",
        "evaluate.energy_repeats=1",
    ]
    assert main(["run", "experiment=cifar10_deep", *small, f"output_dir={tmp_path}"]) == 0
    row = pd.read_csv(tmp_path / "results.csv").iloc[0]
    assert (row["blocks_removed"], row["blocks_candidates"]) == (5, 6)


def test_the_first_contact_is_timed_beside_import_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = printed("bench_startup", ["--rounds", "1"], monkeypatch, capsys)
    spent = {name: float(cpu_s) for name, cpu_s in re.findall(r"^(\S.*?) +CPU +([\d.]+) s", output, re.M)}
    assert list(spent) == ["import torch", "consensus --help", "consensus list", "consensus list blocks model=resnet56"]
    assert all(cpu_s > 0 for cpu_s in spent.values())


def test_savings_and_accuracies_at_equal_latency_are_put_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = importlib.import_module("bench_targets")
    rows = bench.Rows(tmp_path, "targets")
    for seed in (0, 1):
        for way, saved_pct, pruned_pct in (("by latency", 31.0, 80.0 + seed), ("prune=macs", 21.0, 79.0)):
            row = dict.fromkeys(rows.columns, 0) | {"network": "net", "way": way, "seed": seed, "saved_pct": saved_pct}
            rows.add(row | {"accuracy_base_pct": 85.0, "accuracy_pruned_pct": pruned_pct, "macs_reduction_pct": 30.0})
    page = tmp_path / "page.md"
    page.write_text("<!-- table: targets -->\n<!-- end -->\n<!-- table: targets_kept -->\n<!-- end -->\n")
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["bench_targets.py", "page", "--rows", str(tmp_path)])
    assert bench.main() == 0
    output = page.read_text()
    assert "| net | by latency | 0.0 ± 0.0 | 31.0 ± 0.0 | 2 of 2 | 30.0 ± 0.0 | 85.0 ± 0.0 | 80.5 ± 6.4 |" in output
    assert "| net | prune=macs | 0.0 ± 0.0 | 21.0 ± 0.0 | 0 of 2 |" in output
    assert "| net | prune=macs | 1.5 ± 6.4 | +1.00 +2.00 |" in output


def test_the_page_on_costs_shows_exactly_what_the_rows_give() -> None:
    bench = importlib.import_module("bench_targets")
    text = bench.PAGE.read_text(encoding="utf-8")
    assert "<!-- table: targets -->" in text
    assert bench.with_tables(text, bench.PAGE.parent / "study") == text


def test_the_loop_of_the_script_reads_a_network_against_itself_as_no_saving() -> None:
    bench = importlib.import_module("bench_targets")
    layer = nn.Conv2d(3, 3, 1)
    share, low, high = bench.saving(layer, layer, torch.rand(1, 3, 8, 8))
    assert low <= share <= high < 1
