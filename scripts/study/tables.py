"""The tables of `docs/study.md`, between markers, made of the rows and of nothing else."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from study.evidence import Estimate, Evidence, difference
from study.healing_tables import (
    healing_images_table,
    healing_robustness_table,
    healing_table,
    healing_tuned_table,
    healing_vit_table,
)
from study.iterative import iterative_table, paper_table
from study.markdown import NOT_MEASURED, estimate, filled, markdown, number
from study.plan import BASELINES, CRITERIA, MAIN, METRICS, STEPWISE, VOTES
from study.rows import joined


def update(document: Path, evidence: Evidence) -> None:
    """Writes the tables into a document, between `<!-- table: NAME -->` and `<!-- end -->`.

    Raises:
        UserError: the document has a marker of an unknown table.
    """
    text = document.read_text(encoding="utf-8")
    document.write_text(with_tables(text, evidence), encoding="utf-8")


def with_tables(text: str, evidence: Evidence) -> str:
    """Returns a document with its tables made anew from the rows.

    Raises:
        UserError: the document has a marker of an unknown table.
    """
    return filled(text, {name: functools.partial(make, evidence) for name, make in TABLES.items()})


def accuracy_table(evidence: Evidence) -> str:
    """Accuracy at every ratio: mean over draws, and the lowest and highest draw."""
    rows = []
    for name in (*CRITERIA, *evidence.decisions.oracles):
        cells = []
        for count in evidence.counts.values():
            shares_pct = 100 * evidence.right(evidence.removed(name, count)).mean(axis=1)
            span = f" ({shares_pct.min():.1f}–{shares_pct.max():.1f})" if len(shares_pct) > 1 else ""
            cells.append(f"{shares_pct.mean():.2f}{span}")
        rows.append([name, str(len(evidence.decisions.orders[name])), *cells])
    return markdown(["criterion", "draws", *_ratio_heads(evidence)], rows)


def regret_table(evidence: Evidence) -> str:
    """Regret against the oracle at every ratio, with intervals, and the mean of the four."""
    rows = []
    for name in CRITERIA:
        regrets = [evidence.regret(name, count) for count in evidence.counts.values()]
        rows.append([name, *map(estimate, regrets), f"{np.mean([r.mean_pp for r in regrets]):.2f}"])
    rows.append(["oracle", *(evidence.oracle(count) for count in evidence.counts.values()), ""])
    return markdown(["criterion", *_ratio_heads(evidence), "mean"], rows)


def against_consensus_table(evidence: Evidence) -> str:
    """Accuracy minus that of the paper's consensus; bold where the interval leaves out zero."""
    rows = []
    for name in CRITERIA[1:]:
        cells = []
        for count in evidence.counts.values():
            own, theirs = (evidence.right(evidence.removed(c, count)) for c in (name, "consensus"))
            cells.append(_bold_beyond_noise(difference(own, theirs)))
        rows.append([name, *cells])
    return markdown(["criterion", *_ratio_heads(evidence)], rows)


def first_choice_table(evidence: Evidence) -> str:
    """What each criterion removes first, and its regret for that one block by treatment."""
    treatments = [name for name in ("none", "recalibrated", "tuned") if evidence.has(name)]
    rows = []
    for name in CRITERIA:
        chosen = Counter(names[0] for names in evidence.removed(name, 1))
        told = ", ".join(block if times == 1 else f"{block} ×{times}" for block, times in chosen.most_common())
        rows.append([name, told, *(estimate(evidence.first_regret(name, t)) for t in treatments)])
    return markdown(["criterion", "first choice", *(f"regret, {t} (pp)" for t in treatments)], rows)


def single_removals_table(evidence: Evidence) -> str:
    """Accuracy without each candidate by treatment, and its mean place in the order of the consensus."""
    treatments = [name for name in ("none", "recalibrated", "tuned") if evidence.has(name)]
    orders = evidence.decisions.orders["consensus"]
    rows = [
        ["none", *(_share_pct(evidence, (), t) for t in treatments), ""],
        *(
            [
                name,
                *(_share_pct(evidence, (name,), t) for t in treatments),
                f"{np.mean([order.index(name) + 1 for order in orders]):.1f}",
            ]
            for name in evidence.names
        ),
    ]
    return markdown(["block removed", *(f"{t} (%)" for t in treatments), "mean place, consensus"], rows)


