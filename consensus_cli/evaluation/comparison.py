"""Everything that can be measured of an original and a pruned network, in one call and one table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from consensus_cli.data.batches import Batches, LoaderImages
from consensus_cli.data.share import ALL, Share
from consensus_cli.data.source import Progress
from consensus_cli.data.split import Split
from consensus_cli.errors import UserError
from consensus_cli.evaluation.accuracy import accuracy_columns, predict_both
from consensus_cli.evaluation.cost.cost_comparison import (
    complexity_columns,
    energy_columns,
    latency_columns,
    reduction_pct,
)
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.pair import Columns, Pair
from consensus_cli.evaluation.robustness.adversarial import attack_columns
from consensus_cli.evaluation.robustness.attacks import ATTACKS, Attack, check_attacks
from consensus_cli.evaluation.robustness.corruption import check_corruptions, corruption_columns
from consensus_cli.models.classifier import Classifier

#: images shown where `compare` is not given another number, and for how long cost is measured: as in `consensus run`
ATTACKED_IMAGES, CORRUPTED_IMAGES = 200, 500
BATCH_SIZES, LATENCY_S = (1, 128), 0.5
ENERGY_WINDOW_S, ENERGY_REPEATS = 0.2, 8

#: steps of an attack that is only named, where 10 are not enough for it
_STEPS = {"square": 1000, "deepfool": 50, "cw": 100, "autoattack": 100}
_EPS255 = {"Linf": 8.0, "L2": 64.0}

_OF_ORIGINAL = re.compile(r"(?P<what>.+)_base(?P<rest>(?:_.+|255)?)")
#: end of a column's name -> unit, and what turns a value into it
_UNITS = {
    "_pct": ("%", 1),
    "_images_per_s": ("images/s", 1),
    "_ms": ("ms", 1),
    "_mib": ("MiB", 1),
    "_kwh": ("mWh", 1e6),
    "_kg": ("mg CO2", 1e6),
    "_nats": ("nats", 1),
    "255": ("/255", 1),
}


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured; `print` shows a table, `comparison["accuracy_delta_pp"]` is one number.

    Attributes:
        columns: names as in a `results.csv`, where `base` is the original network and the unit ends the name.
    """

    columns: Columns

    def __getitem__(self, column: str) -> float | int | str:
        return self.columns[column]

    def __str__(self) -> str:
        rows, in_table = {}, set()
        for column in self.columns:
            found = _OF_ORIGINAL.fullmatch(column)
            twin = f"{found['what']}_pruned{found['rest']}" if found else ""
            if found and twin in self.columns:
                ends = (f"{found['what']}{end}" for end in ("_delta_pp", "_ci95_low", "_ci95_high", "_reduction_pct"))
                in_table |= {column, twin, *ends}
                label, *cells = self._row(found["what"], found["rest"])
                rows[label] = cells
        table = pd.DataFrame.from_dict(rows, "index", columns=["original", "pruned", "change"]).to_string()
        others = (f"{name}: {_text(value)}" for name, value in self.columns.items() if name not in in_table)
        return "\n".join([table, "", *others])

    def _row(self, what: str, rest: str) -> tuple[str, str, str, str]:
        """Returns label, original, pruned and change: in percentage points or percent, with its 95 % interval."""
        ending = next((ending for ending in _UNITS if rest.endswith(ending)), "")
        unit, scale = _UNITS.get(ending, ("", 1))
        original, pruned = (float(self.columns[f"{what}_{network}{rest}"]) for network in ("base", "pruned"))
        label = f"{what}{rest.removesuffix(ending)}".replace("_", " ") + (f", {unit}" if unit else "")
        if unit == "%":
            change = f"{pruned - original:+.2f} pp"
            if f"{what}_ci95_low" in self.columns:
                change += f" [{self.columns[f'{what}_ci95_low']:+.1f}, {self.columns[f'{what}_ci95_high']:+.1f}]"
        else:
            measured = self.columns.get(f"{what}_reduction_pct") if rest == ending else None
            reduced_pct = reduction_pct(original, pruned) if measured is None else float(measured)
            change = "–" if math.isnan(reduced_pct) else f"{0.0 - reduced_pct:+.1f} %"
            low, high = (float(self.columns.get(f"{what}_ci95_{end}", math.nan)) for end in ("low", "high"))
            if math.isfinite(low) and math.isfinite(high):
                change += f" [{-high:+.1f}, {-low:+.1f}]"
        return label, _text(scale * original), _text(scale * pruned), change


