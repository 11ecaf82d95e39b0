"""Healing without training: where a block stood, the least-squares map from what comes in to what should go out.

The pruned and the original network run side by side over the same images. At a removed block, with x the features that
come in (in the pruned network) and t what the original block returns before its last activation, the map of least
change is fitted: t ≈ x + W x + b, with a penalty on W that draws it towards the identity (ridge regression). Everything
a fit needs are sums over pixels or tokens (counts, means and second moments, float64), so that memory does not grow
with the number of images. Labels are not needed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from consensus_cli.models.modes import evaluating, tensors_in
from consensus_cli.pruning.additions import find_additions
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.branches import branch_calls, branch_name
from consensus_cli.pruning.least_squares import HeldOut
from consensus_cli.pruning.replacement import ChannelMap, MapForm
from consensus_cli.pruning.surgery import parts_of, put_in_place
from consensus_cli.pruning.trace import trace

#: penalty on W, in units of the mean variance of the features
RIDGE = 1e-4

#: every so many images one is held out of the first fit, to see whether the map is better than the shortcut
HELD_OUT_EVERY = 8

#: more do not fit into the cache of a processor, and a pass is no faster with them
IMAGES_AT_ONCE = 64

#: returns the images anew: (b, ...) as the networks take them
Batches = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Fit:
    """The map of a block.

    Attributes:
        form: all of it but the numbers.
        weight, bias: of the change, d ≈ W x + b, float64.
        left: error on held-out positions with the map, as a share of the error without: below 1 it helps.
    """

    form: MapForm
    weight: Tensor
    bias: Tensor
    left: float

    @property
    def helps(self) -> bool:
        """Whether the map is better than the shortcut alone on images that it was not fitted on."""
        return self.left < 1

    def module(self, like: Tensor, *, branch: bool) -> ChannelMap:
        """Returns the map: of a whole block with the shortcut in it, of a branch what is added."""
        identity = torch.zeros_like(self.weight) if branch else torch.ones_like(self.bias)
        weight = self.weight + (torch.diag(identity) if self.weight.ndim == 2 and not branch else identity)
        return ChannelMap.fitted(self.form, weight, self.bias, like)


def fit_maps(
    network: nn.Module,
    original: nn.Module,
    names: Sequence[str],
    batches: Batches,
    kind: str,
    *,
    precision: torch.dtype = torch.float32,
) -> dict[str, Fit]:
    """Fits a map for each of some blocks, each as if it alone were replaced, in one pass over the images.

    Args:
        network: the pruned network, in which the blocks stand, or their shortcuts or maps.
        original: the original network, with the blocks.
        names: blocks that lie one after the other.
        batches: returns the images anew, (b, ...) as the networks take them.
        kind: `linear` or `scale`.
        precision: of the forward passes; the sums are float64.

    Returns:
        Block name -> fit. Left out are blocks whose channels are not known, and branches that other code scales.
    """
    example = next(iter(batches()))
    return _fit_maps(network, original, unscaled(original, names, example), batches, kind, precision=precision)


def heal(
    network: nn.Module,
    original: nn.Module,
    names: Sequence[str],
    batches: Batches,
    kind: str,
    *,
    precision: torch.dtype = torch.float32,
) -> dict[str, Fit]:
    """Fits maps where blocks were removed, one after the other, and puts them in place.

    The features that come into a block depend on the maps before it; so each is fitted with those in place.

    Args:
        network: the network without the blocks; changed in place.
        original: the original network.
        names: the blocks in whose place maps are fitted, in order of execution.
        batches: as in `fit_maps`.
        kind: likewise.
        precision: likewise.

    Returns:
        Block name -> fit. Where a map does not help on held-out images, the shortcut stays.
    """
    fits: dict[str, Fit] = {}
    for name in unscaled(original, names, next(iter(batches()))):
        fits |= _fit_maps(network, original, [name], batches, kind, precision=precision)
        put_fits_in_place(network, {name: fits[name]} if name in fits else {})
    return fits


def put_fits_in_place(network: nn.Module, fits: Mapping[str, Fit]) -> None:
    """Puts the maps that help where blocks stood, and the shortcut alone where one does not."""
    like = next(network.parameters())
    for name, fit in fits.items():
        put_in_place(network, name, fit.module(like, branch="+" in name) if fit.helps else None)


def unscaled(network: nn.Module, names: Sequence[str], example: Tensor) -> list[str]:
    """Returns the blocks that are modules, and the branches that add just what their last module returns.

    What is scaled by other code before it is added cannot be foretold from what the modules return.
    """
    if not any("+" in name for name in names):
        return list(names)
    seen = trace(network, example)
    plain = set()
    for addition in find_additions(seen).values():
        parts = branch_calls(network, seen, addition)
        if not parts or addition.branch is None:
            continue
        given, returned = seen.calls[parts[0]].inputs[:1], seen.calls[parts[-1]].outputs
        same = [seen.same[value] for value in (*given, *returned) if value is not None]
        if same[:1] == [addition.trunk] and seen.same[addition.branch] in same[1:]:
            plain.add(branch_name(seen, addition, parts))
    return [name for name in names if "+" not in name or name in plain]


def _fit_maps(
    network: nn.Module,
    original: nn.Module,
    names: Sequence[str],
    batches: Batches,
    kind: str,
    *,
    precision: torch.dtype,
) -> dict[str, Fit]:
    wanted: dict[str, _Target] = {}
    with evaluating(network), evaluating(original):
        for images, held_out in in_parts(batches):
            with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
                outputs = watched(original, names, images, watch_output)
                inputs = watched(network, names, images, watch_input)
            for name in names:
                if name not in wanted:
                    wanted[name] = _Target.of(original, name, outputs[name])
                wanted[name].update(inputs[name], outputs[name].before, held_out)
    return {name: target.fit(kind) for name, target in wanted.items() if target.axis is not None}


@dataclass
class _Target:
    """A block for which a map is fitted."""

    axis: int | None
    low: float | None
    high: float | None
    moments: HeldOut

    @classmethod
    def of(cls, original: nn.Module, name: str, output: Output) -> _Target:
        axis = _channel_axis(original, name, output.before.shape)
        channels = output.before.shape[1 if axis is None else axis]
        return cls(axis, output.low, output.high, HeldOut.of(channels, channels))

    def update(self, x: Tensor, t: Tensor, held_out: Tensor) -> None:
        if self.axis is None or x.shape != t.shape or len(x) != len(held_out):
            self.axis = None
            return
        x, t = (features.double().movedim(self.axis, -1) for features in (x, t))
        x, d = (features.reshape(len(x), -1, x.shape[-1]) for features in (x, t - x))
        self.moments.update(x, d, held_out)

    def fit(self, kind: str) -> Fit:
        assert self.axis is not None
        form = MapForm(kind, self.moments.fitting.outputs, self.axis, self.low, self.high)
        return Fit(form, *self.moments.fit(RIDGE, per_channel=kind == "scale"))


@dataclass
class Output:
    """What a block adds up to, before its last activation.

    Attributes:
        before: it.
        low, high: what the activation clamps to, if it does.
        edge: where gradients of `before` go in; None without any.
    """

    before: Tensor
    low: float | None = None
    high: float | None = None
    edge: GradientEdge | None = None

    @classmethod
    def of(cls, before: Tensor, low: float | None = None, high: float | None = None) -> Output:
        """Returns it with the edge of its gradients."""
        return cls(before, low, high, get_gradient_edge(before) if before.requires_grad else None)


def in_parts(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the images in parts (b, ...), and which of them are held out of a first fit, (b,) bool."""
    seen = 0
    for images in (part for batch in batches() for part in batch.split(IMAGES_AT_ONCE)):
        numbers = torch.arange(seen, seen + len(images), device=images.device)
        seen += len(images)
        yield images, numbers % HELD_OUT_EVERY == 1


