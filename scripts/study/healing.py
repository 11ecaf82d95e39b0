"""Healing without training: maps where blocks stood, in CKA's order or chosen by what is left after the repair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.macs import count_macs
from consensus_cli.pruning import schedule
from consensus_cli.pruning.healing import heal
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.samples import Samples
from consensus_cli.scoring.score import rank_blocks
from consensus_cli.screen import Screen
from study.bench import BATCH_SIZE, Bench, right_answers
from study.rows import Rows, joined

#: what happens after removal in CKA's order, and the method that chooses blocks by what is left after their repair
IN_ORDER = ("nothing", "recalibrated", "scale", "linear")
REPAIR_AWARE = "linear, repair-aware kl"
METHODS = (*IN_ORDER, REPAIR_AWARE)


def measure(bench: Bench, folder: Path, screen: Screen) -> None:
    """Measures every method on every draw of the images that is not in the rows yet."""
    rows = Rows(folder, "healing")
    counts = [schedule.blocks_to_remove(ratio, len(bench.candidates)) for ratio in bench.plan.ratios]
    for draw in range(bench.plan.healing_draws):
        train = bench.images.train
        samples = train.subset(stratified_subset(train.labels, bench.plan.healing_images, draw))
        order: list[str] | None = None
        for method in METHODS:
            known = rows.read()
            done = set(known.loc[(known["draw"] == draw) & (known["method"] == method), "blocks"])
            missing = [count for count in counts if count not in done]
            if not missing:
                continue
            if method in IN_ORDER:
                order = order or _cka_order(bench, samples, max(counts))
                networks = _in_order(bench, samples, order, missing, method)
            else:
                networks = _repair_aware(bench, samples, missing)
            for removed, model in networks:
                rows.add(_row(bench, draw, method, removed, model))
                screen.line(f"draw {draw + 1}, {method}: {len(removed)} blocks")


def _cka_order(bench: Bench, samples: Split, count: int) -> list[str]:
    """Returns blocks in the order in which CKA removes them, ranked anew after each removal, nothing repaired."""
    order: list[str] = []
    while len(order) < count:
        ranking = _rank(bench, bench.without(order, "none"), samples, order, criterion="cka")
        order.append(ranking[0])
    return order


def _in_order(
    bench: Bench, samples: Split, order: list[str], counts: list[int], method: str
) -> Iterator[tuple[list[str], Classifier]]:
    for count in counts:
        removed = order[:count]
        model = bench.without(removed, "recalibrated" if method == "recalibrated" else "none")
        if method in ("scale", "linear"):
            _heal(bench, samples, model, bench.in_order(removed), method)
        yield removed, model


def _repair_aware(bench: Bench, samples: Split, counts: list[int]) -> Iterator[tuple[list[str], Classifier]]:
    model, removed = bench.without([], "none"), list[str]()
    while len(removed) < max(counts):
        first = _rank(bench, model, samples, removed, criterion="kl", repair="linear")[0]
        remove_blocks(model, [first])
        removed.append(first)
        # What comes in before it is as it was.
        gone = bench.in_order(removed)
        _heal(bench, samples, model, gone[gone.index(first) :], "linear")
        if len(removed) in counts:
            yield list(removed), model


def _rank(
    bench: Bench, model: Classifier, samples: Split, removed: list[str], *, criterion: str, repair: str = "nothing"
) -> list[str]:
    ranking = rank_blocks(
        model,
        Samples.of_split(samples, len(bench.images.classes), device=bench.device),
        criterion=criterion,
        blocks=schedule.allowed(bench.blocks, removed, 1),
        original=bench.model,
        repair=repair,
        precision=bench.precision,
    )
    return [ranking.blocks[position] for position in ranking.order]


def _heal(bench: Bench, samples: Split, model: Classifier, names: tuple[str, ...] | list[str], kind: str) -> None:
    def batches() -> Iterator[torch.Tensor]:
        for images, _ in samples.batches(BATCH_SIZE, bench.device):
            yield model.inputs(images)

    precision = torch.bfloat16 if bench.precision == "bf16" else torch.float32
    heal(model.network, bench.model.network, names, batches, kind, precision=precision)


def _row(bench: Bench, draw: int, method: str, removed: list[str], model: Classifier) -> dict[str, object]:
    test = bench.images.test
    right = right_answers(model, test, bench.device, bench.precision)[0]
    example = torch.zeros(1, *test.image_shape, device=bench.device)
    return {
        "draw": draw,
        "images": bench.plan.healing_images,
        "method": method,
        "blocks": len(removed),
        "removed": joined(removed),
        "test_images": len(test),
        "accuracy_pct": f"{100 * right.mean():.2f}",
        "macs": count_macs(model.network, model.inputs(example)).total,
        "precision": bench.precision,
    }
