"""The tables and figures of `docs/results.md`, made of the rows and of nothing else."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy.stats import t as student_t
from study.markdown import NOT_MEASURED, filled, markdown
from study.rows import Rows

from consensus_cli.report import energy, figures, robustness, tradeoff
from consensus_cli.report.attribution import PARTS
from consensus_cli.report.formatting import NONE, fixed
from consensus_cli.report.palette import styles
from consensus_cli.report.published import published
from consensus_cli.report.runs import load
from results.measure import RUNS, TRIES
from results.plan import CONTROLLED, RATIOS, TAUGHT, TRIED

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
#: what the runs are to be compared with, beside the original
_TRAINED = "against the original trained as much"
_SIGNS = (("better", 1), ("worse", -1))
_COUNTED = {"macs": "MACs", "params": "parameters"}
#: what depends on the machine
_COSTS = {
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
        cpu: the same of runs that were repeated on a CPU.
        tries: of the runs with something more.
        checks: of APGD and Square.
    """

    runs: pd.DataFrame
    cpu: pd.DataFrame
    tries: pd.DataFrame
    checks: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Reads the CSV files of a folder."""
        files = (folder / RUNS, folder / "cpu" / RUNS)
        runs, cpu = (load(file).finished if file.is_file() else pd.DataFrame() for file in files)
        tries = pd.read_csv(folder / TRIES) if (folder / TRIES).is_file() else pd.DataFrame()
        return cls(runs, cpu, tries, Rows(folder, "checks").read())

    def of(self, criterion: str, blocks: int, control: str = "") -> pd.DataFrame:
        """Returns the rows of a criterion at a number of removed blocks, or of one of its controls, seed by seed."""
        return _at(self.runs, criterion, blocks, control)

    def tried(self, name: str, blocks: int) -> pd.DataFrame:
        """Returns the rows of a try at a number of removed blocks."""
        rows = self.tries
        return rows[(rows["name"] == name) & (rows["ratio"] == RATIOS[blocks])] if len(rows) else rows

    def by_machine(self, blocks: int) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yields the consensus rows at a number of removed blocks on each machine, by its name; of `runs` first."""
        known: set[str] = set()
        for rows in (self.runs, self.cpu):
            by_device = _at(rows, "consensus", blocks).groupby("device") if len(rows) else ()
            for device, found in by_device:
                # A row says `cpu`, or `cuda (NVIDIA H100)`.
                name = "CPU" if device == "cpu" else str(device).removeprefix("cuda (").removesuffix(")")
                if name not in known:
                    yield name, found
                known.add(name)


def with_tables(text: str, results: Results) -> str:
    """Returns the document with its tables made anew."""
    measured = {name: functools.partial(make, results) for name, make in TABLES.items()}
    return filled(text, measured if len(results.runs) else dict.fromkeys(TABLES, lambda: NOT_MEASURED))


def verdict(results: Results) -> str:
    """Which of the three wins held at `CONTROLLED` blocks, by how much, and against which control; means over seeds."""
    own, more = results.of("consensus", CONTROLLED), results.of("consensus", CONTROLLED, "more_training")
    if own.empty or more.empty:
        return NOT_MEASURED
    costs = [f"{label} {_saved(own, name, 2)} %" for name, label in _COUNTED.items()]
    for name, label in _COSTS.items():
        by = [_saved_on(device, rows, name) for device, rows in results.by_machine(CONTROLLED)]
        if told := " and ".join(filter(None, by)):
            costs.append(f"{label.replace(', ', ' at ')} {told}")
    parts = [f"**Cost: won.** {', '.join(costs)}.", f"**Accuracy: {_said(own)}.** {_changes(own)}."]
    if len(fewer := results.of("consensus", min(TRIED))):
        parts.append(f"With {min(TRIED)} blocks gone: {_said(fewer)}, {_changes(fewer)}.")
    for blocks in TRIED:
        if len(taught := results.tried(TAUGHT, blocks)):
            parts.append(
                f"With {blocks} blocks gone and the original trained as much as its teacher ({_seeds(taught)}, not "
                f"attacked): {_said(taught)}, {_changes(taught)}."
            )
    names = _told_of(own)
    counts = [
        " and ".join(f"{word} under {sum(_beyond(own, name + end) == sign for name in names)}" for word, sign in _SIGNS)
        for end in ("", "_owed_to_pruning")
    ]
    parts.append(
        f"**Robustness: of {len(names)} attacks that leave enough images to tell, {counts[0]} against the original, "
        f"{counts[1]} {_TRAINED}**, beyond noise ([how much](#robustness))."
    )
    return (
        f"{CONTROLLED} of 24 blocks gone, {_seeds(own)}. {' '.join(parts)} Changes are in pp; intervals are of 95 %, "
        "over seeds where there are several, else over test images."
    )


