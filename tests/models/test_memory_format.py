"""4-D weights come into the asked memory format, all others stay, whatever their dimensions."""

from __future__ import annotations

import copy

import torch
from torch import nn

from consensus_cli.models.copying import to_layout
from consensus_cli.models.resnet import resnet


def test_it_is_what_pytorch_does_where_that_works() -> None:
    network = resnet(20)
    expected = copy.deepcopy(network).to(memory_format=torch.channels_last)
    assert to_layout(network, torch.channels_last) is network
    for name, tensor in network.state_dict().items():
        assert tensor.stride() == expected.state_dict()[name].stride(), name
        assert torch.equal(tensor, expected.state_dict()[name])


def test_weights_of_five_dimensions_and_lazy_ones_stay() -> None:
    network = nn.ModuleDict({"flat": nn.Conv2d(4, 4, 3), "deep": nn.Conv3d(4, 4, 3), "lazy": nn.LazyConv2d(4, 3)})
    strides = network["deep"].weight.stride()
    to_layout(network, torch.channels_last)
    assert network["flat"].weight.is_contiguous(memory_format=torch.channels_last)
    assert network["deep"].weight.stride() == strides
    to_layout(network, torch.contiguous_format)
    assert network["flat"].weight.is_contiguous()


def test_tied_weights_stay_tied() -> None:
    first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    second.weight = first.weight
    to_layout(nn.Sequential(first, second), torch.channels_last)
    assert second.weight is first.weight
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
