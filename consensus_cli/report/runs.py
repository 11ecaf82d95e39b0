"""The runs that a report is about, in one table that has every column the report reads, whatever the source lacks."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from consensus_cli.errors import UserError
from consensus_cli.report.formatting import words
from consensus_cli.storage.results import COLUMNS, UNFINISHED, read_rows
from consensus_cli.storage.rundir import RESULTS_NAME, RunDir, row_files

_TEXTS = (
    "run_id", "status", "started_at", "version", "git_commit", "overrides", "device", "torch_version", "model",
    "dataset", "images_hash", "criterion", "metrics", "aggregation", "precision", "scoring_precision", "ratio_unit",
    "removed_blocks", "macs_uncounted", "energy_source", "energy_estimated", "country", "run_dir", "error",
    "control", "control_of",
)  # fmt: skip
#: columns that every version has written for every run: a source without them is damaged or from elsewhere
_EXPECTED = [name for name in COLUMNS if not name.startswith(("fgsm_", "pgd_", "images_hash", "macs_uncounted"))]
_NUMBERS = (
    *(name for name in _EXPECTED if name not in _TEXTS), "other_load_pct", "mcnemar_p", "random_draws",
    "energy_baseline_kwh", "energy_score_kwh", "energy_finetune_kwh", "energy_evaluate_kwh",
)  # fmt: skip
_NUMBER_ENDINGS = ("_pct", "_pp", "_eps255", "_ci95_low", "_ci95_high", "_kwh", "_kg", "_ms", "_s", "_mib", "_w")

#: settings that have a column of their own, or that say where and how and not what
_SHOWN_ELSEWHERE = frozenset({
    "seed", "ratio", "model", "dataset", "criterion", "output_dir", "device", "threads", "compile", "tracker",
    "if_done", "dataset.root", "dataset.download", "dataset.workers", "dataset.if_missing", "controls",
})  # fmt: skip
#: what distinguishes two lines of one criterion, looked at in this order
_SETTINGS = ("settings", "aggregation", "samples_per_class", "metrics", "ratio_unit", "precision", "scoring_precision")


@dataclass(frozen=True)
class Runs:
    """The runs of one source.

    Attributes:
        source: the file or folder they come from.
        rows: one line per run, numbered from 0; text is never missing but may be empty, numbers may be NaN. Beside the
            columns of the results file: `task` (model on dataset), `series` (what the seeds and ratios share),
            `finished`, `latency_b1_reduction_pct` and `latency_b128_reduction_pct`.
        notes: what the source lacks or what could not be read, one sentence each.
    """

    source: Path
    rows: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def finished(self) -> pd.DataFrame:
        """The runs that came to their end."""
        return self.rows[self.rows["finished"]]

    def folder(self, row: pd.Series) -> Path | None:
        """Returns the run directory of a row: beside the source, or where the row says it was; None where it is gone.

        Outputs are copied between machines, so the place beside the source is looked at first.
        """
        root = self.source if self.source.is_dir() else self.source.parent
        candidates = [root / "runs" / Path(row["run_id"]).name, root] if row["run_id"] else []
        if row["run_dir"]:
            candidates.append(Path(row["run_dir"]))
        return next((path for path in candidates if _is_folder_of(path, row["run_id"])), None)


def load(source: Path) -> Runs:
    """Reads the runs of a results file, of the folder that holds one, or of a single run directory.

    Raises:
        UserError: there is nothing at `source`, or it holds no runs.
    """
    rows, notes = _read(source)
    table, more = complete(rows)
    if table.empty:
        notes.append("There are no runs yet.")
    return Runs(source, table, (*notes, *more))


def complete(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Returns the rows with every column that the report reads, and a note for each kind of thing that was amiss."""
    notes = []
    if missing := [name for name in _EXPECTED if name not in rows]:
        notes.append(f"Columns that the results lack, left empty here: {', '.join(missing)}.")
    names = list(dict.fromkeys([*map(str, rows), *_TEXTS, *_NUMBERS]))
    given = rows.reindex(columns=names)
    columns: dict[str, pd.Series] = {name: given[name].map(_text).astype("str") for name in _TEXTS}
    damaged = []
    for name in (name for name in names if name in _NUMBERS or name.endswith(_NUMBER_ENDINGS)):
        numbers = pd.to_numeric(given[name], errors="coerce").astype("float64").replace([np.inf, -np.inf], np.nan)
        if (numbers.isna() & ~given[name].map(_text).isin(["nan", "inf", "-inf", ""])).any():
            damaged.append(name)
        columns[name] = numbers
    if damaged:
        notes.append(f"Text where numbers belong, read as empty: {', '.join(damaged)}.")
    table = pd.DataFrame(columns).reset_index(drop=True)
    for size in ("b1", "b128"):
        ratio = table[f"latency_{size}_pruned_ms"] / table[f"latency_{size}_base_ms"].where(lambda ms: ms > 0)
        # Rows of newer versions hold the reduction as measured block by block.
        computed, name = 100 * (1 - ratio), f"latency_{size}_reduction_pct"
        table[name] = table[name].fillna(computed) if name in table else computed
    table["finished"] = ~table["status"].isin(UNFINISHED)
    return _with_series(table), notes


