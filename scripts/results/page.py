"""The tables and figures of `docs/results.md`, made of the rows and of nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from study.markdown import NOT_MEASURED, filled, markdown
from study.rows import Rows

from consensus_cli.report import figures, robustness, tradeoff
from consensus_cli.report.attribution import PARTS
from consensus_cli.report.formatting import NONE, fixed
from consensus_cli.report.palette import styles
from consensus_cli.report.published import published
from consensus_cli.report.runs import load
from results.measure import RUNS, TRIES
from results.plan import CONTROLLED, RATIOS, TRIED

#: how a control is called on the page
_CONTROLS = {
    "more_training": "original, trained as much",
    "scratch": "pruned shape from fresh weights",
    "scratch_long": "the same, with the original's epochs besides",
}
#: what is owed to what, in the order of the table
_OWED = {
    "training": "training",
    "pruning": "pruning",
    "weights": "kept weights",
    "weights_long": "kept weights, long",
    "choice_random": "choice, against random",
    "choice_uniform": "choice, against uniform",
}
_COSTS = {
    "macs": "MACs",
    "params": "parameters",
    "latency_b1": "latency, batch 1",
    "latency_b128": "latency, batch 128",
    "energy_inference": "energy of inference",
    "energy_epoch": "energy of an epoch",
}


@dataclass(frozen=True)
class Results:
    """The rows of the page.

    Attributes:
        runs: of the runs and their controls, with every column that the report reads; none before they are measured.
        tries: of the runs with something more.
        checks: of APGD and Square.
    """

    runs: pd.DataFrame
    tries: pd.DataFrame
    checks: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Reads the CSV files of a folder."""
        runs = load(folder / RUNS).finished if (folder / RUNS).is_file() else pd.DataFrame()
        tries = pd.read_csv(folder / TRIES) if (folder / TRIES).is_file() else pd.DataFrame()
        return cls(runs, tries, Rows(folder, "checks").read())

    def of(self, criterion: str, blocks: int, control: str = "") -> pd.DataFrame:
        """Returns the rows of a criterion at a number of removed blocks, or of one of its controls, seed by seed."""
        rows = self.runs
        at = rows["ratio"] == RATIOS[blocks]
        return rows[at & (rows["criterion"] == criterion) & (rows["control"] == control)].sort_values("seed")


def with_tables(text: str, results: Results) -> str:
    """Returns the document with its tables made anew."""
    measured = {name: functools.partial(make, results) for name, make in TABLES.items()}
    return filled(text, measured if len(results.runs) else dict.fromkeys(TABLES, lambda: NOT_MEASURED))


def verdict(results: Results) -> str:
    """Which of the three wins held at `CONTROLLED` blocks, by how much, and against which control; means over seeds."""
    own, more = results.of("consensus", CONTROLLED), results.of("consensus", CONTROLLED, "more_training")
    if own.empty or more.empty:
        return NOT_MEASURED
    seeds = f"{len(own)} seed{'' if len(own) == 1 else 's'}"
    accuracy = [
        _change("against the original", own["accuracy_delta_pp"], own["mcnemar_p"] < 0.05),
        _change(
            "against the original trained as much", own["owed_to_pruning_pp"], _beyond_zero(own, "owed_to_pruning")
        ),
    ]
    attacked, won, lost = [], 0, 0
    for name in _curve(own):
        label, sure = robustness.attack_label(name, own), _beyond_zero(own, name).all()
        won += bool(sure and mean(own, f"{name}_delta_pp") > 0)
        lost += bool(sure and mean(own, f"{name}_delta_pp") < 0)
        after, before, trained = (
            mean(rows, column)
            for rows, column in (
                (own, f"{name}_pruned_pct"),
                (own, f"{name}_base_pct"),
                (more, f"{name}_pruned_pct"),
            )
        )
        attacked.append(f"{label}: {fixed(after)} % against {fixed(before)} % and {fixed(trained)} %")
    costs = [f"{label} {fixed(-mean(own, f'{name}_reduction_pct'), 2, '%')}" for name, label in _COSTS.items()]
    return (
        f"{CONTROLLED} of 24 blocks gone, {seeds}. **Cost:** {', '.join(costs)}. **Accuracy:** {'; '.join(accuracy)}. "
        f"**Robustness:** against the original, beyond noise, better under {won} and worse under {lost} of "
        f"{len(attacked)} attacks (the pruned network against the original, and against the original trained as much): "
        f"{'; '.join(attacked)}."
    )


