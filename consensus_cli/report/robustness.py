"""Accuracy of both networks on images that somebody or something has changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from consensus_cli.report.formatting import NONE, fixed, interval, ratio_text
from consensus_cli.report.runs import attacks

CORRUPTION = re.compile(r"(?:own_)?corruption_(?P<what>.+?)(?:_s(?P<severity>[1-5]))?_(?P<network>base|pruned)_pct")
SHORTCUT = re.compile(r"shortcut_(?P<what>.+)_(?P<network>base|pruned)_pp")


def attack_label(name: str, finished: pd.DataFrame) -> str:
    """Returns an attack with its strength, such as `PGD 8/255`; a range where runs differ."""
    strengths = sorted(finished[f"{name}_eps255"].dropna().unique())
    if not strengths:
        return name.upper()
    low, high = f"{strengths[0]:g}", f"{strengths[-1]:g}"
    return f"{name.upper()} {low if low == high else f'{low}–{high}'}/255"


def attack_rows(shown: pd.DataFrame, finished: pd.DataFrame) -> list[list[str]]:
    """Returns a line per point and attack: accuracy of both networks and the change, with 95 % intervals.

    With several seeds the interval is over seeds; with one, it is the run's own, over images.
    """
    if not attacks(finished):
        return []
    lines = []
    for _, point in shown.iterrows():
        runs = finished[(finished["task"] == point["task"]) & (finished["series"] == point["series"])]
        runs = runs[(runs["ratio"] == point["ratio"]) | (pd.isna(point["ratio"]) & runs["ratio"].isna())]
        labels = {"accuracy": "clean"}
        if "clean_pruned_pct" in runs and runs["clean_pruned_pct"].notna().any():
            labels["clean"] = "clean, those attacked"
        labels |= {name: attack_label(name, runs) for name in attacks(runs)}
        head = [point["task"], point["series"], ratio_text(point["ratio"], point["ratio_unit"])]
        lines += [[*head, label, *_both(point, name), _change(point, name, runs)] for name, label in labels.items()]
    return lines


def heat_tables(finished: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Yields (name, caption, unit, table) of each table of numbers that a heat map shows, if any run measured it."""
    for name, caption, unit, pattern in (
        ("corruption", "Accuracy under corruptions (our own, not the published images)", "%", CORRUPTION),
        ("shortcut", "Shortcut reliance (0: ignores the planted cue)", "pp", SHORTCUT),
    ):
        table = means(finished, pattern)
        if not table.empty:
            yield name, caption, unit, table.droplevel("task")


def means(finished: pd.DataFrame, pattern: re.Pattern[str]) -> pd.DataFrame:
    """Returns the mean per task, series and network (rows) of the columns that match, by corruption or cue."""
    parts = []
    for column in map(str, finished):
        found = pattern.fullmatch(column)
        if found and finished[column].notna().any():
            mean = finished.groupby(["task", "series"])[column].mean().dropna().rename("value").reset_index()
            what = " ".join(filter(None, (found["what"], found.groupdict().get("severity"))))
            parts.append(mean.assign(network=found["network"], what=what))
    if not parts:
        return pd.DataFrame()
    return pd.concat(parts).pivot_table("value", ["task", "series", "network"], "what", sort=False)


def _both(point: pd.Series, name: str) -> list[str]:
    columns = [f"{name}_{network}_pct" for network in ("base", "pruned")]
    return [interval(point[column], point[f"{column}_ci95"], 2, "%") if column in point else NONE for column in columns]


def _change(point: pd.Series, name: str, runs: pd.DataFrame) -> str:
    delta = f"{name}_delta_pp"
    mean = point[delta] if delta in point else point[f"{name}_pruned_pct"] - point[f"{name}_base_pct"]
    low, high = f"{name}_ci95_low", f"{name}_ci95_high"
    if len(runs) == 1 and low in runs and high in runs and runs[[low, high]].notna().to_numpy().all():
        return f"{fixed(mean, 2, sign=True)} [{fixed(runs[low].iloc[0], 1)}, {fixed(runs[high].iloc[0], 1)}] pp"
    return interval(mean, point.get(f"{delta}_ci95", float("nan")), 2, "pp", sign=True)
