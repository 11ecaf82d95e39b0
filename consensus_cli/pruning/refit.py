"""Refitting: the layers that are left do what they can of the work of the blocks that are gone, without training.

Behind the first removed block every layer gets other features than it was trained for. One after the other, in order of
execution, the convolutions and linear layers of the blocks that are left are fitted anew: given what comes into a layer
of the pruned network, the change of its weights is sought with which it returns what it returned in the original. The
last layer of a residual branch makes up for more: for all that the sum behind the branch lacks, and so for the blocks
before it that are gone. The network keeps its shape and its cost. Labels are not needed.

Layer-wise reconstruction by least squares is known from channel pruning (He et al. 2017, arXiv 1707.06168) and from the
compression of weights (Frantar & Alistarh 2022, arXiv 2208.11580).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.errors import is_out_of_memory
from consensus_cli.models.modes import evaluating
from consensus_cli.pruning.blocks import find_blocks
from consensus_cli.pruning.healing import (
    Batches,
    Output,
    first_tensor,
    fit_maps,
    in_parts,
    put_fits_in_place,
    unscaled,
    watch_output,
    watched,
)
from consensus_cli.pruning.layers import Layer, close, plain_layers, watch_layer
from consensus_cli.pruning.least_squares import HeldOut
from consensus_cli.pruning.replacement import ChannelMap
from consensus_cli.pruning.surgery import Shortcut, parts_of
from consensus_cli.pruning.trace import Trace, trace

#: penalty on the change of the weights, in units of the mean variance of a layer's inputs
RIDGE = 1e-2


@dataclass(frozen=True)
class Refitted:
    """What became of a layer.

    Attributes:
        layer: its dotted path, or the name of the block whose map it is.
        left: error on held-out images with the new weights, as a share of that with the old ones (of a map: with the
            shortcut alone); from 1 on the old ones stay.
    """

    layer: str
    left: float

    @property
    def helps(self) -> bool:
        """Whether the layer has new weights."""
        return self.left < 1


def refit(
    network: nn.Module,
    original: nn.Module,
    batches: Batches,
    *,
    maps: Iterable[str] = (),
    precision: torch.dtype = torch.float32,
) -> list[Refitted]:
    """Fits all layers behind the first removed block anew, in place, so that they make up for what is gone.

    Left alone are grouped convolutions and layers that run more than once, share their weights, or compute them anew in
    every pass.

    Args:
        network: the pruned network, without blocks of the original, perhaps with maps in their place; changed in place.
        original: the original network.
        batches: returns the images anew, (b, ...) as the networks take them.
        maps: the blocks in whose place there are maps, which are fitted anew as well, in their turn.
        precision: of the forward passes; sums over images are float64.

    Returns:
        The layers and blocks in order of fitting. Each takes a pass over the images, through both networks up to it.
    """
    example = next(iter(batches()))[:2]
    blocks = find_blocks(original, example, "branch", verify=False)
    present = dict(network.named_modules(remove_duplicate=False))
    standing = [block.name for block in blocks if _stands(present, original, block.name)]
    plain = unscaled(original, standing, example)
    # Of a branch that other code scales, the sum is known where the module around it ends.
    ends = list(dict.fromkeys(name if name in plain else name.partition("+")[0] for name in standing))
    replaced = {parts_of(name)[0]: name for name in maps}
    done: list[Refitted | None] = []
    with evaluating(network), evaluating(original):
        seen = trace(network, example)
        gone = (number for number, call in enumerate(seen.calls) if isinstance(present[call.path], Shortcut))
        steps: dict[int, Layer | str] = _layers(network, seen, ends, example, next(gone, len(seen.calls)))
        steps |= {n: replaced[call.path] for n, call in enumerate(seen.calls) if call.path in replaced}
        for _, step in sorted(steps.items(), key=lambda item: item[0]):
            if isinstance(step, str):
                done.append(_refit_map(step, network, original, batches, precision))
            else:
                done.append(_refit(step, network, original, batches, precision))
    return [each for each in done if each is not None]


def _stands(present: Mapping[str, nn.Module], original: nn.Module, block: str) -> bool:
    """Whether a block of the original is still one, given the modules of the pruned network by name."""
    return all(type(present.get(path)) is type(original.get_submodule(path)) for path in parts_of(block))


def _layers(
    network: nn.Module, seen: Trace, blocks: Sequence[str], example: Tensor, begin: int
) -> dict[int, Layer | str]:
    """Returns the layers that can be fitted, by the number of the call after which it is their turn."""
    found = plain_layers(network, seen, example, begin)
    for block in blocks:
        inside = tuple(f"{path}." for path in parts_of(block))
        mine = [number for number, layer in found.items() if f"{layer.path}.".startswith(inside)]
        gains = {number: _gain(found[number], network, block, example) for number in mine}
        ending = [number for number, gain in gains.items() if gain is not None]
        if ending:
            # A layer of the shortcut's own ends in the sum as well, but sees less; the one that sees most comes last.
            last = max(ending, key=lambda number: found[number].matrix.shape[1])
            *others, layer = *(found.pop(number) for number in mine if number != last), found.pop(last)
            found |= dict(zip(mine, [*others, replace(layer, ends=block, gain=gains[last])], strict=True))
    return dict(found)


def _gain(layer: Layer, network: nn.Module, block: str, example: Tensor) -> Tensor | None:
    """Returns the squares of the factors (c,) of a layer's output on its way to the sum behind a branch.

    None where anything else happens to it on that way than factors per channel, constants and rearrangement.
    """
    try:
        leaf, before = _to_the_sum(layer, network, block, example)
        noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0)).to(leaf)
        _, moved = _to_the_sum(layer, network, block, example, noise)
        back = _back(before, leaf, moved.before - before.before)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        # What lies behind the layer has no gradient.
        return None
    if back is None:
        return None
    noise, back = (layer.columns(values, len(example)).flatten(0, 1) for values in (noise, back))
    gain = (back * noise).sum(0) / (noise * noise).sum(0)
    return gain if gain.max() > 0 and close(back, gain * noise) else None


def _refit_map(
    block: str, network: nn.Module, original: nn.Module, batches: Batches, precision: torch.dtype
) -> Refitted | None:
    """Fits the map in a block's place anew; None where it cannot be done."""
    maps = [m for m in network.get_submodule(parts_of(block)[0]).modules() if isinstance(m, ChannelMap)]
    fit = (
        fit_maps(network, original, [block], batches, maps[0].form.kind, precision=precision).get(block)
        if maps
        else None
    )
    if fit is None:
        return None
    if fit.helps:
        put_fits_in_place(network, {block: fit})
    return Refitted(block, fit.left)


