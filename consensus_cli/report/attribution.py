"""What of a change in accuracy is owed to training, pruning and the choice of blocks: a run beside its controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from consensus_cli.evaluation.statistics import paired_change
from consensus_cli.report.formatting import fixed
from consensus_cli.report.runs import Runs, settings_text
from consensus_cli.storage.answers import read_answers
from consensus_cli.storage.rundir import RunDir

#: part of a change -> the networks whose difference it is: of this run, of its controls, of runs by another criterion
PARTS = {
    "training": ("base", "more_training"),
    "pruning": ("more_training", "pruned"),
    "weights": ("scratch", "pruned"),
    "weights_long": ("scratch_long", "pruned"),
    "choice_random": ("random", "pruned"),
    "choice_uniform": ("uniform", "pruned"),
}
_OTHERWISE = ("random", "uniform")
#: what the sentence calls a part
_SAID = {
    "training": "to training (the original trained as much)",
    "pruning": "to pruning (against that original)",
    "weights": "to the kept weights (against the same shape from fresh ones, trained as much)",
    "weights_long": "to them where the fresh ones are trained for the original's epochs besides",
    "choice_random": "to the choice of blocks (against random ones, mean of {draws})",
    "choice_uniform": "to the choice of blocks (against evenly spaced ones)",
}


def attribution_columns(runs: Runs, row: Mapping[Any, Any], right: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns how much of a run's change in accuracy is owed to what, in pp, with 95 % intervals over test images.

    Args:
        runs: where the controls of the run are, and runs that differ from it in criterion and seed alone.
        row: of the run.
        right: whether its networks `base` and `pruned` are right about each test image, (n,) bool.

    Returns:
        `owed_to_<part>_pp`, `_ci95_low` and `_ci95_high` for each of `PARTS` whose networks are known (paired bootstrap
        over images), and `random_draws`, how many runs with random blocks there are.
    """
    if not {"base", "pruned"} <= right.keys():
        return {}
    known, columns = dict(right), dict[str, float]()
    for _, control in runs.finished[runs.finished["control_of"] == row["run_id"]].iterrows():
        for answers in _pruned_answers(runs, control):
            known[control["control"]] = answers
    for criterion in _OTHERWISE:
        draws = [a for _, other in _otherwise(runs, row, criterion).iterrows() for a in _pruned_answers(runs, other)]
        draws = [draw.double() for draw in draws if len(draw) == len(right["pruned"])]
        if draws:
            known[criterion] = torch.stack(draws).mean(0)
            columns |= {"random_draws": len(draws)} if criterion == "random" else {}
    for part, (before, after) in PARTS.items():
        if before in known and after in known:
            change = paired_change(known[before], known[after], int(float(str(row["seed"]))))
            columns |= dict(zip(_columns_of(part), map(float, change), strict=True))
    return columns


def sentences(row: Mapping[Any, Any]) -> list[str]:
    """Returns what the columns of `attribution_columns` say; nothing where the run has no controls."""
    found = []
    for part, said in _SAID.items():
        delta, low, high = (_number(row.get(name)) for name in _columns_of(part))
        if math.isfinite(delta):
            count = int(_number(row.get("random_draws"))) if part == "choice_random" else 1
            draws = "1 draw" if count == 1 else f"{count} draws"
            ends = f"[{fixed(low, 2, sign=True)}, {fixed(high, 2, sign=True)}]"
            found.append(f"{fixed(delta, 2, 'pp', sign=True)} {ends} {said.format(draws=draws)}")
    if not found:
        return []
    change = fixed(_number(row["accuracy_delta_pp"]), 2, "pp", sign=True)
    return [f"Of the change in accuracy, {change}, is owed (95 % intervals over test images): {'; '.join(found)}."]


def attributions(runs: Runs) -> Iterator[tuple[pd.Series, str]]:
    """Yields the row of every run that has controls and its sentence, by what is known of other runs by now."""
    finished = runs.finished
    for _, row in finished[finished["run_id"].isin(set(finished["control_of"]) - {""})].iterrows():
        folder = runs.folder(row)
        now = attribution_columns(runs, row.to_dict(), read_answers(RunDir(folder))) if folder else {}
        for sentence in sentences({**row.to_dict(), **now}):
            yield row, sentence


def _number(value: object) -> float:
    return math.nan if value in (None, "") else float(str(value))


def _columns_of(part: str) -> tuple[str, str, str]:
    return f"owed_to_{part}_pp", f"owed_to_{part}_ci95_low", f"owed_to_{part}_ci95_high"


def _pruned_answers(runs: Runs, row: pd.Series) -> Iterator[Tensor]:
    folder = runs.folder(row)
    if folder and (answers := read_answers(RunDir(folder)).get("pruned")) is not None:
        yield answers


def _otherwise(runs: Runs, row: Mapping[Any, Any], criterion: str) -> pd.DataFrame:
    """Returns the finished runs that differ from a run in their criterion and seed alone."""
    rows = runs.finished
    if row["criterion"] == criterion:
        return rows.head(0)
    same = (
        (rows["criterion"] == criterion)
        & (rows["control"] == "")
        & (rows["ratio"].eq(row["ratio"]) | (rows["ratio"].isna() & pd.isna(row["ratio"])))
    )
    for column in ("model", "dataset", "images_hash", "ratio_unit"):
        same &= rows[column] == row[column]
    return rows[same & (rows["overrides"].map(settings_text) == settings_text(str(row["overrides"])))]
