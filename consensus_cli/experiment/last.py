"""A cache of one: what was made last is kept for whoever asks for the same again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Last(Generic[Value]):
    """Keeps the value that was made last, such as the dataset that all runs of a sweep read."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: Value | None = None

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """Returns the kept value if it was made for the same key, else what `make` returns."""
        if self._value is None or key != self._key:
            # Let go of first: two large values may not fit into memory together.
            self._value = None
            self._value, self._key = make(), key
        return self._value
