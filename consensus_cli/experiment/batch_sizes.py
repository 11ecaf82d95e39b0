"""Which batches fit into memory, found out as a run goes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from consensus_cli.errors import is_out_of_memory
from consensus_cli.screen import Screen

Result = TypeVar("Result")

#: images that are scored, or fitted on, at once where there is memory enough
SCORING_BATCH_SIZE = 256

#: batch norm needs two images to train on
_SMALLEST = {"training": 2, "scoring": 1}


@dataclass
class Fitting:
    """Batch sizes that fit into memory.

    Attributes:
        screen: where a smaller batch is reported.
        alone: whether one process does the work; of several, some may have gone on where another ran out of memory.
        sizes: `training` or `scoring` -> largest batch that fits, where that was found out.
    """

    screen: Screen
    alone: bool
    sizes: dict[str, int] = field(default_factory=dict)

    def size(self, purpose: str, batch_size: int) -> int:
        """Returns the batch size, or what is left of it where memory ran out before; several processes keep it."""
        return batch_size if not self.alone else min(batch_size, self.sizes.get(purpose, batch_size))

    def attempt(self, purpose: str, batch_size: int, work: Callable[[int], Result]) -> Result:
        """Does work, which must be able to start over, in batches half as large each time that memory runs out."""
        size = self.size(purpose, batch_size)
        while True:
            try:
                return work(size)
            except (RuntimeError, MemoryError) as error:
                if not self.alone or not is_out_of_memory(error) or size // 2 < _SMALLEST[purpose]:
                    raise
            # Behind the handler: the error holds the frames, and they hold the tensors that did not fit.
            size //= 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.screen.warning(f"out of memory: {purpose} goes on with batches of {size} images")
            self.sizes[purpose] = size
