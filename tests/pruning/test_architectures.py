"""Discovery and surgery on networks of torchvision and timm, of which the package knows nothing."""

from __future__ import annotations

import pytest
import torch
import torchvision
from helpers.surgery_checks import check_removal, check_round_trip, flops
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.models.macs import count_macs
from consensus_cli.pruning.blocks import candidates, check_candidates, find_blocks
from consensus_cli.pruning.schedule import block_costs
from consensus_cli.pruning.surgery import remove_blocks

TORCHVISION = {
    "resnet18": 4,
    "resnet34": 12,
    "resnet50": 12,
    "resnet101": 29,
    "wide_resnet50_2": 12,
    "resnext50_32x4d": 12,
    "regnet_y_400mf": 12,
    "mobilenet_v2": 10,
    "mobilenet_v3_small": 6,
    "mobilenet_v3_large": 9,
    "efficientnet_b0": 9,
    "efficientnet_v2_s": 34,
    "mnasnet1_0": 10,
    "convnext_tiny": 14,
    "vit_b_16": 11,
    "swin_t": 8,
    "swin_v2_t": 8,
}
NOT_RESIDUAL = [
    "alexnet",
    "densenet121",
    "googlenet",
    "inception_v3",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "vgg11_bn",
]
TIMM = {
    "regnetx_002": 9,
    "resnetv2_50": 12,
    "mobilenetv3_small_050": 7,
    "efficientnet_lite0": 9,
    "convnextv2_atto": 8,
    "poolformer_s12": 8,
    "edgenext_xx_small": 8,
    "cspdarknet53": 18,
    "mixer_s32_224": 7,
    "resmlp_12_224": 11,
    "vit_tiny_patch16_224": 11,
    "xcit_nano_12_p16_224": 11,
}
SIZED = {"mixer_s32_224", "resmlp_12_224", "vit_tiny_patch16_224", "xcit_nano_12_p16_224"}
BRANCHES = {"vit_b_16": 22, "swin_t": 16, "convnext_tiny": 14}
SIZE = 64


def torchvision_network(name: str) -> nn.Module:
    options: dict[str, object] = {"num_classes": 10}
    if name == "vit_b_16":
        options["image_size"] = SIZE
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return torchvision.models.get_model(name, weights=None, **options)


def timm_network(name: str) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    options = {"img_size": SIZE} if name in SIZED else {}
    return timm.create_model(name, pretrained=False, num_classes=10, **options)


def images(samples: int = 2, size: int = SIZE) -> torch.Tensor:
    return torch.rand(samples, 3, size, size, generator=torch.Generator().manual_seed(0))


def count(network: nn.Module) -> int:
    """Counts candidates without computing: on the meta device, tensors have a shape only."""
    found = candidates(find_blocks(network, torch.empty(1, 3, SIZE, SIZE, device="meta")))
    assert len({block.name for block in found}) == len(found)
    return len(found)


def check_last(network: nn.Module, granularity: str = "block") -> None:
    found = candidates(find_blocks(network, images(1), granularity))
    check_removal(network, found[-1], images())
    check_round_trip(network, [found[-1].name, found[0].name], images(1))


def check_all(network: nn.Module, granularity: str = "block") -> None:
    found = candidates(find_blocks(network, images(1), granularity))
    for block in found:
        check_removal(network, block, images())
        check_round_trip(network, [block.name], images(1))
    check_round_trip(network, [block.name for block in found], images(1))


@pytest.mark.parametrize("name", TORCHVISION)
def test_candidates_of_torchvision(name: str) -> None:
    # RegNet computes its widths with tensors, which meta tensors cannot
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = torchvision_network(name).to("meta")
    assert count(network) == TORCHVISION[name]


@pytest.mark.parametrize("name", TIMM)
def test_candidates_of_timm(name: str) -> None:
    assert count(timm_network(name).to("meta")) == TIMM[name]


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "mobilenet_v2", "efficientnet_b0", "swin_t"])
def test_last_block_of_torchvision(name: str) -> None:
    check_last(torchvision_network(name))


@pytest.mark.parametrize("name", ["convnextv2_atto", "vit_tiny_patch16_224"])
def test_last_block_of_timm(name: str) -> None:
    check_last(timm_network(name))


def test_branches_of_swin() -> None:
    network = torchvision_network("swin_t")
    # With PyTorch before 2.9 two of them, which shift their windows, end at a module that both branches use.
    expected = BRANCHES["swin_t"] - (2 if torch.__version__ < torch.torch_version.TorchVersion("2.9") else 0)
    assert len(candidates(find_blocks(network, images(1), "branch"))) == expected
    check_last(network, "branch")


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_every_block_of_torchvision(name: str) -> None:
    check_all(torchvision_network(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", BRANCHES)
def test_every_branch_of_torchvision(name: str) -> None:
    network = torchvision_network(name)
    assert len(candidates(find_blocks(network, images(1), "branch"))) == BRANCHES[name]
    check_all(network, "branch")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_every_block_of_timm(name: str) -> None:
    check_all(timm_network(name))


@pytest.mark.parametrize("name", NOT_RESIDUAL)
def test_a_network_without_residual_blocks_is_an_error(name: str) -> None:
    size = 75 if name == "inception_v3" else SIZE
    with torch.device("meta"):
        network = torchvision_network(name)
    with pytest.raises(UserError, match="has no residual blocks") as error:
        find_blocks(network, torch.empty(1, 3, size, size, device="meta"))
    assert "identity shortcut" in error.value.hint


def test_a_network_with_projections_only_is_an_error() -> None:
    blocks = find_blocks(timm_network("repvgg_a0"), images(1))
    with pytest.raises(UserError, match="none of the 22 residual blocks of the network can be removed"):
        check_candidates(blocks)


def test_removing_every_candidate_keeps_the_names_and_the_class() -> None:
    network = torchvision_network("resnet18")
    check_round_trip(network, ["layer1.1", "layer2.1", "layer3.1", "layer4.1"], images(1))
    names = set(network.state_dict())
    remove_blocks(network, ["layer4.1", "layer2.1"])
    assert names - set(network.state_dict()) == {n for n in names if n.startswith(("layer4.1.", "layer2.1."))}
    assert type(network) is torchvision.models.ResNet


def test_blocks_without_shortcut_count_in_their_stage() -> None:
    blocks = find_blocks(torchvision_network("mobilenet_v2"), images(1))
    kept = {block.name: block.reason for block in blocks if not block.removable}
    assert kept["features.4"] == "changes the shape: first block of stage 3"
    assert [block.stage for block in blocks if block.name in ("features.4", "features.5", "features.6")] == [2, 2, 2]


def test_macs_of_the_blocks_of_resnet50() -> None:
    """7 or 8 of the 12 candidates are 37.38 % or 42.72 % of 4.09 G MACs: all cost the same."""
    network, image = torchvision.models.resnet50(weights=None).eval(), images(1, 224)
    total_macs = flops(network, image) // 2
    costs = list(block_costs(count_macs(network, image), candidates(find_blocks(network, image))).values())
    assert round(total_macs / 1e9, 2) == 4.09
    assert len(set(costs)) == 1
    assert [round(100 * sum(costs[:n]) / total_macs, 2) for n in (7, 8)] == [37.38, 42.72]
