"""Folding: a map without an activation goes into a neighbouring layer where that is exact, and then costs nothing.

Behind it that is a 1×1 convolution or linear layer that alone reads what the map returns; before it any convolution or
linear layer, perhaps with a batch norm, whose output the map alone reads. Such neighbours stand where a stage begins or
ends without a shortcut and without an activation, as in MobileNetV2, EfficientNet and MNASNet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from consensus_cli.models.modes import alike, answer, evaluating
from consensus_cli.pruning.healing import Batches, in_parts, watched
from consensus_cli.pruning.layers import Layer, plain_layers, watch_layer
from consensus_cli.pruning.least_squares import Moments
from consensus_cli.pruning.replacement import ChannelMap
from consensus_cli.pruning.surgery import parts_of, put_in_place
from consensus_cli.pruning.trace import Call, Trace, trace

#: a batch norm's factors are divided by; smaller ones, in units of the largest, would make weights too large
_SMALLEST_FACTOR = 1e-3


def fold(network: nn.Module, names: Sequence[str], batches: Batches) -> list[str]:
    """Folds maps into their neighbours, in place; the network answers as before, up to rounding.

    A batch norm of the neighbour takes the statistics of what it gets now, so that training goes on from there.

    Args:
        network: with maps where blocks stood; changed in place.
        names: removed blocks.
        batches: returns the images anew, (b, ...) as the network takes them; a pass for each map that is folded.

    Returns:
        The blocks whose maps are folded; the shortcut alone stands in their place.
    """
    example = next(iter(batches()))[:2]
    left, folded = list(names), list[str]()
    with evaluating(network), torch.no_grad():
        # What is folded may bring two maps together, or a map and a layer.
        while found := [name for name in left if _fold(network, name, example, batches)]:
            folded += found
            left = [name for name in left if name not in found]
    return folded


def _fold(network: nn.Module, name: str, example: Tensor, batches: Batches) -> bool:
    path = parts_of(name)[0]
    standing = network.get_submodule(path)
    if "+" in name or not isinstance(standing, ChannelMap) or (standing.form.low, standing.form.high) != (None, None):
        return False
    seen, expected = trace(network, example), answer(network, example)
    (call,) = (call for call in seen.calls if call.path == path)
    for layer, change, shift in _neighbours(network, seen, call, standing, example):
        touched = [module for module in (layer.module, layer.norm) if module is not None]
        before = [{key: value.clone() for key, value in module.state_dict().items()} for module in touched]
        put_in_place(network, name, None)
        layer.put(change, shift, _moments(network, layer, batches))
        if all(map(alike, answer(network, example), expected)):
            return True
        put_in_place(network, name, standing)
        for module, state in zip(touched, before, strict=True):
            module.load_state_dict(state)
    return False


def _neighbours(
    network: nn.Module, seen: Trace, call: Call, standing: ChannelMap, example: Tensor
) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Yields layers that a map can go into, the change of their weights, and what is added to their outputs."""
    weight, bias = standing.weight.double().cpu(), standing.bias.double().cpu()
    weight = weight if weight.ndim == 2 else weight.diag()
    identity = torch.eye(len(bias), dtype=torch.float64)
    x, y = call.inputs[0], call.outputs[0]
    assert y is not None
    for number, layer in plain_layers(network, seen, example).items():
        own, matrix = seen.calls[number], layer.matrix.double().cpu()
        is_conv = isinstance(layer.module, nn.Conv2d)
        if standing.form.axis != (1 if is_conv else -1):
            continue
        if seen.same[own.inputs[0]] == seen.same[y] and _alone(seen, y, own) and _is_pointwise(layer.module):
            change, shift = matrix @ (weight - identity), matrix @ bias
        elif _returns(network, seen, number, layer) == seen.same[x] and _alone(seen, x, call):
            factor, constant = _behind(layer, len(bias))
            if factor.abs().min() <= _SMALLEST_FACTOR * factor.abs().max():
                continue
            change = (weight * factor / factor[:, None] - identity) @ matrix
            shift = ((weight - identity) @ constant + bias) / factor
        else:
            continue
        if layer.shifts or not shift.any():
            yield layer, change, shift


def _returns(network: nn.Module, seen: Trace, number: int, layer: Layer) -> int | None:
    """Returns the value that a layer returns, behind its batch norm if it has one."""
    calls = [seen.calls[number]]
    if layer.norm is not None:
        calls = [call for call in seen.calls if network.get_submodule(call.path) is layer.norm]
    outputs = calls[0].outputs
    return None if len(outputs) != 1 or outputs[0] is None else seen.same[outputs[0]]


def _behind(layer: Layer, channels: int) -> tuple[Tensor, Tensor]:
    """Returns the factor on what a layer computes from its weights, and what is added behind that, (c,) each."""
    bias = layer.module.bias
    own = torch.zeros(channels, dtype=torch.float64) if bias is None else bias.double().cpu()
    norm = layer.norm
    if norm is None:
        return torch.ones_like(own), own
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
    factor = norm.weight.double().cpu() / (variance + norm.eps).sqrt()
    return factor, factor * (own - mean) + norm.bias.double().cpu()


def _alone(seen: Trace, value: int, inside: Call) -> bool:
    """Whether nothing but one call reads a value, and it is not what the network returns."""
    held = {number for number, same in enumerate(seen.same) if same == seen.same[value]}
    readers = {op for number in held for op in seen.readers[number]}
    others = (op for op in readers if not inside.start <= op < inside.end)
    return held.isdisjoint(seen.calls[0].outputs) and all(held.issuperset(seen.ops[op].outputs) for op in others)


def _is_pointwise(layer: nn.Conv2d | nn.Linear) -> bool:
    return isinstance(layer, nn.Linear) or (set(layer.kernel_size) == {1} and set(layer.padding) == {0})


def _moments(network: nn.Module, layer: Layer, batches: Batches) -> Moments:
    """Returns the moments of what comes into a layer; empty where it has no batch norm that goes by them."""
    total = Moments(layer.matrix.shape[1], 0)
    for images, _ in in_parts(batches) if layer.norm is not None else ():
        x, _ = watched(network, [layer.path], images, watch_layer)[layer.path]
        rows = layer.rows(x.float(), len(images)).flatten(0, 1)
        total.update(rows, rows[:, :0])
    return total
