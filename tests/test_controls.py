"""Controls: rows of the same run that say what equal training alone gives."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.quick import QUICK
from helpers.report_runs import finished_row, write_results
from helpers.stopping import stop_run
from safetensors.torch import load_file

import consensus_cli as cc
from consensus_cli import training
from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.experiment import controls
from consensus_cli.experiment.checks import value_problems
from consensus_cli.experiment.run_hash import run_hash
from consensus_cli.report.attribution import attribution_columns, sentences, training_columns
from consensus_cli.report.certificates import sentence
from consensus_cli.report.comparison import run_changes
from consensus_cli.report.runs import load
from consensus_cli.report.text import markdown
from consensus_cli.screen import events
from consensus_cli.storage.answers import read_answers, write_answers
from consensus_cli.storage.certificate import read_certificate
from consensus_cli.storage.results import read_rows
from consensus_cli.storage.rundir import RunDir

WORDS = (
    *QUICK,
    "ratio=[0.17,0.34]",
    "attacks=none",
    "criterion=first",
    "finetune.epochs_per_step=0.2",
    "finetune.final_epochs=0.5",
    "evaluate.energy_window_s=0.05",
    "threads=1",
)
CONTROLS = "controls=[more_training,scratch]"
NAMES = ["more_training", "scratch", "scratch_long"]

Trainings = list[tuple[training.Recipe, int]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainings]:
    """The folder of a run with controls, and every training of it that an update was made in: recipe and seed."""
    done: Trainings = []
    train = training.train

    def noted(*words: Any, **more: Any) -> training.TrainingResult:
        if "report" in more:
            done.append((words[2], more["seed"]))
        return train(*words, **more)

    folder = tmp_path_factory.mktemp("controls")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", noted)
        assert main(["run", "--quiet", *WORDS, CONTROLS, f"output_dir={folder}"]) == 0
    return folder, done


def rows_of(folder: Path) -> pd.DataFrame:
    return read_rows(folder / "results.csv")


def test_every_row_of_the_run_has_its_controls_before_it(trained: tuple[Path, Trainings]) -> None:
    rows = rows_of(trained[0])
    assert rows["control"].fillna("").tolist() == [*NAMES, ""] * 2
    for ratio, group in rows.groupby("ratio"):
        own = group[group["control"].isna()].iloc[0]
        assert set(group["control_of"].dropna()) == {own["run_id"]}
        kept = group.set_index("control")["blocks_removed"]
        assert [kept[name] for name in NAMES] == [0, *[own["blocks_removed"]] * 2]
        assert own["blocks_removed"] == round(6 * ratio)
        assert (group["macs_base"] == own["macs_base"]).all()
        assert group["latency_b1_base_ms"].notna().tolist() == [False] * 3 + [True]
        assert group["finetune_s"].gt(0).all()


def test_controls_are_trained_as_much_as_the_pruned_network_and_alike(trained: tuple[Path, Trainings]) -> None:
    done = trained[1]
    baseline, *rest = done
    first, final = rest[:2]
    assert (first[0].epochs, final[0].epochs) == (0.2, 0.5)
    assert rest[2:4] == [first, final]
    scratch, scratch_long = rest[4:6]
    assert scratch == (replace(final[0], epochs=0.7), scratch[1])
    assert scratch_long[0].epochs == pytest.approx(0.7 + baseline[0].epochs)
    # At the second ratio another block is gone, and another fine-tuning lies behind.
    second, final = rest[6:8]
    assert rest[8:11] == [first, second, final]
    assert [recipe.epochs for recipe, _ in rest[11:]] == pytest.approx([0.9, 0.9 + baseline[0].epochs])


def test_without_controls_the_run_ends_the_same(trained: tuple[Path, Trainings], tmp_path: Path) -> None:
    assert main(["run", "--quiet", *WORDS, f"output_dir={tmp_path}"]) == 0
    plain, controlled = rows_of(tmp_path), rows_of(trained[0])
    controlled = controlled[controlled["control"].isna()].reset_index(drop=True)
    assert not {"control", "control_of", "owed_to_training_pp"} & set(plain)
    for column in ("removed_blocks", "accuracy_base_pct", "accuracy_pruned_pct", "nll_pruned_nats", "macs_pruned"):
        assert plain[column].tolist() == controlled[column].tolist()
    run = compose_run(WORDS)
    assert run_hash(run) != run_hash(replace(run, controls=["scratch"]))


def test_a_control_is_a_network_of_its_own(trained: tuple[Path, Trainings]) -> None:
    rows = rows_of(trained[0])
    weights = {}
    for name, group in rows.groupby(rows["control"].fillna("")):
        row = group.iloc[-1]
        model = cc.load_pruned(row["run_dir"])
        assert sum(p.numel() for p in model.network.parameters()) == row["params_pruned"]
        assert read_answers(RunDir(Path(row["run_dir"])))["pruned"].double().mean() == row["accuracy_pruned_pct"] / 100
        # Nothing is asked of a control's shape: "missed" would be said of every original trained on.
        told = sentence(read_certificate(RunDir(Path(row["run_dir"]))))
        assert "largest difference of a logit" in told
        assert ("target" in told) == (name == "")
        weights[name] = load_file(RunDir(Path(row["run_dir"])).pruned_checkpoint)
    keys = set(weights["scratch"]) == set(weights[""]) == set(weights["scratch_long"])
    assert keys
    for other in ("", "scratch_long"):
        assert not torch.equal(weights["scratch"]["conv1.weight"], weights[other]["conv1.weight"])


def test_the_columns_of_the_run_say_what_is_owed_to_what(trained: tuple[Path, Trainings]) -> None:
    rows = rows_of(trained[0])
    for _, group in rows.groupby("ratio"):
        own = group[group["control"].isna()].iloc[0]
        pct = group.set_index(group["control"].fillna(""))["accuracy_pruned_pct"]
        assert own["owed_to_training_pp"] == pytest.approx(pct["more_training"] - own["accuracy_base_pct"])
        assert own["owed_to_pruning_pp"] == pytest.approx(pct[""] - pct["more_training"])
        assert own["owed_to_training_pp"] + own["owed_to_pruning_pp"] == pytest.approx(own["accuracy_delta_pp"])
        assert own["owed_to_weights_pp"] == pytest.approx(pct[""] - pct["scratch"])
        assert own["owed_to_weights_long_pp"] == pytest.approx(pct[""] - pct["scratch_long"])
        assert own["owed_to_pruning_ci95_low"] <= own["owed_to_pruning_pp"] <= own["owed_to_pruning_ci95_high"]
        summary = (Path(own["run_dir"]) / "summary.md").read_text(encoding="utf-8")
        assert "to training \\(the original trained as much\\)" in summary
        assert "choice of blocks" not in summary


def test_the_report_adds_the_choice_of_blocks_where_other_rows_exist(trained: tuple[Path, Trainings]) -> None:
    folder = trained[0]
    for criterion in ("random", "uniform"):
        assert main(["run", "--quiet", *WORDS, f"criterion={criterion}", f"output_dir={folder}"]) == 0
    text = markdown(folder)
    assert text.count("mean of 1 draw)") + text.count("mean of 1 draw\\)") == 2
    assert text.count("against evenly spaced ones") == 2
    front = text.split("## Trade-offs")[1].split("## Controls")[0]
    assert "| **first, control more" not in front
    assert "first, control more" in front
    runs = load(folder)
    row = runs.finished[(runs.finished["criterion"] == "first") & (runs.finished["control"] == "")].iloc[0]
    same = runs.finished[(runs.finished["ratio"] == row["ratio"]) & (runs.finished["control"] == "")]
    random_pct = same.loc[same["criterion"] == "random", "accuracy_pruned_pct"].mean()
    found = attribution_columns(runs, row.to_dict(), read_answers(RunDir(Path(row["run_dir"]))))
    assert found["owed_to_choice_random_pp"] == pytest.approx(row["accuracy_pruned_pct"] - random_pct)
    assert main(["report", str(folder), "--out", str(folder / "report.html")]) == 0
    assert "Controls: what is owed to what" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_stop_in_a_control_repeats_no_finished_one(trained: tuple[Path, Trainings], tmp_path: Path) -> None:
    seen = 0

    def in_scratch(event: events.Event) -> bool:
        nonlocal seen
        seen += isinstance(event, events.StageStarted) and event.stage == "finetune"
        # Between removals, at the end, `more_training`, `scratch`.
        return seen == 4

    words = (*WORDS, "ratio=0.17", CONTROLS)
    assert stop_run(tmp_path, *words, when=in_scratch, number=signal.SIGTERM) == signal.SIGTERM
    assert rows_of(tmp_path)["status"].tolist() == ["done", "interrupted"]
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if RunDir(path).state.exists())
    assert main(["resume", str(folder)]) == 0
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert log.count("control more_training: loss") == 1
    resumed, whole = rows_of(tmp_path), rows_of(trained[0])[:4]
    resumed = resumed.set_index(resumed["control"].fillna("")).loc[[*NAMES, ""]]
    assert (resumed["status"] == "done").all()
    assert resumed["accuracy_pruned_pct"].tolist() == whole["accuracy_pruned_pct"].tolist()
    assert resumed["owed_to_pruning_pp"].iloc[-1] == whole["owed_to_pruning_pp"].iloc[-1]


def test_the_parts_of_a_small_change_are_those_counted_by_hand(tmp_path: Path) -> None:
    """8 images, 4 of them attacked; random blocks in two draws, beside four rows that are no draws of it."""
    right = {"base": "11100000", "own": "11110000", "more": "11111100", "draw 0": "11000000", "draw 1": "01110000"}
    bits = {name: torch.tensor([digit == "1" for digit in text]) for name, text in right.items()}
    rows = [
        finished_row("own", images_hash="a"),
        finished_row("own-more_training", images_hash="a", control="more_training", control_of="own"),
        *(
            finished_row(f"draw {seed}", images_hash="a", criterion="random", seed=seed, overrides=f"if_done={done}")
            for seed, done in enumerate(("skip", "rerun"))
        ),
        finished_row("draw 2", images_hash="b", criterion="random", seed=2),
        finished_row("draw 3", images_hash="a", criterion="random", overrides="prune.step=2"),
        # The same draw once more, and one from another original: neither counts.
        finished_row("draw 0 again", images_hash="a", criterion="random", seed=0),
        finished_row("draw 5", images_hash="a", criterion="random", seed=5, overrides="if_done=rerun"),
    ]
    write_results(tmp_path, rows)
    attacked = {"pgd_base": bits["draw 0"][:4], "pgd_pruned": bits["own"][:4]}
    for name, answers in (
        ("own-more_training", {"pruned": bits["more"], "pgd_pruned": bits["draw 1"][:4]}),
        *((f"draw {i}", {"pruned": bits[f"draw {i % 2}"]}) for i in range(4)),
        ("draw 0 again", {"pruned": bits["draw 0"]}),
        ("draw 5", {"pruned": bits["more"], "base": ~bits["base"]}),
    ):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_answers(RunDir(tmp_path / "runs" / name), {"base": bits["base"]} | answers)
    found = attribution_columns(load(tmp_path), rows[0], {"base": bits["base"], "pruned": bits["own"]} | attacked)
    assert found["owed_to_training_pp"] == 100 * (6 - 3) / 8
    assert found["owed_to_pruning_pp"] == 100 * (4 - 6) / 8
    assert (found["owed_to_choice_random_pp"], found["random_draws"]) == (100 * (4 - 2.5) / 8, 2)
    assert not {"owed_to_weights_pp", "owed_to_choice_uniform_pp"} & set(found)
    # Lost answers, and those of another original.
    assert training_columns(rows[0], {}, bits) == {}
    assert training_columns(rows[0], {"base": bits["base"], "pruned": bits["own"]}, {"base": bits["own"]}) == {}
    assert found["pgd_owed_to_training_pp"] == 100 * (3 - 2) / 4
    assert found["pgd_owed_to_pruning_pp"] == 100 * (4 - 3) / 4
    under = {"pgd_eps255": 8.0, "pgd_base_pct": 50.0, "pgd_pruned_pct": 100.0, "pgd_delta_pp": 50.0}
    first, second = sentences({**rows[0], **found, **under})
    assert "mean of 2 draws" in first
    assert second.startswith("Of the changes under attack, in pp: PGD 8/255 +50.00: +25.00 [")


def test_scratch_is_two_controls() -> None:
    assert controls.asked(["scratch"]) == ["scratch", "scratch_long"]
    assert controls.asked(["scratch", "more_training"]) == NAMES
    assert controls.asked([]) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["controls=[more]"], "more"),
        (["controls=[scratch]", "finetune=none"], "not at all"),
    ],
)
def test_controls_that_cannot_be(words: list[str], message: str) -> None:
    (problem,) = value_problems(compose_run(words))
    assert message in problem.message
    assert problem.hint


def test_answers_come_back_and_damage_is_no_answer(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    right = {
        "base": torch.arange(13) % 3 == 0,
        "pruned": torch.zeros(13, dtype=torch.bool),
        "pgd_base": torch.ones(9) > 0,
    }
    write_answers(files, right)
    found = read_answers(files)
    assert all(torch.equal(found[name], right[name]) for name in right)
    for content in ("", "[]", json.dumps({"images": {"base": 9}, "right": {"base": "!"}}), json.dumps({"right": 1})):
        files.answers.write_text(content)
        assert read_answers(files) == {}


def test_no_change_is_said_as_well() -> None:
    row = {f"owed_to_training_{end}": 0.0 for end in ("pp", "ci95_low", "ci95_high")}
    assert (
        "+0.00 pp [+0.00, +0.00] to training" in sentences({"accuracy_delta_pp": 0.0, "random_draws": None, **row})[0]
    )


def test_the_summary_knows_of_how_many_draws_the_choice_is() -> None:
    owed = {f"owed_to_choice_random_{end}": 1.0 for end in ("pp", "ci95_low", "ci95_high")}
    for draws, said in ((1, "mean of 1 draw)"), (3, "mean of 3 draws)")):
        run, _ = run_changes(finished_row("a", random_draws=draws, **owed))
        assert said in sentences(run.to_dict())[0]


def test_a_row_without_controls_has_nothing_to_say() -> None:
    assert sentences({"accuracy_delta_pp": 1.0}) == []
