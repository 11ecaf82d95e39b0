"""Scoring one network: how far it is from itself without each candidate block, and who goes first."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli.errors import unknown_name
from consensus_cli.pruning.blocks import Block
from consensus_cli.scoring import metrics
from consensus_cli.scoring.ablation import AblationEngine
from consensus_cli.scoring.baselines import BASELINES
from consensus_cli.scoring.moments import HOLDOUT_PERIOD, PairStatistics

CONSENSUS = "consensus"


def metrics_needed(criterion: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics that a criterion reads, with the weights of their votes.

    Args:
        criterion: `consensus` (all of `weights` that are above 0), a metric's name (that one alone), or the name of a
            baseline criterion (none).
        weights: metric -> weight in the consensus.

    Raises:
        UserError: unknown criterion.
    """
    if criterion == CONSENSUS:
        return {name: weight for name, weight in weights.items() if weight > 0}
    if criterion in metrics.METRICS:
        return {criterion: 1.0}
    if criterion in BASELINES:
        return {}
    raise unknown_name("criterion", criterion, [CONSENSUS, *metrics.METRICS, *BASELINES])


def collect_statistics(
    network: nn.Module,
    blocks: Sequence[Block],
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Sequence[str],
    *,
    original: nn.Module | None,
    num_classes: int,
    precision: str,
    memory_gb: float,
    chunks: int = 1,
) -> list[PairStatistics]:
    """Runs the samples through the network once and gathers what the metrics need.

    Args:
        network: the network that the block names are relative to.
        blocks: the c candidates.
        batches: (images (b, ...) as the network takes them, labels (b,)); all metrics see the same ones.
        names: metrics to prepare for.
        original: network to compare with; None compares with `network` itself.
        num_classes: classes of the labels.
        precision: `fp32` or `bf16`, of the forward pass.
        memory_gb: budget for the activations.
        chunks: parts that add up to the whole; the samples are dealt to them in turn.
    """
    remaining = iter(batches)
    first = next(remaining)
    engine = AblationEngine(network, blocks, first[0], precision=precision, memory_gb=memory_gb)
    reference = None
    if original is not None:
        reference = AblationEngine(original, (), first[0], precision=precision, memory_gb=memory_gb)
    keep = metrics.statistics_needed(names)
    parts = [
        PairStatistics(len(blocks), engine.features, num_classes, device=first[0].device, keep=keep)
        for _ in range(chunks)
    ]
    done = 0
    for images, labels in itertools.chain([first], remaining):
        index = torch.arange(done, done + len(labels), device=labels.device)
        done += len(labels)
        rows = engine.representations(images)
        base = rows[0] if reference is None else reference.representations(images)[0]
        # Dealt in runs of one hold-out period, so that every part has samples of both kinds.
        turn = index.div(HOLDOUT_PERIOD, rounding_mode="floor") % chunks
        for number in turn.unique().tolist():
            mine = turn == number
            parts[number].update(base[mine], rows[1:, mine], labels[mine], index[mine])
    return parts


def baseline_importance(criterion: str, network: nn.Module, blocks: Sequence[Block], seed: int) -> np.ndarray:
    """Returns the importance (c,) that a criterion without representations gives the blocks; the lowest goes first."""
    return BASELINES[criterion](network, blocks, np.random.default_rng(seed))
