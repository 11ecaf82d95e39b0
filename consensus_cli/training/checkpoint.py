"""What a training needs to go on at the end of an epoch after it was stopped, and end as if it had not been."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from consensus_cli.data.share import Share
from consensus_cli.models.weights import serialize

#: plain values and tensors
Content = dict[str, Any]


class Keeper(Protocol):
    """Where trainings are kept while they go on. Of several processes only rank 0's is called."""

    def read(self, key: str) -> Content | None:
        """Returns what was kept last of the training with this key; None where nothing was."""

    def is_due(self) -> bool:
        """Returns whether the training should be kept now, at the end of an epoch."""

    def write(self, key: str, content: Content) -> None:
        """Keeps a training in place of what was kept of it."""


class _Losses(Protocol):
    def content(self) -> Content: ...
    def restore(self, content: Content, device: torch.device) -> None: ...


class Course(Protocol):
    """All that a training changes; its losses apart, all processes have it alike."""

    @property
    def model(self) -> nn.Module:
        """The network in training."""

    @property
    def losses(self) -> _Losses:
        """How many updates are done, and with what losses."""

    def content(self) -> Content:
        """Returns where the training stands."""

    def restore(self, content: Content) -> None:
        """Goes back to where `content` was taken."""


@dataclass
class Checkpoint:
    """A training and where it is kept.

    Attributes:
        keeper: keeps it; None: nothing does.
        settings: what tells the training from others, beside the weights it begins with.
        share: this process among those that train.
        device: where the network is.
        course: all that the training changes.
        shuffling: what the order of the images and their augmentation are drawn from.
        key: hash of the first weights and the settings, once that was looked up.
        own: what this process had of its own where the training goes on; empty where it begins.
    """

    keeper: Keeper | None
    settings: tuple[object, ...]
    share: Share
    device: torch.device
    course: Course
    shuffling: torch.Generator
    key: str = field(init=False, default="")
    own: Content = field(init=False, default_factory=dict)

    def go_on(self) -> float:
        """Goes to where an earlier training stood, and returns the seconds that it had taken; 0 without one."""
        keeper = self.keeper
        if keeper is None:
            return 0.0
        self.key = _key(self.course.model, self.settings)
        content = self.share.lead(lambda: keeper.read(self.key))
        if content is None:
            return 0.0
        self.course.restore(content)
        self.own = content["own"][self.share.rank]
        self.course.losses.restore(self.own["losses"], self.device)
        return float(content["duration_s"])

    def draw_as_before(self) -> None:
        """Lets this process draw what the earlier one would have drawn, where the training goes on."""
        if self.own:
            self.shuffling.set_state(self.own["shuffling"])
            torch.set_rng_state(self.own["cpu"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(self.own["cuda"], self.device)

    def write(self, duration_s: float) -> None:
        """Keeps the training if that is due, with the wall-clock seconds it has taken; all processes must call this."""
        if self.keeper is None or not self.share.lead(self.keeper.is_due):
            return
        own = self.share.merge(self._own, list)
        if self.share.leads:
            self.keeper.write(self.key, {"own": own, "duration_s": duration_s} | self.course.content())

    def _own(self) -> Content:
        states = {
            "losses": self.course.losses.content(),
            "shuffling": self.shuffling.get_state(),
            "cpu": torch.get_rng_state(),
        }
        return states | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})


def _key(model: nn.Module, settings: tuple[object, ...]) -> str:
    digest = hashlib.sha256(serialize(model, {}))
    digest.update(repr(settings).encode())
    return digest.hexdigest()
