"""The results page shows what its rows hold, and its plan runs from beginning to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers.report_runs import finished_row, write_results
from results import __main__ as command
from results.page import TABLES, Results, draw, with_tables
from results.plan import PROTOCOL, RATIOS, TINY, Plan
from study.bench import unpacked
from study.markdown import MARKER

from consensus_cli.config.composition import compose_run
from consensus_cli.experiment.checks import value_problems
from consensus_cli.report.formatting import fixed

ROOT = Path(__file__).parents[2]
PAGE, ROWS = ROOT / "docs" / "results.md", ROOT / "docs" / "results"


def test_the_page_shows_exactly_what_the_rows_give() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert sorted(match["name"] for match in MARKER.finditer(text)) == sorted(TABLES)
    assert text == with_tables(text, Results.read(ROWS))


def test_the_plan_is_the_one_that_was_asked_for() -> None:
    runs = dict(Plan().runs())
    composed = {name: compose_run([*words, "dataset.root=x"]) for name, words in runs.items()}
    assert {ratio for run in composed.values() for ratio in run.ratios} == set(RATIOS.values())
    controlled = [run for run in composed.values() if run.controls]
    assert [(run.seed, run.ratios) for run in controlled] == [(seed, [RATIOS[15]]) for seed in (0, 1, 2)]
    for run in composed.values():
        assert value_problems(run) == []
        assert (run.finetune.final_epochs, run.finetune.schedule, run.prune.min_blocks_per_stage) == (20, "onecycle", 2)
        assert run.attacks.images == 1000
        assert len(run.evaluate.corruptions) == 11
    assert {attack.name for attack in Plan().checks().values()} == {"fgsm", "pgd", "apgd", "square"}


def made_up(folder: Path) -> Results:
    shared = {"overrides": " ".join(PROTOCOL), "model": "resnet56", "dataset": "cifar10jpeg", "accuracy_base_pct": 88.0}
    shared |= {"clean_base_pct": 90.0, "clean_pruned_pct": 89.0, "fgsm_eps1_eps255": 1.0}
    (folder / "cpu").mkdir()
    other = {"ratio": 0.625, "accuracy_pruned_pct": 88.7, "latency_b1_reduction_pct": 30.0, "energy_estimated": True}
    other |= {"owed_to_pruning_pp": -0.7, "owed_to_pruning_ci95_low": -1.2, "owed_to_pruning_ci95_high": -0.2}
    write_results(folder / "cpu", [finished_row("cpu", **shared | other)]).rename(folder / "cpu" / "runs.csv")
    shared |= {"device": "cuda (NVIDIA H100)", "latency_b1_reduction_pct": 10.0}
    shared |= {f"energy_{what}_reduction_pct": float("nan") for what in ("inference", "epoch")}
    rows = []
    # Each seed attacks images of its own, which are harder for both networks in the second.
    for seed, pruned in ((0, 88.2), (1, 88.6)):
        own = shared | {"seed": seed, "ratio": 0.625, "accuracy_pruned_pct": pruned, "accuracy_delta_pp": pruned - 88}
        own |= {"blocks_removed": 15, "fgsm_eps1_base_pct": 70.0 - 4 * seed, "fgsm_eps1_pruned_pct": 60.0 - 4 * seed}
        own |= {"fgsm_eps1_delta_pp": -10.0 + 0.1 * seed, "fgsm_eps1_owed_to_pruning_pp": -9.0 + 18 * seed}
        own |= {"own_corruption_mean_base_pct": 70.0, "own_corruption_mean_pruned_pct": 71.0 + seed}
        own |= {"own_corruption_mean_delta_pp": 1.0 + seed}
        owed = {"owed_to_training_pp": 0.71, "owed_to_training_ci95_low": 0.2, "owed_to_training_ci95_high": 1.2}
        owed |= {"owed_to_pruning_pp": -0.5 - 0.01 * seed, "owed_to_pruning_ci95_low": -0.9}
        owed |= {"owed_to_pruning_ci95_high": -0.1, "pgd_delta_pp": float("nan")}
        rows.append(finished_row(f"run-{seed}", **own, **owed))
        trained = own | {"accuracy_pruned_pct": 89.0, "control": "more_training", "control_of": f"run-{seed}"}
        rows.append(finished_row(f"run-{seed}-more_training", **trained))
    # The controls of a run are done before it: a third seed has one and nothing to compare it with.
    alone = trained | {"seed": 2, "accuracy_pruned_pct": 99.0, "control_of": "run-2"}
    rows.append(finished_row("run-2-more_training", **alone))
    fewer = {"accuracy_pruned_pct": 88.9, "accuracy_delta_pp": 0.9, "accuracy_ci95_low": 0.3, "accuracy_ci95_high": 1.5}
    fewer |= {"owed_to_pruning_pp": -0.1, "owed_to_pruning_ci95_low": -0.6, "owed_to_pruning_ci95_high": 0.4}
    rows.append(finished_row("twelve", **shared | {"ratio": 0.5, "blocks_removed": 12, **fewer}))
    write_results(folder, rows).rename(folder / "runs.csv")
    Path(folder / "checks.csv").write_text(
        "run_id,attack,eps255,images,base_pct,pruned_pct,delta_pp,ci95_low,ci95_high\n"
        "run-0,pgd_eps1,1,100,60,58,-2,-5,1\nrun-0,square_eps1,1,100,64,57,-7,-9,0\n"
    )
    owed = {"owed_to_pruning_pp": -0.3, "owed_to_pruning_ci95_low": -0.8, "owed_to_pruning_ci95_high": 0.2}
    tried = [
        finished_row(
            f"{name}-{ratio}",
            **shared | {"ratio": ratio, "accuracy_pruned_pct": accuracy, "accuracy_delta_pp": accuracy - 88} | owed,
            name=name,
        )
        for name, ratio, accuracy in (("healed", 0.5, 88.7), ("healed", 0.625, 88.4), ("taught", 0.625, 88.95))
    ]
    write_results(folder, tried).rename(folder / "tries.csv")
    return Results.read(folder)


def test_tables_and_figures_are_made_of_the_rows(tmp_path: Path) -> None:
    results = made_up(tmp_path)
    text = with_tables(PAGE.read_text(encoding="utf-8"), results)
    assert with_tables(text, results) == text
    # Over two seeds, 12.706 · s / √2: 0.40 ± 2.54, −0.505 ± 0.064, −9.95 ± 0.64, 0 ± 114.
    assert "15 of 24 blocks gone, 2 seeds." in text
    assert (
        "**Accuracy: within noise of the original, below the original trained as much.** +0.40 [−2.14, +2.94] and "
        "−0.51 [−0.57, −0.44]. With 12 blocks gone: above the original, within noise of the original trained as much, "
        "+0.90 [+0.30, +1.50] and −0.10 [−0.60, +0.40]." in text
    )
    assert (
        "of 3 attacks that leave enough images to tell, better under 0 and worse under 2 against the original, better "
        "under 0 and worse under 0 against the original trained as much" in text
    )
    assert "| FGSM 1/255 | 58.0 | −9.95 [−10.59, −9.31] | +0.00 [−114.36, +114.36] |" in text
    assert "| 12 | 1 | 88.90 | +0.90 [+0.30, +1.50] | −0.10 [−0.60, +0.40] | −20.0 |" in text
    assert "| 15 | 2 | 88.40 | +0.40 [−2.14, +2.94] | −0.51 [−0.57, −0.44] | −20.0 |" in text
    assert "| original, trained as much | 2 | 89.00 | 89.00 89.00 | 71.50 (+1.50) |" in text
    assert "| 0 | +0.20 | +0.71 [+0.20, +1.20] | −0.50 [−0.90, −0.10] | – |" in text
    assert (
        "| plain | 88.90 | +0.90 [+0.30, +1.50] | −0.10 [−0.60, +0.40] | 88.20 | +0.20 | −0.50 [−0.90, −0.10] |" in text
    )
    assert "| healed | 88.70 | +0.70 | −0.30 [−0.80, +0.20] | 88.40 | +0.40 | −0.30 [−0.80, +0.20] |" in text
    assert "| taught | – | – | – | 88.95 | +0.95 | −0.30 [−0.80, +0.20] |" in text
    taught = "as its teacher (1 seed, not attacked): within noise of the original, within noise of the original trained"
    assert f"With 15 blocks gone and the original trained as much {taught} as much, +0.95 and −0.30 [" in text
    assert "With 12 blocks gone and the" not in text
    assert "latency at batch 1 −10.0 % (NVIDIA H100) and −30.0 % (CPU), latency" in text
    assert ", energy of inference −25.0 % (CPU, estimated from its time), energy" in text
    assert "| CPU | 15 | 1 | 88.70 | −0.70 [−1.20, −0.20] | −30.0 | −50.0 | −25.0 |" in text
    assert "| NVIDIA H100 | 15 | 2 | 88.40 | −0.51 [−0.57, −0.44] | −10.0 | −50.0 | – |" in text
    # Rows of the same machine are shown once, those of the page's own runs.
    again = replace(results, cpu=results.runs.assign(accuracy_pruned_pct=1.0))
    assert with_tables(text, again).count("| NVIDIA H100 | 15 |") == 1
    assert "| 1.00 |" not in with_tables(text, again)
    assert "(CPU" not in with_tables(text, replace(results, cpu=pd.DataFrame()))
    assert "| without 15 blocks | 2 | 89.0 (−1.0) | 58.0 (−10.0) |" in text
    assert "| 15 blocks | 100 | 60.0 / 58.0 | 64.0 / 57.0 |" in text
    assert "- SQUARE 1/255 leaves fewer images standing than every attack with gradients" in text
    assert "| 15 | 56.29 | +0.95 | +0.40 |" in text
    written = draw(results, tmp_path)
    assert {path.name for path in written} == {"tradeoff.svg", "fgsm.svg"}
    (tmp_path / "runs.csv").unlink()
    (tmp_path / "cpu" / "runs.csv").unlink()
    (tmp_path / "tries.csv").unlink()
    empty = Results.read(tmp_path)
    assert draw(empty, tmp_path) == []
    assert with_tables(text, empty).count("*Not measured yet.*") == len(TABLES)


def test_mistakes_cost_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(tmp_path), "--rows", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert command.main(["run", *where, "--only", "control-0"]) == 2
    assert command.main(["run", *where, "--tiny", "--weights", str(tmp_path / "none.safetensors")]) == 1
    said = capsys.readouterr().err
    assert "did you mean 'controls-0'" in said
    assert "error: run 'controls-0' ended with exit code 2" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_tiny_plan_runs_resumes_and_fills_the_page(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", str(tmp_path / "rows"), "--output-dir", str(tmp_path / "out"), "--tiny", "--set", "threads=1"]
    words += ["--root", str(unpacked(photographs, tmp_path))]
    assert command.main(["run", *words, "--only", "controls-0", "ratios"]) == 0
    capsys.readouterr()
    assert command.main(["run", *words]) == 0
    assert capsys.readouterr().out.count("is done already") == 2
    assert command.main(["tries", *words, "--only", "taught", "healed"]) == 0
    assert command.main(["checks", *words]) == 0
    page = tmp_path / "results.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    assert command.main(["page", "--rows", str(tmp_path / "rows"), "--document", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "*Not measured yet.*" not in text
    rows = pd.read_csv(tmp_path / "rows" / "runs.csv")
    tried = pd.read_csv(tmp_path / "rows" / "tries.csv")
    assert tried["name"].value_counts().to_dict() == {"healed": 2, "taught": 2}
    assert tried["overrides"].str.contains("finetune.teacher=sha256:").sum() == 2
    assert set(rows["name"]) == set(dict(TINY.runs()))
    assert len(rows) == len(list(TINY.runs())) + 2 + 3
    assert rows["overrides"].str.contains("model.weights=sha256:").all()
    assert str(tmp_path) not in (tmp_path / "rows" / "runs.csv").read_text(encoding="utf-8")
    own = rows[rows["control"].isna() & (rows["criterion"] == "consensus") & (rows["ratio"] == 0.625)].iloc[0]
    for column in ("owed_to_training_pp", "owed_to_choice_random_pp", "owed_to_choice_uniform_pp"):
        assert fixed(own[column], 2, sign=True) in text
    checks = (tmp_path / "rows" / "checks.csv").read_text(encoding="utf-8")
    assert command.main(["checks", *words]) == 0
    assert (tmp_path / "rows" / "checks.csv").read_text(encoding="utf-8") == checks
