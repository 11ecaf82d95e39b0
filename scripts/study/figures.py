"""The figures of `docs/study.md`, drawn from the rows: SVG, readable in grey and by colour-blind readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from consensus_cli.report.figures import blank, save
from consensus_cli.report.palette import NEUTRAL, SCALE, styles
from study.evidence import Evidence
from study.healing_tables import healing_figure
from study.plan import CRITERIA, MAIN, METRICS

#: lines in the figures over ratios and sample sizes
SHOWN = (*MAIN, "last", "oracle_greedy")
STABILITY_SHOWN = ("consensus", "family_rank_sum", "cka", "permutation", "gaussian_alpha2", "wasserstein")


def draw(evidence: Evidence, folder: Path) -> list[Path]:
    """Draws every figure into a folder and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, make in FIGURES.items():
        written += save(make(evidence), folder / name, ("svg",))
    return written


def accuracy_figure(evidence: Evidence) -> Figure:
    """Accuracy against the number of blocks removed, mean over draws, bars from the lowest to the highest draw."""
    figure, axes = blank(5.2, 3.2)
    counts = list(evidence.counts.values())
    for name, look in styles(SHOWN).items():
        shares_pct = [100 * evidence.right(evidence.removed(name, count)).mean(axis=1) for count in counts]
        means = np.array([s.mean() for s in shares_pct])
        spread = [means - [s.min() for s in shares_pct], [s.max() for s in shares_pct] - means]
        axes.errorbar(
            counts,
            means,
            yerr=np.clip(spread, 0, None),
            label=name,
            capsize=2,
            **look.line,
        )
    base_pct = 100 * evidence.right([()], "none").mean()
    axes.axhline(base_pct, color=NEUTRAL, linestyle=(0, (4, 3)), linewidth=1, label=f"unpruned, {base_pct:.2f} %")
    axes.set_xticks(counts)
    axes.set_xlabel(f"blocks removed, of {len(evidence.names)}")
    axes.set_ylabel("accuracy, recalibrated (%)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def regret_figure(evidence: Evidence) -> Figure:
    """Regret per criterion with its 95 % interval, one marker per ratio."""
    figure, axes = blank(5.6, 5.0)
    looks = styles(f"{ratio:g}" for ratio in evidence.counts)
    for position, (ratio, count) in enumerate(evidence.counts.items()):
        regrets = [evidence.regret(name, count) for name in CRITERIA]
        means = np.array([r.mean_pp for r in regrets])
        reach = [means - [r.low_pp for r in regrets], [r.high_pp for r in regrets] - means]
        look = looks[f"{ratio:g}"]
        axes.errorbar(
            means,
            np.arange(len(CRITERIA)) + 0.18 * (position - 1.5),
            xerr=np.clip(reach, 0, None),
            linestyle="none",
            color=look.colour,
            marker=look.marker,
            markersize=4,
            capsize=2,
            label=f"ratio {ratio:g}",
        )
    axes.axvline(0, color=NEUTRAL, linewidth=1)
    axes.set_yticks(range(len(CRITERIA)), list(CRITERIA))
    axes.invert_yaxis()
    axes.set_xlabel("regret: accuracy of the oracle minus the criterion's (pp)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def single_removals_figure(evidence: Evidence) -> Figure:
    """Change of accuracy by the removal of each candidate alone, by treatment."""
    figure, axes = blank(6.4, 3.0)
    treatments = [name for name in ("none", "recalibrated", "tuned") if evidence.has(name)]
    base = evidence.right([()], "none").mean()
    for name, look in styles(treatments).items():
        changes_pp = 100 * (evidence.right([(block,) for block in evidence.names], name).mean(axis=1) - base)
        axes.plot(changes_pp, look.marker, color=look.colour, markersize=5, linestyle="none", label=name)
    axes.axhline(0, color=NEUTRAL, linewidth=1)
    axes.set_xticks(range(len(evidence.names)), evidence.names, rotation=90)
    axes.set_xlabel("block removed")
    axes.set_ylabel("change of accuracy (pp)")
    axes.legend(fontsize=7, frameon=False)
    return figure


def agreement_figure(evidence: Evidence) -> Figure:
    """Kendall's τ between the metrics as a heat map with its values."""
    taus = evidence.metric_taus().loc[list(METRICS), list(METRICS)].to_numpy()
    figure, axes = blank(5.2, 4.2)
    low = min(0.0, float(np.floor(10 * taus.min()) / 10))
    image = axes.imshow(taus, cmap=SCALE, vmin=low, vmax=1)
    axes.grid(visible=False)
    for (row, column), value in np.ndenumerate(taus):
        colour = "white" if value < (1 + low) / 2 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(METRICS)), list(METRICS), rotation=45, ha="right")
    axes.set_yticks(range(len(METRICS)), list(METRICS))
    figure.colorbar(image, ax=axes, label="Kendall's τ", shrink=0.9)
    return figure


def stability_figure(evidence: Evidence) -> Figure:
    """Agreement of small samples with the largest one, by samples per class."""
    figure, axes = blank(5.2, 3.0)
    sizes = evidence.plan.samples_per_class
    found = [evidence.stability(size) for size in sizes]
    for name, look in styles(STABILITY_SHOWN).items():
        axes.plot(sizes, [stability[name][0] for stability in found], label=name, **look.line)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("training images per class")
    axes.set_ylabel(f"Kendall's τ with {max(sizes)} per class")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


FIGURES: dict[str, Callable[[Evidence], Figure]] = {
    "accuracy": accuracy_figure,
    "regret": regret_figure,
    "single_removals": single_removals_figure,
    "agreement": agreement_figure,
    "stability": stability_figure,
    "healing": healing_figure,
}
