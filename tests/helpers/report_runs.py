"""Sources for the tests of the report: results files and run directories as the pipeline writes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from consensus_cli.storage.results import COLUMNS

Row = dict[str, object]

CRITERIA = ("consensus", "cka", "weight_norm", "random")


def finished_row(run_id: str, **values: object) -> Row:
    """The row of a finished run with attacks, 20 of 100 MACs saved, 1 pp of accuracy lost."""
    measured: Row = {
        "run_id": run_id, "status": "done", "started_at": "2025-01-31T12:00:00+00:00", "duration_s": 75.0,
        "version": "0.1.0", "git_commit": "abc", "overrides": "model=resnet20 seed=0", "seed": 0, "device": "cpu",
        "threads": 1, "torch_version": "2", "model": "resnet20", "dataset": "digits", "criterion": "consensus",
        "metrics": "cka;bures", "samples_per_class": 16, "ratio": 0.25, "ratio_unit": "blocks", "blocks_candidates": 4,
        "blocks_removed": 2, "removed_blocks": "layer1.1;layer2.1", "macs_base": 100, "macs_pruned": 80,
        "macs_reduction_pct": 20.0, "params_base": 1000, "params_pruned": 900, "params_reduction_pct": 10.0,
        "accuracy_base_pct": 95.0, "accuracy_pruned_pct": 94.0, "accuracy_delta_pp": -1.0, "test_images": 10000,
        "latency_b1_base_ms": 8.0, "latency_b1_pruned_ms": 6.0, "latency_b128_base_ms": 20.0,
        "latency_b128_pruned_ms": 10.0, "energy_inference_base_kwh": 4e-6, "energy_inference_pruned_kwh": 3e-6,
        "energy_inference_reduction_pct": 25.0, "energy_epoch_base_kwh": 8e-6, "energy_epoch_pruned_kwh": 6e-6,
        "energy_epoch_reduction_pct": 25.0, "co2_inference_base_kg": 4e-7, "co2_inference_pruned_kg": 3e-7,
        "co2_epoch_base_kg": 8e-7, "co2_epoch_pruned_kg": 6e-7, "energy_source": "a counter", "country": "BRA",
        "energy_run_kwh": 1e-3, "co2_run_kg": 1e-4, "fgsm_eps255": 8.0, "fgsm_base_pct": 60.0,
        "fgsm_pruned_pct": 55.0, "fgsm_delta_pp": -5.0, "fgsm_ci95_low": -7.0, "fgsm_ci95_high": -3.0,
        "pgd_eps255": 8.0, "pgd_base_pct": 40.0, "pgd_pruned_pct": 30.0, "pgd_delta_pp": -10.0, "pgd_ci95_low": -12.0,
        "pgd_ci95_high": -8.0, "attacked_images": 2000, "score_s": 1.0, "finetune_s": 2.0, "evaluate_s": 3.0,
        "run_dir": f"outputs/runs/{run_id}", "aggregation": "rank_sum", "precision": "fp32", "energy_estimated": False,
        "energy_baseline_kwh": 5e-4, "energy_score_kwh": 1e-4, "energy_finetune_kwh": 3e-4, "energy_evaluate_kwh": 1e-4,
    }  # fmt: skip
    return measured | values


def sweep(ratios: Iterable[float] = (0.25, 0.5), seeds: int = 3, criteria: Iterable[str] = CRITERIA) -> list[Row]:
    """Runs of several criteria, ratios and seeds: accuracy falls with the ratio, faster the later the criterion."""
    random = np.random.default_rng(0)
    rows = []
    for position, criterion in enumerate(criteria):
        for ratio in ratios:
            for seed in range(seeds):
                saved, lost = 80 * ratio, (1 + position) * 6 * ratio**2 + random.normal(0, 0.3)
                rows.append(
                    finished_row(
                        f"run-{len(rows):04}",
                        criterion=criterion,
                        ratio=ratio,
                        seed=seed,
                        overrides=f"model=resnet20 criterion={criterion} ratio={ratio} seed={seed}",
                        macs_reduction_pct=saved,
                        accuracy_pruned_pct=95 - lost,
                        accuracy_delta_pp=-lost,
                        pgd_pruned_pct=40 - 3 * lost,
                    )
                )
    return rows


def write_results(folder: Path, rows: Iterable[Row]) -> Path:
    """Writes `results.csv` in one go: 1,500 rows appended one by one would take a minute of flushing."""
    lines = list(rows)
    header = list(dict.fromkeys([*COLUMNS, *(name for row in lines for name in row)]))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.csv"
    pd.DataFrame(lines, columns=header, dtype=object).to_csv(path, index=False)
    return path


def scores() -> pd.DataFrame:
    """Scores of two steps over four blocks by two metrics that disagree on the middle: layer1.1 goes, then layer2.1."""
    distances = {
        (1, "cka"): {"layer1.1": 0.1, "layer1.2": 0.2, "layer2.1": 0.3, "layer2.2": 0.4},
        (1, "bures"): {"layer1.1": 1.0, "layer1.2": 3.0, "layer2.1": 2.0, "layer2.2": 4.0},
        (2, "cka"): {"layer1.2": 0.2, "layer2.1": 0.1, "layer2.2": 0.4},
        (2, "bures"): {"layer1.2": 2.0, "layer2.1": 1.0, "layer2.2": 3.0},
    }
    sums = {
        1: {"layer1.1": 2, "layer1.2": 5, "layer2.1": 5, "layer2.2": 8},
        2: {"layer1.2": 4, "layer2.1": 2, "layer2.2": 6},
    }
    return pd.DataFrame(
        [
            {
                "step": step,
                "block": block,
                "metric": metric,
                "distance": distance,
                "rank": float(sorted(values.values()).index(distance) + 1),
                "sum": float(sums[step][block]),
            }
            for (step, metric), values in distances.items()
            for block, distance in values.items()
        ]
    )


def write_scores(output_dir: Path, run_id: str) -> Path:
    """Makes a run directory with the scores of `scores()` in it."""
    folder = output_dir / "runs" / run_id
    folder.mkdir(parents=True)
    scores().to_csv(folder / "scores.csv", index=False)
    return folder
