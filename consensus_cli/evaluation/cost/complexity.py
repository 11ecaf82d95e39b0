"""What a network costs to run: multiply-accumulates, parameters, latency, memory."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

# Private by its path alone: PyTorch's documentation names it as the way to see every operator, and has no other.
from torch.utils._python_dispatch import TorchDispatchMode

from consensus_cli.evaluation.statistics import alternating
from consensus_cli.models.macs import count_macs
from consensus_cli.models.modes import evaluating, synchronize, tensors_in

#: least length of one timed block of forward passes, and least number of blocks per network
LATENCY_BLOCK_S = 0.02
LATENCY_MIN_BLOCKS = 6


class Complexity(NamedTuple):
    """The size of a network for one image: MACs (what papers call FLOPs), parameters, and operators left out."""

    macs: int
    params: int
    uncounted: tuple[str, ...]


class Latency(NamedTuple):
    """Time of one forward pass in milliseconds: median and interquartile range over blocks, and each block in turn."""

    median_ms: float
    iqr_ms: float
    blocks_ms: tuple[float, ...]


def complexity(model: nn.Module, image_shape: Sequence[int]) -> Complexity:
    """Counts multiply-accumulates and parameters for one image of `image_shape` (c, h, w)."""
    # A network without weights runs where its input is made.
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    count = count_macs(model, torch.zeros(1, *image_shape, device=device))
    return Complexity(count.total, sum(p.numel() for p in model.parameters()), count.uncounted)


def latency_ms(
    models: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    batch_size: int,
    device: torch.device | str,
    min_run_time_s: float,
    *,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """Times the forward pass of every network, in short alternating blocks.

    Blocks alternate (A B B A …), so that a machine that slows down for longer than a block slows every network down
    alike, and that a steady drift cancels. Two untimed passes warm the caches before each.

    Args:
        models: networks by name, on `device`.
        image_shape: (c, h, w).
        batch_size: images per forward pass.
        device: where the networks are.
        min_run_time_s: seconds to time each network for, over all its blocks together.
        tick: called after each block; where it changes PyTorch's number of threads, timing starts again.
    """
    # It imports what compiles PyTorch's extensions.
    from torch.utils import benchmark

    images = torch.rand(batch_size, *image_shape, device=device)

    def now_s() -> float:
        # The timer's own clock waits for the current GPU alone, which need not be this one.
        synchronize(images.device)
        return time.perf_counter()

    threads = torch.get_num_threads()
    times_ms: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        timers = {
            name: benchmark.Timer(
                "model(images)", timer=now_s, globals={"model": model, "images": images}, num_threads=threads
            )
            for name, model in models.items()
        }
        passes_s = {name: timer.timeit(1).median for name, timer in timers.items()}
        passes = {name: math.ceil(LATENCY_BLOCK_S / pass_s) for name, pass_s in passes_s.items()}
        shortest_block_s = min(passes[name] * pass_s for name, pass_s in passes_s.items())
        for block in range(max(LATENCY_MIN_BLOCKS, math.ceil(min_run_time_s / shortest_block_s))):
            for name in alternating(list(models), block):
                times_ms[name] += [1000 * time_s for time_s in timers[name].timeit(passes[name]).times]
                tick()
                if torch.get_num_threads() != threads:
                    return latency_ms(models, image_shape, batch_size, device, min_run_time_s, tick=tick)
    return {name: _latency(times) for name, times in times_ms.items()}


def peak_memory_mib(model: nn.Module, image_shape: Sequence[int], batch_size: int, device: torch.device | str) -> float:
    """Returns the most memory one forward pass holds, in MiB: parameters, buffers, the images and live features.

    On a GPU it is what the allocator had handed out at most, less what was held by others before. On a CPU it is
    the sum of live tensors, which leaves out scratch space inside operators.
    """
    images = torch.rand(batch_size, *image_shape, device=device)
    held_bytes = images.nbytes + sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    with evaluating(model):
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before_bytes = torch.cuda.memory_allocated(device)
            model(images)
            return (held_bytes + torch.cuda.max_memory_allocated(device) - before_bytes) / 2**20
        with _LiveTensors() as live:
            model(images)
    return (held_bytes + live.peak_bytes) / 2**20


class _LiveTensors(TorchDispatchMode):
    """Follows the storages that operators allocate until they are freed, and remembers the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._live_bytes = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tensors_in([args, kwargs or {}])}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.untyped_storage().data_ptr() not in given:
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size_bytes = storage.nbytes()
        self._live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._free, size_bytes)

    def _free(self, size_bytes: int) -> None:
        self._live_bytes -= size_bytes


def _latency(times_ms: list[float]) -> Latency:
    low, median, high = np.percentile(times_ms, [25, 50, 75])
    return Latency(float(median), float(high - low), tuple(times_ms))
