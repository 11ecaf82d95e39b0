"""Worker processes that decode images, however little shared memory there is and whatever ends one of them."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, multiprocessing
from torch.utils.data import DataLoader, Dataset

from consensus_cli.data.decoding import UnreadableImageError
from consensus_cli.data.source import Progress
from consensus_cli.errors import RunFailedError

logger = logging.getLogger(__name__)

SHARED_MEMORY = "/dev/shm"
_PER_TASK = 128
# Batches that a worker prepares ahead, and the one that is being used.
_BATCHES_PER_WORKER = 3
_USUAL_BATCH_SIZE = 128


@dataclass(frozen=True)
class Batch:
    """Decoded images of one batch.

    Attributes:
        images: (m, 3, h, w) uint8; empty where none could be read.
        positions: of the m images in their split.
        unreadable: position -> why the image could not be read.
    """

    images: Tensor
    positions: list[int]
    unreadable: dict[int, str]


def worker_count(workers: int | None) -> int:
    """Returns `workers`, or as many as there are processors up to 8."""
    return min(8, os.cpu_count() or 1) if workers is None else workers


def for_each(
    work: Callable[[int], None], count: int, *, workers: int | None, progress: Progress | None, doing: str
) -> None:
    """Calls `work` with every number below `count`, in threads, and says how far it is.

    Args:
        work: called by several threads at once.
        count: how many numbers.
        workers: as in `worker_count`; at least one.
        progress: told `doing`, how many are done, and `count`.
        doing: what `work` does, in words.
    """

    def work_on(start: int) -> int:
        numbers = range(start, min(start + _PER_TASK, count))
        for number in numbers:
            work(number)
        return len(numbers)

    done = 0
    with ThreadPoolExecutor(max(1, worker_count(workers))) as pool:
        for more in pool.map(work_on, range(0, count, _PER_TASK)):
            done += more
            if progress is not None:
                progress(doing, done, count)


def shortage(image_shape: tuple[int, int, int], workers: int | None) -> str | None:
    """Returns what to say where shared memory is too small for batches of the usual size; None where it is not."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    free, count = status.f_bavail * status.f_frsize, worker_count(workers)
    needed = count * _BATCHES_PER_WORKER * _USUAL_BATCH_SIZE * int(np.prod(image_shape))
    if free >= needed:
        return None
    return (
        f"shared memory ({SHARED_MEMORY}) has {free / 2**20:.0f} MiB free, {count} workers that decode images take "
        f"{needed / 2**20:.0f}: what does not fit goes through slower pipes (docker run --shm-size=2g)"
    )


