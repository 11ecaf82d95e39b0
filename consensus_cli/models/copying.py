"""Copies of networks that others wrote, and the memory layout of their weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from consensus_cli.models.modes import tensors_in

Network = TypeVar("Network", bound=nn.Module)


def clone(network: Network, memo: Mapping[int, Any] | None = None) -> Network:
    """Returns a deep copy, also of a network whose modules keep tensors that they computed.

    PyTorch refuses to copy a tensor that is part of a graph: features kept from the last forward pass, or the weight
    that the older `torch.nn.utils.weight_norm` computes. The copy gets the same values without the graph.

    Args:
        network: any module.
        memo: id of what is not copied -> what the copy has in its place, as `copy.deepcopy` takes it.
    """
    computed = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in tensors_in(vars(module))
        if value.grad_fn is not None
    }
    return copy.deepcopy(network, {**computed, **(memo or {})})


def sharing(network: Network) -> Network:
    """Returns a copy whose modules are its own, while its parameters and buffers are those of the network.

    It takes no memory to speak of, and blocks can be removed from it. What trains or loads weights in place changes
    both.
    """
    return clone(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})


def to_layout(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Brings every 4-D parameter and buffer of a network into a memory format, in place, and returns the network.

    `nn.Module.to(memory_format=torch.channels_last)` does the same and raises where a network has 5-D weights (3-D
    convolutions, or the position convolution of a lambda layer), for which that format does not exist: they stay as
    they are here, and so do lazy ones, which have no shape yet.
    """
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if not is_lazy(tensor) and tensor.dim() == 4:
            # Not `contiguous`: it leaves the strides of 1×1 kernels, by which convolutions choose their algorithm.
            tensor.data = tensor.data.to(memory_format=memory_format)
    return module
