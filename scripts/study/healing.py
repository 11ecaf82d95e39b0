"""Healing without training: what stands in place of removed blocks, what is fitted anew, and in which order they go."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml

from consensus_cli import training
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.errors import UserError
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.macs import count_macs
from consensus_cli.pruning import schedule
from consensus_cli.pruning.healing import heal
from consensus_cli.pruning.refit import refit
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.ranking.criteria import of_schedule
from consensus_cli.scoring.samples import Samples
from consensus_cli.scoring.score import rank_blocks
from consensus_cli.screen import Screen
from study.after import robustness_measures
from study.bench import BATCH_SIZE, TRAINING_BATCH_SIZE, Bench, right_answers
from study.rows import FILES, Rows, joined, split

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
    **dict.fromkeys(("random", "first", "uniform", "kl", "consensus"), ("nothing", "recalibrated", "refit")),
}
#: and of the others
OTHER_DRAWS = {"cka": ("nothing", "recalibrated", "linear", "refit"), REPAIRED: ("linear", "refit", "linear, refit")}
#: and with other numbers of images
OTHER_IMAGES = {REPAIRED: ("linear", "refit", "linear, refit")}

#: measure -> attack on the networks of `COMPARED`
ATTACKS = {
    f"{name} {eps}/255": Attack(name, eps255=float(eps), **more)
    for name, eps, more in (("fgsm", 2, {}), ("fgsm", 8, {}), ("pgd", 1, {"steps": 10}), ("pgd", 2, {"steps": 10}))
}
#: epochs of fine-tuning that healed networks are compared after, with one cycle up to this rate
EPOCHS, PEAK_RATE = (0.25, 1.0, 4.0), 0.05
#: methods that are compared after fine-tuning and under attack, without the blocks that `REPAIRED` chooses
COMPARED = ("nothing", "recalibrated", "refit", "linear, refit")
COMPARED_RATIOS = (0.5, 0.875)


@dataclass(frozen=True)
class Case:
    """What methods are compared on.

    Attributes:
        bench: the network and the images.
        draw: of the images.
        images: how many.
        order: in which blocks go, one of `ORDERS`.
    """

    bench: Bench
    draw: int
    images: int
    order: str

    @property
    def samples(self) -> Split:
        """The images that blocks are ranked and maps fitted with."""
        train = self.bench.images.train
        return train.subset(stratified_subset(train.labels, self.images, self.draw))


def measure(bench: Bench, folder: Path, screen: Screen) -> None:
    """Measures every method on every draw of the images that is not in the rows yet."""
    first, *others = bench.plan.healing_images
    plans = [(Case(bench, 0, first, order), methods) for order, methods in FIRST_DRAW.items()]
    plans += [(Case(bench, 0, images, order), methods) for images in others for order, methods in OTHER_IMAGES.items()]
    for draw in range(1, bench.plan.healing_draws):
        plans += [(Case(bench, draw, first, order), methods) for order, methods in OTHER_DRAWS.items()]
    for case, methods in plans:
        _measure(case, folder, screen, methods)


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
        wanted = {what: take for what, take in robustness_measures(bench, ATTACKS).items() if what not in done}
        healed = model() if wanted else None
        for what, take in wanted.items():
            rows.add({"blocks": blocks, "method": method, "measure": what} | take(healed))
        screen.line(f"{blocks} blocks, {method}: attacked and corrupted")


def collect_vit(output_dir: Path, folder: Path) -> None:
    """Copies what the study reports of the transformer's finished runs in `output_dir` to `healing_vit.csv`.

    Raises:
        UserError: there are no finished runs.
    """
    rows = []
    for files in sorted((output_dir / "runs").glob("*/row.json")):
        row = json.loads(files.read_text(encoding="utf-8"))
        if row["status"] == "done":
            prune = yaml.safe_load(files.with_name("config.yaml").read_text(encoding="utf-8"))["prune"]
            rows.append({key: ({**row, **prune})[key] for key in FILES["healing_vit"]})
    if not rows:
        raise UserError(f"{output_dir} holds no finished run", "run scripts/study.sh healing-vit first")
    folder.mkdir(parents=True, exist_ok=True)
    found = pd.DataFrame(rows).sort_values(["granularity", "replace", "refit", "blocks_removed"])
    found.to_csv(folder / "healing_vit.csv", index=False, float_format="%.6g")


def counts_of(bench: Bench, ratios: tuple[float, ...]) -> list[int]:
    """Returns how many blocks go at each ratio."""
    return [schedule.blocks_to_remove(ratio, len(bench.candidates)) for ratio in ratios]


def _measure(case: Case, folder: Path, screen: Screen, methods: tuple[str, ...]) -> None:
    rows, samples = Rows(folder, "healing"), case.samples
    for method in methods:
        # The largest first: what it removes begins with what the others do.
        for count in sorted(counts_of(case.bench, case.bench.plan.ratios), reverse=True):
            known = rows.read()
            same = known[(known[["draw", "images", "order"]] == [case.draw, case.images, case.order]).all(axis=1)]
            if ((same["method"] == method) & (same["blocks"] == count)).any():
                continue
            removed = _removed(case, samples, same, count)
            rows.add(_row(case, method, removed, _treated(case.bench, samples, removed, method)))
            screen.line(f"draw {case.draw + 1}, {case.images} images, {case.order}, {method}: {count} blocks")


def _removed(case: Case, samples: Split, known: pd.DataFrame, count: int) -> list[str]:
    """Returns the first blocks of an order, from the rows that are known of it where they say it."""
    longest: tuple[str, ...] = max((split(field) for field in known["removed"]), key=len, default=())
    # What is evenly spaced with few is not with more.
    if case.order == "uniform" or len(longest) < count:
        return _order(case, samples, count)
    return list(longest[:count])


def _order(case: Case, samples: Split, count: int) -> list[str]:
    """Returns the blocks in the order in which they go, ranked anew after each removal."""
    bench, repaired = case.bench, case.order == REPAIRED
    model, removed = bench.without([], "none"), list[str]()
    spaced = schedule.Schedule(bench.blocks, count / len(bench.candidates))
    criterion = of_schedule("kl" if repaired else case.order, spaced)
    while len(removed) < count:
        ranking = rank_blocks(
            model,
            Samples.of_split(samples, len(bench.images.classes), device=bench.device),
            criterion=criterion,
            blocks=schedule.allowed(bench.blocks, removed, 1),
            original=bench.model,
            repair="linear" if repaired else "nothing",
            removed=len(removed),
            seed=case.draw,
            precision=bench.precision,
        )
        block = ranking.least_important
        remove_blocks(model, [block])
        removed.append(block)
        if repaired:
            # What comes in before it is as it was.
            gone = bench.in_order(removed)
            _heal(bench, samples, model, gone[gone.index(block) :], "linear")
    return removed


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
    samples = Case(bench, 0, images, REPAIRED).samples
    for count in counts_of(bench, COMPARED_RATIOS):
        for field in chosen.loc[chosen["blocks"] == count, "removed"].head(1):
            for method in COMPARED:
                yield count, method, functools.partial(_treated, bench, samples, list(split(field)), method)


def _accuracy_pct(bench: Bench, model: Classifier) -> str:
    return f"{100 * right_answers(model, bench.images.test, bench.device, bench.precision)[0].mean():.2f}"


def _row(case: Case, method: str, removed: list[str], model: Classifier) -> dict[str, object]:
    bench = case.bench
    example = torch.zeros(1, *bench.images.test.image_shape, device=bench.device)
    return {
        "draw": case.draw,
        "images": case.images,
        "order": case.order,
        "method": method,
        "blocks": len(removed),
        "removed": joined(removed),
        "test_images": len(bench.images.test),
        "accuracy_pct": _accuracy_pct(bench, model),
        "macs": count_macs(model.network, model.inputs(example)).total,
        "precision": bench.precision,
    }
