"""Which runs belong together: those that differ by seed are one point, those that differ by ratio one line."""

from __future__ import annotations

import shlex

import pandas as pd

#: settings that have a column of their own, or that say where and not what
_SHOWN_ELSEWHERE = frozenset({
    "seed", "ratio", "model", "dataset", "criterion", "output_dir", "device", "threads", "dataset.root",
    "dataset.download",
})  # fmt: skip
#: what tells two lines of one criterion apart, looked at in this order
_SETTINGS = ("settings", "aggregation", "samples_per_class", "metrics", "ratio_unit", "precision", "scoring_precision")
_UNITS = {"blocks": "of the blocks", "macs": "of the MACs"}


def add_series(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows with `task` and `series`, the names of the chart and of the line that each run belongs to.

    A line is named by its criterion, and by settings only where lines of the same task and criterion differ in them.
    """
    rows = rows.assign(
        task=(rows["model"].replace("", "?") + " on " + rows["dataset"].replace("", "?")).astype("str"),
        settings=_settings_of(rows),
        series=rows["criterion"].replace("", "unnamed criterion"),
    )
    for column in _SETTINGS:
        # An unfinished row lacks columns: it must not split the lines of those that finished.
        finished = rows[rows["finished"]]
        differ = finished.groupby(["task", "series"])[column].transform("nunique", dropna=False) > 1
        values = finished.loc[differ, column].map(lambda value, name=column: _tell(name, value))
        rows.loc[values.index, "series"] = rows.loc[values.index, "series"] + ", " + values.astype("str")
    return rows.drop(columns="settings")


def command(overrides: str) -> str:
    """Returns the command of a run, every word quoted for a shell: the words come from a file and may be anything."""
    return shlex.join(["consensus", "run", *words(overrides)])


def words(overrides: str) -> list[str]:
    """Splits the words of a command as a shell does, at blanks where quotes do not match."""
    try:
        return shlex.split(overrides)
    except ValueError:
        return overrides.split()


def ratio_text(ratio: float, unit: str) -> str:
    """Returns how much was to go, such as `50 % of the blocks`."""
    if pd.isna(ratio):
        return "–"
    return f"{100 * ratio:.4g} % {_UNITS.get(unit, unit)}".strip()


def _settings_of(rows: pd.DataFrame) -> pd.Series:
    """Returns the settings in which lines may differ; the folder of the images where rows are about different ones.

    With `dataset.limit_train` each seed draws other images, so only rows of one seed are compared.
    """
    known = rows["images_hash"].replace("", None)
    differ = known.groupby([rows["model"], rows["dataset"], rows["seed"]]).transform("nunique") > 1
    hidden = _SHOWN_ELSEWHERE - {"dataset.root"} if differ.any() else _SHOWN_ELSEWHERE
    return rows["overrides"].map(lambda overrides: _settings(overrides, hidden)).astype("str")


def _settings(overrides: str, hidden: frozenset[str]) -> str:
    kept = [word for word in words(overrides) if "=" in word and word.split("=")[0] not in hidden]
    return " ".join(sorted(word for word in kept if not word.startswith("hydra")))


def _tell(name: str, value: object) -> str:
    if name == "settings":
        return str(value) or "defaults"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value or 'unknown'}"
