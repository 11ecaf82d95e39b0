"""Compiled and wrapped parts, and weights in other precisions, become plain float32 networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from consensus_cli.errors import UserError
from consensus_cli.models.plain import settings_kept, to_float32, unwrapped


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def _compiled_blocks(network: Network) -> nn.Module:
    for i, block in enumerate(network.blocks):
        network.blocks[i] = torch.compile(block)
    return network


def _twice(network: Network) -> nn.Module:
    network.blocks[0].linear = torch.compile(nn.DataParallel(torch.compile(network.blocks[0].linear)))
    return network


def _in_place(network: Network) -> nn.Module:
    network.blocks[0].compile()
    network.compile()
    return network


def _own_forward(network: Network) -> nn.Module:
    for block in network.blocks:
        block.forward = torch.compile(block.forward)
    return network


def _decorated(network: Network) -> nn.Module:
    class Decorated(Block):
        forward = torch.compile(Block.forward)

    network.blocks[1].__class__ = Decorated
    return network


def _alias(network: Network) -> nn.Module:
    network.blocks[0] = network.first = torch.compile(network.blocks[0])
    del network.first
    network.again = network.blocks[0]
    del network.again
    return network


WAYS = {
    "whole": torch.compile,
    "blocks": _compiled_blocks,
    "twice": _twice,
    "in place": _in_place,
    "forward": _own_forward,
    "decorated": _decorated,
    "under two names": _alias,
    "data-parallel": nn.DataParallel,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_compiled_or_wrapped_becomes_what_was_written(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = Network().eval()
    network = unwrapped(WAYS[way](copy.deepcopy(plain)))
    assert type(network) is Network
    assert list(network.state_dict()) == list(plain.state_dict())

    def compile_nothing(*_: object, **__: object) -> None:
        raise AssertionError("something is still compiled")

    monkeypatch.setattr("torch._dynamo.convert_frame.ConvertFrameAssert.__call__", compile_nothing)
    images = torch.rand(3, 4)
    copied = copy.deepcopy(network)
    assert torch.equal(network(images), plain(images))
    nn.init.zeros_(copied.blocks[0].linear.weight)
    assert not torch.equal(copied(images), plain(images))
    assert torch.equal(network(images), plain(images))


def test_what_the_author_keeps_from_being_compiled_stays() -> None:
    network = Network()
    kept = network.head.forward = torch.compiler.disable(network.head.forward)
    assert unwrapped(network).head.forward is kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_become_float32_and_are_named(dtype: torch.dtype) -> None:
    network = Network().to(dtype)
    network.register_buffer("scale", torch.ones(2, dtype=dtype))
    network.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
    network.register_buffer("steps", torch.tensor(3))
    network.offset = torch.ones(1, dtype=dtype)
    weight = network.head.weight
    assert to_float32(network) == f"Network has weights in {str(dtype).removeprefix('torch.')}; it runs in float32"
    assert network.head.weight is weight
    types = {key: value.dtype for key, value in network.state_dict().items() if value.dtype != torch.float32}
    assert types == {"phase": torch.complex64, "steps": torch.int64}
    assert network.offset.dtype == torch.float32
    assert network(torch.rand(1, 4)).dtype == torch.float32
    assert to_float32(network) is None


def test_lazy_weights_stay_as_they_are() -> None:
    network = nn.Sequential(nn.LazyLinear(3))
    assert to_float32(network) is None
    assert network(torch.rand(2, 5)).shape == (2, 3)


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"weights without values, on the meta device: blocks.0.linear.weight"):
        to_float32(Network().to("meta"))


def test_settings_of_the_process_are_given_back() -> None:
    with settings_kept():
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).device.type == "cpu"
    assert torch.is_grad_enabled()
