"""What happens in a run, as values: each screen decides how to show them, and JSON lines carry them as they are.

`docs/output.md` lists every event with its fields; a test compares.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

#: class names that the header shows: enough to see their order
_LISTED_CLASSES = 12


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    #: what JSON lines call it
    name: ClassVar[str]
    #: of the log
    level: ClassVar[int] = logging.INFO

    def lines(self) -> list[str]:
        """Returns the lines that a reader sees; none where nobody needs to read it."""
        return []


@dataclass(frozen=True)
class Started(Event):
    """A run begins: data, network and blocks are there.

    Attributes:
        metrics: those that vote.
        image_shape: (channels, height, width).
        class_names: in the order of the labels.
        macs: of the original network, per image.
        blocks: names of all residual blocks, in order of execution.
        candidates: names of those that can go.
        removed: names of those that went before the run was resumed.
        goal: what is to be removed; empty where nothing is.
        threads: of PyTorch at the start.
        precision: of training.
        scoring_precision: of the forward pass of scoring; None where nothing is scored.
        planned: phase -> how often it will run; empty where that is open.
        least_s: phase -> seconds that it takes at least, as far as they are known.
    """

    name = "started"
    version: str
    run_dir: str
    model: str
    dataset: str
    seed: int
    criterion: str
    metrics: tuple[str, ...]
    train_images: int
    test_images: int
    image_shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...]
    macs: int
    blocks: tuple[str, ...]
    candidates: tuple[str, ...]
    removed: tuple[str, ...]
    goal: str
    device: str
    threads: int
    precision: str
    scoring_precision: str | None
    planned: Mapping[str, int] = field(default_factory=dict)
    least_s: Mapping[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Returns the header of a run."""
        shape = "×".join(map(str, self.image_shape))
        votes = f": {', '.join(self.metrics)}" if self.metrics else ""
        names = " ".join(self.class_names[:_LISTED_CLASSES]) + (" …" if self.classes > _LISTED_CLASSES else "")
        classes = f"{self.classes} classes: {names}"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        scoring = f", scoring in {self.scoring_precision}" if self.scoring_precision else ""
        return [
            f"consensus {self.version}: {self.model} on {self.dataset}, seed {self.seed}",
            f"  images     {self.train_images} train, {self.test_images} test, {shape}, {classes}",
            f"  network    {self.macs / 1e6:.2f} M MACs, {len(self.blocks)} residual blocks",
            f"  criterion  {self.criterion}{votes}",
            *([f"  removes    {self.goal}"] if self.goal else []),
            f"  device     {self.device}, {threads}, training in {self.precision}{scoring}",
            f"  directory  {self.run_dir}",
        ]


@dataclass(frozen=True)
class StageStarted(Event):
    """A phase (`baseline`, `score`, `heal`, `measure`, `finetune`, `evaluate`) begins."""

    name = "stage_started"
    stage: str


@dataclass(frozen=True)
class StageEnded(Event):
    """A phase is over, after `duration_s` seconds."""

    name = "stage_ended"
    stage: str
    duration_s: float


@dataclass(frozen=True)
class Progressed(Event):
    """`done` of `total` parts of some work are done."""

    name = "progress"
    doing: str
    done: int
    total: int


@dataclass(frozen=True)
class TrainingLoss(Event):
    """The mean training loss since the one before, after `step` of `steps` updates."""

    name = "loss"
    loss: float
    step: int
    steps: int


@dataclass(frozen=True)
class AccuracyChecked(Event):
    """How many of a few images the network gets right at this point; the results are in the row.

    `split` is `validation`, or `training` where no image is held out.
    """

    name = "accuracy"
    accuracy_pct: float
    images: int
    split: str

    def lines(self) -> list[str]:
        """Returns the accuracy with what it is over."""
        return [f"accuracy {self.accuracy_pct:.2f} % of {self.images} {self.split} images"]


@dataclass(frozen=True)
class Scored(Event):
    """A criterion has ranked the blocks that may go now.

    Attributes:
        step: 1 for the first scoring.
        order: block names, the least important first.
        importance: block -> what the criterion decided by; the sum of ranks for the consensus.
        distances: metric -> block -> distance; larger = the network changes more without the block.
        ranks: metric -> block -> rank; 1 = least important.
    """

    name = "scores"
    step: int
    order: tuple[str, ...]
    importance: Mapping[str, float]
    distances: Mapping[str, Mapping[str, float]]
    ranks: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class BlockRemoved(Event):
    """A block is gone.

    Attributes:
        block: its name in the original network.
        number: 1 for the first block to go.
        of: how many will go; None where a share of the MACs decides.
        importance: by the criterion, in `unit`: `rank sum` or `importance`.
        next_importance: the lowest importance among the blocks still there; None where there is none.
    """

    name = "removed"
    block: str
    number: int
    of: int | None
    importance: float
    unit: str
    next_importance: float | None

    def lines(self) -> list[str]:
        """Returns the block and how clear the decision was."""
        of = "" if self.of is None else f" of {self.of}"
        following = "" if self.next_importance is None else f" (next {self.next_importance:g})"
        return [f"removed {self.number:>2}{of}: {self.block:<12} {self.unit} {self.importance:g}{following}"]


@dataclass(frozen=True)
class Noted(Event):
    """A line for the reader that no other event carries."""

    name = "note"
    text: str

    def lines(self) -> list[str]:
        """Returns the line."""
        return [self.text]


@dataclass(frozen=True)
class Warned(Event):
    """Something that the user should not overlook."""

    name = "warning"
    level = logging.WARNING
    text: str

    def lines(self) -> list[str]:
        """Returns the line."""
        return [self.text]


@dataclass(frozen=True)
class RowWritten(Event):
    """The run has a result: its row of `results.csv`, column -> value."""

    name = "row"
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Ended(Event):
    """Nothing more comes from this run, `duration_s` after the screen was opened.

    `status` is `done`, `failed` or `interrupted`; `error` the type and message of what ended it, None when it is done.
    """

    name = "ended"
    status: str
    error: str | None
    duration_s: float