def agreement_table(evidence: Evidence) -> str:
    """Kendall's τ between the metrics on the unpruned network."""
    taus = evidence.metric_taus().loc[list(METRICS), list(METRICS)].to_numpy()
    rows = [[name, *(f"{tau:.2f}" for tau in row)] for name, row in zip(METRICS, taus, strict=True)]
    return markdown(["τ", *METRICS], rows)


def disagreement_table(evidence: Evidence) -> str:
    """Where a criterion's first choice differs from the consensus's, and who was right."""
    treatments = [name for name in ("recalibrated", "tuned") if evidence.has(name)]
    consensus = evidence.removed("consensus", 1)
    rows = []
    for name in [*VOTES, "weight_norm", "last"]:
        own = evidence.removed(name, 1)
        own = own * len(consensus) if name in BASELINES else own
        differing = [pair for pair in zip(own, consensus, strict=True) if pair[0] != pair[1]]
        cells = [_gain(evidence, differing, treatment) for treatment in treatments]
        taus = [number(evidence.tau_with_truth(name, treatment)) for treatment in treatments]
        rows.append([name, f"{len(differing)} of {len(own)}", *cells, *taus])
    heads = [f"its choice − consensus's, {t} (pp)" for t in treatments] + [f"τ with the truth, {t}" for t in treatments]
    return markdown(["criterion", "draws that differ", *heads], rows)


def samples_table(evidence: Evidence) -> str:
    """Mean τ with the largest sample of other draws, and how often the first choice is the same."""
    by_size = {size: evidence.stability(size) for size in evidence.plan.samples_per_class}
    rows = [
        [name, *(f"{by_size[size][name][0]:.3f} ({100 * by_size[size][name][1]:.0f} %)" for size in by_size)]
        for name in VOTES
    ]
    return markdown(["criterion", *(f"{size} per class" for size in by_size)], rows)


def stepwise_table(evidence: Evidence) -> str:
    """Accuracy when every step ranks anew, and what that gains: on ranking once, by the network compared with."""
    counts = evidence.counts.values()

    def gains(one: tuple[str, str], other: tuple[str, str]) -> list[str]:
        # Ranking once has more draws than ranking anew.
        pairs = [list(zip(_sets(evidence, *one, n), _sets(evidence, *other, n), strict=False)) for n in counts]
        return [_gain(evidence, pair) for pair in pairs]

    rows, differences = [], []
    for criterion in STEPWISE:
        for against in ("current", "original"):
            if found := len(evidence.path(criterion, against)):
                cells = [_stepwise_pct(evidence, criterion, against, count) for count in counts]
                rows.append([criterion, against, str(found), *cells])
        for other in ("one-shot", "original"):
            gained = gains((criterion, "current"), (criterion, other))
            differences.append([criterion, f"current − {other} (pp)", "", *gained])
    for against in ("current", "original"):
        gained = gains(*((criterion, against) for criterion in STEPWISE))
        differences.append([" − ".join(STEPWISE), f"{against} (pp)", "", *gained])
    heads = ["criterion", "against", "draws", *_ratio_heads(evidence)]
    return markdown(heads, rows + differences) if rows else NOT_MEASURED


def step_agreement_table(evidence: Evidence) -> str:
    """Agreement of the metrics at each step of the stepwise consensus against the current network."""
    paths = evidence.paths[(evidence.paths["criterion"] == "consensus") & (evidence.paths["against"] == "current")]
    rows = [
        [
            str(step),
            str(int(group["candidates"].iloc[0])),
            f"{group['mean_tau'].mean():.2f}",
            f"{group['metrics_agreeing'].mean():.1f}",
        ]
        for step, group in paths.groupby("step")
    ]
    heads = ["step", "candidates", "mean τ over pairs of metrics", "metrics that would remove the same block, of 8"]
    return markdown(heads, rows) if rows else NOT_MEASURED