def points_table(results: Results) -> str:
    """Accuracy and costs at each number of removed blocks, mean over seeds; changes with their intervals."""
    rows = []
    for blocks in RATIOS:
        own = results.of("consensus", blocks)
        if len(own):
            saved = [_saved(own, name, 1) for name in _COUNTED]
            # Fine-tuned at the end only, every pruned network has the same training, and so the same control.
            changes = [_change(own, "accuracy"), _change(own, "owed_to_pruning")]
            rows.append([str(blocks), str(len(own)), fixed(mean(own, "accuracy_pruned_pct")), *changes, *saved])
    heads = ["blocks removed", "seeds", "accuracy (%)", "against the original (pp)", f"{_TRAINED} (pp)"]
    heads += [f"{label} (%)" for label in _COUNTED.values()]
    return markdown(heads, rows) if rows else NOT_MEASURED


def costs_table(results: Results) -> str:
    """What the same runs give on each machine, at each number of removed blocks; means over seeds."""
    rows = [
        [device, str(blocks), str(len(own)), fixed(mean(own, "accuracy_pruned_pct")), _change(own, "owed_to_pruning")]
        + [_saved(own, name, 1) for name in _COSTS]
        for blocks in RATIOS
        for device, own in results.by_machine(blocks)
    ]
    heads = ["machine", "blocks removed", "seeds", "accuracy (%)", f"{_TRAINED} (pp)"]
    heads += [f"{label} (%)" for label in _COSTS.values()]
    return markdown(heads, sorted(rows, key=lambda row: row[0])) if rows else NOT_MEASURED


def controls_table(results: Results) -> str:
    """Accuracy of the pruned network at `CONTROLLED` blocks, of its controls and of other choices, seed by seed."""
    rows = []
    for label, found, network in _networks(results, [CONTROLLED], others=True):
        values = found[f"accuracy_{network}_pct"]
        corrupted = fixed(mean(found, f"own_corruption_mean_{network}_pct"))
        if network == "pruned":
            corrupted += f" ({_signed(mean(found, 'own_corruption_mean_delta_pp'))})"
        rows.append([label, str(len(values)), fixed(values.mean()), " ".join(map(fixed, values)), corrupted])
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
    plain = [results.of("consensus", blocks).head(1) for blocks in TRIED]
    if results.tries.empty:
        return NOT_MEASURED
    found, rows = pd.concat([*(rows.assign(name="plain") for rows in plain), results.tries]), []
    for name, ours in found.groupby("name", sort=False):
        cells = [str(name)]
        for blocks in TRIED:
            at = ours[ours["ratio"] == RATIOS[blocks]]
            cells.append(fixed(mean(at, "accuracy_pruned_pct")))
            cells += [_change(at, name) for name in ("accuracy", "owed_to_pruning")]
        rows.append(cells)
    against = ("against the original (pp)", f"{_TRAINED} (pp)")
    return markdown(["tried", *(head for n in TRIED for head in (f"{n} blocks (%)", *against))], rows)


