"""What must hold for every block that is taken out of any network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from consensus_cli.models.modes import evaluating, unfused_attention
from consensus_cli.pruning.blocks import Block
from consensus_cli.pruning.surgery import bypassed, remove_blocks


@contextmanager
def put_back(network: nn.Module) -> Iterator[None]:
    """Undoes whatever the body does to the module tree, so that one large network serves many removals."""
    children = [(module, dict(module._modules)) for module in network.modules()]
    yield
    for module, modules in children:
        module._modules.clear()
        module._modules.update(modules)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, images: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, evaluating(network), unfused_attention():
        network(images)
    return counter.get_total_flops()


def check_removal(network: nn.Module, block: Block, images: Tensor) -> None:
    """Removing is bypassing, and makes the network smaller; what is left trains."""
    network.eval()
    with torch.no_grad(), bypassed(network, block):
        expected = network(images)
    before = parameters(network), flops(network, images)
    names = set(network.state_dict())
    with put_back(network):
        remove_blocks(network, [block], images)
        with torch.no_grad():
            assert torch.equal(network(images), expected)
        assert parameters(network) < before[0]
        assert flops(network, images) < before[1]
        assert set(network.state_dict()) < names
        check_trains(network, images)


def check_trains(network: nn.Module, images: Tensor) -> None:
    network.train()
    network(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    network.zero_grad(set_to_none=True)
    network.eval()


def check_round_trip(network: nn.Module, names: list[str], images: Tensor) -> None:
    """A pruned network is rebuilt from an unpruned one, the names of the removed blocks and its state dict."""
    network.eval()
    rebuilt = copy.deepcopy(network)
    for tensor in rebuilt.parameters():
        nn.init.zeros_(tensor)
    remove_blocks(rebuilt, names)
    with put_back(network), torch.no_grad():
        remove_blocks(network, names)
        rebuilt.load_state_dict(network.state_dict(), strict=True)
        assert torch.equal(rebuilt(images), network(images))