def robustness_table(evidence: Evidence) -> str:
    """Clean, attacked and corrupted accuracy of the networks of the main criteria, one draw each."""
    rows = []
    for criterion in MAIN:
        for ratio, count in evidence.counts.items():
            names = evidence.removed(criterion, count)[0]
            found = evidence.robustness[evidence.robustness["removed"] == joined(names)].set_index("measure")
            if set(found.index) == {"fgsm", "pgd", "corruption"}:
                cells = [f"{found.loc[m, 'pruned_pct']:.1f} ({found.loc[m, 'delta_pp']:+.1f})" for m in found.index]
                cells = [cell.replace("-", "−") for cell in cells]
                rows.append([criterion, f"{ratio:g}", _share_pct(evidence, names, "recalibrated"), *cells])
    heads = ["criterion", "ratio", "clean (%)", "FGSM 8/255 (%)", "PGD 8/255 (%)", "corrupted (%)"]
    return markdown(heads, rows) if rows else NOT_MEASURED


def costs_table(evidence: Evidence) -> str:
    """MACs, latency and energy of the networks of the main criteria, one draw each."""
    rows = []
    by_set = evidence.costs.set_index("removed")
    for criterion in MAIN:
        for ratio, count in evidence.counts.items():
            names = joined(evidence.removed(criterion, count)[0])
            if names in by_set.index:
                row = by_set.loc[names]
                pairs = [
                    (row["latency_b1_base_ms"], row["latency_b1_pruned_ms"]),
                    (row["latency_b128_base_ms"], row["latency_b128_pruned_ms"]),
                    (row["energy_base_mwh_per_1000_images"], row["energy_pruned_mwh_per_1000_images"]),
                ]
                cells = [f"{after:.2f} ({100 * (after / before - 1):+.0f} %)" for before, after in pairs]
                cells = [cell.replace("-", "−") for cell in cells]
                rows.append([criterion, f"{ratio:g}", f"{row['macs'] / 1e6:.2f} M", *cells])
    heads = ["criterion", "ratio", "MACs", "batch 1 (ms)", "batch 128 (ms)", "energy of 1,000 images (mWh)"]
    return markdown(heads, rows) if rows else NOT_MEASURED


def _ratio_heads(evidence: Evidence) -> list[str]:
    return [f"{ratio:g} ({count} blocks)" for ratio, count in evidence.counts.items()]


def _share_pct(evidence: Evidence, names: tuple[str, ...], treatment: str) -> str:
    return number(100 * float(evidence.right([names], treatment).mean()))


def _bold_beyond_noise(value: Estimate) -> str:
    return f"**{estimate(value)}**" if value.beyond_noise else estimate(value)


def _gain(
    evidence: Evidence, differing: Sequence[tuple[tuple[str, ...], tuple[str, ...]]], treatment: str = "recalibrated"
) -> str:
    if not differing:
        return "–"
    own, theirs = (evidence.right(sets, treatment) for sets in zip(*differing, strict=True))
    return _bold_beyond_noise(difference(own, theirs))


def _stepwise_pct(evidence: Evidence, criterion: str, against: str, count: int) -> str:
    return number(100 * float(evidence.right(evidence.path_sets(criterion, against, count)).mean()))


def _sets(evidence: Evidence, criterion: str, way: str, count: int) -> list[tuple[str, ...]]:
    """Returns what goes draw by draw: at once, or step by step against the `current` or the `original` network."""
    return evidence.removed(criterion, count) if way == "one-shot" else evidence.path_sets(criterion, way, count)


TABLES: dict[str, Callable[[Evidence], str]] = {
    "accuracy": accuracy_table,
    "regret": regret_table,
    "against_consensus": against_consensus_table,
    "first_choice": first_choice_table,
    "single_removals": single_removals_table,
    "agreement": agreement_table,
    "disagreement": disagreement_table,
    "samples": samples_table,
    "stepwise": stepwise_table,
    "step_agreement": step_agreement_table,
    "robustness": robustness_table,
    "costs": costs_table,
    "healing": healing_table,
    "healing_images": healing_images_table,
    "healing_tuned": healing_tuned_table,
    "healing_robustness": healing_robustness_table,
    "healing_vit": healing_vit_table,
    "iterative": iterative_table,
    "paper": paper_table,
}
