"""Trainings that a test stops, kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Memory:
    """Keeps every epoch of trainings, on the CPU as in a file."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def read(self, key: str) -> dict[str, Any] | None:
        return on_cpu(self.kept.get(key))

    def is_due(self) -> bool:
        return True

    def write(self, key: str, content: dict[str, Any]) -> None:
        self.kept[key] = on_cpu(content)


class Stopped(Exception):  # noqa: N818 (no error)
    """What a test stops a training with."""


def stopping_at(update: int) -> Callable[[], None]:
    """Returns a `tick` that stops a training at an update."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done == update:
            raise Stopped

    return tick


def on_cpu(content: Any) -> Any:
    """Returns a copy, with tensors on the CPU."""
    if isinstance(content, dict):
        return {key: on_cpu(value) for key, value in content.items()}
    if isinstance(content, list):
        return [on_cpu(value) for value in content]
    return content.detach().cpu().clone() if isinstance(content, Tensor) else content
