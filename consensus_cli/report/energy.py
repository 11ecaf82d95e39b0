"""What the runs used: energy and CO2 by phase of the run, and of the original and the pruned network."""

from __future__ import annotations

import pandas as pd

from consensus_cli.evaluation.cost.energy import GPU_READ
from consensus_cli.report.formatting import NONE, fixed, ratio_text, significant

#: phase of a run, as columns name it -> how the report calls it
PHASES = {
    "baseline": "baseline",
    "score": "scoring",
    "finetune": "fine-tuning",
    "evaluate": "evaluation",
    "heal": "healing",
    "measure": "measuring costs",
}


def is_estimated(rows: pd.DataFrame) -> pd.Series:
    """Returns for each run whether its energy is an estimate from processor load alone, no counter's reading."""
    source = rows["energy_source"]
    estimated = (rows["energy_estimated"] == "True") | source.str.contains("estimate")
    return estimated & ~source.str.endswith(GPU_READ)


def by_phase(finished: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean energy of a run in Wh per task and series (rows) and phase (columns) that any run had."""
    columns = {f"energy_{phase}_kwh": label for phase, label in PHASES.items() if f"energy_{phase}_kwh" in finished}
    means = 1000 * finished.groupby(["task", "series"])[list(columns)].mean()
    return means.rename(columns=columns).dropna(how="all")


def phase_table(finished: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Returns headings, and a line per task and series: energy of each phase and in total, and CO2, all per run."""
    total = 1000 * finished.groupby(["task", "series"])[["energy_run_kwh", "co2_run_kg"]].mean().dropna(how="all")
    phases = by_phase(finished)
    table = phases.reindex(total.index).join(total).reset_index()
    rows = [[task, series, *map(significant, used)] for task, series, *used in table.to_numpy()]
    return ["task", "criterion", *(f"{phase} (Wh)" for phase in phases), "total (Wh)", "CO₂ (g)"], rows


def network_rows(shown: pd.DataFrame, finished: pd.DataFrame) -> list[list[str]]:
    """Returns a line per point and kind of work: energy in mWh and CO2 in mg, original, pruned, and the saving."""
    keys = ["task", "series", "ratio"]
    means = finished.groupby(keys, dropna=False).mean(numeric_only=True).reset_index()
    lines = []
    for _, point in shown[[*keys, "ratio_unit"]].merge(means, on=keys, how="left").iterrows():
        for kind, label in (("inference", "inference, 1,000 images"), ("epoch", "one training epoch")):
            cells = [
                *(significant(1e6 * point[f"energy_{kind}_{network}_kwh"]) for network in ("base", "pruned")),
                fixed(point[f"energy_{kind}_reduction_pct"], 1, "%"),
                *(significant(1e6 * point[f"co2_{kind}_{network}_kg"]) for network in ("base", "pruned")),
            ]
            if set(cells) != {NONE}:
                ratio = ratio_text(point["ratio"], point["ratio_unit"])
                lines.append([point["task"], point["series"], ratio, label, *cells])
    return lines


def sources(finished: pd.DataFrame) -> list[str]:
    """Returns where the readings come from, with the country whose electricity the CO2 is of and a count of runs."""
    counts = finished[finished["energy_source"] != ""].groupby(["energy_source", "country"]).size().reset_index()
    return [f"{source}, electricity of {country or '?'} ({count} runs)" for source, country, count in counts.to_numpy()]