class _Everything(Exception):  # noqa: N818 (not an error: the rest of the network need not run)
    """All blocks that are watched have run."""


def watched(network: nn.Module, names: Sequence[str], images: Tensor, watch: Callable[..., None]) -> dict[str, Any]:
    """Returns what `watch` notes of some blocks in a forward pass that ends with the last of them."""
    found: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        found[name] = value
        if len(found) == len(names):
            raise _Everything

    with ExitStack() as stack, suppress(_Everything):
        for name in names:
            paths = parts_of(name)
            first, last = network.get_submodule(paths[0]), network.get_submodule(paths[-1])
            watch(stack, functools.partial(note, name), first, last, branch="+" in name)
        # The network may overwrite what it is given.
        network(images.clone())
    return found


def watch_input(
    stack: ExitStack, note: Callable[[Tensor], None], first: nn.Module, _last: nn.Module, *, branch: bool
) -> None:
    """Notes what comes into a block."""
    stack.enter_context(
        first.register_forward_pre_hook(lambda _, args, kwargs: note(first_tensor([args, kwargs])), with_kwargs=True)
    )


def watch_output(
    stack: ExitStack, note: Callable[[Output], None], first: nn.Module, last: nn.Module, *, branch: bool
) -> None:
    """Notes what a block adds up to, an `Output`."""
    mode = _Clamps()
    # Ends with the pass where code of the network fails in between.
    inside = stack.enter_context(ExitStack())
    given: list[Tensor] = []

    def start(_: nn.Module, args: Any, kwargs: Any) -> None:
        given[:] = [first_tensor([args, kwargs])]
        if not branch:
            inside.enter_context(mode)

    def end(_: nn.Module, __: Any, output: Any) -> None:
        result = first_tensor([output])
        inside.close()
        note(Output.of(given[0] + result) if branch else mode.before(result))

    stack.enter_context(first.register_forward_pre_hook(start, with_kwargs=True))
    stack.enter_context(last.register_forward_hook(end))


