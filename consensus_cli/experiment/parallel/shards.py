"""What one process of a job does: its share of a training, of a pass over the samples, of the predictions.

With one process the share is everything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from consensus_cli import data, training
from consensus_cli.data.share import Share
from consensus_cli.evaluation import accuracy
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.models.classifier import Classifier
from consensus_cli.scoring.score import Pass, chunks_for, plan_passes
from consensus_cli.scoring.statistics.moments import HOLDOUT_PERIOD
from consensus_cli.screen import Report

SCORING_BATCH_SIZE = 256


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
    # Dropout draws from the global generator: a step must not depend on what earlier ones drew.
    torch.manual_seed(seed + share.rank)
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
        tick=prepared.threads.tick,
    )


def passes(
    share: Share,
    prepared: Prepared,
    network: Classifier,
    original: Classifier | None,
    *,
    candidates: Sequence[str],
    batch_size: int,
    report: Report,
) -> list[Pass]:
    """Returns the passes of this process's share of the samples through the network; see `plan_passes`.

    Args:
        share: which of the samples, in contiguous parts; all of them where they are too few to be shared.
        prepared: samples, device, metrics.
        network: the network to score.
        original: what it is compared with; None: itself.
        candidates: names of the blocks that may go.
        batch_size: images in one batch; with fewer than `SCORING_BATCH_SIZE` the memory budget shrinks alike.
        report: told about the progress.
    """
    assert prepared.scoring_precision is not None
    scoring, samples, wanted = prepared.config.scoring, prepared.samples, set(candidates)
    chunks = chunks_for(scoring.bootstrap)
    if shares_samples(share, len(samples), chunks):
        # Every process starts at a multiple of the period of hold-out and parts, so that each sample falls into the
        # same ones as in a single process.
        samples = samples.subset(_contiguous(share, len(samples), HOLDOUT_PERIOD * chunks))

    def of_pass(number: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        doing = "scoring" if count == 1 else f"scoring, pass {number} of {count}"
        return _normalized(network, samples, batch_size, prepared.device, functools.partial(report, doing))

    return plan_passes(
        network.network,
        [block for block in prepared.blocks if block.name in wanted],
        of_pass,
        list(prepared.votes),
        original=None if original is None else original.network,
        num_classes=len(prepared.images.classes),
        sample_count=len(prepared.samples),
        precision=prepared.scoring_precision,
        memory_gb=scoring.memory_gb * batch_size / SCORING_BATCH_SIZE,
        memory_format=network.memory_format or torch.channels_last,
        resamples=scoring.bootstrap,
        tick=prepared.threads.tick,
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
    if not len(mine):
        return None
    return accuracy.predict(network, test, prepared.device, progress=prepared.threads.ticking())


def _contiguous(share: Share, count: int, unit: int) -> Tensor:
    """Returns the positions, of `count`, of one of the contiguous shares that begin at multiples of `unit`."""
    units = -(-count // unit)
    start, end = (unit * (units * rank // share.world) for rank in (share.rank, share.rank + 1))
    return torch.arange(start, min(end, count))


def _normalized(
    model: Classifier, samples: data.Split, batch_size: int, device: torch.device, report: Callable[[int, int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for images, labels in samples.batches(batch_size, device):
        with torch.no_grad():
            yield model.inputs(images), labels
        done += len(labels)
        report(done, len(samples))
