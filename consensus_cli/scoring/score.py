"""Scoring one network: how far it is from itself without each candidate block, and who goes first."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from consensus_cli.data.share import ALL, Share
from consensus_cli.errors import ConfigError, UserError, unknown_name
from consensus_cli.models.classifier import Classifier, network_of
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.blocks import candidates, check_candidates, find_blocks
from consensus_cli.pruning.healing import fit_maps
from consensus_cli.pruning.replacement import ChannelMap, check_replacement
from consensus_cli.scoring.metrics import METRICS, PAPER, check_requirements, compute, families_of, statistics_needed
from consensus_cli.scoring.ranking.bootstrap import rank_stability, resampled_distances
from consensus_cli.scoring.ranking.consensus import Ranking, aggregation_of, complete_weights, decide
from consensus_cli.scoring.ranking.criteria import CONSENSUS, CRITERIA, Criterion, check_criterion
from consensus_cli.scoring.representations import PRECISIONS, PROBE_IMAGES, AblationEngine, representation_size
from consensus_cli.scoring.samples import Batches, Samples
from consensus_cli.scoring.statistics.budget import Expected, candidates_per_pass, left_for_activations_gb
from consensus_cli.scoring.statistics.moments import EXACT_SAMPLES, HOLDOUT_PERIOD, PairStatistics

#: images that the blocks are found with
EXAMPLE_IMAGES = 2

#: parts that a bootstrap draws from
BOOTSTRAP_CHUNKS = 20


#: the criterion that compares answers
KL = "kl"

#: block -> what would stand in its place
Maps = dict[str, ChannelMap]

#: called with what is being done, images done, images in all
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
    original: nn.Module | None = None,
    aggregation: str = "rank_sum",
    bootstrap: int = 0,
    seed: int = 0,
    removed: int = 0,
    repair: str = "nothing",
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
            (`Samples.of`). Metrics say how many they need: some per class, `linear_alpha0` more than features.
        criterion: `consensus` (of `metrics`), the name of one metric, `kl` (how far the answers move: the mean over
            images of KL(original ‖ without the block) in nats; needs no labels), the name of a criterion such as
            `weight_norm` or `random`, or a function (network, blocks, generator) -> importance (c,), the lowest goes
            first.
        metrics: that vote in the consensus: `paper` for the paper's eight, a name, several, or name -> weight.
        blocks: candidates, of `find_blocks`; those that cannot be removed are left out. None: all of the network's.
        against: network to compare with, such as the original of a pruned one; None: the model itself.
        original: the network before any block went: its answers are what `kl` compares with, its blocks what maps are
            fitted to; None: `against`, else the model itself.
        aggregation: how ranks are combined, a name in `AGGREGATIONS`.
        bootstrap: resamples of the images for the intervals in `Ranking.stability`; 0: none.
        seed: of the resamples, and of a criterion that draws at random.
        removed: number of blocks that have gone before: with each, a criterion that draws at random draws anew.
        repair: what would stand where the block stood: `nothing`, or the map that is fitted in its place, `scale` or
            `linear` (see `pruning.healing`). The fits take one more pass over the samples, through both networks.
        precision: of the forward pass, `fp32` or `bf16`; metrics are computed in float64.
        memory_gb: budget in GiB for the statistics (half at most), activations and the metrics' own matrices.
        share: this process among several that rank the same blocks, each with a part of the samples.
        tick: called after every forward pass.
        progress: called with what is being done, how many images are done, and how many there are.

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
    check_replacement(repair)
    if bootstrap < 0:
        raise UserError(f"bootstrap is {bootstrap}", "0 gives no intervals, 200 resamples are usual")
    names = [block.name for block in blocks]
    voting = weights_of(metrics) if criterion == CONSENSUS else {}
    weights = {} if callable(criterion) else metrics_needed(criterion, voting)
    scoring = _Scoring(
        model,
        against,
        original or against or model,
        labelled,
        tuple(weights),
        bootstrap,
        seed,
        precision,
        memory_gb,
        tick,
        progress,
        repair,
    )
    if criterion == KL:
        return decide(names, {KL: scoring.divergences(blocks, share)}, families={KL: KL}, weights={KL: 1.0})
    if not weights:
        label, importance = _by_criterion(criterion, network, blocks, seed, removed)
        return decide(names, {label: importance}, families={label: label}, weights={label: 1.0})
    aggregation_of(aggregation)
    distances, resampled, passes = scoring.measure(blocks, share)
    ranking = decide(names, distances, families=families_of(weights), aggregation=aggregation, weights=weights)
    stability = rank_stability(names, resampled, weights=weights, aggregation=aggregation) if resampled else None
    return replace(ranking, stability=stability, passes=passes)


def example_of(model: nn.Module, samples: Samples) -> Tensor:
    """Returns a few of the samples (2, ...) as the network in `model` takes them."""
    return next(_prepared(model, samples, None))[0][:EXAMPLE_IMAGES]


def inputs_of(model: nn.Module, samples: Samples) -> Iterator[Tensor]:
    """Yields all samples (b, ...) as the network in `model` takes them."""
    return (images for images, _ in _prepared(model, samples, None))


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
    original: nn.Module
    samples: Samples
    names: tuple[str, ...]
    bootstrap: int
    seed: int
    precision: str
    memory_gb: float
    tick: Callable[[], None] | None
    progress: Report | None
    repair: str

    def divergences(self, blocks: Sequence[Block], share: Share) -> np.ndarray:
        """Returns how far the answers are from the original's without each block: mean KL divergence (c,) in nats."""
        example, maps = share.agree(lambda: example_of(self.model, self.samples)), self._maps(blocks, share)

        def run() -> tuple[Tensor, int]:
            engine = self._engine(self.model, blocks, example, self.memory_gb, maps=maps, answers=True)
            original = self._engine(self.original, (), example, self.memory_gb, answers=True)
            total, images_seen = torch.zeros(len(blocks), dtype=torch.float64), 0
            positions = None if share.world == 1 else share.part(len(self.samples))
            for images, _ in _prepared(self.model, self.samples, positions, self._report("scoring")):
                expected = original.representations(images)[0].double().log_softmax(-1)
                found = engine.representations(images)[1:].double().log_softmax(-1)
                total += functional.kl_div(found, expected, reduction="none", log_target=True).sum((1, 2)).cpu()
                images_seen += len(images)
            return total, images_seen

        def combine(parts: list[tuple[Tensor, int]]) -> np.ndarray:
            mean = sum(total for total, _ in parts) / sum(count for _, count in parts)
            return torch.as_tensor(mean).numpy()

        return share.merge(run, combine)

    def measure(self, blocks: Sequence[Block], share: Share) -> tuple[Distances, list[Distances], int]:
        """Returns the distances of every block, those of each resample, and how many passes the budget asked for."""
        example, expected = share.agree(self._expected)
        size = candidates_per_pass(expected, len(blocks), self.memory_gb)
        groups = [blocks[start : start + size] for start in range(0, len(blocks), size)]
        maps = self._maps(blocks, share)
        measured = []
        for number, group in enumerate(groups, 1):
            doing = "scoring" if len(groups) == 1 else f"scoring, pass {number} of {len(groups)}"
            measured.append(
                self._merged(functools.partial(self._pass, group, example, expected, maps=maps, doing=doing), share)
            )
        resampled = [_joined(draws) for draws in zip(*(draws for _, draws in measured), strict=True)]
        return _joined([distances for distances, _ in measured]), resampled, len(groups)

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
        keep, chunks = statistics_needed(self.names), self._chunks
        return example, Expected(features, self.samples.num_classes, len(self.samples), keep, EXACT_SAMPLES, chunks)

    @property
    def _chunks(self) -> int:
        """Parts that the samples are dealt to: a bootstrap draws from them."""
        return BOOTSTRAP_CHUNKS if self.bootstrap else 1

    def _merged(
        self, run: Callable[[Tensor | None], list[PairStatistics]], share: Share
    ) -> tuple[Distances, list[Distances]]:
        """Returns what one pass comes to, of which every process makes its part; rank 0 computes the distances."""
        measured = functools.partial(_measured, names=self.names, resamples=self.bootstrap, seed=self.seed)
        mine = None if share.world == 1 else shard(share, len(self.samples), self._chunks)
        if mine is None:
            return share.lead(lambda: measured(run(None)))

        def combine(packed: list[bytes]) -> tuple[Distances, list[Distances]]:
            gathered = [_unpacked(part, next(self.model.parameters()).device) for part in packed]
            return measured([PairStatistics.combine(each) for each in zip(*gathered, strict=True)])

        return share.merge(lambda: _packed(run(mine)), combine)

    def _pass(
        self,
        group: Sequence[Block],
        example: Tensor,
        expected: Expected,
        positions: Tensor | None,
        *,
        maps: Maps,
        doing: str,
    ) -> list[PairStatistics]:
        """Runs samples through the network; returns statistics that add up to those of the group."""
        memory_gb = left_for_activations_gb(expected, len(group), self.memory_gb)
        engine = self._engine(self.model, group, example, memory_gb, maps=maps)
        reference = None if self.against is None else self._engine(self.against, (), example, memory_gb)
        parts = [
            PairStatistics(
                len(group), expected.features, expected.num_classes, device=example.device, keep=expected.keep
            )
            for _ in range(expected.chunks)
        ]
        _collect(engine, reference, _prepared(self.model, self.samples, positions, self._report(doing)), parts)
        return parts

    def _engine(
        self, model: nn.Module, blocks: Sequence[Block], example: Tensor, memory_gb: float, **more: Any
    ) -> AblationEngine:
        memory_format = (isinstance(self.model, Classifier) and self.model.memory_format) or torch.channels_last
        return AblationEngine(
            network_of(model),
            blocks,
            example,
            precision=self.precision,
            memory_gb=memory_gb,
            memory_format=memory_format,
            tick=self.tick,
            **more,
        )

    def _maps(self, blocks: Sequence[Block], share: Share) -> Maps:
        """Returns what would stand where each block stood; blocks for which no map helps are left out."""
        if self.repair == "nothing":
            return {}
        network, original = network_of(self.model), network_of(self.original)

        def batches() -> Iterator[Tensor]:
            return inputs_of(self.model, self.samples)

        like = next(network.parameters())
        names, dtype = [block.name for block in blocks], PRECISIONS[self.precision]
        fits = share.lead(lambda: fit_maps(network, original, names, batches, self.repair, precision=dtype))
        return {
            block.name: fits[block.name].module(like, branch=block.is_branch)
            for block in blocks
            if block.name in fits and fits[block.name].helps
        }

    def _report(self, doing: str) -> Callable[[int, int], None]:
        return (lambda *_: None) if self.progress is None else functools.partial(self.progress, doing)


def _joined(groups: Sequence[Distances]) -> Distances:
    """Returns the distances of the blocks of several groups, one after the other."""
    return {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}


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
    if criterion == KL or criterion in CRITERIA:
        return {}
    raise unknown_name("criterion", criterion, [CONSENSUS, KL, *METRICS, *CRITERIA])


def _measured(
    parts: list[PairStatistics], names: Sequence[str], resamples: int, seed: int
) -> tuple[Distances, list[Distances]]:
    """Returns the distances by each metric, and those of every resample."""
    if not resamples:
        return compute(names, parts[0]), []
    return compute(names, PairStatistics.combine(parts)), resampled_distances(
        parts, names, resamples=resamples, seed=seed
    )


def _collect(
    engine: AblationEngine,
    reference: AblationEngine | None,
    batches: Iterable[tuple[Tensor, Tensor]],
    parts: list[PairStatistics],
) -> None:
    """Runs the samples through the network once and deals them to the parts, in turn."""
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
