"""The iterative protocol, run by `consensus run -m experiment=study_cifar10`: its rows and their tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from publishing import publishable

from consensus_cli.errors import UserError
from study.markdown import markdown, number

if TYPE_CHECKING:
    from study.evidence import Evidence

#: what is kept of a row of results.csv; those of corruption are absent where nothing was corrupted
COLUMNS = (
    "run_id",
    "version",
    "git_commit",
    "overrides",
    "seed",
    "device",
    "precision",
    "criterion",
    "aggregation",
    "samples_per_class",
    "ratio",
    "removed_blocks",
    "macs_reduction_pct",
    "accuracy_base_pct",
    "accuracy_pruned_pct",
    "accuracy_delta_pp",
    "test_images",
    "latency_b1_base_ms",
    "latency_b1_pruned_ms",
    "energy_inference_reduction_pct",
    "energy_source",
    "attacked_images",
    "fgsm_base_pct",
    "fgsm_pruned_pct",
    "fgsm_delta_pp",
    "pgd_base_pct",
    "pgd_pruned_pct",
    "pgd_delta_pp",
    "corruption_mean_base_pct",
    "corruption_mean_pruned_pct",
    "corruption_mean_delta_pp",
    "score_s",
    "finetune_s",
)
#: MACs of one candidate block of ResNet56, in % of the whole; they cost alike
BLOCK_MACS_PCT = 3.7525
#: ResNet56 on CIFAR-10 as the papers report it: (MACs reduction in %, change of accuracy in pp)
PUBLISHED: dict[str, tuple[tuple[float, float], ...]] = {
    "CKA": ((37.52, 1.25), (56.29, 0.95), (60.04, 0.78), (78.80, -0.66)),
    "WhiteBox": ((55.60, 0.28),),
    "CLR-RNF": ((57.30, 0.01),),
    "DepGraph": ((52.6, -0.07), (60.2, -0.17)),
    "DepGraph, sparse learning": ((52.6, 0.24), (60.2, 0.11)),
    "HRank": ((74.09, -2.54),),
    "GCNP": ((77.22, -0.97),),
}


def collect(output_dir: Path, folder: Path) -> None:
    """Copies what the study reports of the finished runs in `output_dir/results.csv` to `iterative.csv`.

    Of the words that led to a run those stay that say what it was, without the paths of the machine it ran on.

    Raises:
        UserError: there are no finished runs.
    """
    results = output_dir / "results.csv"
    rows = pd.read_csv(results, dtype={"git_commit": str, "run_id": str}) if results.is_file() else pd.DataFrame()
    finished = rows[rows["status"] == "done"] if len(rows) else rows
    if finished.empty:
        raise UserError(f"{results} holds no finished run", "run scripts/study.sh iterative first")
    # Rows of newer versions call our own corruptions by that name.
    own = finished.filter(regex="^own_").rename(columns=lambda name: name.removeprefix("own_"))
    kept = finished.combine_first(own).reindex(columns=list(COLUMNS))
    kept = kept.sort_values(["criterion", "aggregation", "ratio", "seed"])
    kept = pd.DataFrame([publishable(row) for row in kept.fillna({"overrides": ""}).to_dict("records")])
    folder.mkdir(parents=True, exist_ok=True)
    kept.to_csv(folder / "iterative.csv", index=False, float_format="%.6g")


def iterative_table(evidence: Evidence) -> str:
    """Change of accuracy, clean, attacked and corrupted, per criterion and ratio, mean over seeds."""
    if evidence.iterative.empty:
        return "*Not measured yet.*"
    rows = []
    for (criterion, ratio), runs in named(evidence.iterative).groupby(["name", "ratio"], sort=False):
        changes = [_change(runs, measure) for measure in ("accuracy", "fgsm", "pgd", "corruption_mean")]
        rows.append(
            [str(criterion), f"{ratio:g}", f"{runs['macs_reduction_pct'].mean():.2f}", str(len(runs)), *changes]
        )
    heads = ["criterion", "ratio", "MACs (−%)", "seeds", "accuracy (pp)", "FGSM (pp)", "PGD (pp)", "corrupted (pp)"]
    return markdown(heads, rows)


def paper_table(evidence: Evidence) -> str:
    """Published changes of accuracy, then ours at the nearest ratios; MACs reduction: change."""
    rows = [[f"{name} (published)", _points(points)] for name, points in PUBLISHED.items()]
    if not evidence.iterative.empty:
        for criterion, runs in named(evidence.iterative).groupby("name", sort=False):
            means = runs.groupby("ratio")[["macs_reduction_pct", "accuracy_delta_pp"]].mean()
            rows.append([f"{criterion} (ours, iterative)", _points([tuple(mean) for mean in means.to_numpy()])])
    base_pct = 100 * float(evidence.right([()], "none").mean())
    for criterion in ("consensus", "cka"):
        points = []
        for count in evidence.counts.values():
            accuracy_pct = 100 * float(evidence.right(evidence.removed(criterion, count)).mean())
            points.append((count * BLOCK_MACS_PCT, accuracy_pct - base_pct))
        rows.append([f"{criterion} (ours, one-shot, no training)", _points(points)])
    return markdown(["method", "MACs reduction (%): change of accuracy (pp)"], rows)


def named(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows with a column `name`: the criterion, or the consensus's aggregation where not the paper's."""
    other = (runs["criterion"] == "consensus") & (runs["aggregation"] != "rank_sum")
    return runs.assign(name=runs["criterion"].where(~other, runs["aggregation"]))


def _change(runs: pd.DataFrame, measure: str) -> str:
    values = runs[f"{measure}_delta_pp"].dropna()
    if values.empty:
        return "–"
    span = f" ({_signed(values.min())} … {_signed(values.max())})" if len(values) > 1 else ""
    return _signed(values.mean()) + span


def _points(points: tuple[tuple[float, ...], ...] | list[tuple[float, ...]]) -> str:
    return "; ".join(f"{macs_pct:.2f}: {_signed(change_pp)}" for macs_pct, change_pp in points)


def _signed(value: float) -> str:
    return f"+{value:.2f}" if value > 0 else number(value)
