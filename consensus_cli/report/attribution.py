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
from consensus_cli.report.robustness import attack_label
from consensus_cli.report.runs import Runs, attacks, settings_text
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
#: those that another run's original, trained as much, can tell of
_OF_TRAINING = ("training", "pruning")
_OTHERWISE = ("random", "uniform")
#: share of images about which one network is right both times; another training of it changes several in a hundred
_SAME_ANSWERS = 0.999
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
        right: whether its networks are right about each image, as `read_answers` returns it.

    Returns:
        `owed_to_<part>_pp`, `_ci95_low` and `_ci95_high` for each of `PARTS` whose networks are known (paired bootstrap
        over images), `random_draws`, how many seeds of runs with random blocks there are, and what
        `training_columns` returns.
    """
    if not {"base", "pruned"} <= right.keys():
        return {}
    known, columns = {name: right[name] for name in ("base", "pruned")}, dict[str, float]()
    for _, control in runs.finished[runs.finished["control_of"] == row["run_id"]].iterrows():
        answers = _answers(runs, control)
        if "pruned" in answers:
            known[control["control"]] = answers["pruned"]
        if control["control"] == "more_training":
            columns |= training_columns(row, right, answers)
    for criterion in _OTHERWISE:
        # Of one seed, run more than once, the latest counts: it is no further draw.
        others = _otherwise(runs, row, criterion).drop_duplicates("seed", keep="last")
        answers_of = [_answers(runs, other) for _, other in others.iterrows()]
        # From another original its own accuracy would count as that of the choice.
        draws = [a["pruned"].double() for a in answers_of if "pruned" in a and _same_original(right, a)]
        if draws:
            known[criterion] = torch.stack(draws).mean(0)
            columns |= {"random_draws": len(draws)} if criterion == "random" else {}
    for part, (before, after) in PARTS.items():
        if part not in _OF_TRAINING and before in known and after in known:
            columns |= _owed(part, known[before], known[after], row)
    return columns


def training_columns(
    row: Mapping[Any, Any], right: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> dict[str, float]:
    """Returns what of a change is owed to training and what to pruning: accuracy, and accuracy under each attack.

    Args:
        row: of a run.
        right: whether its networks are right about each image, as `read_answers` returns it.
        trained: the same of a run that compares the same original, trained as much, with itself before.

    Returns:
        `owed_to_<part>_pp`, `_ci95_low` and `_ci95_high`, and the same after the name of each attack, `<attack>_`;
        nothing where the two are not about the same original and images.
    """
    columns: dict[str, float] = {}
    if not _same_original(right, trained):
        return columns
    for attack in (name.removesuffix("base") for name in right if name.endswith("base")):
        pruned, more = right[f"{attack}pruned"], trained.get(f"{attack}pruned")
        if more is not None and more.shape == pruned.shape:
            known = {"base": right[f"{attack}base"], "pruned": pruned, "more_training": more}
            for part in _OF_TRAINING:
                before, after = PARTS[part]
                owed = _owed(part, known[before], known[after], row)
                columns |= {f"{attack}{end}": value for end, value in owed.items()}
    return columns


def sentences(row: Mapping[Any, Any]) -> list[str]:
    """Returns what the columns of `attribution_columns` say; nothing where the run has no controls."""
    found = []
    for part, said in _SAID.items():
        delta, low, high = (_number(row.get(name)) for name in _columns_of(part))
        if math.isfinite(delta):
            count = _number(row.get("random_draws"))
            draws = "1 draw" if count == 1 else f"{fixed(count, 0)} draws"
            found.append(f"{_ends(delta, low, high, 'pp')} {said.format(draws=draws)}")
    if not found:
        return []
    change = fixed(_number(row["accuracy_delta_pp"]), 2, "pp", sign=True)
    told = [f"Of the change in accuracy, {change}, is owed (95 % intervals over test images): {'; '.join(found)}."]
    under = []
    for name in attacks(pd.DataFrame([row])):
        parts = []
        for part in _OF_TRAINING:
            delta, low, high = (_number(row.get(f"{name}_{column}")) for column in _columns_of(part))
            parts += [f"{_ends(delta, low, high)} to {part}"] if math.isfinite(delta) else []
        if parts:
            change = fixed(_number(row[f"{name}_delta_pp"]), 2, sign=True)
            under.append(f"{attack_label(name, pd.DataFrame([row]))} {change}: {', '.join(parts)}")
    return [*told, f"Of the changes under attack, in pp: {'; '.join(under)}."] if under else told


def attributions(runs: Runs) -> Iterator[tuple[pd.Series, str]]:
    """Yields the row of every run that has controls and its sentence, by what is known of other runs by now."""
    finished = runs.finished
    for _, row in finished[finished["run_id"].isin(set(finished["control_of"]) - {""})].iterrows():
        now = attribution_columns(runs, row.to_dict(), _answers(runs, row))
        for sentence in sentences({**row.to_dict(), **now}):
            yield row, sentence


def _number(value: object) -> float:
    return math.nan if value in (None, "") else float(str(value))


def _columns_of(part: str) -> tuple[str, str, str]:
    return f"owed_to_{part}_pp", f"owed_to_{part}_ci95_low", f"owed_to_{part}_ci95_high"


def _ends(delta: float, low: float, high: float, unit: str = "") -> str:
    return f"{fixed(delta, 2, unit, sign=True)} [{fixed(low, 2, sign=True)}, {fixed(high, 2, sign=True)}]"


def _owed(part: str, before: Tensor, after: Tensor, row: Mapping[Any, Any]) -> dict[str, float]:
    change = paired_change(before, after, int(float(str(row["seed"]))))
    return dict(zip(_columns_of(part), map(float, change), strict=True))


def _same_original(right: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two runs compare the same original on the same images; a GPU may answer an image otherwise next time."""
    first, second = right.get("base"), other.get("base")
    if first is None or second is None or first.shape != second.shape:
        return False
    return (first == second).double().mean().item() > _SAME_ANSWERS


def _answers(runs: Runs, row: pd.Series) -> dict[str, Tensor]:
    folder = runs.folder(row)
    return read_answers(RunDir(folder)) if folder else {}


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
