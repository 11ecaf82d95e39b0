"""Threads that look at image files, and worker processes that decode them while the network computes."""

from __future__ import annotations

import functools
import math
import mmap
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

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
    run = os.getpid()
    ahead = workers * _BATCHES_PER_WORKER
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []

    def ask_for(number: int) -> None:
        # That a worker has ended is noticed where it should answer.
        with suppress(OSError):
            pipes[number % workers].send(number)

    try:
        with _signals_later():
            try:
                slots = _shared_memory((ahead, *batch_shape))
                for _ in range(workers):
                    process, pipe = _start(decode, parts, slots)
                    processes.append(process)
                    pipes.append(pipe)
            except OSError as error:
                raise RunFailedError(f"no worker process can be started to decode images: {error}", _HINT) from error
        for number in range(min(ahead, len(parts))):
            ask_for(number)
        for number in range(len(parts)):
            positions, unreadable = _answer(pipes[number % workers], processes)
            yield slots[number % ahead, : len(positions)], positions, unreadable
            if number + ahead < len(parts):
                ask_for(number + ahead)
    finally:
        # A process that was forked meanwhile has a copy of this iterator, but not of the workers.
        if os.getpid() == run:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _shared_memory(shape: tuple[int, ...]) -> Tensor:
    """Returns uint8 that worker processes can write into."""
    if multiprocessing.get_context().get_start_method() == "fork":
        # Forked processes share this without a limit such as the 64 MiB of a container's /dev/shm.
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
    return torch.empty(shape, dtype=torch.uint8).share_memory_()


def _start(decode: Callable[[Plan], Batch], parts: Sequence[Plan], slots: Tensor) -> tuple[BaseProcess, Connection]:
    """Returns a worker process and the pipe to it.

    Each has its own, and the run reads it in the thread that needs the batch. A queue for all would have a lock, which
    a worker that is killed may hold for ever; a thread that served it might wait for that when the run wants to end.
    """
    context = multiprocessing.get_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(decode, parts, slots, theirs), daemon=True)
    process.start()
    # Only the worker holds this end now: when it is gone, nobody waits for the rest of what it was writing.
    theirs.close()
    return process, ours


def _answer(pipe: Connection, processes: list[BaseProcess]) -> tuple[list[int], dict[int, str]]:
    """Returns what a worker sends: the positions of its images and what could not be read, as in `Batch`.

    Raises:
        RunFailedError: a worker, this or another one, has ended.
    """
    try:
        answer = pipe.recv() if wait([pipe, *(process.sentinel for process in processes)]) == [pipe] else None
    except (EOFError, OSError):
        # The worker was killed while it was answering.
        answer = None
    if answer is None:
        _raise_end(processes)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _raise_end(processes: list[BaseProcess]) -> NoReturn:
    """Raises what the end of at least one worker means."""
    wait([process.sentinel for process in processes])
    ended = [process for process in processes if wait([process.sentinel], timeout=0)]
    for process in ended:
        process.join()
    codes = {process.exitcode or 0 for process in ended}
    if -signal.SIGTERM in codes:
        # Whoever ends a worker means the run: it shall be as if the run had got the signal itself.
        signal.raise_signal(signal.SIGTERM)
    how = ", ".join(sorted(signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in codes))
    raise RunFailedError(f"a worker process that decodes images was ended ({how})", _HINT)


def _work(decode: Callable[[Plan], Batch], parts: Sequence[Plan], slots: Tensor, pipe: Connection) -> None:
    """Decodes the batches whose numbers come through the pipe, until the run ends this process."""
    # Ctrl-C reaches every process of a terminal, and the run decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKS_TO_STOP)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    while True:
        number = pipe.recv()
        try:
            images, positions, unreadable = decode(parts[number])
            if positions:
                slots[number % len(slots), : len(positions)] = images
        except Exception as error:
            error.add_note(traceback.format_exc())
            pipe.send(error)
        else:
            pipe.send((positions, unreadable))


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)


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
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
