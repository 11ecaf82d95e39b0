"""Threads that look at image files, and worker processes that decode them while the network computes."""

from __future__ import annotations

import functools
import math
import mmap
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor

from consensus_cli.data.decoding import UnreadableImageError
from consensus_cli.data.source import Progress
from consensus_cli.errors import RunFailedError

#: (position in the split, random seed of the transformation) of each image
Plan = Sequence[tuple[int, int]]
#: images (m, 3, h, w) uint8, empty where none could be read; their positions in the split; position of each other image
#: -> why it could not be read
Batch = tuple[Tensor, list[int], dict[int, str]]

_ASKS_TO_STOP = (signal.SIGINT, signal.SIGTERM)
_PER_TASK = 128
_HINT = "memory may be short: set dataset.workers to a smaller number, or to 0 to decode in the run itself"
# Batches that are decoded ahead, per worker, and the one that is being used.
_BATCHES_PER_WORKER = 3


def worker_count(workers: int | None) -> int:
    """Returns `workers`, or as many as there are processors up to 8."""
    return min(8, os.cpu_count() or 1) if workers is None else workers


def for_each(
    work: Callable[[int], None], count: int, *, workers: int | None, progress: Progress | None, doing: str
) -> None:
    """Calls `work` with every number below `count`, in several threads at once, and reports `doing` as its progress."""

    def work_on(start: int) -> int:
        end = min(start + _PER_TASK, count)
        for number in range(start, end):
            work(number)
        return end

    with ThreadPoolExecutor(max(1, worker_count(workers))) as pool:
        for done in pool.map(work_on, range(0, count, _PER_TASK)):
            if progress is not None:
                progress(doing, done, count)


def batches(
    decoded: Callable[[int], Tensor],
    transform: Callable[[Tensor], Tensor],
    plan: Plan,
    *,
    image_shape: tuple[int, int, int],
    batch_size: int,
    workers: int,
    drop_last: bool,
) -> Iterator[Batch]:
    """Decodes and transforms images in worker processes and yields them in the order of the plan.

    The images of a batch are overwritten after the next one has been asked for.

    Args:
        decoded: position in the split -> image (3, h, w) uint8; raises `UnreadableImageError`.
        transform: applied to each image.
        plan: the images and their seeds.
        image_shape: (c, h, w) of a transformed image.
        batch_size: images per batch.
        workers: processes; 0 decodes in the calling one.
        drop_last: leave out a last batch that is smaller.

    Raises:
        RunFailedError: a worker was killed, or none can be started.
    """
    count = len(plan) // batch_size * batch_size if drop_last else len(plan)
    parts = [plan[start : start + batch_size] for start in range(0, count, batch_size)]
    decode = functools.partial(_decode, decoded, transform)
    workers = min(workers, len(parts))
    return map(decode, parts) if workers == 0 else _by_workers(decode, parts, workers, (batch_size, *image_shape))


def _decode(decoded: Callable[[int], Tensor], transform: Callable[[Tensor], Tensor], part: Plan) -> Batch:
    images, positions, unreadable = [], [], {}
    for position, seed in part:
        try:
            image = decoded(position)
        except UnreadableImageError as error:
            unreadable[position] = str(error)
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            images.append(transform(image))
        positions.append(position)
    return torch.stack(images) if images else torch.empty(0, dtype=torch.uint8), positions, unreadable


def _by_workers(
    decode: Callable[[Plan], Batch], parts: Sequence[Plan], workers: int, batch_shape: tuple[int, ...]
) -> Iterator[Batch]:
    pool, processes, slots = _start(decode, parts, workers, batch_shape)
    waiting: deque[Future[tuple[int, list[int], dict[int, str]]]] = deque()

    def first() -> Batch:
        _check(processes)
        slot, positions, unreadable = waiting.popleft().result()
        return slots[slot, : len(positions)], positions, unreadable

    try:
        for number in range(len(parts)):
            if len(waiting) == len(slots):
                yield first()
            waiting.append(pool.submit(_decode_into, number % len(slots), number))
        while waiting:
            yield first()
        _check(processes)
    except BrokenProcessPool:
        pool.shutdown()
        _check(processes)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # One that was killed while it waited for work keeps the others from hearing that there is none.
        for process in processes:
            process.kill()


def _check(processes: list[BaseProcess]) -> None:
    """Raises what the end of a worker means; nothing, where none has ended."""
    ends = {process.exitcode for process in processes} - {None, 0}
    if ends == {-signal.SIGTERM}:
        # Whoever ends a worker means the run: it shall be as if the run had got the signal itself.
        signal.raise_signal(signal.SIGTERM)
    # A pool that one worker has left ends the others by SIGTERM.
    names = {signal.Signals(-end).name if end < 0 else f"exit code {end}" for end in ends if end is not None}
    if names:
        how = ", ".join(sorted(names - {"SIGTERM"} or names))
        raise RunFailedError(f"a worker process that decodes images was ended ({how})", _HINT)


def _start(
    decode: Callable[[Plan], Batch], parts: Sequence[Plan], workers: int, batch_shape: tuple[int, ...]
) -> tuple[ProcessPoolExecutor, list[BaseProcess], Tensor]:
    """Returns worker processes, and the room for batches, (s, b, c, h, w) uint8, into which they write."""
    others = multiprocessing.active_children()
    shape = (workers * _BATCHES_PER_WORKER, *batch_shape)
    try:
        if multiprocessing.get_start_method() == "fork":
            # Forked processes share this without a limit such as the 64 MiB of a container's /dev/shm.
            slots = torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
        else:
            slots = torch.empty(shape, dtype=torch.uint8).share_memory_()
        with _signals_later():
            pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(decode, parts, slots))
            # Processes are started when there is something to do.
            pool.submit(os.getpid)
    except OSError as error:
        for process in set(multiprocessing.active_children()).difference(others):
            process.kill()
        raise RunFailedError(f"no worker process can be started to decode images: {error}", _HINT) from error
    return pool, [process for process in multiprocessing.active_children() if process not in others], slots


class _Worker:
    """What a worker process works with: sent once, for it would travel anew with each batch."""

    decode: Callable[[Plan], Batch]
    parts: Sequence[Plan]
    slots: Tensor


def _begin(decode: Callable[[Plan], Batch], parts: Sequence[Plan], slots: Tensor) -> None:
    """Prepares a worker process."""
    _Worker.decode, _Worker.parts, _Worker.slots = decode, parts, slots
    # Ctrl-C reaches every process of a terminal, and the run decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKS_TO_STOP)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)


def _decode_into(slot: int, number: int) -> tuple[int, list[int], dict[int, str]]:
    images, positions, unreadable = _Worker.decode(_Worker.parts[number])
    if positions:
        _Worker.slots[slot, : len(positions)] = images
    return slot, positions, unreadable


@contextmanager
def _signals_later() -> Iterator[None]:
    """Keeps what asks the run to stop until the body is through, and from workers until they are prepared.

    Where a process forks, Python calls functions of libraries whose exceptions get lost, that of a handler as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKS_TO_STOP)
    # Other threads can still receive a signal, whose handler then runs in this one.
    before = {number: signal.getsignal(number) for number in _ASKS_TO_STOP}
    # A handler that was not set in Python cannot be put back.
    before = {number: handler for number, handler in before.items() if handler is not None}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if came:
            signal.raise_signal(came[0])
