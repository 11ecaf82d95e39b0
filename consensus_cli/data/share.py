"""One process's part of work that several processes do, and how the parts come together again.

Every process of a job runs the same line (SPMD). `torchrun` and `accelerate launch` start them; rank 0 alone writes
and speaks. With one process its share is everything, and nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from consensus_cli.errors import JobEndedError, RunFailedError, ToldError, UserError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Share:
    """This process among the `world` processes of a job.

    Of batches it gets every `world`-th, from number `rank` on; of anything else the contiguous part that `part` gives.

    Attributes:
        rank: number of the process, from 0.
        world: number of processes.
        group: what carries parts and results between them; None is PyTorch's default group.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def part(self, count: int, unit: int = 1) -> Tensor:
        """Returns this process's positions ((m,) int64) of `count`: contiguous, beginning at a multiple of `unit`."""
        units = -(-count // unit)
        start, end = (unit * (units * rank // self.world) for rank in (self.rank, self.rank + 1))
        return torch.arange(start, min(end, count))

    def merge(self, make: Callable[[], T], combine: Callable[[list[T]], R]) -> R:
        """Has every process make its part, and gives all of them what the parts come to.

        Every process of the job must call this at the same place of the line. What a user got wrong, or what stopped
        the run, in one process stops all of them with the same error.

        Args:
            make: returns this process's part.
            combine: makes one result of the parts, in the order of ranks; called in rank 0.

        Raises:
            UserError, RunFailedError: the first that any process raised.
        """
        if self.world == 1:
            return combine([make()])
        parts: list[Any] | None = [None] * self.world if self.leads else None
        own = _attempt(make)
        with others_may_end():
            distributed.gather_object(own, parts, group=self.group)
        result: list[Any] = [_attempt(lambda: combine(_values(parts))) if parts is not None else None]
        with others_may_end():
            distributed.broadcast_object_list(result, group=self.group)
        return _values(result)[0]

    def lead(self, make: Callable[[], T]) -> T:
        """Returns in every process what rank 0 makes; errors as in `merge`."""
        return self.merge(lambda: make() if self.leads else None, lambda parts: parts[0])  # type: ignore[return-value]

    def agree(self, make: Callable[[], T]) -> T:
        """Returns what this process makes, once all of them have made theirs; errors as in `merge`.

        Rank 0 is first: what it downloads or keeps in a cache is there for the others on its machine.
        """
        made: list[T] = []

        def note() -> None:
            made.append(make())

        for turn in (note, _nothing) if self.leads else (_nothing, note):
            self.merge(turn, _nothing)
        return made[0]

    def synchronize(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors in place, in every process, by those of rank 0."""
        if self.world == 1:
            return
        with torch.no_grad(), others_may_end():
            for tensor in tensors:
                sent = tensor.detach().contiguous()
                distributed.broadcast(sent, 0)
                tensor.copy_(sent)


ALL = Share()


@contextmanager
def others_may_end() -> Iterator[None]:
    """Reports in one line that another process of the job has ended while the body waited for it.

    Raises:
        JobEndedError: instead of what gloo or NCCL raise.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _ENDED):
            raise
        raise JobEndedError(
            "another process of this job has ended", "its own message says why; consensus resume continues the run"
        ) from error


#: what gloo and NCCL say when the other end is gone
_ENDED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")


def _nothing(*_: object) -> None:
    pass


def _attempt(make: Callable[[], T]) -> tuple[T | None, tuple[type[Exception], str, str] | None]:
    try:
        return make(), None
    except ToldError as error:
        # As words: an exception is not sure to survive the way to another process.
        kind = UserError if isinstance(error, UserError) else RunFailedError
        return None, (kind, error.message, error.hint)


def _values(parts: list[Any]) -> list[Any]:
    for _, failure in parts:
        if failure is not None:
            kind, message, hint = failure
            error = kind(message, hint)
            error.shared = True
            raise error
    return [value for value, _ in parts]
