"""Networks that are one function, and their multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from consensus_cli.models.macs import count_macs

#: a test that compares a network of attention with PyTorch's counter
COUNTED_BY_TORCH = pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="PyTorch before 2.9 counts no attention on the CPU",
)


class Of(nn.Module):
    """A network that is one function of its input and, where given, of a module."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.function(x) if self.module is None else self.function(self.module, x)


def macs(function: Callable[..., Any], *shape: int, module: nn.Module | None = None) -> int:
    """Counts, having made sure that nothing is left out."""
    count = count_macs(Of(function, module), torch.rand(shape))
    assert count.uncounted == ()
    return count.total


def call(module: nn.Module, x: Tensor) -> Any:
    return module(x)
