"""What a network costs to run: multiply-accumulates, parameters, latency, memory."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import benchmark
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from consensus_cli.evaluation.mode import alternating, evaluation_mode

#: What fvcore counts besides matrix products and convolutions: one pass over the features, no multiply-accumulate.
_NOT_MACS = (
    "aten::batch_norm",
    "aten::layer_norm",
    "aten::group_norm",
    "aten::instance_norm",
    "aten::adaptive_avg_pool2d",
    "aten::upsample_nearest2d",
    "aten::upsample_bilinear2d",
    "aten::grid_sampler",
)
#: least length of one timed block of forward passes, and least number of blocks per network
LATENCY_BLOCK_S = 0.02
LATENCY_MIN_BLOCKS = 5


@dataclass(frozen=True)
class Complexity:
    """The size of a network for one image.

    Attributes:
        macs: multiply-accumulates of convolutions, linear layers and matrix products (what papers call FLOPs).
        params: numbers in its parameters, each shared one once.
        unsupported: operators that are not counted, as `name × uses`: elementwise ones, and any that
            nobody has a formula for.
    """

    macs: int
    params: int
    unsupported: tuple[str, ...]


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Attributes:
        median_ms: median over the blocks, in milliseconds.
        iqr_ms: interquartile range over the blocks, in milliseconds.
        blocks_ms: time of a forward pass in each timed block, in the order in which they were timed.
        batch_size: images per forward pass.
        threads: threads the CPU operators may use.
        device: where it ran.
    """

    median_ms: float
    iqr_ms: float
    blocks_ms: tuple[float, ...]
    batch_size: int
    threads: int
    device: str

    @property
    def images_per_s(self) -> float:
        """Throughput at this batch size, from the median."""
        return 1000 * self.batch_size / self.median_ms


def complexity(model: nn.Module, image_shape: Sequence[int]) -> Complexity:
    """Counts multiply-accumulates and parameters for one image of `image_shape` (c, h, w), with fvcore.

    fvcore's "flops" are multiply-accumulates; scaled dot product attention, which it does not know, is counted here.
    """
    with warnings.catch_warnings():
        # fvcore compiles a loss function that nobody here uses with torch.jit.script, and torch says that is old.
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import FlopCountAnalysis
    image = torch.zeros(1, *image_shape, device=_device(model))
    with evaluation_mode(model), _unfused_attention(), torch.no_grad():
        analysis = FlopCountAnalysis(model, image)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.set_op_handle("aten::baddbmm", _baddbmm_macs)
        for name in _NOT_MACS:
            analysis.set_op_handle(name, _no_macs)
        macs = int(analysis.total())
        unsupported = analysis.unsupported_ops()
    listed = tuple(f"{name} × {uses}" for name, uses in sorted(unsupported.items()))
    return Complexity(macs, sum(p.numel() for p in model.parameters()), listed)


def latency_ms(
    models: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    batch_size: int,
    device: torch.device | str,
    min_run_time_s: float,
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
    """
    images = torch.rand(batch_size, *image_shape, device=device)
    threads = torch.get_num_threads()
    times_s: dict[str, list[float]] = {name: [] for name in models}
    with evaluation_mode(*models.values()), torch.inference_mode():
        timers = {
            name: benchmark.Timer("model(images)", globals={"model": model, "images": images}, num_threads=threads)
            for name, model in models.items()
        }
        passes_s = {name: timer.timeit(1).median for name, timer in timers.items()}
        passes = {name: math.ceil(LATENCY_BLOCK_S / pass_s) for name, pass_s in passes_s.items()}
        shortest_block_s = min(passes[name] * pass_s for name, pass_s in passes_s.items())
        for block in range(max(LATENCY_MIN_BLOCKS, math.ceil(min_run_time_s / shortest_block_s))):
            for name in alternating(list(models), block):
                times_s[name] += timers[name].timeit(passes[name]).times
    return {name: _latency(times, batch_size, threads, device) for name, times in times_s.items()}


def peak_memory_mib(model: nn.Module, image_shape: Sequence[int], batch_size: int, device: torch.device | str) -> float:
    """Returns the most memory one forward pass holds, in MiB: parameters, buffers, the images and live features.

    On a GPU it is what the allocator had handed out at most, less what was held by others before. On a CPU it is
    the sum of live tensors, which leaves out scratch space inside operators.
    """
    images = torch.rand(batch_size, *image_shape, device=device)
    held_bytes = images.nbytes + sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    with evaluation_mode(model), torch.inference_mode():
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before_bytes = torch.cuda.memory_allocated(device)
            model(images)
            return (held_bytes + torch.cuda.max_memory_allocated(device) - before_bytes) / 2**20
        with _LiveTensors() as live:
            model(images)
    return (held_bytes + live.peak_bytes) / 2**20


def file_size_mib(path: Path) -> float:
    """Returns the size of a checkpoint on disk in MiB."""
    return path.stat().st_size / 2**20


class _LiveTensors(TorchDispatchMode):
    """Follows the storages that operators allocate until they are freed, and remembers the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._live_bytes = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self._follow(leaf.untyped_storage())
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


def _no_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Zero; fvcore goes on counting an operator that has a handle of its own when told to ignore it (`None`)."""
    return 0


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Q Kᵀ and the weighted sum of V: batch · L · S · (E + E_v)."""
    query, key, value = (v.type().sizes() for v in inputs[:3])  # (..., L, E), (..., S, E), (..., S, E_v)
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    left, right = (v.type().sizes() for v in inputs[1:3])  # (b, n, m), (b, m, p)
    return math.prod(left) * right[-1]


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Keeps nn.MultiheadAttention off its fused inference kernel, whose products no counter sees."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _device(model: nn.Module) -> torch.device:
    """Where the weights are; a network without any runs where its input is made."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _latency(times_s: list[float], batch_size: int, threads: int, device: torch.device | str) -> Latency:
    blocks_ms = tuple(1000 * time_s for time_s in times_s)
    low, median, high = np.percentile(blocks_ms, [25, 50, 75])
    return Latency(float(median), float(high - low), blocks_ms, batch_size, threads, str(device))