def compare(
    original: nn.Module,
    pruned: nn.Module,
    test: Split | Batches,
    *,
    cost: bool = True,
    attacks: Iterable[str | Attack] | Mapping[str, Attack] = (),
    corruptions: Iterable[str] = (),
    images: int | None = None,
    energy: EnergyMeter | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    share: Share = ALL,
    progress: Progress | None = None,
) -> Comparison:
    """Measures an original and a pruned network on the same images and the same device.

        comparison = compare(original, pruned, test_loader, attacks=["fgsm", "pgd"])
        print(comparison)                        # a table: original, pruned, change
        comparison["accuracy_delta_pp"]          # one number
        comparison.columns                       # all of them, by name

    Both networks are measured in eval mode; mode, gradients and random state are afterwards what they were.

    Args:
        original: takes images in [0, 1] and returns logits (n, classes); `consensus_cli.normalized` wraps one that
            takes normalised images.
        pruned: the same for the pruned network.
        test: a loader of (images (b, c, h, w) in [0, 1], labels (b,)), which is read once, or a `Split`. Accuracy,
            calibration and agreement are measured on all of its images.
        cost: count MACs and parameters, and time both networks in turn, for a few seconds; the machine should be quiet.
        attacks: names from `consensus list attacks` (8/255, or 64/255 in L2), `Attack`s, or a dictionary of them by the
            names that their columns are to have.
        corruptions: such as `fog`, each at five severities. These are our own images, not the published ones.
        images: test images that are attacked, and corrupted, drawn by seed and spread over the classes; None: 200 are
            attacked, 500 corrupted.
        energy: `EnergyMeter("BRA")` measures the energy of inference and its CO2 in that country; None: no energy.
        seed: of all that is drawn.
        device: both networks are moved there; None: where the original is.
        share: this process among several that call this function together. They share images; the first measures cost.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        UserError: an unknown attack or corruption, or networks and images that do not fit together.
    """
    suite, corruptions = _suite(attacks, seed), list(corruptions)
    check_corruptions(corruptions)
    split: Split = test if hasattr(test, "batches") else LoaderImages(test)  # type: ignore[assignment]
    if device is None:
        device = next((p.device for p in original.parameters()), torch.device("cpu"))
    pair = Pair(_classifier(original, device), _classifier(pruned, device), split, seed, device, share, progress)
    check_attacks(suite.values(), _classes(pair))
    columns = accuracy_columns(*predict_both(pair), pair.seed)
    if cost:
        columns |= share.lead(
            lambda: (
                complexity_columns(original, pruned, split.image_shape) | latency_columns(pair, BATCH_SIZES, LATENCY_S)
            )
        )
    if energy is not None:
        columns |= share.lead(lambda: energy_columns(pair, energy, window_s=ENERGY_WINDOW_S, repeats=ENERGY_REPEATS))
    columns |= attack_columns(pair, suite, ATTACKED_IMAGES if images is None else images)[0]
    columns |= corruption_columns(pair, corruptions, CORRUPTED_IMAGES if images is None else images)
    return Comparison(columns)


def _suite(attacks: Iterable[str | Attack] | Mapping[str, Attack], seed: int) -> dict[str, Attack]:
    if isinstance(attacks, str):
        raise UserError(f"attacks='{attacks}' is one text", f"give a list: attacks=['{attacks}']")
    if isinstance(attacks, Mapping):
        return dict(attacks)
    suite: dict[str, Attack] = {}
    for attack in attacks:
        settings = _named(attack, seed) if isinstance(attack, str) else attack
        if settings.name in suite:
            raise UserError(
                f"there are two attacks '{settings.name}'",
                f"give a dictionary: attacks={{'{settings.name}': …, '{settings.name}_mine': …}}",
            )
        suite[settings.name] = settings
    return suite


def _named(name: str, seed: int) -> Attack:
    norm = ATTACKS[name].norms[0] if name in ATTACKS else "Linf"
    return Attack(name, norm=norm, eps255=_EPS255[norm], steps=_STEPS.get(name, 10), seed=seed)


def _classifier(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Returns the network on the device, as a module that returns logits alone, whatever form it answers in."""
    network.to(device)
    return network if isinstance(network, Classifier) else Classifier(nn.Identity(), network)


def _classes(pair: Pair) -> int:
    """Returns the number of classes, after a look at what the networks answer to two images."""
    images, _ = next(iter(pair.test.batches(2, pair.device)))
    with pair.evaluating():
        shapes = [tuple(model(images).shape) for model in pair.networks.values()]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise UserError(
            f"the networks answer {len(images)} images with logits of shape {shapes[0]} and {shapes[1]}",
            "give two networks that answer (images, classes)",
        )
    classes, largest = shapes[0][1], int(pair.test.labels.max())
    if largest >= classes or int(pair.test.labels.min()) < 0:
        raise UserError(
            f"the test images have labels up to {largest}, the networks {classes} classes",
            "labels count from 0 to classes − 1",
        )
    return classes


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