def points_table(results: Results) -> str:
    """Accuracy and costs at each number of removed blocks, mean over seeds; changes in brackets."""
    rows, more = [], results.of("consensus", CONTROLLED, "more_training")
    for blocks in RATIOS:
        own = results.of("consensus", blocks)
        if len(own):
            saved = [fixed(-mean(own, f"{name}_reduction_pct"), 1) for name in _COSTS]
            accuracy = f"{fixed(mean(own, 'accuracy_pruned_pct'))} ({_signed(mean(own, 'accuracy_delta_pp'))})"
            # Fine-tuned at the end only, every pruned network has the same training, and so the same control.
            same = more[more["seed"].isin(own["seed"])]
            control = mean(own, "accuracy_pruned_pct") - mean(same, "accuracy_pruned_pct")
            rows.append([str(blocks), str(len(own)), accuracy, _signed(control), *saved])
    heads = ["blocks removed", "seeds", "accuracy (%)", "against the original trained as much (pp)"]
    heads += [f"{label} (%)" for label in _COSTS.values()]
    return markdown(heads, rows) if rows else NOT_MEASURED


def controls_table(results: Results) -> str:
    """Accuracy of the pruned network at `CONTROLLED` blocks, of its controls and of other choices, seed by seed."""
    own = results.of("consensus", CONTROLLED)
    networks = {
        "original": (own, "base"),
        "without 15 blocks, consensus": (own, "pruned"),
        **{label: (results.of("consensus", CONTROLLED, name), "pruned") for name, label in _CONTROLS.items()},
        "without 15 blocks, random": (results.of("random", CONTROLLED), "pruned"),
        "without 15 blocks, uniform": (results.of("uniform", CONTROLLED), "pruned"),
    }
    rows = []
    for label, (found, network) in networks.items():
        values = found[f"accuracy_{network}_pct"]
        if len(values):
            corrupted = mean(found, f"own_corruption_mean_{network}_pct")
            rows.append([label, str(len(values)), fixed(values.mean()), " ".join(map(fixed, values)), fixed(corrupted)])
    heads = ["network", "seeds", "accuracy (%)", "seed by seed", "corrupted (%)"]
    return markdown(heads, rows) if rows else NOT_MEASURED


def owed_table(results: Results) -> str:
    """What of the change in accuracy is owed to what, with 95 % intervals over test images, seed by seed."""
    rows = []
    for _, row in results.of("consensus", CONTROLLED).iterrows():
        cells = []
        for part in _OWED:
            ends = (row.get(f"owed_to_{part}_{end}", float("nan")) for end in ("pp", "ci95_low", "ci95_high"))
            delta, low, high = ends
            cells.append(NONE if pd.isna(delta) else f"{_signed(delta)} [{_signed(low)}, {_signed(high)}]")
        if set(cells) != {NONE}:
            rows.append([fixed(row["seed"], 0), _signed(row["accuracy_delta_pp"]), *cells])
    return markdown(["seed", "change (pp)", *_OWED.values()], rows) if rows else NOT_MEASURED


def tries_table(results: Results) -> str:
    """Accuracy of what was tried beside the plain protocol's, and how far it is from the original trained as much."""
    more = results.of("consensus", CONTROLLED, "more_training")
    if results.tries.empty or more.empty:
        return NOT_MEASURED
    plain = pd.concat([results.of("consensus", blocks).head(1) for blocks in TRIED]).assign(name="plain")
    found, rows = pd.concat([plain, results.tries]), []
    for name, ours in found.groupby("name", sort=False):
        cells = [str(name)]
        for blocks in TRIED:
            accuracy = mean(ours[ours["ratio"] == RATIOS[blocks]], "accuracy_pruned_pct")
            cells += [fixed(accuracy), _signed(accuracy - more["accuracy_pruned_pct"].iloc[0])]
        rows.append([*cells, fixed(mean(ours, "finetune_s") / 60, 0)])
    heads = [head for blocks in TRIED for head in (f"{blocks} blocks (%)", "against the original trained as much (pp)")]
    return markdown(["tried", *heads, "fine-tuning (min)"], rows)


def curve_table(results: Results) -> str:
    """Accuracy under attack over epsilon, mean over seeds."""
    rows = []
    for label, found, network in _networks(results):
        names = _curve(found)
        rows.append([label, *(fixed(mean(found, f"{name}_{network}_pct"), 1) for name in ["clean", *names])])
    if not rows:
        return NOT_MEASURED
    names = _curve(results.of("consensus", CONTROLLED) if len(results.of("consensus", CONTROLLED)) else results.runs)
    return markdown(["network", "clean", *(robustness.attack_label(n, results.runs) for n in names)], rows)


def corruption_table(results: Results) -> str:
    """Mean accuracy over eleven corruptions at five severities, mean over seeds; change against the original."""
    column = "own_corruption_mean_{}_pct"
    rows = [
        [str(blocks), *(fixed(mean(own, column.format(n))) for n in ("base", "pruned")), _signed(change)]
        for blocks in RATIOS
        for own in [results.of("consensus", blocks)]
        for change in [mean(own, column.format("pruned")) - mean(own, column.format("base"))]
        if len(own)
    ]
    return markdown(["blocks removed", "original (%)", "pruned (%)", "change (pp)"], rows) if rows else NOT_MEASURED


