"""Healing without training: what stands in place of removed blocks, what is fitted anew, and in which order they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from consensus_cli import training
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.macs import count_macs
from consensus_cli.pruning import schedule
from consensus_cli.pruning.healing import heal
from consensus_cli.pruning.refit import refit
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.samples import Samples
from consensus_cli.scoring.score import rank_blocks
from consensus_cli.screen import Screen
from study.after import robustness_measures
from study.bench import BATCH_SIZE, TRAINING_BATCH_SIZE, Bench, right_answers
from study.rows import Rows, joined, split

#: method -> (what stands where a block stood, whether the other layers are fitted anew, what else happens)
METHODS = {
    "nothing": ("nothing", False, "none"),
    "recalibrated": ("nothing", False, "recalibrated"),
    "scale": ("scale", False, "none"),
    "linear": ("linear", False, "none"),
    "refit": ("nothing", True, "none"),
    "linear, refit": ("linear", True, "none"),
}
#: chosen one by one, ranked anew after each removal; the last by what is left with a map in the block's place
REPAIRED = "kl, repaired"
ORDERS = ("cka", "consensus", "kl", REPAIRED, "random", "first", "uniform")

#: what is measured of the first draw: order -> methods
FIRST_DRAW = {
    "cka": tuple(METHODS),
    REPAIRED: ("nothing", "recalibrated", "linear", "refit", "linear, refit"),
    **dict.fromkeys(("kl", "consensus", "random", "first", "uniform"), ("nothing", "recalibrated", "refit")),
}
#: and of the others
OTHER_DRAWS = {"cka": ("nothing", "recalibrated", "linear", "refit"), REPAIRED: ("linear", "refit", "linear, refit")}
#: and with other numbers of images
OTHER_IMAGES = {REPAIRED: ("linear", "refit", "linear, refit")}

#: epochs of fine-tuning that healed networks are compared after, with one cycle up to this rate
EPOCHS, PEAK_RATE = (0.25, 1.0, 4.0), 0.05
#: methods that are compared after fine-tuning and under attack, without the blocks that `REPAIRED` chooses
COMPARED = ("nothing", "recalibrated", "refit", "linear, refit")
COMPARED_RATIOS = (0.5, 0.875)


def measure(bench: Bench, folder: Path, screen: Screen) -> None:
    """Measures every method on every draw of the images that is not in the rows yet."""
    first, *others = bench.plan.healing_images
    for draw in range(bench.plan.healing_draws):
        for order, methods in (OTHER_DRAWS if draw else FIRST_DRAW).items():
            _measure(bench, folder, screen, draw, first, order, methods)
    for images in others:
        for order, methods in OTHER_IMAGES.items():
            _measure(bench, folder, screen, 0, images, order, methods)


def measure_tuned(bench: Bench, folder: Path, screen: Screen) -> None:
    """Measures how much of healing is left after some fine-tuning of the networks that `measure` chose."""
    rows = Rows(folder, "healing_tuned")
    for blocks, method, model in _compared(bench, folder):
        known = rows.read()
        done = set(known.loc[(known["blocks"] == blocks) & (known["method"] == method), "epochs"])
        for epochs in (epochs for epochs in EPOCHS if epochs not in done):
            tuned = model()
            training.train(
                tuned,
                bench.images.train,
                training.Recipe(
                    epochs=epochs,
                    learning_rate=PEAK_RATE,
                    schedule="onecycle",
                    milestones=(),
                    momentum=0.9,
                    weight_decay=5e-4,
                    batch_size=TRAINING_BATCH_SIZE,
                    label_smoothing=0.0,
                ),
                device=bench.device,
                augmentation=bench.images.augmentation,
                seed=0,
                precision=bench.precision,
            )
            row = {"blocks": blocks, "method": method, "epochs": epochs, "accuracy_pct": _accuracy_pct(bench, tuned)}
            rows.add(row | {"peak_rate": PEAK_RATE, "test_images": len(bench.images.test)})
            screen.line(f"{blocks} blocks, {method}: {epochs:g} epochs")


def measure_robustness(bench: Bench, folder: Path, screen: Screen) -> None:
    """Attacks and corrupts images for the networks that `measure` chose."""
    rows = Rows(folder, "healing_robustness")
    for blocks, method, model in _compared(bench, folder):
        known = rows.read()
        done = set(known.loc[(known["blocks"] == blocks) & (known["method"] == method), "measure"])
        for what, take in robustness_measures(bench).items():
            if what not in done:
                rows.add({"blocks": blocks, "method": method, "measure": what} | take(model()))
        screen.line(f"{blocks} blocks, {method}: attacked and corrupted")


def counts_of(bench: Bench, ratios: tuple[float, ...]) -> list[int]:
    """Returns how many blocks go at each ratio."""
    return [schedule.blocks_to_remove(ratio, len(bench.candidates)) for ratio in ratios]


def _measure(
    bench: Bench, folder: Path, screen: Screen, draw: int, images: int, order: str, methods: tuple[str, ...]
) -> None:
    rows, counts = Rows(folder, "healing"), counts_of(bench, bench.plan.ratios)
    samples = _samples(bench, draw, images)
    for method in methods:
        known = rows.read()
        same = known[(known["draw"] == draw) & (known["images"] == images) & (known["order"] == order)]
        done = set(same.loc[same["method"] == method, "blocks"])
        for count in (count for count in counts if count not in done):
            # What goes first is known from rows with more blocks.
            longest = max((split(field) for field in same["removed"]), key=len, default=())
            removed = list(longest[:count]) if len(longest) >= count else _order(bench, samples, order, max(counts), draw)
            for each in counts if len(longest) < max(counts) else [count]:
                if each in done:
                    continue
                model = _treated(bench, samples, removed[:each], method)
                rows.add(_row(bench, draw, images, order, method, removed[:each], model))
                done.add(each)
                screen.line(f"draw {draw + 1}, {images} images, {order}, {method}: {each} blocks")


def _samples(bench: Bench, draw: int, images: int) -> Split:
    train = bench.images.train
    return train.subset(stratified_subset(train.labels, images, draw))


def _order(bench: Bench, samples: Split, name: str, count: int, draw: int) -> list[str]:
    """Returns the blocks in the order in which they go, ranked anew after each removal."""
    model, removed = bench.without([], "none"), list[str]()
    if name == "uniform":
        allowed = schedule.allowed(bench.blocks, removed, 1)
        example = next(samples.batches(2, bench.device))[0]
        del allowed, example
    while len(removed) < count:
        block = _next(bench, model, samples, removed, name, draw)
        remove_blocks(model, [block])
        removed.append(block)
        if name == REPAIRED:
            # What comes in before it is as it was.
            gone = bench.in_order(removed)
            _heal(bench, samples, model, gone[gone.index(block) :], "linear")
    return removed


def _next(bench: Bench, model: Classifier, samples: Split, removed: list[str], order: str, draw: int) -> str:
    ranking = rank_blocks(
        model,
        Samples.of_split(samples, len(bench.images.classes), device=bench.device),
        criterion="kl" if order == REPAIRED else order,
        blocks=schedule.allowed(bench.blocks, removed, 1),
        original=bench.model,
        repair="linear" if order == REPAIRED else "nothing",
        removed=len(removed),
        seed=draw,
        precision=bench.precision,
    )
    return ranking.least_important


def _treated(bench: Bench, samples: Split, removed: list[str], method: str) -> Classifier:
    kind, refits, treatment = METHODS[method]
    model = bench.without(removed, treatment)
    if kind != "nothing":
        _heal(bench, samples, model, bench.in_order(removed), kind)
    if refits:
        inputs = _inputs(bench, samples)
        refit(model.network, bench.model.network, inputs, maps=removed, precision=_precision(bench))
    return model


def _heal(bench: Bench, samples: Split, model: Classifier, names: tuple[str, ...], kind: str) -> None:
    heal(model.network, bench.model.network, names, _inputs(bench, samples), kind, precision=_precision(bench))


def _inputs(bench: Bench, samples: Split) -> Callable[[], Iterator[torch.Tensor]]:
    def batches() -> Iterator[torch.Tensor]:
        for images, _ in samples.batches(BATCH_SIZE, bench.device):
            yield bench.model.inputs(images)

    return batches


def _precision(bench: Bench) -> torch.dtype:
    return torch.bfloat16 if bench.precision == "bf16" else torch.float32


def _compared(bench: Bench, folder: Path) -> Iterator[tuple[int, str, Callable[[], Classifier]]]:
    """Yields a number of blocks, a method, and a function that returns the network, for what `measure` chose first."""
    rows = Rows(folder, "healing").read()
    images = bench.plan.healing_images[0]
    chosen = rows[(rows["draw"] == 0) & (rows["images"] == images) & (rows["order"] == REPAIRED)]
    samples = _samples(bench, 0, images)
    for count in counts_of(bench, COMPARED_RATIOS):
        for field in chosen.loc[chosen["blocks"] == count, "removed"].head(1):
            for method in COMPARED:
                yield count, method, lambda f=field, m=method: _treated(bench, samples, list(split(f)), m)


def _accuracy_pct(bench: Bench, model: Classifier) -> str:
    return f"{100 * right_answers(model, bench.images.test, bench.device, bench.precision)[0].mean():.2f}"


def _row(
    bench: Bench, draw: int, images: int, order: str, method: str, removed: list[str], model: Classifier
) -> dict[str, object]:
    example = torch.zeros(1, *bench.images.test.image_shape, device=bench.device)
    return {
        "draw": draw,
        "images": images,
        "order": order,
        "method": method,
        "blocks": len(removed),
        "removed": joined(removed),
        "test_images": len(bench.images.test),
        "accuracy_pct": _accuracy_pct(bench, model),
        "macs": count_macs(model.network, model.inputs(example)).total,
        "precision": bench.precision,
    }
