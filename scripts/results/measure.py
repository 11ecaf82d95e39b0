"""The runs of the results page, by `consensus run`, and the attacks that check them; rows are kept in CSV files."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from publishing import publishable
from study.rows import Rows
from torch import Tensor

from consensus_cli.cli.main import main
from consensus_cli.config.composition import read_config
from consensus_cli.errors import RunFailedError, UserError, unknown_name
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import attack_accuracy
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.experiment import checks, inputs
from consensus_cli.experiment.building import build_model
from consensus_cli.report.attribution import attribution_columns, training_columns
from consensus_cli.report.runs import load
from consensus_cli.screen import Screen
from consensus_cli.storage import checkpoint
from consensus_cli.storage.answers import read_answers
from consensus_cli.storage.results import read_rows
from consensus_cli.storage.rundir import RunDir
from results.plan import Plan

RUNS, TRIES = "runs.csv", "tries.csv"


def measure_runs(
    runs: Mapping[str, list[str]],
    words: Collection[str],
    output_dir: Path,
    rows: Path,
    *,
    only: Collection[str] = (),
    trained_in: Path | None = None,
) -> None:
    """Begins or continues every run that is not done, and publishes the rows after each.

    Args:
        runs: name -> words that begin it.
        words: where the images and the weights are, and further settings.
        output_dir: of the runs.
        rows: the CSV file.
        only: names of runs; empty: all.
        trained_in: as of `publish`.

    Raises:
        UserError: an unknown name among `only`, or a run that is refused.
        RunFailedError: a run that failed.
    """
    for name in only:
        if name not in runs:
            raise unknown_name("run", name, runs)
    for name, own in runs.items():
        if only and name not in only:
            continue
        code = main(["run", *own, *words, f"output_dir={output_dir}", "if_done=skip"])
        if code:
            # The run has said why; an interruption is the caller's.
            raise RunFailedError(f"run '{name}' ended with exit code {code}", "the same command continues it")
        publish(runs, output_dir, rows, trained_in)


def trained_as_much(plan: Plan, output_dir: Path) -> Path:
    """Returns the file of the original that was trained for as long as the first pruned network.

    Raises:
        UserError: it is not trained yet.
    """
    rows = read_rows(output_dir / "results.csv")
    if "control" in rows:
        for folder in rows.loc[(rows["control"] == "more_training") & (rows["seed"] == plan.seeds[0]), "run_dir"]:
            return RunDir(Path(folder)).pruned_checkpoint
    raise UserError("the original was not trained on yet", f"scripts/results.sh run --only controls-{plan.seeds[0]}")


def publish(names: Mapping[str, list[str]], output_dir: Path, rows: Path, trained_in: Path | None = None) -> None:
    """Writes the finished rows of the runs to a CSV file, as they can be published, each with the name of its run.

    A run without controls of its own is compared with the original that another run of its seed trained as much: all
    are fine-tuned at the end only, for the same epochs.

    Args:
        names: name -> words that begin a run; rows that are of none of them, such as those of a quick look, stay out.
        output_dir: of the runs.
        rows: the CSV file.
        trained_in: output folder of the runs with controls, if another one.

    Raises:
        UserError: there are none.
    """
    runs, latest = load(output_dir), []
    done = read_rows(output_dir / "results.csv").query("status == 'done'")
    trained = _trained_as_much(trained_in or output_dir)
    for row in done.to_dict("records"):
        words = set(shlex.split(row["overrides"]))
        # What one run says another may say, and more besides.
        known = [name for name, own in names.items() if words.issuperset(own)]
        if known:
            right = read_answers(RunDir(Path(row["run_dir"])))
            # What is owed to the choice of blocks is known once the runs by other criteria are done.
            owed = {} if _is_control(row) else attribution_columns(runs, row, right)
            if "owed_to_training_pp" not in owed:
                owed = {} if _is_control(row) else training_columns(row, right, trained.get(row["seed"], {}))
            latest.append({"name": max(known, key=lambda name: len(names[name]))} | publishable(row | owed))
    if not latest:
        raise UserError(f"'{output_dir}' holds no finished run", "scripts/results.sh run makes them")
    kept = pd.DataFrame(latest).dropna(axis=1, how="all")
    rows.parent.mkdir(parents=True, exist_ok=True)
    order = ["criterion", "seed", "ratio", *(["control"] if "control" in kept else [])]
    kept.sort_values(order, kind="stable").to_csv(rows, index=False, float_format="%.8g")


def _trained_as_much(output_dir: Path) -> dict[int, dict[str, Tensor]]:
    """Returns by seed what the original answers that was trained as much as the pruned networks."""
    rows = read_rows(output_dir / "results.csv")
    more = rows[(rows["status"] == "done") & (rows["control"] == "more_training")] if "control" in rows else rows[:0]
    return {row["seed"]: read_answers(RunDir(Path(row["run_dir"]))) for _, row in more.iterrows()}


def _is_control(row: Mapping[Any, Any]) -> bool:
    return isinstance(row.get("control"), str)


def measure_checks(plan: Plan, output_dir: Path, rows: Path, screen: Screen) -> None:
    """Attacks the pruned networks by APGD and Square beside FGSM and PGD, on the same few images."""
    found, kept = read_rows(output_dir / "results.csv"), Rows(rows, "checks")
    done = found[(found["status"] == "done") & (found["criterion"] == "consensus") & (found["seed"] == plan.seeds[0])]
    done = done[[not _is_control(row) for row in done.to_dict("records")]]
    attacks = plan.checks()
    for _, row in done.iterrows():
        known = set(kept.read().query("run_id == @row.run_id and images == @plan.checked_images")["attack"])
        missing = {name: attack for name, attack in attacks.items() if name not in known}
        if missing:
            results = _attacked(RunDir(Path(row["run_dir"])), missing, plan.checked_images)
            for name, result in results.items():
                values = {column: result[column] for column in kept.columns if column in result}
                kept.add({"run_id": row["run_id"], "attack": name, "images": plan.checked_images, **values})
        screen.line(f"checked {row['run_id']}")


def _attacked(files: RunDir, attacks: Mapping[str, Attack], images: int) -> Mapping[str, Mapping[str, float]]:
    config = read_config(files.config)
    loaded, device = inputs.read_images(config), checks.pick_device(config.device)
    original = build_model(config, loaded, device).model
    pair = Pair(original, checkpoint.load_pruned(files.path).to(device), loaded.test, config.seed, device)
    return attack_accuracy(pair, attacks, images)
