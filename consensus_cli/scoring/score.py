"""Scoring one network: how far it is from itself without each candidate block, and who goes first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli.errors import unknown_name
from consensus_cli.pruning.block import Block
from consensus_cli.scoring import metrics
from consensus_cli.scoring.ranking.baselines import BASELINES
from consensus_cli.scoring.ranking.bootstrap import resampled_distances
from consensus_cli.scoring.representations import PROBE_IMAGES, AblationEngine, representation_size
from consensus_cli.scoring.statistics.budget import Expected, candidates_per_pass, left_for_activations_gb
from consensus_cli.scoring.statistics.moments import EXACT_SAMPLES, HOLDOUT_PERIOD, PairStatistics

CONSENSUS = "consensus"

#: parts that a bootstrap draws from
BOOTSTRAP_CHUNKS = 20


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


@dataclass(frozen=True)
class Measured:
    """How far the network is from itself without each of c blocks.

    Attributes:
        distances: metric -> (c,).
        resampled: the same for every draw of the bootstrap; empty without one.
        passes: passes over the images that it took.
    """

    distances: dict[str, np.ndarray]
    resampled: list[dict[str, np.ndarray]]
    passes: int


#: `samples(number, passes)` gives the batches of a pass, counted from 1: images (b, ...) as the network takes them,
#: labels (b,); the same ones in the same order every time
Samples = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]

#: carries one pass out and returns its parts, which add up to the statistics of the blocks that it serves
Pass = Callable[[], list[PairStatistics]]


def measure(
    passes: Sequence[Pass],
    names: Sequence[str],
    *,
    resamples: int = 0,
    seed: int = 0,
) -> Measured:
    """Computes every metric for every block.

    Args:
        passes: from `plan_passes`, or what adds up those of several processes that share the samples; a block's
            distances do not depend on the pass it is in.
        names: metrics.
        resamples: draws of the bootstrap; 0 for none.
        seed: of the draws.
    """
    measured = [_measure_group(one(), names, resamples, seed) for one in passes]
    distances = {name: np.concatenate([own[name] for own, _ in measured]) for name in names}
    resampled = [
        {name: np.concatenate([draws[draw][name] for _, draws in measured]) for name in names}
        for draw in range(resamples)
    ]
    return Measured(distances, resampled, len(passes))


def plan_passes(
    network: nn.Module,
    blocks: Sequence[Block],
    samples: Samples,
    names: Sequence[str],
    *,
    original: nn.Module | None,
    num_classes: int,
    sample_count: int,
    precision: str,
    memory_gb: float,
    memory_format: torch.memory_format = torch.channels_last,
    resamples: int = 0,
    tick: Callable[[], None] | None = None,
) -> list[Pass]:
    """Returns the passes over the samples that the budget asks for, to be carried out in turn.

    One pass serves all blocks where their statistics fit the budget, else groups of blocks follow one another with a
    pass each.

    Args:
        network: the network that the block names are relative to.
        blocks: the c candidates.
        samples: gives the batches of a pass.
        names: metrics to prepare for.
        original: network to compare with; None compares with `network` itself.
        num_classes: classes of the labels.
        sample_count: number of samples, over all processes that share them.
        precision: `fp32` or `bf16`, of the forward pass.
        memory_gb: budget in GiB for the statistics, and for the activations and the metrics' matrices beside them.
        memory_format: in which the network takes images.
        resamples: draws of the bootstrap; 0 for none.
        tick: called after every forward pass.
    """
    example = next(iter(samples(1, 1)))[0][:PROBE_IMAGES]
    keep = metrics.statistics_needed(names)
    features = representation_size(network, example)
    chunks = chunks_for(resamples)
    expected = Expected(features, num_classes, sample_count, keep, EXACT_SAMPLES, chunks)
    size = candidates_per_pass(expected, len(blocks), memory_gb)
    groups = [blocks[start : start + size] for start in range(0, len(blocks), size)]

    build = functools.partial(AblationEngine, precision=precision, memory_format=memory_format, tick=tick)

    def carry_out(number: int, group: Sequence[Block]) -> list[PairStatistics]:
        activations_gb = left_for_activations_gb(expected, len(group), memory_gb)
        engine = build(network, group, example, memory_gb=activations_gb)
        reference = None
        if original is not None:
            reference = build(original, (), example, memory_gb=activations_gb)
        empty = [
            PairStatistics(len(group), features, num_classes, device=example.device, keep=keep) for _ in range(chunks)
        ]
        return collect_statistics(engine, reference, samples(number, len(groups)), empty)

    return [functools.partial(carry_out, number, group) for number, group in enumerate(groups, 1)]


def chunks_for(resamples: int) -> int:
    """Returns into how many parts the samples are dealt: a bootstrap draws from them."""
    return BOOTSTRAP_CHUNKS if resamples else 1


def _measure_group(
    parts: list[PairStatistics], names: Sequence[str], resamples: int, seed: int
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    if not resamples:
        return metrics.compute(names, parts[0]), []
    distances = metrics.compute(names, PairStatistics.combine(parts, [1] * len(parts)))
    return distances, resampled_distances(parts, names, resamples=resamples, seed=seed)


def collect_statistics(
    engine: AblationEngine,
    reference: AblationEngine | None,
    batches: Iterable[tuple[Tensor, Tensor]],
    parts: list[PairStatistics],
) -> list[PairStatistics]:
    """Runs the samples through the network once; returns the parts, which then add up to what the metrics need.

    Args:
        engine: gives the representations without each candidate.
        reference: of the network to compare with; None compares with that of `engine`.
        batches: images (b, ...) as the network takes them, labels (b,).
        parts: empty statistics, one or more; the samples are dealt to them in turn.
    """
    done = 0
    for images, labels in batches:
        index = torch.arange(done, done + len(labels), device=labels.device)
        done += len(labels)
        rows = engine.representations(images)
        base = rows[0] if reference is None else reference.representations(images)[0]
        # Dealt in runs of one hold-out period, so that every part has samples of both kinds.
        turn = index.div(HOLDOUT_PERIOD, rounding_mode="floor") % len(parts)
        for number in turn.unique().tolist():
            mine = turn == number
            parts[number].update(base[mine], rows[1:, mine], labels[mine], index[mine])
    return parts


def baseline_importance(criterion: str, network: nn.Module, blocks: Sequence[Block], seed: int) -> np.ndarray:
    """Returns the importance (c,) that a criterion without representations gives the blocks; the lowest goes first."""
    return BASELINES[criterion](network, blocks, np.random.default_rng(seed))