def attacked_table(results: Results) -> str:
    """Accuracy under the attacks that leave enough images to tell, at `CONTROLLED` blocks, and its two changes."""
    own = results.of("consensus", CONTROLLED)
    rows = [
        [robustness.attack_label(name, own), fixed(mean(own, f"{name}_pruned_pct"), 1)]
        + [_change(own, name + end) for end in ("", "_owed_to_pruning")]
        for name in _told_of(own)
    ]
    heads = ["attack", "accuracy (%)", "against the original (pp)", f"{_TRAINED} (pp)"]
    return markdown(heads, rows) if rows else NOT_MEASURED


def curve_table(results: Results) -> str:
    """Accuracy under attack over epsilon, mean over seeds; in brackets the change against the original, image by image.

    Each seed attacks images of its own: only the changes can be compared where the seeds are not the same.
    """
    rows, names = [], _curve(results.runs)
    for label, found, network in _networks(results, RATIOS, others=True):
        cells = []
        for name in ["clean", *names]:
            value = mean(found, f"{name}_{network}_pct")
            change = f" ({_signed(value - mean(found, f'{name}_base_pct'), 1)})" if network == "pruned" else ""
            cells.append(fixed(value, 1) + change)
        rows.append([label, str(len(found)), *cells])
    if not rows:
        return NOT_MEASURED
    return markdown(["network", "seeds", "clean", *(robustness.attack_label(n, results.runs) for n in names)], rows)


def corruption_table(results: Results) -> str:
    """Mean accuracy over eleven corruptions at five severities, mean over seeds; change against the original."""
    column = "own_corruption_mean_{}_pct"
    rows = [
        [str(blocks), *(fixed(mean(own, column.format(n))) for n in ("base", "pruned")), _signed(change)]
        for blocks in RATIOS
        for own in [results.of("consensus", blocks)]
        for change in [mean(own, "own_corruption_mean_delta_pp")]
        if len(own)
    ]
    return markdown(["blocks removed", "original (%)", "pruned (%)", "change (pp)"], rows) if rows else NOT_MEASURED


def checks_table(results: Results) -> str:
    """APGD and Square beside FGSM and PGD on the same few images, original and pruned network."""
    known = results.runs[results.runs["control"] == ""]
    rows = []
    for blocks, found in results.checks.merge(known[["run_id", "blocks_removed"]]).groupby("blocks_removed"):
        cells = [f"{fixed(c['base_pct'], 1)} / {fixed(c['pruned_pct'], 1)}" for _, c in found.iterrows()]
        rows.append([f"{blocks:.0f} blocks", str(found["images"].iloc[0]), *cells])
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
    """What the report warns of: of the pruned networks under the curve's attacks, and of masked gradients by Square."""
    own = results.runs[(results.runs["control"] == "") & (results.runs["criterion"] == "consensus")]
    told = robustness.warnings(own)
    checks = results.checks[results.checks["run_id"].isin(own["run_id"])] if len(own) else results.checks
    if len(checks):
        values = ["base_pct", "pruned_pct", "eps255"]
        wide = checks.pivot_table(index="run_id", columns="attack", values=values)
        wide.columns = [f"{attack}_{value}" for value, attack in wide.columns]
        unmasked = "Square leaves no fewer images standing than the attacks with gradients: no sign of masked ones."
        told.append(robustness.masked(wide) or unmasked)
    return "\n".join(f"- {text}" for text in told) or "None."


