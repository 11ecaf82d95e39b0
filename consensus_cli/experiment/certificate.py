"""What a run vouches for: how fast the pruned network is, and that what it saved is what it measured.

`certificate.json` is written before the row; `consensus export` adds what it has exported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.data.split import Split
from consensus_cli.errors import RunFailedError, UserError, foreign_code
from consensus_cli.evaluation.cost.quantities import MEASURED, Amount
from consensus_cli.evaluation.pair import stratified
from consensus_cli.evaluation.statistics import Saving
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone, to_layout
from consensus_cli.models.modes import SAME, evaluating
from consensus_cli.models.weights import load_into
from consensus_cli.pruning.schedule import blocks_to_remove
from consensus_cli.pruning.silencing import randomness_kept
from consensus_cli.storage.certificate import write_certificate
from consensus_cli.storage.checkpoint import load_pruned, read_weights
from consensus_cli.storage.rundir import RunDir

#: test images that networks are compared on, and the seed of what a network draws while it answers
CHECKED_IMAGES, _DRAWN = 64, 0

_LATENCY = re.compile(r"latency_b(\d+)_base_ms")


@dataclass(frozen=True)
class Difference:
    """How far a network's logits are from those of another on the same images.

    Attributes:
        images: how many.
        same_predictions: of them, those that both put into the same class.
        max_difference: largest difference of two logits; 0 where all are equal to the last bit.
        allowed: the most that counts as the same.
    """

    images: int
    same_predictions: int
    max_difference: float
    allowed: float

    def __str__(self) -> str:
        same = f"same class on {self.same_predictions} of {self.images} test images"
        return f"{same}, largest difference of a logit {self.max_difference:.2g}"

    @property
    def is_same(self) -> bool:
        """Whether the two answer alike."""
        return self.max_difference <= self.allowed


def checked_images(test: Split, seed: int) -> Tensor:
    """Returns the test images that networks are compared on, (n, c, h, w) in [0, 1], spread over the classes."""
    return next(stratified(test, CHECKED_IMAGES, seed).batches(CHECKED_IMAGES))[0].contiguous()


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Returns what a network answers, (n, k) float32 on the CPU, in eval mode; what it draws is the same each time."""
    with evaluating(network), randomness_kept():
        torch.manual_seed(_DRAWN)
        return network(images).float().cpu()


def difference(expected: Tensor, found: Tensor, *, relative: float = 0.0) -> Difference:
    """Compares logits (n, k) with others; up to `relative` times the largest expected they count as the same."""
    equal = (expected == found) | (expected.isnan() & found.isnan())
    return Difference(
        images=len(expected),
        same_predictions=int((expected.argmax(1) == found.argmax(1)).sum()),
        max_difference=torch.where(equal, 0.0, (expected - found).abs()).max().item(),
        allowed=relative * expected.nan_to_num().abs().max().item(),
    )


def saved_answers(files: RunDir, measured: Classifier, images: Tensor) -> dict[str, Difference]:
    """Compares the network that was measured with what its run directory holds of it.

    Args:
        files: where it is saved.
        measured: the network, on the device that it was measured on.
        images: (n, c, h, w) on that device.

    Returns:
        `saved`: the weights in the file, in a copy of the network; `loaded`: the network that `load_pruned` rebuilds.
        On a CPU each answer must be equal to the last bit; a GPU may choose another algorithm.

    Raises:
        UserError: it cannot be loaded.
    """
    expected, relative = logits(measured, images), 0.0 if images.device.type == "cpu" else SAME

    def saved() -> Classifier:
        copied = clone(measured)
        load_into(copied.network, read_weights(files.pruned_checkpoint), str(files.pruned_checkpoint))
        return copied

    def loaded() -> Classifier:
        rebuilt = load_pruned(files.path)
        if measured.memory_format is not None:
            rebuilt.memory_format = measured.memory_format
            to_layout(rebuilt.network, measured.memory_format)
        return rebuilt.to(images.device)

    with foreign_code("the network, loaded again,", "its forward must need nothing that its state dict lacks"):
        # One after the other: a third copy at a time may be more than the device has memory for.
        return {
            make.__name__: difference(expected, logits(make(), images), relative=relative) for make in (saved, loaded)
        }


