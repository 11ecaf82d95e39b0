"""Taking blocks out, and putting them back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers.authors_network import CANDIDATES, REFERENCE, golden_images, needs_reference, trained
from helpers.surgery_checks import check_round_trip, flops
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.models.classifier import normalized
from consensus_cli.models.macs import count_macs
from consensus_cli.models.resnet import BasicBlock, resnet
from consensus_cli.pruning.blocks import candidates, find_blocks
from consensus_cli.pruning.schedule import block_costs
from consensus_cli.pruning.surgery import InTuple, Nothing, Shortcut, bypassed, parts_of, remove_blocks

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_shortcut_and_zeroed_batch_norm_give_the_same_output() -> None:
    network = resnet(20).eval()
    for block in candidates(find_blocks(network, IMAGES)):
        zeroed = copy.deepcopy(network)
        for parameter in zeroed.get_submodule(block.name).bn2.parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad(), bypassed(network, block):
            assert torch.equal(zeroed(IMAGES), network(IMAGES))


def test_macs_of_resnet56() -> None:
    """125.75 M MACs, and −3.7525 % with any block (to the third decimal: the paper's figure is rounded up)."""
    network, image = resnet(56).eval(), torch.rand(1, 3, 32, 32)
    blocks = candidates(find_blocks(network, image))
    by_fvcore = FlopCountAnalysis(network, image).unsupported_ops_warnings(False).by_operator()
    total_macs = flops(network, image) // 2
    assert total_macs == by_fvcore["conv"] + by_fvcore["linear"] == 125_747_840
    assert set(block_costs(count_macs(network, image), blocks).values()) == {4_718_592}
    assert 100 * 4_718_592 / total_macs == pytest.approx(3.7525, abs=1e-4)
    for block in (blocks[0], blocks[-1]):
        with bypassed(network, block):
            assert flops(network, image) // 2 == total_macs - 4_718_592


def test_a_block_is_gone_and_the_others_keep_their_names_and_places() -> None:
    network = resnet(20)
    names = [name for name in network.state_dict() if not name.startswith("layer2.1.")]
    remove_blocks(network, ["layer2.1"], IMAGES)
    assert list(network.state_dict()) == names
    assert [type(block) for block in network.layer2] == [BasicBlock, Shortcut, BasicBlock]
    assert not list(network.layer2[1].state_dict())


def test_rebuilding_from_names() -> None:
    names = ["layer3.2", "layer1.1", "layer1.2"]
    check_round_trip(resnet(20), names, IMAGES)
    network = resnet(20)
    remove_blocks(network, names)
    assert [block.name for block in candidates(find_blocks(network, IMAGES))] == ["layer2.1", "layer2.2", "layer3.1"]


def test_a_shortcut_returns_its_first_tensor() -> None:
    x, y = torch.rand(2, 3), torch.rand(2, 3)
    assert Shortcut()(x, y, mask=None) is x
    assert Shortcut()(hidden=x, mask=y) is x


def test_in_a_tuple_the_other_values_are_what_the_block_was_called_with() -> None:
    x, mask, size = torch.rand(2, 3), torch.rand(2), (4, 4)
    for module in (Shortcut(), Nothing()):
        features = module(x)
        for expected, found in (
            ((features,), InTuple(module, 1, 1)(x, mask)),
            ((features, size), InTuple(module, 1, 2)(x, size)),
            ((features, None, size, None), InTuple(module, 1, 4)(x, mask, size)),
            ((features, None), InTuple(module, 1, 2)(hidden=x)),
            ((None, features), InTuple(module, 2, 2)(x, mask)),
        ):
            assert [value is None for value in found] == [value is None for value in expected]
            assert torch.equal(next(v for v in found if isinstance(v, torch.Tensor)), features)
            assert [v for v in found if isinstance(v, tuple)] == [v for v in expected if isinstance(v, tuple)]


@pytest.mark.parametrize("name", ["layer1.1", "layer1.1+conv1+bn1"])
def test_bypassing_restores_the_very_modules(name: str) -> None:
    network = resnet(20).eval()
    modules, names = list(network.modules()), list(network.state_dict())
    with torch.no_grad():
        expected = network(IMAGES)
        with bypassed(network, name):
            assert not torch.equal(network(IMAGES), expected)
        with pytest.raises(RuntimeError, match="inside"), bypassed(network, name):
            raise RuntimeError("inside")
        assert torch.equal(network(IMAGES), expected)
    assert all(a is b for a, b in zip(network.modules(), modules, strict=True))
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("name", ["layer1.7", "layer1.1+conv7", "", "layer4+conv1[1of2]"])
def test_a_name_that_the_network_does_not_have(name: str) -> None:
    network = resnet(20)
    before = list(network.state_dict())
    for take_out in (lambda n, b: remove_blocks(n, ["layer1.1", b]), lambda n, b: bypassed(n, b).__enter__()):
        with pytest.raises(UserError, match="unknown block") as error:
            take_out(network, name)
        assert error.value.hint.endswith("find_blocks(model, example) names its blocks")
        assert error.value.hint.count("'") <= 6
        assert name != "layer1.7" or error.value.hint.startswith("did you mean 'layer1.")
    assert list(network.state_dict()) == before


def test_a_removal_that_removes_nothing_is_refused() -> None:
    network = resnet(20)
    with pytest.raises(UserError, match="relu has no parameters to remove"):
        remove_blocks(network, ["relu"])
    remove_blocks(network, "layer1.1")
    with pytest.raises(UserError, match=r"layer1\.1 has no parameters") as error:
        remove_blocks(network, ["layer1.2", "layer1.1"])
    assert "gone already" in error.value.hint
    assert isinstance(network.layer1[2], BasicBlock)


def test_a_block_that_cannot_go_is_refused_with_its_reason() -> None:
    network = resnet(20)
    first = find_blocks(network, IMAGES)[3]
    with pytest.raises(
        UserError, match=r"block layer2\.0 cannot be removed: changes the shape: first block of stage 2"
    ):
        remove_blocks(network, [first])


def test_a_wrapped_network_is_pruned_by_the_names_of_the_network_in_it() -> None:
    network = resnet(20).train()
    network.layer1.eval()
    model = normalized(network, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2])
    modes = [module.training for module in model.modules()]
    assert modes[:2] == [True, True]
    assert modes.count(False) == len(list(network.layer1.modules()))
    blocks = find_blocks(model, IMAGES)
    assert blocks == find_blocks(network, IMAGES)
    assert [module.training for module in model.modules()] == modes
    remove_blocks(model, [*candidates(blocks)[:2], "layer1.1", "layer3.2"], IMAGES)
    assert [name for name in ("layer1.1", "layer1.2", "layer3.2") if network.get_submodule(name).training] == [
        "layer3.2"
    ]
    assert all(isinstance(network.get_submodule(name), Shortcut) for name in ("layer1.1", "layer1.2", "layer3.2"))


def test_names_of_branches() -> None:
    assert parts_of("layer1.1") == ("layer1.1",)
    assert parts_of("layer.1[1of2]") == ("layer.1",)
    assert parts_of("+res1") == ("res1",)
    assert parts_of("a.b+norm+c.attention[1of2]") == ("a.b.norm", "a.b.c.attention")


@needs_reference
def test_golden_representations_without_each_block() -> None:
    """Features of the paper's authors' network without a block, as computed by their own code."""
    network, samples = trained(), 4
    golden = np.load(REFERENCE / "base_features.npz")
    original, ablated = (golden[name][..., :samples, :] for name in ("original", "ablated"))
    x = golden_images(samples)[:samples]
    with torch.no_grad():
        np.testing.assert_allclose(network.features(x).numpy(), original, rtol=1e-3, atol=1e-4)
        for i, block in enumerate(CANDIDATES):
            with bypassed(network, f"blocks.{block}"):
                found = network.features(x).numpy()
            np.testing.assert_allclose(found, ablated[i], rtol=1e-3, atol=1e-4)
