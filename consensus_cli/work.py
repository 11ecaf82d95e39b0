"""What one process of a job does: its share of a training, of a pass over the samples, of the predictions.

With one process the share is everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from consensus_cli import data, training
from consensus_cli.data.split import Share
from consensus_cli.evaluation import accuracy
from consensus_cli.models.classifier import Classifier
from consensus_cli.prepare import Prepared
from consensus_cli.scoring.moments import HOLDOUT_PERIOD, PairStatistics
from consensus_cli.scoring.score import collect_statistics
from consensus_cli.screen import Report

SCORING_BATCH_SIZE = 256
PREDICTION_BATCH_SIZE = 256


def train(
    share: Share,
    prepared: Prepared,
    model: Classifier,
    recipe: training.Recipe,
    *,
    seed: int,
    teacher: Classifier | None,
    report: Callable[[training.Progress], None] | None,
) -> training.TrainingResult:
    """Trains `model` in place on this process's share of each update; see `training.train`."""
    return training.train(
        model,
        prepared.images.train,
        recipe,
        device=prepared.device,
        augmentation=prepared.images.augmentation,
        seed=seed,
        precision=prepared.precision,
        compiled=prepared.compiled,
        teacher=teacher,
        share=share,
        report=report,
    )


def statistics(
    share: Share,
    prepared: Prepared,
    network: Classifier,
    original: Classifier | None,
    *,
    candidates: Sequence[str],
    chunks: int,
    report: Report,
) -> list[PairStatistics]:
    """Runs this process's share of the samples through the network; see `collect_statistics`.

    Args:
        share: which of the samples, in contiguous parts; all of them where they are too few to be shared.
        prepared: samples, device, metrics.
        network: the network to score.
        original: what it is compared with; None: itself.
        candidates: names of the blocks that may go.
        chunks: parts that add up to the whole.
        report: told about the progress.
    """
    scoring, samples = prepared.config.scoring, prepared.samples
    if shares_samples(share, len(samples), chunks):
        # Every process starts at a multiple of the period of hold-out and parts, so that each sample falls into the
        # same ones as in a single process.
        samples = samples.subset(_contiguous(share, len(samples), HOLDOUT_PERIOD * chunks))
    return collect_statistics(
        network.network,
        [block for block in prepared.blocks if block.name in set(candidates)],
        _normalized(network, samples, prepared.device, report),
        list(prepared.votes),
        original=None if original is None else original.network,
        num_classes=len(prepared.images.classes),
        precision=scoring.precision,
        memory_gb=scoring.memory_gb,
        chunks=chunks,
    )


def shares_samples(share: Share, samples: int, chunks: int) -> bool:
    """Says whether there are samples enough for every process to get some."""
    return share.world == 1 or samples >= share.world * HOLDOUT_PERIOD * chunks


def predict(share: Share, prepared: Prepared, network: Classifier) -> accuracy.Predictions | None:
    """Returns the network's answers to this process's share of the test images; None where it has none."""
    test = prepared.images.test
    mine = _contiguous(share, len(test), 1)
    if share.world > 1:
        test = test.subset(mine)
    return accuracy.predict(network, test, prepared.device, PREDICTION_BATCH_SIZE) if len(mine) else None


def _contiguous(share: Share, count: int, unit: int) -> Tensor:
    """Returns the positions, of `count`, of one of the contiguous shares that begin at multiples of `unit`."""
    units = -(-count // unit)
    start, end = (unit * (units * rank // share.world) for rank in (share.rank, share.rank + 1))
    return torch.arange(start, min(end, count))


def _normalized(
    model: Classifier, samples: data.Split, device: torch.device, report: Report
) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for images, labels in samples.batches(SCORING_BATCH_SIZE, device):
        with torch.no_grad():
            yield model.normalize(images), labels
        done += len(labels)
        report("scoring", done, len(samples))