def certify(files: RunDir, row: Mapping[str, Any], measured: Classifier, images: Tensor) -> None:
    """Writes the certificate of a run.

    Args:
        files: where its network is saved.
        row: what was measured.
        measured: the network that was, on the device that it was measured on.
        images: as of `checked_images`, on that device.

    Raises:
        RunFailedError: what is saved does not answer as what was measured. It is set aside then, so that a run that is
            resumed makes the network anew.
    """
    try:
        answers = saved_answers(files, measured, images)
        wrong = [f"{name}: {found}" for name, found in answers.items() if not found.is_same]
    except UserError as error:
        answers, wrong = {}, [error.message]
    content = {"run_id": row["run_id"], **_measured(row, measured), "target": _target(row)}
    write_certificate(files, content | {"answers": {name: asdict(found) for name, found in answers.items()}})
    if wrong:
        with suppress(FileNotFoundError):
            files.pruned_checkpoint.replace(files.rejected_checkpoint)
        raise RunFailedError(
            f"the saved network does not answer as the one that was measured ({'; '.join(wrong)})",
            f"it is set aside as {files.rejected_checkpoint}, and consensus resume makes it anew; "
            "a network must keep all that its answers depend on in its state dict",
        )


def _measured(row: Mapping[str, Any], measured: Classifier) -> dict[str, Any]:
    """Returns where and how it was measured, latency at each batch size, and what MACs leave out."""
    sizes = [int(match[1]) for match in map(_LATENCY.fullmatch, row) if match]
    return {
        "device": row["device"],
        "runtime": "torch",
        "torch_version": row["torch_version"],
        "threads": row["threads"],
        "precision": "fp32",
        "memory_format": str(measured.memory_format or torch.contiguous_format).removeprefix("torch."),
        "latency": [_latency_of(row, size) for size in sizes if row[f"latency_b{size}_base_ms"] is not None],
        "macs_uncounted": row["macs_uncounted"],
    }


def _latency_of(row: Mapping[str, Any], size: int) -> dict[str, Any]:
    name = f"latency_b{size}"
    shares = (row[f"{name}_{column}"] / 100 for column in ("reduction_pct", "ci95_low", "ci95_high"))
    return latency(size, row[f"{name}_base_ms"], row[f"{name}_pruned_ms"], Saving(*shares))


def latency(batch: int, original_ms: float, pruned_ms: float, saving: Saving) -> dict[str, Any]:
    """Returns what a certificate says of forward passes of a batch: medians, and how many times as fast one is."""
    share, *ends = map(_speed_up, saving)
    return {
        "batch": batch,
        "original_ms": original_ms,
        "pruned_ms": pruned_ms,
        "speed_up": share,
        "speed_up_ci95": ends,
    }


def _speed_up(share: float) -> float | None:
    """Returns how many times as fast something is that saves a share of the time; None where that is not known."""
    return 1 / (1 - share) if math.isfinite(share) and share < 1 else None


def _target(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what was asked for, what came of it, and whether that is enough; None for a row that does not say.

    Nothing is asked of a control: it has the shape of another network.
    """
    if row.get("control"):
        return None
    amount = Amount.parse("target", row["target"]) if row.get("target") else None
    quantity = amount.quantity if amount else row["ratio_unit"]
    asked: dict[str, Any] = {"quantity": quantity, "asked": row["target"] if amount else row["ratio"]}
    if quantity in MEASURED:
        goal, unit = f"goal_{quantity}", MEASURED[quantity].lower()
        if f"{goal}_saved_pct" not in row:
            return None
        before, after = row[f"{goal}_base_{unit}"], row[f"{goal}_pruned_{unit}"]
        saved, low, high = (row[f"{goal}_saved{end}_pct"] / 100 for end in ("", "_low", "_high"))
        asked |= {name: row[f"goal_{name}"] for name in ("batch_size", "runtime", "precision", "confidence")}
        met = after <= amount.value if amount else low >= row["ratio"]
        return asked | {"original": before, "pruned": after, "saved": saved, "saved_ci": [low, high], "met": met}
    if quantity == "blocks":
        before, after = row["blocks_candidates"], row["blocks_candidates"] - row["blocks_removed"]
        most = before - blocks_to_remove(row["ratio"], before)
    else:
        before, after = row[f"{quantity}_base"], row[f"{quantity}_pruned"]
        most = amount.value if amount else (1 - row["ratio"]) * before
    return asked | {"original": before, "pruned": after, "saved": 1 - after / before, "met": after <= most}