def attacks(rows: pd.DataFrame) -> list[str]:
    """Returns the names of the attacks that any of the rows has an accuracy under."""
    names = [str(name).removesuffix("_eps255") for name in rows if str(name).endswith("_eps255")]
    return [name for name in names if f"{name}_pruned_pct" in rows and rows[f"{name}_pruned_pct"].notna().any()]


def _read(source: Path) -> tuple[pd.DataFrame, list[str]]:
    notes: list[str] = []
    table = source if source.is_file() else source / RESULTS_NAME
    if table.is_file():
        return read_rows(table, notes.append), notes
    single = RunDir(source)
    files = [single.row] if single.row.is_file() else row_files(source)
    if not files and single.config.is_file():
        raise UserError(f"the run '{source}' has not ended: it has no row", "consensus resume continues it")
    if not files:
        raise UserError(
            f"'{source}' holds no {RESULTS_NAME} and no runs", "give a results.csv, its folder, or a run directory"
        )
    rows: list[Mapping[str, object]] = []
    for file in files:
        found = _rows_of(file)
        rows += found
        notes += [] if found else [f"'{file}' holds no row."]
    return pd.DataFrame(rows), notes


def _rows_of(file: Path) -> list[Mapping[str, object]]:
    """Returns the rows of a `row.json` (older versions wrote a list of them); none where it cannot be read."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [row for row in (content if isinstance(content, list) else [content]) if isinstance(row, Mapping)]


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value)  # type: ignore[call-overload]


def _is_folder_of(folder: Path, run_id: str) -> bool:
    try:
        return folder.name == run_id and folder.is_dir()
    except (OSError, ValueError):
        # What a row gives as its folder may be anything.
        return False


def _with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows with `task` and `series`, the names of the chart and of the line that each run belongs to.

    Runs that differ by seed are one point, those that differ by ratio one line. A line is named by its criterion, by
    the control that its rows are of, and by settings only where lines of the same task and criterion differ in them.
    """
    rows = rows.assign(
        task=(rows["model"].replace("", "?") + " on " + rows["dataset"].replace("", "?")).astype("str"),
        settings=_settings(rows),
        series=rows["criterion"].replace("", "unnamed criterion"),
    )
    rows["series"] += rows["control"].map(lambda name: f", control {name}" if name else "").astype("str")
    for column in _SETTINGS:
        # An unfinished row lacks columns: it must not split the lines of those that finished.
        finished = rows[rows["finished"]]
        differ = finished.groupby(["task", "series"])[column].transform("nunique", dropna=False) > 1
        values = finished.loc[differ, column].map(lambda value, name=column: _setting_text(name, value))
        rows.loc[values.index, "series"] = rows.loc[values.index, "series"] + ", " + values.astype("str")
    return rows.drop(columns="settings")


def _settings(rows: pd.DataFrame) -> pd.Series:
    """Returns the settings in which lines may differ; the folder of the images where rows are about different ones.

    With `dataset.limit_train` each seed draws other images, so only rows of one seed are compared.
    """
    known = rows["images_hash"].replace("", None)
    differ = known.groupby([rows["model"], rows["dataset"], rows["seed"]]).transform("nunique") > 1
    hidden = _SHOWN_ELSEWHERE - {"dataset.root"} if differ.any() else _SHOWN_ELSEWHERE
    return rows["overrides"].map(functools.partial(settings_text, hidden=hidden)).astype("str")


def settings_text(overrides: str, hidden: frozenset[str] = _SHOWN_ELSEWHERE) -> str:
    """Returns the settings of a run, sorted, without those that have a column of their own or say where it ran."""
    settings = [word for word in words(overrides) if "=" in word and not word.startswith("hydra")]
    return " ".join(sorted(word for word in settings if word.split("=")[0] not in hidden))


def _setting_text(name: str, value: object) -> str:
    if name == "settings":
        return str(value) or "defaults"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value or 'unknown'}"