def checks_table(results: Results) -> str:
    """APGD and Square beside FGSM and PGD on the same few images, original and pruned network."""
    known = results.runs[results.runs["control"] == ""].set_index("run_id")
    rows = []
    for run_id, found in results.checks.groupby("run_id", sort=False):
        if run_id in known.index:
            label = f"{known.loc[run_id, 'blocks_removed']:.0f} blocks"
            cells = [f"{fixed(c['base_pct'], 1)} / {fixed(c['pruned_pct'], 1)}" for _, c in found.iterrows()]
            rows.append([label, str(found["images"].iloc[0]), *cells])
            heads = [f"{c['attack'].partition('_')[0].upper()} {c['eps255']:g}/255" for _, c in found.iterrows()]
    return markdown(["without", "images", *heads], rows) if rows else NOT_MEASURED


def published_table(results: Results) -> str:
    """The published points of the protocol beside ours at the same number of blocks."""
    rows = []
    ours = {blocks: results.of("consensus", blocks) for blocks in RATIOS}
    marks = published(results.runs)
    for blocks, saved, change in zip(
        *(marks[name] for name in ("blocks_removed", "macs_reduction_pct", "accuracy_delta_pp")), strict=True
    ):
        own = ours.get(blocks, pd.DataFrame())
        rows.append([str(blocks), fixed(saved), _signed(change), _signed(mean(own, "accuracy_delta_pp"))])
    heads = ["blocks removed", "MACs (−%)", "published (pp)", "ours (pp)"]
    return markdown(heads, rows) if rows else NOT_MEASURED


def warnings_table(results: Results) -> str:
    """What the report warns of."""
    return "\n".join(f"- {text}" for text in robustness.warnings(results.runs)) or "None."


TABLES: dict[str, Callable[[Results], str]] = {
    "verdict": verdict,
    "points": points_table,
    "controls": controls_table,
    "owed": owed_table,
    "tries": tries_table,
    "curve": curve_table,
    "corruption": corruption_table,
    "checks": checks_table,
    "published": published_table,
    "warnings": warnings_table,
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draws the figures of the page into a folder and returns the files; none before there are rows."""
    if results.runs.empty:
        return []
    points = tradeoff.points(results.runs)
    looks = styles(points["series"])
    marks = published(results.runs)
    drawn = {"tradeoff": figures.tradeoff_figure(points, tradeoff.COSTS[0], "accuracy", looks, published=marks)}
    own = results.runs[results.runs["criterion"] == "consensus"]
    for attack, curve in robustness.curves(own).groupby("attack"):
        drawn[figures.slug(str(attack))] = figures.curve_figure(curve)
    return [path for name, figure in drawn.items() if figure for path in figures.save(figure, folder / name, ("svg",))]


def mean(rows: pd.DataFrame, column: str) -> float:
    """Returns the mean of a column; NaN where it was not measured."""
    return float(rows[column].mean()) if column in rows and len(rows) else float("nan")


def _networks(results: Results) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yields the networks of the page that were attacked: label, rows, and the word for the network in columns."""
    if len(results.of("consensus", CONTROLLED)):
        yield "original", results.of("consensus", CONTROLLED), "base"
    for name, label in _CONTROLS.items():
        if len(found := results.of("consensus", CONTROLLED, name)):
            yield label, found, "pruned"
    for blocks in RATIOS:
        if len(found := results.of("consensus", blocks)):
            yield f"without {blocks} blocks", found, "pruned"


def _curve(rows: pd.DataFrame) -> list[str]:
    """Returns the names of the attacks of the curve, by attack and epsilon."""
    names = {
        name: (robustness.attack_label(name, rows).partition(" ")[0], rows[f"{name}_eps255"].iloc[0])
        for name in robustness.attacks(rows)
    }
    return sorted(names, key=names.__getitem__)


def _beyond_zero(rows: pd.DataFrame, name: str) -> pd.Series:
    """Whether the 95 % interval of a change leaves out zero, row by row."""
    return (rows[f"{name}_ci95_low"] > 0) | (rows[f"{name}_ci95_high"] < 0)


def _change(against: str, deltas_pp: pd.Series, sure: pd.Series) -> str:
    """Says a change, mean over seeds: won or lost where it is beyond noise (over test images) for every seed."""
    alike = (deltas_pp > 0).nunique() == 1
    held = ("won" if deltas_pp.mean() > 0 else "lost") if alike and sure.all() else "not beyond noise for every seed"
    return f"{_signed(deltas_pp.mean())} pp {against} ({held}; seeds {' '.join(map(_signed, deltas_pp))})"


def _signed(value: float) -> str:
    return fixed(value, 2, sign=True)


assert set(_OWED) == set(PARTS)
