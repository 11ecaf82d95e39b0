"""What is measured of the one-shot networks beside their accuracy, and the protocol that ranks anew after each step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from consensus_cli import Samples, rank_blocks
from consensus_cli.data.sampling import stratified_indices, stratified_subset
from consensus_cli.evaluation.cost import cost_comparison
from consensus_cli.evaluation.cost.energy import EnergyMeter, compare_energy
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import attack_accuracy
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.evaluation.robustness.corruption import corruption_accuracy, mean_accuracy_pct
from consensus_cli.evaluation.robustness.distortions import DISTORTIONS
from consensus_cli.models.classifier import Classifier
from consensus_cli.pruning import schedule
from consensus_cli.scoring.ranking.consensus import kendall_tau
from consensus_cli.screen import Screen
from study.accuracies import Accuracies
from study.bench import BATCH_SIZE, Bench
from study.criteria import allowed_order, order_of
from study.decisions import Decisions
from study.oneshot import counts, measure_single_removals
from study.plan import MAIN, STEPWISE, VOTES
from study.rows import Rows, joined, split

STEPWISE_DRAWS = 2
ATTACKS = (Attack("fgsm", eps255=8.0), Attack("pgd", eps255=8.0, steps=10))
ATTACKED_IMAGES = 250
CORRUPTED_IMAGES = 100
SEVERITIES = (1, 3, 5)
LATENCY_RUN_S = 1.0
ENERGY_WINDOW_S, ENERGY_WINDOWS, ENERGY_IMAGES = 1.5, 3, 1024
COUNTRY = "BRA"


def measure_tuned(bench: Bench, folder: Path, screen: Screen) -> None:
    """Measures the network without each candidate after a short fine-tuning, and what is left whole, tuned alike."""
    accuracies = Accuracies(bench, folder)
    accuracies.measure((), "tuned")
    measure_single_removals(bench, accuracies, screen, ("tuned",))


def measure_stepwise(bench: Bench, folder: Path, screen: Screen) -> None:
    """Removes one block at a time and ranks anew, against the current and against the original network.

    Batch norm is measured anew after each removal; nothing is trained.
    """
    accuracies, rows = Accuracies(bench, folder), Rows(folder, "paths")
    for draw in range(STEPWISE_DRAWS):
        for criterion in STEPWISE:
            for against in ("current", "original"):
                _follow_path(bench, rows, accuracies, criterion=criterion, against=against, draw=draw)
                screen.line(f"followed {criterion} against the {against} network, draw {draw}")


def measure_robustness(bench: Bench, folder: Path, screen: Screen) -> None:
    """Attacks and corrupts images for the networks of the main criteria."""
    rows = Rows(folder, "robustness")
    known = set(zip(rows.read()["removed"], rows.read()["measure"], strict=True))
    names = main_sets(bench, folder)
    for number, removed in enumerate(names, start=1):
        for what, take in robustness_measures(bench, {attack.name: attack for attack in ATTACKS}).items():
            if (joined(removed), what) not in known:
                rows.add({"removed": joined(removed), "measure": what} | take(bench.without(removed, "recalibrated")))
        screen.line(f"attacked and corrupted {number} of {len(names)} networks")


def measure_costs(bench: Bench, folder: Path, screen: Screen) -> None:
    """Times the networks of the main criteria and meters their energy beside the unpruned one, on a quiet machine."""
    rows, meter = Rows(folder, "costs"), EnergyMeter(COUNTRY, device=bench.device)
    known, names = set(rows.read()["removed"]), main_sets(bench, folder)
    shape = bench.images.test.image_shape
    for number, removed in enumerate(names, start=1):
        if joined(removed) in known:
            continue
        model = bench.without(removed, "recalibrated")
        size = cost_comparison.complexity_columns(bench.model, model, shape)
        pair = Pair(bench.model, model, bench.images.test, device=bench.device)
        latency = cost_comparison.latency_columns(pair, (1, 128), LATENCY_RUN_S)
        energy_mwh = _energy_mwh(bench, model, meter)
        rows.add(
            {
                "removed": joined(removed),
                "macs": size["macs_pruned"],
                "macs_reduction_pct": size["macs_reduction_pct"],
                "params_reduction_pct": size["params_reduction_pct"],
                **{key: latency[key] for key in rows.columns if key.startswith("latency_")},
                "energy_base_mwh_per_1000_images": energy_mwh["base"],
                "energy_pruned_mwh_per_1000_images": energy_mwh["pruned"],
                "energy_source": meter.source,
                "threads": torch.get_num_threads(),
            }
        )
        screen.line(f"timed {number} of {len(names)} networks")


def main_sets(bench: Bench, folder: Path) -> list[tuple[str, ...]]:
    """Returns what the main criteria remove with their first draw, at every ratio, each set once."""
    decisions = Decisions.read(folder, bench.plan, bench.candidates)
    orders = [decisions.orders[criterion][0] for criterion in MAIN]
    least = bench.plan.min_blocks_per_stage
    sets = [bench.in_order(allowed_order(o, bench.blocks, least)[:count]) for count in counts(bench) for o in orders]
    return list(dict.fromkeys(sets))


def _follow_path(bench: Bench, rows: Rows, accuracies: Accuracies, *, criterion: str, against: str, draw: int) -> None:
    known = rows.read()
    same = (known["criterion"] == criterion) & (known["against"] == against) & (known["draw"] == draw)
    removed = [name for field in known[same].sort_values("step")["removed"] for name in split(field)]
    while len(removed) < max(counts(bench)):
        allowed = schedule.allowed(bench.blocks, removed, bench.plan.min_blocks_per_stage)
        model = bench.without(removed, "recalibrated" if removed else "none")
        voters = VOTES[criterion][0]
        ranking = rank_blocks(
            model,
            _samples(bench, draw),
            metrics=voters,
            blocks=allowed,
            against=bench.model if against == "original" else None,
        )
        distances, names = ranking.distances, list(ranking.blocks)
        removed.append(order_of(criterion, names, distances)[0])
        rows.add(
            {
                "criterion": criterion,
                "against": against,
                "draw": draw,
                "step": len(removed),
                "removed": removed[-1],
                "candidates": len(allowed),
                **_agreement(distances, names.index(removed[-1])),
                "selection_accuracy_pct": "",
            }
        )
    for count in counts(bench):
        accuracies.measure(removed[:count], "recalibrated", ("report",))


def _agreement(distances: dict[str, np.ndarray], chosen: int) -> dict[str, object]:
    """Returns the mean τ over pairs of metrics, and how many metrics would have removed the chosen block."""
    agreeing = sum(int(np.argmin(values)) == chosen for values in distances.values())
    if len(distances) < 2:
        return {"mean_tau": "", "metrics_agreeing": agreeing}
    tau = kendall_tau(distances).to_numpy()
    pairs = tau[np.triu_indices(len(tau), 1)]
    return {"mean_tau": round(float(pairs.mean()), 4), "metrics_agreeing": agreeing}


def _samples(bench: Bench, draw: int) -> Samples:
    train = bench.images.train
    index = stratified_indices(train.labels, bench.plan.decisive_samples_per_class, draw)
    classes = len(bench.images.classes)
    return Samples.of_split(train.subset(index), classes, device=bench.device, batch_size=BATCH_SIZE)


def robustness_measures(
    bench: Bench, attacks: Mapping[str, Attack]
) -> dict[str, Callable[[Classifier], dict[str, object]]]:
    """Returns measure -> function that compares a network with the unpruned one."""
    return {
        **{name: functools.partial(_attacked, bench, attack) for name, attack in attacks.items()},
        "corruption": functools.partial(_corrupted, bench),
    }


def _attacked(bench: Bench, attack: Attack, model: Classifier) -> dict[str, object]:
    pair = Pair(bench.model, model, bench.parts["report"], device=bench.device)
    result = attack_accuracy(pair, {attack.name: attack}, ATTACKED_IMAGES)[attack.name]
    return {
        "images": min(ATTACKED_IMAGES, len(pair.test)),
        "base_pct": result["base_pct"],
        "pruned_pct": result["pruned_pct"],
        "delta_pp": round(result["delta_pp"], 4),
        "ci95_low_pp": round(result["ci95_low"], 4),
        "ci95_high_pp": round(result["ci95_high"], 4),
    }


def _corrupted(bench: Bench, model: Classifier) -> dict[str, object]:
    pair = Pair(bench.model, model, bench.parts["report"], device=bench.device)
    results = corruption_accuracy(pair, list(DISTORTIONS), CORRUPTED_IMAGES, SEVERITIES)
    base_pct, pruned_pct = mean_accuracy_pct(results)
    return {
        "images": min(CORRUPTED_IMAGES, len(pair.test)),
        "base_pct": round(base_pct, 4),
        "pruned_pct": round(pruned_pct, 4),
        "delta_pp": round(pruned_pct - base_pct, 4),
        "ci95_low_pp": "",
        "ci95_high_pp": "",
    }


def _energy_mwh(bench: Bench, model: Classifier, meter: EnergyMeter) -> dict[str, float]:
    """Returns the energy of 1,000 images for the unpruned network and a pruned one, in mWh."""
    report = bench.parts["report"]
    images = report.subset(stratified_subset(report.labels, ENERGY_IMAGES, seed=0))
    batches = [batch for batch, _ in images.batches(BATCH_SIZE, bench.device)]

    def passes(network: Classifier) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for batch in batches:
                    network(batch)

        return run

    work = {"base": passes(bench.model), "pruned": passes(model)}
    measured = compare_energy(work, meter=meter, window_s=ENERGY_WINDOW_S, repeats=ENERGY_WINDOWS)
    return {name: energy.kwh * 1e6 * 1000 / len(images) for name, energy in measured.items()}
