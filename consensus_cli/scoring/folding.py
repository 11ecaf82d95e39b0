"""Folding batch norms into the convolutions before them, for a copy of a network that only ever runs in eval mode."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module, images: Tensor) -> int:
    """Folds, in place, every batch norm that is fed by a convolution alone; returns how many.

    Which convolution feeds which batch norm is seen by running the network on `images`, so nothing is assumed about
    its code. What the run cannot see is a convolution whose output is also read elsewhere: compare outputs afterwards.

    Args:
        network: in eval mode; each folded batch norm becomes an `nn.Identity`.
        images: (n, c, h, w) what the network takes.
    """
    pairs = _convolution_of_batch_norm(network, images)
    for norm_name, convolution_name in pairs.items():
        convolution, norm = network.get_submodule(convolution_name), network.get_submodule(norm_name)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        network.set_submodule(convolution_name, fuse_conv_bn_eval(convolution, norm))
        network.set_submodule(norm_name, nn.Identity())
    return len(pairs)


def _convolution_of_batch_norm(network: nn.Module, images: Tensor) -> dict[str, str]:
    """Returns the name of the convolution that feeds each batch norm, where both run exactly once."""
    outputs: list[tuple[str, Tensor, int]] = []
    fed_by: list[tuple[str, str | None]] = []

    def note_output(name: str, output: Tensor) -> None:
        outputs.append((name, output, output._version))

    def note_input(name: str, x: Tensor) -> None:
        # An in-place activation in between keeps the tensor but not its version.
        sources = [source for source, output, version in outputs if output is x and x._version == version]
        fed_by.append((name, sources[-1] if sources else None))

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            # Subclasses may do more in forward than the weights say (timm's batch norms hold an activation).
            if type(module) is nn.Conv2d:
                hooks.enter_context(module.register_forward_hook(lambda _m, _a, out, name=name: note_output(name, out)))
            elif type(module) is nn.BatchNorm2d and module.track_running_stats:
                hooks.enter_context(module.register_forward_pre_hook(lambda _m, a, name=name: note_input(name, a[0])))
        with torch.no_grad():
            network(images)
    convolution_runs = [name for name, _, _ in outputs]
    norm_runs = [name for name, _ in fed_by]
    return {
        norm: source
        for norm, source in fed_by
        if source is not None and norm_runs.count(norm) == 1 and convolution_runs.count(source) == 1
    }
