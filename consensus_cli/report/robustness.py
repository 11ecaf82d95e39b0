"""Accuracy of the pruned networks on images that somebody or something has changed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pandas as pd

from consensus_cli.report.numerals import fixed, interval
from consensus_cli.report.series import ratio_text
from consensus_cli.report.source import attacks

_CORRUPTION = re.compile(r"corruption_(?P<name>.+?)(?:_s(?P<severity>[1-5]))?_(?P<network>base|pruned)_pct")
_SHORTCUT = re.compile(r"shortcut_(?P<cue>.+)_(?P<network>base|pruned)_pp")


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
    lines = []
    for _, point in shown.iterrows():
        runs = finished[(finished["task"] == point["task"]) & (finished["series"] == point["series"])]
        runs = runs[(runs["ratio"] == point["ratio"]) | (pd.isna(point["ratio"]) & runs["ratio"].isna())]
        head = [point["task"], point["series"], ratio_text(point["ratio"], point["ratio_unit"])]
        lines.append([*head, "clean", *_both(point, "accuracy"), _change(point, "accuracy", runs)])
        if "clean_pruned_pct" in runs and runs["clean_pruned_pct"].notna().any():
            lines.append([*head, "clean, those attacked", *_both(point, "clean"), _change(point, "clean", runs)])
        for name in attacks(runs):
            lines.append([*head, attack_label(name, runs), *_both(point, name), _change(point, name, runs)])
    return lines


def corruptions(finished: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean accuracy in percent per task, series and network (rows) under each corruption (columns)."""
    return _means(finished, _CORRUPTION, lambda found: " ".join(filter(None, (found["name"], found["severity"]))))


def shortcuts(finished: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean shortcut reliance in pp per task, series and network (rows) for each planted cue (columns)."""
    return _means(finished, _SHORTCUT, lambda found: str(found["cue"]))


def _means(finished: pd.DataFrame, pattern: re.Pattern[str], name: Callable[[re.Match[str]], str]) -> pd.DataFrame:
    parts = []
    for column in map(str, finished):
        found = pattern.fullmatch(column)
        if found and finished[column].notna().any():
            mean = finished.groupby(["task", "series"])[column].mean().dropna()
            parts.append(mean.rename("value").reset_index().assign(network=found["network"], what=name(found)))
    if not parts:
        return pd.DataFrame()
    long = pd.concat(parts)
    return long.pivot_table(index=["task", "series", "network"], columns="what", values="value", sort=False)


def _both(point: pd.Series, name: str) -> list[str]:
    columns = [f"{name}_{network}_pct" for network in ("base", "pruned")]
    return [interval(point[column], point[f"{column}_ci95"], 2, "%") if column in point else "–" for column in columns]


def _change(point: pd.Series, name: str, runs: pd.DataFrame) -> str:
    delta = f"{name}_delta_pp"
    mean = point[delta] if delta in point else point[f"{name}_pruned_pct"] - point[f"{name}_base_pct"]
    low, high = f"{name}_ci95_low", f"{name}_ci95_high"
    if len(runs) == 1 and low in runs and high in runs and runs[[low, high]].notna().to_numpy().all():
        return f"{fixed(mean, 2, sign=True)} [{fixed(runs[low].iloc[0], 1)}, {fixed(runs[high].iloc[0], 1)}] pp"
    half = point[f"{name}_delta_pp_ci95"] if f"{name}_delta_pp_ci95" in point else float("nan")
    return interval(mean, half, 2, "pp", sign=True)
