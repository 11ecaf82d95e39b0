"""Accuracy of both networks on images that somebody or something has changed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from consensus_cli.evaluation.robustness.attacks import ATTACKS
from consensus_cli.report.formatting import NONE, fixed, interval, ratio_text
from consensus_cli.report.runs import attacks

CORRUPTION = re.compile(r"(?:own_)?corruption_(?P<what>.+?)(?:_s(?P<severity>[1-5]))?_(?P<network>base|pruned)_pct")
SHORTCUT = re.compile(r"shortcut_(?P<what>.+)_(?P<network>base|pruned)_pp")


#: accuracy in percent below and above which an attack that is so for both networks says nothing about either
UNINFORMATIVE_PCT = (5.0, 95.0)
_EPSILON = re.compile(r"_eps\d+$")


def attack_label(name: str, finished: pd.DataFrame) -> str:
    """Returns an attack with its strength, such as `PGD 8/255`; a range where runs differ."""
    strengths = sorted(finished[f"{name}_eps255"].dropna().unique())
    if not strengths:
        return name.upper()
    low, high = f"{strengths[0]:g}", f"{strengths[-1]:g}"
    return f"{_EPSILON.sub('', name).upper()} {low if low == high else f'{low}–{high}'}/255"


def warnings(rows: pd.DataFrame) -> list[str]:
    """Returns what keeps accuracy under attack from saying something about the networks of these runs.

    An attack that (almost) no image of either network survives, or almost every one, does not tell them apart; an
    interval that spans zero is no change; and where an attack without gradients leaves fewer images standing than every
    one that follows them, gradients are masked (Athalye et al. 2018, "Obfuscated gradients give a false sense of
    security").
    """
    names = attacks(rows)
    silent = {name: _share(rows, uninformative(rows, name)) for name in names}
    chance = {name: _share(rows, _spans_zero(rows, name) & ~uninformative(rows, name)) for name in names}
    found = []
    if told := _told(rows, silent):
        low, high = UNINFORMATIVE_PCT
        found.append(f"{told}: both networks are below {low:g} % or above {high:g} %, which says nothing about either.")
    if told := masked(rows):
        found.append(told)
    if told := _told(rows, chance):
        found.append(f"{told}: the 95 % interval of the change spans zero, so that it may be chance.")
    return found


def masked(rows: pd.DataFrame) -> str:
    """Returns the warning of masked gradients, empty where no attack without gradients does better than with them."""
    without = [name for name in attacks(rows) if ATTACKS[_method(name)].gradients is False]
    told = _told(rows, {name: _share(rows, _masks(rows, name)) for name in without})
    return f"{told} leaves fewer images standing than every attack with gradients: these may be masked." if told else ""


def _method(name: str) -> str:
    """Returns the attack whose columns have this name: they begin with it."""
    return max((method for method in ATTACKS if name.startswith(method)), key=len, default="pgd")


def uninformative(rows: pd.DataFrame, name: str) -> pd.Series:
    """Returns for each row whether so few or so many images of both networks stand that an attack says nothing."""
    both = rows[[f"{name}_base_pct", f"{name}_pruned_pct"]]
    return (both < UNINFORMATIVE_PCT[0]).all(axis=1) | (both > UNINFORMATIVE_PCT[1]).all(axis=1)


def _spans_zero(rows: pd.DataFrame, name: str) -> pd.Series:
    ends = [f"{name}_ci95_low", f"{name}_ci95_high"]
    return (rows[ends[0]] <= 0) & (rows[ends[1]] >= 0) if {*ends} <= {*rows} else pd.Series(False, rows.index)


def _masks(rows: pd.DataFrame, name: str) -> pd.Series:
    """Whether an attack beats, on either network, every attack with gradients of the same epsilon."""
    found = pd.Series(False, rows.index)
    others = [other for other in attacks(rows) if other != name and ATTACKS[_method(other)].gradients]
    for network in ("base", "pruned"):
        column = f"{{}}_{network}_pct"
        same = {o: rows[column.format(o)].where(rows[f"{o}_eps255"] == rows[f"{name}_eps255"]) for o in others}
        found |= rows[column.format(name)] < pd.DataFrame(same, index=rows.index).min(axis=1)
    return found


def _share(rows: pd.DataFrame, which: pd.Series) -> str:
    """Returns of how many of several runs something holds; empty where of none."""
    count = int(which.sum())
    return "" if count == 0 else "all" if count == len(rows) else f"{count} of {len(rows)} runs"


def _told(rows: pd.DataFrame, shares: dict[str, str]) -> str:
    said = [(attack_label(name, rows), share) for name, share in shares.items() if share]
    return ", ".join(label if share == "all" else f"{label} ({share})" for label, share in said)


def curves(finished: pd.DataFrame) -> pd.DataFrame:
    """Returns accuracy over epsilon, for each attack that was run with at least two.

    Returns:
        A line per task, attack (`FGSM`), network and epsilon: `task`, `attack`, `line` (`original`, or series and what
        was removed), `ratio`, `eps255` (0: without attack, the images that were attacked) and `accuracy_pct`, the mean
        over seeds.
    """
    families: dict[str, list[str]] = {}
    for name in attacks(finished):
        families.setdefault(_EPSILON.sub("", name), []).append(name)
    parts = [
        finished.assign(
            attack=family.upper(),
            line=line,
            eps255=finished[f"{name}_eps255"] if name else 0.0,
            accuracy_pct=finished[f"{name or 'clean'}_{network}_pct"],
        )[["task", "attack", "line", "seed", "ratio", "eps255", "accuracy_pct"]]
        for family, names in families.items()
        if finished[[f"{name}_eps255" for name in names]].stack().nunique() > 1
        for network, line in (("base", "original"), ("pruned", _lines(finished)))
        for name in ["", *names]
        if f"{name or 'clean'}_{network}_pct" in finished
    ]
    if not parts:
        return pd.DataFrame(columns=["task", "attack", "line", "ratio", "eps255", "accuracy_pct"])
    keys, values = ["task", "attack", "line", "eps255"], ["ratio", "accuracy_pct"]
    table = pd.concat(parts).dropna(subset=["accuracy_pct", "eps255"])
    # Each seed attacks images of its own, and the original is in every row of it: each seed counts once.
    table = table.groupby([*keys, "seed"], sort=False, dropna=False)[values].mean().reset_index()
    return table.groupby(keys, sort=False)[values].mean().reset_index().sort_values(keys)


def _lines(finished: pd.DataFrame) -> pd.Series:
    ratios = [ratio_text(*pair) for pair in zip(finished["ratio"], finished["ratio_unit"], strict=True)]
    return finished["series"] + ", " + pd.Series(ratios, finished.index, dtype="str")


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
