"""Scoring one network: how far it is from itself without each candidate block, and who goes first."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from consensus_cli.data.share import ALL, Share
from consensus_cli.errors import ConfigError, UserError, unknown_name
from consensus_cli.models.classifier import Classifier, network_of
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.blocks import candidates, check_candidates, find_blocks
from consensus_cli.scoring.metrics import METRICS, PAPER, check_requirements, compute, families_of, statistics_needed
from consensus_cli.scoring.ranking.bootstrap import rank_stability, resampled_distances
from consensus_cli.scoring.ranking.consensus import Ranking, aggregation_of, complete_weights, decide
from consensus_cli.scoring.ranking.criteria import CONSENSUS, CRITERIA, Criterion, check_criterion
from consensus_cli.scoring.representations import PROBE_IMAGES, AblationEngine, representation_size
from consensus_cli.scoring.samples import Batches, Samples
from consensus_cli.scoring.statistics.budget import Expected, candidates_per_pass, left_for_activations_gb
from consensus_cli.scoring.statistics.moments import EXACT_SAMPLES, HOLDOUT_PERIOD, PairStatistics

#: images that the blocks are found with
EXAMPLE_IMAGES = 2

#: parts that a bootstrap draws from
BOOTSTRAP_CHUNKS = 20


#: told about the progress: what is being done, images done, images in all
Report = Callable[[str, int, int], None]

#: metric -> distances (c,)
Distances = dict[str, np.ndarray]


def rank_blocks(
    model: nn.Module,
    samples: Samples | Batches,
    *,
    criterion: str | Criterion = CONSENSUS,
    metrics: str | Iterable[str] | Mapping[str, float] = "paper",
    blocks: Sequence[Block] | None = None,
    against: nn.Module | None = None,
    aggregation: str = "rank_sum",
    bootstrap: int = 0,
    seed: int = 0,
    removed: int = 0,
    precision: str = "fp32",
    memory_gb: float = 2.0,
    share: Share = ALL,
    tick: Callable[[], None] | None = None,
    progress: Report | None = None,
) -> Ranking:
    """Ranks the residual blocks of a network by how little it would miss them, the least important first.

        ranking = rank_blocks(model, loader)
        print(ranking)                          # a table: importance and distances of every block
        remove_blocks(model, [ranking.least_important])

    The samples go through the network once, or in groups of blocks where `memory_gb` asks for that. The model is left
    as it is: a copy of it runs, in eval mode.

    Args:
        model: any network with residual blocks, on any device.
        samples: images as the model takes them, of whatever range, with their labels; a loader is read once and kept
            (`Samples.of`). Some hundreds do, some for each class.
        criterion: `consensus` (of `metrics`), the name of one metric, the name of a criterion such as `weight_norm` or
            `random`, or a function (network, blocks, generator) -> importance (c,), the lowest goes first.
        metrics: that vote in the consensus: `paper` for the paper's eight, a name, several, or name -> weight.
        blocks: candidates, of `find_blocks`; those that cannot be removed are left out. None: all of the network's.
        against: network to compare with, such as the original of a pruned one; None: the model itself.
        aggregation: how ranks are combined, a name in `AGGREGATIONS`.
        bootstrap: resamples of the images for the intervals in `Ranking.stability`; 0: none.
        seed: of the resamples, and of a criterion that draws at random.
        removed: number of blocks that have gone before: with each, a criterion that draws at random draws anew.
        precision: of the forward pass, `fp32` or `bf16`; metrics are computed in float64.
        memory_gb: budget in GiB for the statistics (half at most), activations and the metrics' own matrices.
        share: this process among several that rank the same blocks, each with a part of the samples.
        tick: called after every forward pass.
        progress: told about the progress.

    Raises:
        UserError: a network without blocks that can be removed, an unknown name, too few samples for a metric, or
            representations that are not finite.
    """
    network, labelled = network_of(model), Samples.of(samples)
    if blocks is None:
        blocks = share.agree(lambda: find_blocks(network, example_of(model, labelled)))
        check_candidates(blocks)
    blocks = candidates(blocks)
    if not blocks:
        raise UserError("there is no block to rank that can be removed", "find_blocks(model, example) says which can")
    names = [block.name for block in blocks]
    voting = weights_of(metrics) if criterion == CONSENSUS else {}
    weights = {} if callable(criterion) else metrics_needed(criterion, voting)
    if not weights:
        label, importance = _by_criterion(criterion, network, blocks, seed, removed)
        return decide(names, {label: importance}, families={label: label}, weights={label: 1.0})
    aggregation_of(aggregation)
    scoring = _Scoring(model, against, labelled, tuple(weights), bootstrap, seed, precision, memory_gb, tick, progress)
    measured = scoring.measure(blocks, share)
    families = families_of(weights)
    ranking = decide(names, measured.distances, families=families, aggregation=aggregation, weights=weights)
    stability = None
    if measured.resampled:
        stability = rank_stability(names, measured.resampled, weights=weights, aggregation=aggregation)
    return replace(ranking, stability=stability, passes=measured.passes)


def example_of(model: nn.Module, samples: Samples) -> Tensor:
    """Returns a few of the samples (2, ...) as the network in `model` takes them."""
    return next(_prepared(model, samples, None))[0][:EXAMPLE_IMAGES]


def shard(share: Share, samples: int, chunks: int = 1) -> Tensor | None:
    """Returns the positions ((m,) int64), of `samples`, that one of several processes takes.

    Every part begins at a multiple of the period of hold-out and chunks, so that each sample falls into the same ones
    as in a single process. None where there are too few samples for every process to get some.
    """
    unit = HOLDOUT_PERIOD * chunks
    return share.part(samples, unit) if samples >= share.world * unit else None


def weights_of(metrics: str | Iterable[str] | Mapping[str, float]) -> dict[str, float]:
    """Returns metric -> weight for `paper`, the name of a metric, several names, or weights."""
    if isinstance(metrics, str):
        metrics = PAPER if metrics == "paper" else [metrics]
    weights = metrics if isinstance(metrics, Mapping) else dict.fromkeys(metrics, 1.0)
    return complete_weights(weights, weights)


def _by_criterion(
    criterion: str | Criterion, network: nn.Module, blocks: Sequence[Block], seed: int, removed: int
) -> tuple[str, np.ndarray]:
    """Returns what a criterion without representations is called, and the importance (c,) it gives the blocks."""
    if isinstance(criterion, str):
        check_criterion(criterion, network, blocks)
        label, function = criterion, CRITERIA[criterion]
    else:
        label, function = getattr(criterion, "__name__", "criterion"), criterion
    drawn = int(np.random.SeedSequence([seed, removed]).generate_state(1)[0])
    importance = np.asarray(function(network, blocks, np.random.default_rng(drawn)), dtype=np.float64)
    if importance.shape != (len(blocks),) or not np.isfinite(importance).all():
        raise UserError(
            f"criterion {label} gives {importance} for {len(blocks)} blocks", "return one finite number per block"
        )
    return label, importance


def _prepared(
    model: nn.Module,
    samples: Samples,
    positions: Tensor | None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches on the model's device, as its network takes them, and reports how far they are."""
    weight = next(model.parameters())
    done, count = 0, len(samples) if positions is None else len(positions)
    for images, labels in samples.batches(positions):
        with torch.no_grad():
            moved = images.to(weight.device)
            yield model.inputs(moved) if isinstance(model, Classifier) else moved, labels.to(weight.device)
        done += len(labels)
        report(done, count)


