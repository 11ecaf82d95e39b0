"""The two networks that every measure compares, and what they are compared on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor, nn

from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.share import ALL, Share
from consensus_cli.data.source import Progress
from consensus_cli.data.split import Split
from consensus_cli.models.modes import evaluating

if TYPE_CHECKING:
    from consensus_cli.evaluation.robustness.attacks import Attack

#: Column of `results.csv` -> value. Units end the name; `base` is the original network. A measure's columns begin with
#: its own word: `accuracy_`, `macs_`, `latency_`, `energy_`, an attack's or archive's name, `shortcut_`, …
Columns = dict[str, float | int | str]

T = TypeVar("T")


class Examples(Protocol):
    """Adversarial examples against one network: the same attack on the same images would make the same again."""

    def read(self, attack: Attack, images: Tensor, labels: Tensor) -> Tensor | None:
        """Returns what an attack made of these images; None where that is not known."""

    def write(self, attack: Attack, images: Tensor, labels: Tensor, examples: Tensor) -> None:
        """Keeps what it made of them."""


@dataclass(frozen=True)
class Pair:
    """The original and the pruned network, measured in eval mode on the same images and the same device.

    Attributes:
        original: maps images in [0, 1] to logits; on `device`.
        pruned: the same network without some of its blocks; on `device`.
        test: the images that accuracy is measured on.
        seed: of every draw of images, attack, corruption and interval.
        device: where both networks are.
        share: this process among those that measure together; all of them must measure the same things in turn.
        progress: called with what is being done, how much of this process's part is done, and how much there is.
        examples: against the original, with which other networks may be compared, too; None: each time made anew.
    """

    original: nn.Module
    pruned: nn.Module
    test: Split
    seed: int = 0
    device: torch.device | str = "cpu"
    share: Share = ALL
    progress: Progress | None = None
    examples: Examples | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Both networks by the word for them in columns."""
        return {"base": self.original, "pruned": self.pruned}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Puts both networks in eval mode, without gradients, for the time of the body."""
        with evaluating(self.original), evaluating(self.pruned):
            yield

    def sample(self, images: int | None) -> Split:
        """Returns that many test images, stratified; all of them for None."""
        return self.test if images is None else stratified(self.test, images, self.seed)

    def report(self, doing: str, done: int, total: int) -> None:
        """Reports progress where somebody wants to know."""
        if self.progress is not None:
            self.progress(doing, done, total)


def stratified(split: Split, images: int, seed: int) -> Split:
    """Returns that many of the split's images, drawn by seed and spread over the classes; all if there are no more."""
    return split.subset(stratified_subset(split.labels, images, seed))


def part(split: Split, batch_size: int, share: Share) -> Split:
    """Returns this process's part of the images: some of the batches that a single process would make of them."""
    return split if share.world == 1 else split.subset(share.part(len(split), batch_size))


def gather(share: Share, make: Callable[[], list[T]]) -> list[T]:
    """Has every process make its part of a list, and returns the whole list in all of them."""
    return share.merge(make, lambda parts: list(itertools.chain(*parts)))
