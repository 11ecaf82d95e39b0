"""How well a network answers, how sure it is, and whether two networks answer alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from consensus_cli.data.share import ALL, Share
from consensus_cli.data.source import Progress
from consensus_cli.data.split import Split
from consensus_cli.evaluation.pair import Columns, Pair, gather, part
from consensus_cli.evaluation.statistics import paired_change
from consensus_cli.models.modes import evaluating

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """What a network answers to every image of a split.

    Attributes:
        logits: (n, k) float32 on the CPU.
        labels: true classes, (n,) int64 on the CPU.
    """

    logits: Tensor
    labels: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether the largest logit is that of the true class, (n,) bool."""
        return self.logits.argmax(1) == self.labels


def predict(
    model: nn.Module,
    split: Split,
    device: torch.device | str,
    batch_size: int = 256,
    *,
    progress: Progress | None = None,
    share: Share = ALL,
) -> Predictions:
    """Runs `model` in eval mode over the whole split, in the split's own order.

    Several processes run whole batches each, and all of them get all answers.

    Raises:
        ValueError: if the split is empty.
    """
    if len(split) == 0:
        raise ValueError("no images to predict")
    mine = part(split, batch_size, share)

    def answers() -> list[tuple[Tensor, Tensor]]:
        found, done = [], 0
        with evaluating(model):
            # An unreadable image that is skipped is missing from its batch, so labels come from the batches, too.
            for images, labels in mine.batches(batch_size, device):
                found.append((model(images).float().cpu(), labels.cpu()))
                done += len(labels)
                if progress is not None:
                    progress("predicting", done, len(mine))
        return found

    logits, labels = zip(*gather(share, answers), strict=True)
    return Predictions(torch.cat(logits), torch.cat(labels))


def predict_both(pair: Pair) -> tuple[Predictions, Predictions]:
    """Returns the answers of the original and of the pruned network to all test images."""
    original, pruned = (
        predict(model, pair.test, pair.device, progress=pair.progress, share=pair.share)
        for model in pair.networks.values()
    )
    return original, pruned


def accuracy_columns(original: Predictions, pruned: Predictions, seed: int) -> Columns:
    """Returns accuracy, calibration and agreement of both networks, from their answers to the same images.

    The change in accuracy has its 95 % interval (paired bootstrap over images, drawn by `seed`).
    """
    change = paired_change(original.correct, pruned.correct, seed)
    columns: Columns = {
        "accuracy_base_pct": accuracy_pct(original),
        "accuracy_pruned_pct": accuracy_pct(pruned),
        "accuracy_delta_pp": accuracy_pct(pruned) - accuracy_pct(original),
        "accuracy_ci95_low": change.ci95_low_pp,
        "accuracy_ci95_high": change.ci95_high_pp,
        "test_images": len(original.labels),
        "nll_base_nats": nll_nats(original),
        "nll_pruned_nats": nll_nats(pruned),
        "ece_base_pct": calibration_error_pct(original),
        "ece_pruned_pct": calibration_error_pct(pruned),
        **agreement_columns(original, pruned),
    }
    if original.logits.shape[1] > 10:
        columns["top5_base_pct"] = top_k_accuracy_pct(original, 5)
        columns["top5_pruned_pct"] = top_k_accuracy_pct(pruned, 5)
    return columns


def agreement_columns(original: Predictions, pruned: Predictions) -> Columns:
    """Returns how the answers of the two networks differ.

    `disagreement_pct` is the share of images with another predicted class. `mcnemar_p` is the exact two-sided McNemar
    test of equal accuracy, in (0, 1]; small: the accuracies differ. `worst_class` lost most.

    Raises:
        ValueError: if the predictions are not about the same images.
    """
    if not torch.equal(original.labels, pruned.labels):
        raise ValueError("predictions about different images cannot be compared")
    from scipy.stats import binomtest

    only_original = int((original.correct & ~pruned.correct).sum())
    discordant = int((original.correct ^ pruned.correct).sum())
    delta = per_class_accuracy_pct(pruned) - per_class_accuracy_pct(original)
    worst = int(delta.nan_to_num(torch.inf).argmin())
    changed = original.logits.argmax(1) != pruned.logits.argmax(1)
    return {
        "disagreement_pct": 100 * changed.double().mean().item(),
        # With no discordant image there is nothing to test: the accuracies are equal.
        "mcnemar_p": float(binomtest(only_original, discordant).pvalue) if discordant else 1.0,
        "worst_class": worst,
        "worst_class_delta_pp": delta[worst].item(),
    }


def accuracy_pct(predictions: Predictions) -> float:
    """Returns correct / images, in [0, 100]."""
    return 100 * predictions.correct.double().mean().item()


def top_k_accuracy_pct(predictions: Predictions, k: int) -> float:
    """Returns the share of images whose true class is among the `k` largest logits, in [0, 100].

    Raises:
        ValueError: if there are fewer than `k` classes.
    """
    classes = predictions.logits.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"top-{k} of {classes} classes")
    hits = predictions.logits.topk(k, dim=1).indices == predictions.labels[:, None]  # (n, k)
    return 100 * hits.any(1).double().mean().item()


def nll_nats(predictions: Predictions) -> float:
    """Returns the mean negative log-likelihood of the true class in nats: 0 is perfect, log k is guessing."""
    return nn.functional.cross_entropy(predictions.logits.double(), predictions.labels).item()


def calibration_error_pct(predictions: Predictions) -> float:
    """Returns the expected calibration error in [0, 100]; 0: confidence equals accuracy in every bin.

    Σ_b n_b / n · |accuracy_b − confidence_b| over 15 equal bins (lower, upper] of the largest softmax probability
    (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).
    """
    confidence = predictions.logits.double().softmax(1).amax(1)  # (n,)
    which = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    gap = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
    gap.index_add_(0, which, predictions.correct.double() - confidence)
    return 100 * (gap.abs().sum() / len(confidence)).item()


def per_class_accuracy_pct(predictions: Predictions) -> Tensor:
    """Returns the accuracy of every class, (k,) float64 in [0, 100]; NaN for a class without images."""
    classes = predictions.logits.shape[1]
    images = torch.bincount(predictions.labels, minlength=classes)
    hits = torch.bincount(predictions.labels[predictions.correct], minlength=classes)
    return 100 * hits.double() / images.double()