TABLES: dict[str, Callable[[Results], str]] = {
    "verdict": verdict,
    "points": points_table,
    "costs": costs_table,
    "controls": controls_table,
    "owed": owed_table,
    "tries": tries_table,
    "attacked": attacked_table,
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


def _at(rows: pd.DataFrame, criterion: str, blocks: int, control: str = "") -> pd.DataFrame:
    at = rows["ratio"] == RATIOS[blocks]
    return rows[at & (rows["criterion"] == criterion) & (rows["control"] == control)].sort_values("seed")


def _seeds(rows: pd.DataFrame) -> str:
    return f"{len(rows)} seed{'' if len(rows) == 1 else 's'}"


def _told_of(rows: pd.DataFrame) -> list[str]:
    """Returns the attacks of the curve under which enough images are left, or lost, to compare networks by."""
    return [name for name in _curve(rows) if not robustness.uninformative(rows, name).all()] if len(rows) else []


def _saved_on(device: str, rows: pd.DataFrame, name: str) -> str:
    """Returns what is saved on a machine, in words; an empty text where it was not measured."""
    estimated = name.startswith("energy") and energy.is_estimated(rows).all()
    saved = _saved(rows, name, 1)
    return "" if saved == NONE else f"{saved} % ({device}{', estimated from its time' if estimated else ''})"


def _saved(rows: pd.DataFrame, name: str, digits: int) -> str:
    return fixed(-mean(rows, f"{name}_reduction_pct"), digits)


def _networks(
    results: Results, numbers: Iterable[int], *, others: bool = False
) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yields the networks of the page that there are rows of: label, rows, and the word for the network in columns."""
    own = results.of("consensus", CONTROLLED)
    found = [("original", own, "base")]
    found += [(f"without {n} blocks", results.of("consensus", n), "pruned") for n in numbers]
    for name, label in _CONTROLS.items():
        controls = results.of("consensus", CONTROLLED, name)
        # The controls of a run are done before it.
        found.append((label, controls[controls["seed"].isin(own["seed"])] if len(own) else controls, "pruned"))
    if others:
        chosen = ("random", "uniform")
        found += [(f"without {CONTROLLED} blocks, {name}", results.of(name, CONTROLLED), "pruned") for name in chosen]
    yield from ((label, rows, network) for label, rows, network in found if len(rows))


def _curve(rows: pd.DataFrame) -> list[str]:
    """Returns the names of the attacks of the curve, by attack and epsilon."""
    names = {
        name: (robustness.attack_label(name, rows).partition(" ")[0], rows[f"{name}_eps255"].iloc[0])
        for name in robustness.attacks(rows)
    }
    return sorted(names, key=names.__getitem__)


def _ends(rows: pd.DataFrame, name: str) -> tuple[float, float, float]:
    """Returns the mean over seeds of a change, in pp, and its 95 % interval: over seeds, of one seed over images."""
    column = next((column for column in (f"{name}_delta_pp", f"{name}_pp") if column in rows), None)
    values = rows[column].dropna() if column else pd.Series(dtype=float)
    if len(values) > 1:
        half = student_t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
        return values.mean(), values.mean() - half, values.mean() + half
    ends = [mean(rows.loc[values.index], f"{name}_ci95_{end}") for end in ("low", "high")]
    return mean(rows, column or ""), *ends


def _change(rows: pd.DataFrame, name: str) -> str:
    delta, low, high = _ends(rows, name)
    return f"{_signed(delta)} [{_signed(low)}, {_signed(high)}]" if math.isfinite(low) else _signed(delta)


def _beyond(rows: pd.DataFrame, name: str) -> int:
    """Returns 1 for a change above noise, −1 for one below, 0 where the interval spans zero or there is none."""
    _, low, high = _ends(rows, name)
    return int(low > 0) - int(high < 0)


def _said(rows: pd.DataFrame) -> str:
    """Says whether accuracy is won or lost, against the original and against the original trained as much."""
    words = {1: "above", -1: "below", 0: "within noise of"}
    both = [words[_beyond(rows, name)] for name in ("accuracy", "owed_to_pruning")]
    return f"{both[0]} the original, {both[1]} {_TRAINED.removeprefix('against ')}"


def _changes(rows: pd.DataFrame) -> str:
    return " and ".join(_change(rows, name) for name in ("accuracy", "owed_to_pruning"))


def _signed(value: float, digits: int = 2) -> str:
    return fixed(value, digits, sign=True)


assert set(_OWED) == set(PARTS)
