"""How well a network answers, how sure it is, and whether two networks answer alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from consensus_cli.data.split import Split
from consensus_cli.evaluation.mode import Progress, evaluation_mode

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Predictions:
    """What a network said about every image of a split.

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


@dataclass(frozen=True)
class Agreement:
    """How the answers of a pruned network differ from those of its baseline on the same images.

    Attributes:
        disagreement_pct: share of images with another predicted class, in [0, 100].
        mcnemar_p: exact two-sided McNemar test of equal accuracy, in (0, 1]; small: the accuracies differ.
        base_only_images: images only the baseline classifies correctly.
        pruned_only_images: images only the pruned network classifies correctly.
        class_delta_pp: accuracy change of every class in percentage points, (k,); NaN for a class without images.
        worst_class: the class that lost most.
        worst_class_delta_pp: its accuracy change in percentage points.
    """

    disagreement_pct: float
    mcnemar_p: float
    base_only_images: int
    pruned_only_images: int
    class_delta_pp: tuple[float, ...]
    worst_class: int
    worst_class_delta_pp: float


def predict(
    model: nn.Module,
    split: Split,
    device: torch.device | str,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Predictions:
    """Runs `model` in eval mode over the whole split, in the split's own order.

    Raises:
        ValueError: if the split is empty.
    """
    if len(split) == 0:
        raise ValueError("no images to predict")
    logits, labels, done = [], [], 0
    with evaluation_mode(model), torch.no_grad():
        for images, targets in split.batches(batch_size, device):
            logits.append(model(images).float().cpu())
            labels.append(targets.cpu())
            done += len(targets)
            if progress is not None:
                progress("predicting", done, len(split))
    return Predictions(torch.cat(logits), torch.cat(labels))


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


def calibration_error_pct(predictions: Predictions, bins: int = CALIBRATION_BINS) -> float:
    """Returns the expected calibration error in [0, 100]; 0: confidence equals accuracy in every bin.

    Σ_b n_b / n · |accuracy_b − confidence_b| over `bins` equal bins (lower, upper] of the largest softmax
    probability (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).
    """
    confidence = predictions.logits.double().softmax(1).amax(1)  # (n,)
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, which, predictions.correct.double() - confidence)
    return 100 * (gap.abs().sum() / len(confidence)).item()


def per_class_accuracy_pct(predictions: Predictions) -> Tensor:
    """Returns the accuracy of every class, (k,) float64 in [0, 100]; NaN for a class without images."""
    classes = predictions.logits.shape[1]
    images = torch.bincount(predictions.labels, minlength=classes)
    hits = torch.bincount(predictions.labels[predictions.correct], minlength=classes)
    return 100 * hits.double() / images.double()


def compare(base: Predictions, pruned: Predictions) -> Agreement:
    """Compares two networks on the same images.

    Raises:
        ValueError: if the predictions are not about the same images.
    """
    if not torch.equal(base.labels, pruned.labels):
        raise ValueError("predictions about different images cannot be compared")
    base_only = int((base.correct & ~pruned.correct).sum())
    pruned_only = int((~base.correct & pruned.correct).sum())
    # With no discordant image there is nothing to test: the accuracies are equal.
    p = binomtest(base_only, base_only + pruned_only).pvalue if base_only + pruned_only else 1.0
    delta = per_class_accuracy_pct(pruned) - per_class_accuracy_pct(base)
    worst = int(delta.nan_to_num(torch.inf).argmin())
    changed = base.logits.argmax(1) != pruned.logits.argmax(1)
    return Agreement(
        disagreement_pct=100 * changed.double().mean().item(),
        mcnemar_p=float(p),
        base_only_images=base_only,
        pruned_only_images=pruned_only,
        class_delta_pp=tuple(delta.tolist()),
        worst_class=worst,
        worst_class_delta_pp=delta[worst].item(),
    )
