"""The CIFAR ResNets are those of He et al. (2016), with torchvision's state-dict names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.complexity import complexity
from consensus_cli.models import zoo
from consensus_cli.models.classifier import Classifier, Normalize
from consensus_cli.models.resnet import BLOCKS_PER_STAGE, resnet
from consensus_cli.models.spec import ModelSpec

SPEC = ModelSpec("cifar_resnet", "resnet20", num_classes=10)


@pytest.mark.parametrize("depth", BLOCKS_PER_STAGE)
def test_depth_counts_weighted_layers(depth: int) -> None:
    names = [name for name, p in resnet(depth).named_parameters() if p.ndim > 1 and "downsample" not in name]
    assert len(names) == depth


def test_state_dict_names_are_torchvisions() -> None:
    keys = set(resnet(20).state_dict())
    for key in ("conv1.weight", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer3.2.bn2.bias"):
        assert key in keys
    assert {"fc.weight", "layer2.0.downsample.1.running_mean"} <= keys
    assert not any(key.startswith("layer1.0.downsample") for key in keys)


def test_resnet56_macs_and_parameters() -> None:
    counted = complexity(resnet(56), (3, 32, 32))
    assert counted.macs == pytest.approx(125.75e6, rel=1e-4)
    assert counted.params == 855_770


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 32), (3, 33)])
def test_any_channels_and_sizes(channels: int, size: int) -> None:
    assert resnet(20, num_classes=7, in_channels=channels)(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_blocks_of_a_fresh_network_are_identities_with_zero_init_residual() -> None:
    features = torch.rand(2, 16, 8, 8)
    assert torch.equal(zoo.build(SPEC, 3).network.eval().layer1(features), features)
    without = zoo.build(replace(SPEC, kwargs={"zero_init_residual": False}), 3).network.eval()
    assert not torch.equal(without.layer1(features), features)


def test_an_unknown_argument_of_the_network_is_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"resnet20 cannot be built: .*width"):
        zoo.build(replace(SPEC, kwargs={"width": 64}), 3)


def test_normalisation_is_the_first_layer_and_no_part_of_the_weights() -> None:
    network = torch.nn.Identity()
    model = Classifier(Normalize((0.5, 0.25), (0.5, 0.25)), network)
    images = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    assert model(images).flatten().tolist() == [1.0, -1.0]
    assert model.state_dict() == {}