@dataclass(frozen=True)
class _Scoring:
    """A scoring with the arguments of `rank_blocks`."""

    model: nn.Module
    against: nn.Module | None
    samples: Samples
    names: tuple[str, ...]
    bootstrap: int
    seed: int
    precision: str
    memory_gb: float
    tick: Callable[[], None] | None
    progress: Report | None

    def measure(self, blocks: Sequence[Block], share: Share) -> Measured:
        """Computes every metric for every block, in as many passes over the samples as the budget asks for."""
        example, expected = share.agree(self._expected)
        size = candidates_per_pass(expected, len(blocks), self.memory_gb)
        groups = [blocks[start : start + size] for start in range(0, len(blocks), size)]
        measured = []
        for number, group in enumerate(groups, 1):
            doing = "scoring" if len(groups) == 1 else f"scoring, pass {number} of {len(groups)}"
            run = functools.partial(self._pass, group, example, expected, doing)
            measured.append(self._merged(run, share))
        distances = {name: np.concatenate([own[name] for own, _ in measured]) for name in self.names}
        resampled = [
            {name: np.concatenate([draws[draw][name] for _, draws in measured]) for name in self.names}
            for draw in range(self.bootstrap)
        ]
        return Measured(distances, resampled, len(groups))

    def _expected(self) -> tuple[Tensor, Expected]:
        """Returns a few images and what the statistics will hold, having checked that the samples are enough."""
        example = next(_prepared(self.model, self.samples, None))[0][:PROBE_IMAGES]
        features = representation_size(network_of(self.model), example)
        per_class = self.samples.labels.bincount()
        problems = check_requirements(
            self.names, samples=len(self.samples), per_class=int(per_class[per_class > 0].min()), features=features
        )
        if problems:
            raise ConfigError(problems)
        keep, chunks = statistics_needed(self.names), chunks_for(self.bootstrap)
        return example, Expected(features, self.samples.num_classes, len(self.samples), keep, EXACT_SAMPLES, chunks)

    def _merged(
        self, run: Callable[[Tensor | None], list[PairStatistics]], share: Share
    ) -> tuple[Distances, list[Distances]]:
        """Returns what one pass comes to, of which every process makes its part; rank 0 computes the distances."""
        mine = None if share.world == 1 else shard(share, len(self.samples), chunks_for(self.bootstrap))
        if mine is None:
            return share.lead(lambda: _measure_group(run(None), self.names, self.bootstrap, self.seed))

        def combine(packed: list[bytes]) -> tuple[Distances, list[Distances]]:
            gathered = [_unpacked(part, next(self.model.parameters()).device) for part in packed]
            parts = [PairStatistics.combine(each) for each in zip(*gathered, strict=True)]
            return _measure_group(parts, self.names, self.bootstrap, self.seed)

        return share.merge(lambda: _packed(run(mine)), combine)

    def _pass(
        self, group: Sequence[Block], example: Tensor, expected: Expected, doing: str, positions: Tensor | None
    ) -> list[PairStatistics]:
        """Runs samples through the network; returns statistics that add up to those of the group."""
        memory_format = isinstance(self.model, Classifier) and self.model.memory_format
        build = functools.partial(
            AblationEngine,
            precision=self.precision,
            memory_gb=left_for_activations_gb(expected, len(group), self.memory_gb),
            memory_format=memory_format or torch.channels_last,
            tick=self.tick,
        )
        engine = build(network_of(self.model), group, example)
        reference = None if self.against is None else build(network_of(self.against), (), example)
        empty = [
            PairStatistics(
                len(group), expected.features, expected.num_classes, device=example.device, keep=expected.keep
            )
            for _ in range(expected.chunks)
        ]
        report = (lambda *_: None) if self.progress is None else functools.partial(self.progress, doing)
        return collect_statistics(engine, reference, _prepared(self.model, self.samples, positions, report), empty)


def _packed(parts: list[PairStatistics]) -> bytes:
    written = io.BytesIO()
    torch.save(parts, written)
    return written.getvalue()


def _unpacked(packed: bytes, device: torch.device) -> list[PairStatistics]:
    # From another process of the same job; each has its own device.
    parts: list[PairStatistics] = torch.load(io.BytesIO(packed), map_location=device, weights_only=False)
    return parts


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
    if criterion in METRICS:
        return {criterion: 1.0}
    if criterion in CRITERIA:
        return {}
    raise unknown_name("criterion", criterion, [CONSENSUS, *METRICS, *CRITERIA])


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
PassSamples = Callable[[int, int], Iterable[tuple[Tensor, Tensor]]]

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
    samples: PassSamples,
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
    keep = statistics_needed(names)
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
        return compute(names, parts[0]), []
    distances = compute(names, PairStatistics.combine(parts))
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
    return CRITERIA[criterion](network, blocks, np.random.default_rng(seed))
