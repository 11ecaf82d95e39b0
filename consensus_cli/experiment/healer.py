"""Healing within a run: with its images, in its precision, by the first of its processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from consensus_cli.data.share import Share
from consensus_cli.experiment.batch_sizes import SCORING_BATCH_SIZE
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.models.classifier import Classifier
from consensus_cli.pruning.folding import fold
from consensus_cli.pruning.healing import Fit, heal, put_fits_in_place
from consensus_cli.pruning.refit import Refitted, refit
from consensus_cli.pruning.surgery import put_in_place
from consensus_cli.scoring.representations import PRECISIONS
from consensus_cli.screen import Screen


@dataclass(frozen=True)
class Healer:
    """What heals the networks of a run.

    Attributes:
        prepared: images, device, precision.
        share: this process among those of the job.
        screen: where it is said what was fitted.
    """

    prepared: Prepared
    share: Share
    screen: Screen

    def put_maps(
        self,
        network: Classifier,
        original: Classifier,
        removed: Sequence[str],
        going: Sequence[str],
        maps: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Fits maps in place of the blocks that have just gone, and anew behind them: what comes in has changed.

        Maps that are trained on between removals stay as they are.

        Args:
            network: the network without the blocks; changed in place.
            original: the original network.
            removed: all blocks that are gone.
            going: of them, those that have just gone.
            maps: forms of the maps in the network, by block.

        Returns:
            The forms of the maps that are in the network now.
        """
        config = self.prepared.config
        gone = [block.name for block in self.prepared.blocks if block.name in removed]
        first = min(map(gone.index, going))
        names = [name for name in gone[first:] if name in going or config.finetune.epochs_per_step == 0]

        def fit() -> dict[str, Fit]:
            kind = config.prune.replace
            return heal(network.network, original.network, names, self._inputs, kind, precision=self._precision)

        fits = self.share.lead(fit)
        put_fits_in_place(network.network, fits)
        helping = {name: asdict(fit.form) for name, fit in fits.items() if fit.helps}
        without = " ".join(name for name in names if name not in helping)
        text = f"{len(helping)} map{'' if len(helping) == 1 else 's'} fitted"
        self.screen.line(f"{text}; none helps in place of {without}" if without else text)
        return {name: form for name, form in maps.items() if name not in names} | helping

    def refit(self, pruned: Classifier, original: Classifier, maps: Sequence[str]) -> None:
        """Fits the layers behind the first removed block anew, and the maps of these blocks."""
        network = pruned.network

        def fit() -> tuple[list[Refitted], dict[str, Tensor]]:
            done = refit(network, original.network, self._inputs, maps=maps, precision=self._precision)
            return done, network.state_dict()

        done, weights = self.share.lead(fit)
        network.load_state_dict(weights)
        helped = sum(each.helps for each in done)
        self.screen.line(f"{helped} of {len(done)} layers behind the first removed block fitted anew")

    def fold(self, pruned: Classifier, maps: Sequence[str]) -> None:
        """Folds the maps of these blocks into neighbouring layers where that is exact."""
        network = pruned.network

        def fit() -> tuple[list[str], dict[str, Tensor]]:
            return fold(network, maps, self._inputs), network.state_dict()

        folded, weights = self.share.lead(fit)
        for name in folded:
            put_in_place(network, name, None)
        network.load_state_dict(weights)
        if folded:
            self.screen.line(f"{len(folded)} of {len(maps)} maps folded into neighbouring layers, at no cost")

    def _inputs(self) -> Iterator[Tensor]:
        """Yields the scoring's images as networks take them."""
        for images, _ in self.prepared.samples.batches(SCORING_BATCH_SIZE, self.prepared.device):
            yield self.prepared.original.inputs(images)
            self.prepared.threads.tick()

    @property
    def _precision(self) -> torch.dtype:
        return PRECISIONS[self.prepared.scoring_precision or "fp32"]
