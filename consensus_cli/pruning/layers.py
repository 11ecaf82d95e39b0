"""Layers whose weights can be written anew: convolutions and linear layers that do what their class does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # there is no public name for all dimensions

from consensus_cli.pruning.healing import first_tensor, watched
from consensus_cli.pruning.least_squares import Moments
from consensus_cli.pruning.trace import Trace

#: layers with more inputs (in a convolution: per kernel) are left alone: their moments would not fit into memory
MAX_INPUTS = 4608

#: largest relative deviation from what arithmetic in float32 should give
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Layer:
    """A layer that can be fitted.

    Attributes:
        path: its dotted path.
        module: the convolution or linear layer.
        norm: the batch norm that its output goes through, if it does.
        ends: the block whose residual branch it ends; None for the layers before it.
        gain: (c,) squares of what its output is multiplied with on the way to the sum behind the branch.
    """

    path: str
    module: nn.Conv2d | nn.Linear
    norm: BatchNorm | None
    ends: str | None = None
    gain: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """The weights as (c, p): outputs, inputs."""
        return self.module.weight.flatten(1)

    @property
    def shifts(self) -> bool:
        """Whether there is a place for a constant that is added to its output."""
        return self.module.bias is not None or self.norm is not None

    def rows(self, x: Tensor, images: int) -> Tensor:
        """Returns what the weights are multiplied with at each of m positions, (images, m, p)."""
        layer = self.module
        if isinstance(layer, nn.Conv2d):
            x = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT  # type: ignore[arg-type]
        return x.reshape(images, -1, self.matrix.shape[1])

    def columns(self, y: Tensor, images: int) -> Tensor:
        """Returns values of the shape of its output as (images, m, c)."""
        if isinstance(self.module, nn.Conv2d):
            y = y.flatten(2).mT
        return y.reshape(images, -1, self.matrix.shape[0])

    @torch.no_grad()
    def put(self, change: Tensor, shift: Tensor, total: Moments) -> None:
        """Adds to the weights, (c, p), and to what comes out, (c,); the moments are those of all inputs.

        A batch norm behind the layer takes the statistics of what it gets now, and gives what it would give with the
        old ones: training, which goes by a batch's own statistics, then begins where the network stands.
        """
        layer, norm = self.module, self.norm
        layer.weight.add_(change.reshape(layer.weight.shape).to(layer.weight))
        if layer.bias is not None:
            layer.bias.add_(shift.to(layer.bias))
            shift = torch.zeros_like(shift)
        if norm is None:
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight = self.matrix.double().cpu()
        mean_x = total.x / total.count
        mean = weight @ mean_x + (0 if layer.bias is None else layer.bias.double().cpu())
        covariance = total.xx / total.count - torch.outer(mean_x, mean_x)
        variance = ((weight @ covariance) * weight).sum(1).clamp_min(0)
        old_mean, old_variance = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
        scale = norm.weight.double().cpu() / (old_variance + norm.eps).sqrt()
        norm.bias.add_((scale * (mean + shift - old_mean)).to(norm.bias))
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def plain_layers(network: nn.Module, seen: Trace, example: Tensor, begin: int = 0) -> dict[int, Layer]:
    """Returns the layers whose weights can be written anew, by the number of their call, from `begin` on.

    Left out are grouped convolutions and layers that run more than once, share their weights, compute them anew in
    every pass, pad in a way of their own or are too large.
    """
    times = Counter(call.path for call in seen.calls)
    held = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    found: dict[int, Layer] = {}
    for number, call in enumerate(seen.calls[begin:], begin):
        module = network.get_submodule(call.path)
        alone = times[call.path] == 1 and all(held[id(parameter)] == 1 for parameter in module.parameters())
        if alone and isinstance(module, nn.Conv2d | nn.Linear) and _is_plain(module):
            layer = Layer(call.path, module, _norm_behind(network, seen, number, times))
            if _is_what_it_seems(layer, network, example):
                found[number] = layer
    return found


def _is_plain(module: nn.Conv2d | nn.Linear) -> bool:
    """Whether the output of a layer is one product with all of its weights, of a size that can be fitted."""
    own = dict(module.named_parameters(recurse=False))
    if own.get("weight") is not module.weight or own.get("bias") is not module.bias:
        # They are computed from others (weight norm, a mask): what is written into them is lost.
        return False
    if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
        return False
    return not isinstance(getattr(module, "padding", 0), str) and module.weight[0].numel() <= MAX_INPUTS


def _norm_behind(network: nn.Module, seen: Trace, number: int, times: Counter[str]) -> BatchNorm | None:
    """Returns the batch norm that alone reads the output of a call, if it has weights and statistics to adapt."""
    given = set(seen.calls[number].outputs)
    readers = [op for value in given if value is not None for op in seen.readers[value]]
    for call in seen.calls[number + 1 :]:
        module = network.get_submodule(call.path)
        if isinstance(module, BatchNorm) and given.intersection(call.inputs):
            adapts = module.affine and module.running_mean is not None and times[call.path] == 1
            return module if adapts and all(call.start <= op < call.end for op in readers) else None
    return None


def _is_what_it_seems(layer: Layer, network: nn.Module, example: Tensor) -> bool:
    """Whether a layer does what its class does: some compute their weights anew, or pad in a way of their own."""
    x, y = watched(network, [layer.path], example, watch_layer)[layer.path]
    images, p = len(example), layer.matrix.shape[1]
    if not isinstance(layer.module, nn.Conv2d) and x.numel() % (images * p):
        return False
    expected, found = (
        functional.linear(layer.rows(x, images), layer.matrix, layer.module.bias),
        layer.columns(y, images),
    )
    return expected.shape == found.shape and close(found, expected)


def watch_layer(
    stack: ExitStack, note: Callable[[tuple[Tensor, Tensor]], None], _first: nn.Module, last: nn.Module, *, branch: bool
) -> None:
    """Notes what a layer is given and what it returns; for `watched`."""

    def end(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        note((first_tensor([args, kwargs]), output))

    stack.enter_context(last.register_forward_hook(end, with_kwargs=True))


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of float32."""
    return bool((found - expected).norm() <= _TOLERANCE * expected.norm())
