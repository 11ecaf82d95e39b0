"""The memory layout of a network's weights."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn.parameter import is_lazy


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