def first_tensor(values: Any) -> Tensor:
    """Returns the first tensor in what a module is given or returns."""
    return next(tensors_in(values))


class _Clamps(TorchDispatchMode):
    """Keeps what the last ReLU, or another activation that clamps, was given."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, Output] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name.rstrip("_") not in ("relu", "hardtanh"):
            return func(*args, **(kwargs or {}))
        low, high = (0.0, None) if name.startswith("relu") else (*map(float, args[1:3]), -1.0, 1.0)[:2]
        output = Output.of(args[0], low, high)
        if name.endswith("_"):
            # In place it overwrites what it was given.
            output.before = args[0].clone()
        result = func(*args, **(kwargs or {}))
        self._last = result, output
        return result

    def before(self, output: Tensor) -> Output:
        """Returns what a block that returned `output` had before its last activation."""
        if self._last is None or self._last[0] is not output:
            return Output.of(output)
        return self._last[1]


def map_macs(network: nn.Module, block: Block, kind: str) -> int:
    """Returns the MACs, for one image, of the map that would stand in a block's place."""
    axis = _channel_axis(network, block.name, (1, *block.shape))
    return 0 if axis is None or kind != "linear" else math.prod(block.shape) * block.shape[axis - (axis > 0)]


def _channel_axis(network: nn.Module, name: str, shape: Sequence[int]) -> int | None:
    """Returns where features of a shape have their channels, by the first layer of the block that shows it, or None."""
    if len(shape) == 2:
        return -1
    layers = (layer for path in parts_of(name) for layer in network.get_submodule(path).modules())
    for layer in layers:
        normalized = getattr(layer, "normalized_shape", (None,))[-1]
        sizes = {
            1: [getattr(layer, key, None) for key in ("in_channels", "num_features", "num_channels")],
            -1: [getattr(layer, "in_features", None), normalized],
        }
        for axis, known in sizes.items():
            if shape[axis] in known:
                return axis
        if shape[1] == normalized:
            return 1
    return None