def _refit(
    layer: Layer, network: nn.Module, original: nn.Module, batches: Batches, precision: torch.dtype
) -> Refitted | None:
    """Fits one layer; None where the two networks are not alike there."""
    c, p = layer.matrix.shape
    moments = HeldOut.of(p, c)
    for images, held_out in in_parts(batches):
        with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
            lacking = _lacking(layer, network, original, images)
        if lacking is None:
            return None
        x, d = lacking
        moments.update(layer.rows(x.float(), len(images)), layer.columns(d.float(), len(images)), held_out)
    change, shift, left = moments.fit(RIDGE, intercept=layer.shifts)
    done = Refitted(layer.path, left)
    if done.helps:
        layer.put(change, shift, moments.total)
    return done


def _lacking(layer: Layer, network: nn.Module, original: nn.Module, images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns what comes into a layer, and what would have to be added to its output."""
    if layer.gain is None or layer.ends is None:
        x, y = watched(network, [layer.path], images, watch_layer)[layer.path]
        _, wanted = watched(original, [layer.path], images, watch_layer)[layer.path]
        return (x, wanted.float() - y.float()) if wanted.shape == y.shape else None
    wanted = watched(original, [layer.ends], images, watch_output)[layer.ends].before
    given: list[Tensor] = []

    def keep(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(first_tensor([args, kwargs]))

    with layer.module.register_forward_pre_hook(keep, with_kwargs=True):
        leaf, before = _to_the_sum(layer, network, layer.ends, images)
    if before.before.shape != wanted.shape:
        return None
    back = _back(before, leaf, wanted - before.before.detach())
    assert back is not None, "what has a gain has a gradient"
    shape = (-1, *(1,) * (leaf.ndim - 2)) if isinstance(layer.module, nn.Conv2d) else (-1,)
    gain = torch.where(layer.gain > 0, layer.gain, torch.inf).view(shape)
    return given[0], back.float() / gain


def _to_the_sum(
    layer: Layer, network: nn.Module, block: str, images: Tensor, change: Tensor | None = None
) -> tuple[Tensor, Output]:
    """Returns the output of a layer, changed where asked for, as the leaf that the sum of a block is computed from."""
    leaves: list[Tensor] = []

    def take(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        leaves.append((output if change is None else output + change).detach().requires_grad_())
        torch.set_grad_enabled(True)
        # Code behind it may overwrite what it gets.
        return leaves[0].clone()

    # Sets the mode back that the hook changes.
    with torch.no_grad(), layer.module.register_forward_hook(take):
        output = watched(network, [block], images, watch_output)[block]
    return leaves[0], output


def _back(output: Output, leaf: Tensor, values: Tensor) -> Tensor | None:
    """Returns values of the shape of a sum, brought to their places in the leaf, times the factors on the way."""
    if output.edge is None:
        return None
    (found,) = torch.autograd.grad([output.edge], [leaf], [values.to(output.before)], allow_unused=True)
    return found