def batches(
    decoded: Callable[[int], Tensor],
    transform: Callable[[Tensor], Tensor],
    plan: Sequence[tuple[int, int]],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    drop_last: bool,
) -> Iterator[Batch]:
    """Decodes and transforms images in worker processes and yields them in the order of the plan.

    Args:
        decoded: position in the split -> image (3, h, w) uint8; raises `UnreadableImageError`.
        transform: applied to each image.
        plan: (position in the split, random seed of the transformation) of every image.
        batch_size: images per batch.
        workers: processes; 0 for the calling one.
        pin_memory: keep batches where a GPU can fetch them.
        drop_last: leave out a last batch that is smaller.

    Raises:
        RunFailedError: a worker was killed.
    """

    def loader(workers: int) -> Iterator[Any]:
        return iter(
            DataLoader(
                _Decoding(decoded, transform),
                batch_size=batch_size,
                sampler=plan,
                num_workers=workers,
                collate_fn=_collate if workers == 0 else _collate_shared,
                pin_memory=pin_memory,
                drop_last=drop_last,
                generator=torch.Generator(),
            )
        )

    with _Watch().on(loader, min(workers, -(-len(plan) // batch_size))) as watch:
        while (drawn := watch.next()) is not None:
            images, positions, unreadable = drawn
            if isinstance(images, np.ndarray):
                _warn_once("shared memory is full: decoded images go through pipes, which is slower")
                images = torch.from_numpy(images)
            yield Batch(images, positions, unreadable)


class _Watch:
    """Takes batches from a loader, and notices the end of one of its workers then, and only then.

    PyTorch's own handler of SIGCHLD raises wherever the run is when a worker ends, even while an interrupted run is
    being put away. Without any, the run could wait for the rest of what a worker was writing.
    """

    def __init__(self) -> None:
        self._running: Any = iter(())
        self._waiting = False

    @contextmanager
    def on(self, loader: Callable[[int], Iterator[Any]], workers: int) -> Iterator[_Watch]:
        """Starts `loader(workers)`, or `loader(0)` where no worker can be started, and watches its workers."""
        before = signal.getsignal(signal.SIGCHLD)
        with _signals_later():
            try:
                if workers:
                    # Where there is no room for its first queue, PyTorch's loader leaves a half-made object that
                    # complains.
                    multiprocessing.Queue().close()
                self._running = loader(workers)
            except OSError as error:
                _warn_once(f"images are decoded in the process of the run: no worker can be started ({error})")
                self._running = loader(0)
        # Only the main thread can set handlers, and one that was not set in Python cannot be put back.
        handles = before is not None and threading.current_thread() is threading.main_thread()
        if handles:
            signal.signal(signal.SIGCHLD, functools.partial(self._child_ended, before))
        try:
            yield self
        finally:
            if handles:
                signal.signal(signal.SIGCHLD, before)

    def next(self) -> Any:
        """Returns the next batch; None after the last.

        Raises:
            RunFailedError: a worker was killed.
        """
        try:
            self._waiting = True
            self._raise_if_ended()
            return next(self._running, None)
        # A worker that is gone does not answer any more, in one of these ways.
        except (RuntimeError, OSError, EOFError) as error:
            self._waiting = False
            self._explain(error)
            raise
        finally:
            self._waiting = False

    def _child_ended(self, before: Any, number: int, frame: FrameType | None) -> None:
        if callable(before):
            before(number, frame)
        if self._waiting:
            self._waiting = False
            self._raise_if_ended()

    def _raise_if_ended(self) -> None:
        # Those that are not needed any more end with 0.
        if self._ends() - {0}:
            raise RuntimeError("a worker ended")

    def _ends(self, wait_s: float = 0) -> set[int]:
        """Returns the exit codes of the workers that ended."""
        workers = getattr(self._running, "_workers", ())
        for worker in workers:
            worker.join(wait_s)
        return {worker.exitcode for worker in workers} - {None}

    def _explain(self, error: Exception) -> None:
        """Raises what the end of a worker means; nothing, where none has ended."""
        if error.__context__ is not None and not isinstance(error.__context__, Exception):
            # The run was being interrupted already when its workers, told as well, ended.
            raise error.__context__
        ends = self._ends(wait_s=0.2)
        if -signal.SIGTERM in ends:
            # Whoever ends a worker means the run: it shall be as if the run had been told itself.
            signal.raise_signal(signal.SIGTERM)
        if ends:
            how = ", ".join(sorted(signal.Signals(-end).name if end < 0 else f"exit code {end}" for end in ends))
            raise RunFailedError(
                f"a worker process that decodes images was ended ({how})",
                "memory may be short: set dataset.workers to a smaller number, or to 0 to decode in the run itself",
            ) from error


class _Decoding(Dataset[tuple[int, Tensor | str]]):
    """Decodes and transforms one image; of one that cannot be read, the reason: an exception would lose its name."""

    def __init__(self, decoded: Callable[[int], Tensor], transform: Callable[[Tensor], Tensor]) -> None:
        self.decoded = decoded
        self.transform = transform

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[int, Tensor | str]:
        position, seed = drawn
        try:
            image = self.decoded(position)
        except UnreadableImageError as error:
            return position, str(error)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return position, self.transform(image)


def _collate(drawn: list[tuple[int, Tensor | str]]) -> tuple[Tensor, list[int], dict[int, str]]:
    intact = [(position, image) for position, image in drawn if isinstance(image, Tensor)]
    images = torch.stack([image for _, image in intact]) if intact else torch.empty(0, dtype=torch.uint8)
    unreadable = {position: image for position, image in drawn if isinstance(image, str)}
    return images, [position for position, _ in intact], unreadable


def _collate_shared(drawn: list[tuple[int, Tensor | str]]) -> tuple[Tensor | np.ndarray, list[int], dict[int, str]]:
    """Returns images in shared memory, or as an array where that is full: an array travels through a pipe.

    Left to the queue, which shares the memory when nobody listens, a full one would lose the batch, and the run would
    wait for it without end.
    """
    images, positions, unreadable = _collate(drawn)
    try:
        return images.share_memory_(), positions, unreadable
    except RuntimeError:
        return images.numpy(), positions, unreadable


@contextmanager
def _signals_later() -> Iterator[None]:
    """Keeps what asks the run to stop until the body is through.

    Where a process forks, Python calls functions of libraries whose exceptions get lost, that of a handler as well.
    Workers that are forked meanwhile go on keeping it: Ctrl-C reaches every process of a terminal, and the run decides.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not None:
            signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)
