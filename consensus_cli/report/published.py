"""The published points of a paper's preset, beside the runs of that preset."""

from __future__ import annotations

import functools
from importlib.resources import files

import pandas as pd

from consensus_cli.report.formatting import fixed, words

_PRESET = "experiment=paper/"


@functools.cache
def tables() -> pd.DataFrame:
    """Returns every published point: preset, blocks removed, MACs reduction in %, change of accuracy in pp, source."""
    with files("consensus_cli.report").joinpath("published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def published(finished: pd.DataFrame) -> pd.DataFrame:
    """Returns the published points of the presets that the runs began with, per task; none beside synthetic images.

    Papers report changes, so `accuracy_pct` is the mean baseline of the task's runs plus the published change.

    Returns:
        `task`, `preset`, `macs_reduction_pct`, `accuracy_delta_pp`, `accuracy_pct`, `source` and `text`.
    """
    presets = finished["overrides"].map(preset_of)
    known = finished.assign(preset=presets)[presets.isin(tables()["preset"]) & (finished["dataset"] != "synthetic")]
    base_pct = known.groupby(["task", "preset"])["accuracy_base_pct"].mean().rename("base_pct").reset_index()
    marks = base_pct.merge(tables(), on="preset")
    texts = [_text(mark) for _, mark in marks.iterrows()]
    return marks.assign(accuracy_pct=marks["base_pct"] + marks["accuracy_delta_pp"], text=texts)


def preset_of(overrides: str) -> str:
    """Returns the name of the paper's preset among the words of a run; empty where there is none."""
    named = [word.removeprefix(_PRESET) for word in words(overrides) if word.startswith(_PRESET)]
    return named[-1] if named else ""


def _text(mark: pd.Series) -> str:
    change, saved = fixed(mark["accuracy_delta_pp"], 2, "pp", sign=True), fixed(mark["macs_reduction_pct"], 2, "%")
    return f"published: {change} at {saved} of the MACs saved\n{mark['source']}"
