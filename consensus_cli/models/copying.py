"""Copies of networks that others wrote."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from consensus_cli.models.modes import tensors_in

Network = TypeVar("Network", bound=nn.Module)


def clone(network: Network) -> Network:
    """Returns a deep copy, also of a network whose modules keep tensors that they computed.

    PyTorch refuses to copy a tensor that is part of a graph: features kept from the last forward pass, or the weight
    that the older `torch.nn.utils.weight_norm` computes. The copy gets the same values without the graph.
    """
    computed = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in tensors_in(vars(module))
        if value.grad_fn is not None
    }
    return copy.deepcopy(network, dict(computed))
