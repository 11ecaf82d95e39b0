"""What the runs used: energy and CO2 by stage of the run, and of the networks before and after."""

from __future__ import annotations

import pandas as pd

from consensus_cli.report.numerals import fixed, significant
from consensus_cli.report.series import ratio_text

STAGES = ("baseline", "score", "finetune", "evaluate")
STAGE_LABELS = ("baseline", "scoring", "fine-tuning", "evaluation")


def by_stage(finished: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean energy of a run in Wh per task and series (rows) and stage (columns)."""
    columns = [f"energy_{stage}_kwh" for stage in STAGES]
    means = 1000 * finished.groupby(["task", "series"])[columns].mean()
    return means.set_axis(list(STAGE_LABELS), axis=1).dropna(how="all")


def stage_rows(finished: pd.DataFrame) -> list[list[str]]:
    """Returns a line per task and series: energy of each stage and in total, and CO2, all per run."""
    stages = by_stage(finished)
    totals = finished.groupby(["task", "series"])[["energy_run_kwh", "co2_run_kg"]].mean()
    lines = []
    for key, total in totals.dropna(how="all").iterrows():
        assert isinstance(key, tuple)
        used = stages.loc[key] if key in stages.index else pd.Series(float("nan"), list(STAGE_LABELS))
        wh = [significant(value) for value in (*used, 1000 * total["energy_run_kwh"])]
        lines.append([*key, *wh, significant(1000 * total["co2_run_kg"])])
    return lines


def network_rows(shown: pd.DataFrame, finished: pd.DataFrame) -> list[list[str]]:
    """Returns a line per point and kind of work: energy in mWh and CO2 in mg, baseline, pruned, and the saving."""
    lines = []
    keys = ["task", "series", "ratio"]
    names = [
        c
        for c in map(str, finished)
        if c.startswith(("energy_inference_", "energy_epoch_", "co2_inference_", "co2_epoch_"))
    ]
    means = finished.groupby(keys, dropna=False)[names].mean().reset_index()
    for _, point in shown[[*keys, "ratio_unit"]].merge(means, on=keys, how="left").iterrows():
        for kind, label in (("inference", "inference, 1,000 images"), ("epoch", "one training epoch")):
            cells = [
                *(significant(1e6 * point[f"energy_{kind}_{network}_kwh"]) for network in ("base", "pruned")),
                fixed(point[f"energy_{kind}_reduction_pct"], 1, "%"),
                *(significant(1e6 * point[f"co2_{kind}_{network}_kg"]) for network in ("base", "pruned")),
            ]
            if any(cell != "–" for cell in cells):
                ratio = ratio_text(point["ratio"], point["ratio_unit"])
                lines.append([point["task"], point["series"], ratio, label, *cells])
    return lines


def sources(finished: pd.DataFrame) -> list[str]:
    """Returns where the readings come from, with the country whose electricity the CO2 is of and a count of runs."""
    known = finished[finished["energy_source"] != ""]
    counts = known.groupby(["energy_source", "country"]).size()
    keyed = zip(counts.index.to_frame().to_numpy(), counts, strict=True)
    return [f"{source}, electricity of {country or '?'} ({count} runs)" for (source, country), count in keyed]
