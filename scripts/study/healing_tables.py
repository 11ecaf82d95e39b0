"""What the rows of healing say: tables and the figure of accuracy against MACs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from consensus_cli.report.figures import blank
from consensus_cli.report.palette import styles
from study.healing import METHODS, ORDERS, REPAIRED
from study.markdown import NOT_MEASURED, markdown, number

if TYPE_CHECKING:
    from study.evidence import Evidence


def _or_not_measured(make: Callable[[pd.DataFrame], str], rows: pd.DataFrame) -> str:
    return make(rows) if len(rows) else NOT_MEASURED


def healing_table(evidence: Evidence) -> str:
    """Accuracy by order and method, mean and spread over draws, and the MACs of each method."""

    def table(found: pd.DataFrame) -> str:
        found = found[found["images"] == evidence.plan.healing_images[0]]
        counts, rows = sorted(found["blocks"].unique()), []
        for order in ORDERS:
            for method in METHODS:
                own = found[(found["order"] == order) & (found["method"] == method)]
                if len(own):
                    rows.append([order, method, str(own["draw"].nunique()), *_cells(own, counts)])
        for method in METHODS:
            own = found[found["method"] == method].groupby("blocks")["macs"].mean() / 1e6
            if method in ("nothing", "linear") and len(own):
                rows.append(["MACs (M)", method, "", *(f"{own[count]:.1f}" for count in counts if count in own)])
        return markdown(["order", "method", "draws", *(f"{count} blocks" for count in counts)], rows)

    return _or_not_measured(table, evidence.healing)


def healing_images_table(evidence: Evidence) -> str:
    """Accuracy of what is chosen and healed with more and fewer images, first draw."""

    def table(found: pd.DataFrame) -> str:
        counts, rows = sorted(found["blocks"].unique()), []
        for method in METHODS:
            for images in sorted(evidence.plan.healing_images):
                own = found[(found["images"] == images) & (found["method"] == method)]
                if len(own):
                    rows.append([method, str(images), *_cells(own, counts)])
        return markdown(["method", "images", *(f"{count} blocks" for count in counts)], rows)

    rows = evidence.healing
    return _or_not_measured(table, rows[(rows["draw"] == 0) & (rows["order"] == REPAIRED)])


def healing_tuned_table(evidence: Evidence) -> str:
    """Accuracy after some epochs of fine-tuning, by method."""

    def table(found: pd.DataFrame) -> str:
        untrained = evidence.healing
        untrained = untrained[(untrained["draw"] == 0) & (untrained["order"] == REPAIRED)]
        untrained = untrained[untrained["images"] == evidence.plan.healing_images[0]]
        epochs, rows = sorted(found["epochs"].unique()), []
        for (blocks, method), own in found.groupby(["blocks", "method"], sort=False):
            same = untrained[(untrained["blocks"] == blocks) & (untrained["method"] == method)]
            cells = [own.loc[own["epochs"] == each, "accuracy_pct"] for each in epochs]
            values = [same["accuracy_pct"], *cells]
            rows.append([str(blocks), str(method), *(number(v.iloc[0]) if len(v) else "" for v in values)])
        return markdown(["blocks", "method", "0 epochs", *(f"{each:g}" for each in epochs)], rows)

    return _or_not_measured(table, evidence.healing_tuned)


def healing_robustness_table(evidence: Evidence) -> str:
    """Accuracy under attack and on corrupted images by method, and that of the original."""

    def table(found: pd.DataFrame) -> str:
        measures = list(dict.fromkeys(found["measure"]))
        base = found.drop_duplicates("measure").set_index("measure")["base_pct"]
        rows = [["0", "original", *(number(base[measure]) for measure in measures)]]
        for (blocks, method), own in found.groupby(["blocks", "method"], sort=False):
            values = own.set_index("measure")["pruned_pct"]
            rows.append([str(blocks), str(method), *(number(values[m]) if m in values else "" for m in measures)])
        return markdown(["blocks", "method", *measures], rows)

    return _or_not_measured(table, evidence.healing_robustness)


def healing_vit_table(evidence: Evidence) -> str:
    """Accuracy of the vision transformer without blocks or branches, by method."""

    def table(found: pd.DataFrame) -> str:
        rows = []
        for keys, own in found.sort_values("blocks_removed").groupby(["granularity", "replace", "refit"], sort=True):
            granularity, kind, refits = keys
            name = ("refit" if kind == "nothing" else f"{kind}, refit") if refits else kind
            points = [
                f"{int(gone)}/{int(of)}, {macs / 1e6:.1f} M: {number(accuracy)}"
                for gone, of, macs, accuracy in zip(
                    *(
                        own[key]
                        for key in ("blocks_removed", "blocks_candidates", "macs_pruned", "accuracy_pruned_pct")
                    ),
                    strict=True,
                )
            ]
            rows.append([str(granularity), name, *points])
        width = max(len(row) for row in rows) - 2
        rows = [row + [""] * (width + 2 - len(row)) for row in rows]
        original = f"original {found['accuracy_base_pct'].iloc[0]:.2f} %, {found['macs_base'].iloc[0] / 1e6:.1f} M MACs"
        return f"Removed, MACs: accuracy (%); {original}.\n\n" + markdown(
            ["granularity", "method", *(f"point {i + 1}" for i in range(width))], rows
        )

    return _or_not_measured(table, evidence.healing_vit)


def healing_figure(evidence: Evidence) -> Figure:
    """Accuracy against MACs without training: CKA's order by method, and what is chosen by what is left."""
    figure, axes = blank(5.2, 3.2)
    found = evidence.healing[evidence.healing["images"] == evidence.plan.healing_images[0]]
    shown = {method: ("cka", method) for method in METHODS} | {
        "linear, refit, repair-aware": (REPAIRED, "linear, refit")
    }
    for name, look in styles(tuple(shown)).items():
        order, method = shown[name]
        own = found[(found["order"] == order) & (found["method"] == method)].groupby("blocks")
        if not len(own):
            continue
        axes.plot(own["macs"].mean() / 1e6, own["accuracy_pct"].mean(), label=name, **look.line)
    axes.set_xlabel("MACs (millions)")
    axes.set_ylabel("accuracy, nothing trained (%)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _cells(own: pd.DataFrame, counts: list[int]) -> list[str]:
    """Returns mean and spread over draws for each number of blocks."""
    cells = []
    for count in counts:
        values = own.loc[own["blocks"] == count, "accuracy_pct"]
        spread = f" ({values.min():.1f}–{values.max():.1f})" if len(values) > 1 else ""
        cells.append(f"{values.mean():.2f}{spread}" if len(values) else "")
    return cells
