"""The one-shot protocol: rank once, remove all at once, measure batch norm anew, train nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from consensus_cli.data.sampling import stratified_indices
from consensus_cli.pruning import schedule
from consensus_cli.scoring import metrics
from consensus_cli.scoring.ranking.criteria import CRITERIA
from consensus_cli.scoring.representations import AblationEngine
from consensus_cli.scoring.statistics.moments import PairStatistics
from consensus_cli.screen import Screen
from study.accuracies import Accuracies
from study.bench import BATCH_SIZE, PARTS, Bench, right_answers
from study.criteria import allowed_order
from study.decisions import Decisions
from study.plan import BASELINES, METRICS
from study.rows import Rows, joined


def measure(bench: Bench, folder: Path, screen: Screen) -> None:
    """Measures everything that `docs/study.md` says about the one-shot protocol and is not in `folder` yet."""
    score_draws(bench, folder, screen)
    write_baseline_orders(bench, folder)
    accuracies = Accuracies(bench, folder)
    for treatment in ("none", "recalibrated"):
        accuracies.measure((), treatment)
    measure_single_removals(bench, accuracies, screen)
    follow_greedy_oracle(bench, folder, accuracies, screen)
    measure_decided_sets(bench, folder, accuracies, screen)


def score_draws(bench: Bench, folder: Path, screen: Screen) -> None:
    """Scores the unpruned network with every draw of every size: one pass of the engine per draw."""
    rows, sizes = Rows(folder, "scores"), bench.plan.samples_per_class
    known = rows.read()
    for draw in range(bench.plan.draws):
        done = set(known.loc[known["draw"] == draw, "samples_per_class"])
        missing = [size for size in sizes if size not in done]
        if not missing:
            continue
        features, labels = _representations(bench, max(missing), draw)
        for size in missing:
            distances = _distances(bench, features, labels, size)
            rows.add(
                *(
                    {"draw": draw, "samples_per_class": size, "block": block.name}
                    | {name: f"{distances[name][position]:.9g}" for name in METRICS}
                    for position, block in enumerate(bench.candidates)
                )
            )
        screen.line(f"scored draw {draw + 1} of {bench.plan.draws}")


def write_baseline_orders(bench: Bench, folder: Path) -> None:
    """Writes the orders of the criteria without representations; `random` has one per seed."""
    rows = Rows(folder, "orders")
    if rows.path.is_file():
        return
    written = []
    for criterion in BASELINES:
        for draw in range(bench.plan.random_draws if criterion == "random" else 1):
            importance = CRITERIA[criterion](bench.model.network, bench.candidates, np.random.default_rng(draw))
            order = [bench.candidates[position].name for position in np.argsort(importance, kind="stable")]
            written.append({"criterion": criterion, "draw": draw, "order": joined(order)})
    rows.add(*written)


def measure_single_removals(
    bench: Bench, accuracies: Accuracies, screen: Screen, treatments: tuple[str, ...] = ("none", "recalibrated")
) -> None:
    """Measures the network without each candidate: what the oracle knows."""
    if "none" in treatments:
        _measure_untreated(bench, accuracies)
    for treatment in treatments:
        for block in bench.candidates:
            accuracies.measure((block.name,), treatment)
        screen.line(f"measured the removal of each of {len(bench.candidates)} blocks: {treatment}")


def follow_greedy_oracle(bench: Bench, folder: Path, accuracies: Accuracies, screen: Screen) -> None:
    """Removes block after block, always the one without which most selection images are classified correctly.

    Batch norm is measured anew after each removal, but not for each candidate.
    """
    rows = Rows(folder, "paths")
    known = rows.read()
    known = known[known["criterion"] == "oracle_greedy"]
    removed = known["removed"].tolist()
    most = max(counts(bench))
    while len(removed) < most:
        allowed = schedule.allowed(bench.blocks, removed, bench.plan.min_blocks_per_stage)
        model = bench.without(removed, "recalibrated" if removed else "none")
        right = right_answers(model, bench.parts["selection"], bench.device, bench.precision, allowed)[1:]
        best = int(right.sum(axis=1).argmax())
        removed.append(allowed[best].name)
        rows.add(
            {
                "criterion": "oracle_greedy",
                "against": "",
                "draw": 0,
                "step": len(removed),
                "removed": removed[-1],
                "candidates": len(allowed),
                "mean_tau": "",
                "metrics_agreeing": "",
                "selection_accuracy_pct": round(100 * float(right[best].mean()), 4),
            }
        )
        screen.line(f"greedy oracle: step {len(removed)} of {most}, {removed[-1]}")


def measure_decided_sets(bench: Bench, folder: Path, accuracies: Accuracies, screen: Screen) -> None:
    """Measures what every criterion and oracle leaves at every ratio."""
    decisions = Decisions.read(folder, bench.plan, bench.candidates)
    wanted = {
        bench.in_order(allowed_order(order, bench.blocks, bench.plan.min_blocks_per_stage)[:count])
        for orders in decisions.orders.values()
        for order in orders
        for count in counts(bench)
    }
    for number, names in enumerate(sorted(wanted), start=1):
        accuracies.measure(names, "recalibrated", ("report",))
        if number % 20 == 0 or number == len(wanted):
            screen.line(f"measured {number} of {len(wanted)} sets of blocks")
    for name in decisions.oracles:
        for count in counts(bench):
            order = allowed_order(decisions.orders[name][0], bench.blocks, bench.plan.min_blocks_per_stage)
            accuracies.measure(order[:count], "recalibrated")


def counts(bench: Bench) -> list[int]:
    """Returns how many blocks go at each ratio."""
    return [schedule.blocks_to_remove(ratio, len(bench.candidates)) for ratio in bench.plan.ratios]


def _measure_untreated(bench: Bench, accuracies: Accuracies) -> None:
    """Measures all networks without one block in one pass per part."""
    for part in PARTS:
        if any(("none", part, (block.name,)) not in accuracies for block in bench.candidates):
            right = right_answers(bench.model, bench.parts[part], bench.device, bench.precision, bench.candidates)
            for block, answers in zip(bench.candidates, right[1:], strict=True):
                accuracies.keep((block.name,), "none", part, answers)


def _representations(bench: Bench, per_class: int, draw: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what the classifier gets, (1 + c, n, d), with and without each candidate, and the labels (n,)."""
    train = bench.images.train
    chosen = train.subset(stratified_indices(train.labels, per_class, draw))
    engine, features, labels = None, [], []
    for images, targets in chosen.batches(BATCH_SIZE, bench.device):
        with torch.no_grad():
            normalized = bench.model.normalize(images)
        engine = engine or AblationEngine(bench.model.network, bench.candidates, normalized)
        features.append(engine.representations(normalized))
        labels.append(targets)
    return torch.cat(features, dim=1), torch.cat(labels)


def _distances(bench: Bench, features: torch.Tensor, labels: torch.Tensor, per_class: int) -> dict[str, np.ndarray]:
    """Returns the distances by the first `per_class` images of every class: what a draw of that size holds."""
    chosen = torch.cat([(labels == label).nonzero().flatten()[:per_class] for label in labels.unique()])
    keep = metrics.statistics_needed(METRICS)
    statistics = PairStatistics(
        len(features) - 1, features.shape[-1], len(bench.images.classes), device=features.device, keep=keep
    )
    for index in _batches(len(chosen)):
        rows = features[:, chosen[index]]
        statistics.update(rows[0], rows[1:], labels[chosen[index]], index.to(labels.device))
    return metrics.compute(METRICS, statistics)


def _batches(count: int) -> Iterator[torch.Tensor]:
    yield from torch.arange(count).split(BATCH_SIZE)
