"""Which parts of a network count as residual blocks, and which of those can go."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.authors_network import CANDIDATES, AuthorsNetwork
from helpers.residual_networks import (
    WIDTH,
    AddsElsewhere,
    Aliased,
    AttentionLayer,
    BiasedLayer,
    BorrowingNet,
    ChangesLayout,
    ClassToken,
    DavidNet,
    DropsShortcut,
    FixedAttention,
    GlobalSkip,
    HalvedBranch,
    InMapping,
    InPlaceStageNet,
    InTuple,
    InWindows,
    Lucid,
    MappingNet,
    Mirrored,
    Net,
    NormalisedShortcut,
    Numbered,
    OpenNet,
    OverwritesInput,
    OverwritesView,
    PairBlock,
    Paired,
    PairNet,
    PreActivation,
    ReadingNet,
    ReadsBlocks,
    Remembers,
    Residual,
    ScaledShortcut,
    SecondInput,
    StageNet,
    SummaryNet,
    SumOfList,
    ThenPReLU,
    TokenNet,
    TupleNet,
    WithSize,
    encoder,
)
from helpers.surgery_checks import check_removal, check_round_trip
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.models.macs import count_macs
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning.blocks import Block, candidates, check_candidates, find_blocks
from consensus_cli.pruning.schedule import block_costs
from consensus_cli.pruning.surgery import remove_blocks

IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def reasons(network: nn.Module, granularity: str = "block") -> dict[str, str]:
    return {block.name: block.reason for block in find_blocks(network, IMAGE, granularity)}


@pytest.mark.parametrize(("depth", "blocks", "expected"), [(20, 9, 6), (56, 27, 24), (110, 54, 51)])
def test_cifar_resnets(depth: int, blocks: int, expected: int) -> None:
    found = find_blocks(resnet(depth), IMAGE)
    assert len(found) == blocks
    names = [block.name for block in candidates(found)]
    assert names == [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(1, expected // 3 + 1)]


def test_what_is_said_of_a_block() -> None:
    found = find_blocks(resnet(20), torch.rand(3, 3, 32, 32))
    assert found[1] == Block("layer1.1", 0, (16, 32, 32), True)
    assert found[0] == Block("layer1.0", 0, (16, 32, 32), False, "first block of stage 1")
    assert found[3] == Block("layer2.0", 1, (32, 16, 16), False, "changes the shape: first block of stage 2")


def test_the_authors_network() -> None:
    found = find_blocks(AuthorsNetwork(), torch.rand(1, 3, 32, 32))
    assert [block.name for block in found] == [f"blocks.{i}" for i in range(27)]
    assert [block.name for block in candidates(found)] == [f"blocks.{i}" for i in CANDIDATES]


@pytest.mark.parametrize("block", [Residual, PreActivation, AddsElsewhere])
def test_ways_to_write_a_block(block: type[nn.Module]) -> None:
    network = Net(block(), block(), block())
    found = candidates(find_blocks(network, IMAGE))
    assert [b.name for b in found] == ["blocks.1", "blocks.2"]
    for b in found:
        check_removal(network, b, IMAGES)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: Net(*(SumOfList() for _ in range(3))), ["blocks.1", "blocks.2"]),
        (lambda: Net(*(ThenPReLU() for _ in range(3))), ["blocks.1", "blocks.2"]),
        (lambda: TupleNet(*(InTuple() for _ in range(3))), ["blocks.1[1of1]", "blocks.2[1of1]"]),
        (lambda: TupleNet(*(WithSize() for _ in range(3))), ["blocks.1[1of2]", "blocks.2[1of2]"]),
        (lambda: Numbered(*(Residual() for _ in range(4))), ["blocks.1", "blocks.2", "blocks.3"]),
        (lambda: Paired(*(Residual() for _ in range(4))), ["blocks.1", "blocks.2", "blocks.3"]),
        (Aliased, ["backbone.blocks.1", "backbone.blocks.2"]),
        (lambda: PairNet(*(PairBlock() for _ in range(3))), ["blocks.1+branch", "blocks.2+branch"]),
        (lambda: MappingNet(*(InMapping() for _ in range(3))), ["blocks.1+branch", "blocks.2+branch"]),
        (ChangesLayout, ["blocks.1", "blocks.2", "blocks.3"]),
        (lambda: Net(*(InWindows() for _ in range(3))), ["blocks.1", "blocks.2"]),
        (lambda: TokenNet(*(ClassToken() for _ in range(3))), ["layers.1", "layers.2"]),
        (lambda: SummaryNet(*(SecondInput() for _ in range(3))), ["layers.1+mix", "layers.2+mix"]),
        (StageNet, ["body+layers.1", "body+layers.2", "body+layers.3"]),
        (
            InPlaceStageNet,
            ["body+convolutions.1+norms.1", "body+convolutions.2+norms.2", "body+convolutions.3+norms.3"],
        ),
    ],
)
def test_ways_to_hold_and_to_call_blocks(network: Callable[[], nn.Module], expected: list[str]) -> None:
    built = network()
    found = candidates(find_blocks(built, IMAGES))
    assert [block.name for block in found] == expected
    for block in found:
        check_removal(built, block, IMAGES)
    check_round_trip(built, expected, IMAGES)


def test_without_a_block_of_a_pair_the_gains_stay_with_their_blocks() -> None:
    network = Paired(*(Residual() for _ in range(4))).eval()
    silent = copy.deepcopy(network)
    for parameter in silent.blocks[1].branch[1].parameters():
        nn.init.zeros_(parameter)
    remove_blocks(network, ["blocks.1"])
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES), silent(IMAGES))


def test_a_block_that_the_network_looks_into_stays() -> None:
    said = reasons(ReadsBlocks(*(Residual() for _ in range(3))))
    assert "AttributeError" in said["blocks.1"]
    assert "'branch'" in said["blocks.1"]
    with pytest.raises(UserError, match="none of the 3 residual blocks"):
        check_candidates(find_blocks(ReadsBlocks(*(Residual() for _ in range(3))), IMAGE))


class ListedElsewhere(Net):
    """Runs its blocks out of a plain list, which a removal does not reach."""

    def __init__(self) -> None:
        super().__init__(*(Residual() for _ in range(3)))
        self.listed = list(self.blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.listed:
            x = block(x)
        return self.head(x.mean((2, 3)))


def test_a_block_that_runs_although_it_is_bypassed_stays() -> None:
    assert reasons(ListedElsewhere())["blocks.1"].startswith("its modules run without it as well")


class Caches(Residual):
    """Keeps what it computes from its weights at the first forward pass in eval mode."""

    kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training or self.kept is None:
            self.kept = self.branch[0].weight.sum()
        return super().forward(x) * self.kept


def test_the_network_itself_never_runs() -> None:
    """It may keep what it computes at first, from weights that are replaced later."""
    network = Net(Residual(), Caches(), Residual())
    find_blocks(network, IMAGES)
    assert network.blocks[1].kept is None


@pytest.mark.parametrize("block", [OverwritesInput, OverwritesView])
def test_a_block_that_overwrites_its_input(block: type[nn.Module]) -> None:
    network = Net(block(), block(), Residual())
    assert reasons(network) == {"blocks.0": "first block of stage 1", "blocks.1": "", "blocks.2": ""}
    remove_blocks(network, ["blocks.1"], IMAGES)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Net(Residual(), ScaledShortcut(), Residual()), "its shortcut is not the identity"),
        (lambda: Net(Residual(), Mirrored(), Residual()), "its shortcut is not the identity"),
        (lambda: PairNet(Residual(), PairBlock(), Residual(), reads=1), "returns 2 values, not one tensor"),
        (lambda: ReadingNet(Residual(), Remembers(), Residual()), "its intermediate results are used outside of it"),
        (lambda: BorrowingNet(*(Residual() for _ in range(3))), "its module blocks.1.branch also runs outside of it"),
        (lambda: Net(Residual(), *[Residual()] * 2, Residual()), "runs 2 times in one forward pass"),
    ],
)
def test_a_block_whose_removal_changes_results_elsewhere_stays(build: Callable[[], nn.Module], reason: str) -> None:
    said = reasons(build())
    assert [why.partition("; its branch can go")[0] for why in said.values()] == ["first block of stage 1", reason, ""]
    assert list(said)[1] == "blocks.1"


@pytest.mark.parametrize("block", [ScaledShortcut, NormalisedShortcut])
def test_where_the_shortcut_is_not_the_identity_the_branch_can_go(block: type[nn.Module]) -> None:
    network = Net(*(block() for _ in range(3)))
    assert reasons(network)["blocks.1"] == (
        "its shortcut is not the identity; its branch can go by itself: prune.granularity=branch"
    )
    names = [found.name for found in candidates(find_blocks(network, IMAGES, "branch"))]
    assert names == ["blocks.1+branch", "blocks.2+branch"]
    check_round_trip(network, names, IMAGES)


def test_parameters_that_blocks_share_stay_with_the_other_block() -> None:
    """As the position encodings of CoaT do, which all blocks of a stage use."""
    one, two = Residual(), Residual()
    two.branch[0].weight = one.branch[0].weight
    network = Net(Residual(), one, two, Residual())
    before = sum(parameter.numel() for parameter in network.parameters())
    assert [block.name for block in candidates(find_blocks(network, IMAGE))] == ["blocks.1", "blocks.2", "blocks.3"]
    check_round_trip(network, ["blocks.1"], IMAGES)
    remove_blocks(network, ["blocks.1"], IMAGES)
    shared = one.branch[0].weight.numel()
    own = sum(parameter.numel() for parameter in one.parameters()) - shared
    assert sum(parameter.numel() for parameter in network.parameters()) == before - own
    remove_blocks(network, ["blocks.2"], IMAGES)
    assert sum(parameter.numel() for parameter in network.parameters()) == before - 2 * own - shared


def test_a_block_all_of_which_is_shared_stays() -> None:
    network = Net(*(Residual() for _ in range(3)))
    network.extra = network.blocks[1].branch
    assert reasons(network)["blocks.1"].startswith("shares all its parameters")


def test_dropout_that_never_drops_is_an_identity() -> None:
    assert reasons(Net(Residual(), DropsShortcut(0.0)))["blocks.1"] == ""


def test_a_scaled_addition_is_no_residual_block() -> None:
    assert list(reasons(Net(Residual(), HalvedBranch(), Residual()))) == ["blocks.0", "blocks.2"]


def test_additions_in_the_forward_of_the_network_itself() -> None:
    network = DavidNet()
    assert reasons(network) == {
        "+res1": "first block of stage 1",
        "+res2": "",
        "+res3": "first block of stage 2",
        "+res4": "",
        "+res5": "its branch is not what a module returns",
    }
    for block in candidates(find_blocks(network, IMAGE)):
        check_removal(network, block, IMAGES)
    check_round_trip(network, ["+res4", "+res2"], IMAGES)


def test_a_branch_that_runs_twice_stays() -> None:
    assert reasons(OpenNet()) == {
        "+once": "first block of stage 1",
        "+twice": "runs 2 times in one forward pass",
        "+last": "",
    }


def test_a_module_that_holds_many_blocks_without_a_module_of_their_own() -> None:
    network = TokenNet(Lucid(depth=2))
    names = [block.name for block in candidates(find_blocks(network, IMAGE))]
    assert names == ["layers.0+layers.0.1", "layers.0+layers.1.0", "layers.0+layers.1.1"]
    check_round_trip(network, names, IMAGES)


def test_blocks_inside_a_longer_shortcut() -> None:
    said = reasons(GlobalSkip())
    assert said == {
        "body.0": "first block of stage 1",
        "body.1": "",
        "body.2": "",
        "+body": "holds residual blocks of its own",
    }


def test_branches_of_an_encoder_layer() -> None:
    network = TokenNet(FixedAttention(), FixedAttention())
    assert [block.name for block in candidates(find_blocks(network, IMAGE))] == ["layers.1"]
    said = reasons(network, "branch")
    assert said.pop("layers.1+norm1+attention[1of2]").startswith("the code around it needs its modules (AttributeError")
    assert said == {
        "layers.0+norm1+attention[1of2]": "first block of stage 1",
        "layers.0+norm2+up+down": "first block of stage 1",
        "layers.1+norm2+up+down": "",
    }
    check_removal(network, candidates(find_blocks(network, IMAGE, "branch"))[0], IMAGES)


def test_a_branch_that_calls_a_module_without_tensors() -> None:
    network = TokenNet(BiasedLayer(), BiasedLayer())
    assert [block.name for block in candidates(find_blocks(network, IMAGE))] == ["layers.1"]
    said = reasons(network, "branch")
    assert said["layers.1+bias+mix"].startswith("the code around it needs its modules")
    assert said["layers.1+mlp"] == ""


def test_a_branch_that_takes_one_of_two_values() -> None:
    network = TokenNet(AttentionLayer(), AttentionLayer())
    found = candidates(find_blocks(network, IMAGE, "branch"))
    assert [block.name for block in found] == ["layers.1+norm+attention[1of2]", "layers.1+mlp"]
    for block in found:
        check_removal(network, block, IMAGES)
    check_round_trip(network, [block.name for block in found], IMAGES)


def test_encoder_layers_of_torch() -> None:
    assert reasons(TokenNet(encoder(True), encoder(True))) == {"layers.0": "first block of stage 1", "layers.1": ""}
    blocks = find_blocks(TokenNet(encoder(False), encoder(False)), IMAGE)
    with pytest.raises(UserError, match=r"none of the 4 residual blocks of .*\(the code around it needs"):
        check_candidates(blocks)


def test_unknown_granularity() -> None:
    with pytest.raises(UserError, match="unknown granularity 'layer'") as error:
        find_blocks(resnet(20), IMAGE, "layer")
    assert "block, branch" in error.value.hint


def test_the_network_is_left_as_it_was() -> None:
    network = TokenNet(FixedAttention(), FixedAttention())
    network.layers[1].eval()
    modes = [module.training for module in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.random.get_rng_state()
    find_blocks(network, IMAGE, "branch")
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled()


def test_costs_by_hand() -> None:
    """A 3×3 convolution of 4 channels on 8×8; linear layers on 16 tokens; norms have none."""
    network = Net(Residual(), Residual())
    costs = block_costs(count_macs(network, IMAGE), find_blocks(network, IMAGE))
    assert costs == dict.fromkeys(("blocks.0", "blocks.1"), WIDTH * WIDTH * 9 * 64)
    network = TokenNet(FixedAttention(), FixedAttention())
    costs = block_costs(count_macs(network, IMAGE), find_blocks(network, IMAGE, "branch"))
    tokens, hidden = 16, 3 * WIDTH
    assert costs["layers.1+norm2+up+down"] == tokens * 2 * WIDTH * hidden
    attention = tokens * 4 * WIDTH * WIDTH + 2 * tokens * tokens * WIDTH
    assert costs["layers.1+norm1+attention[1of2]"] == attention


@pytest.mark.parametrize(
    ("build", "granularity"),
    [
        (lambda: resnet(20), "block"),
        (InPlaceStageNet, "block"),
        (lambda: TokenNet(FixedAttention(), FixedAttention()), "branch"),
        (lambda: TokenNet(AttentionLayer(), AttentionLayer()), "branch"),
    ],
)
def test_what_is_left_costs_the_whole_less_the_costs_of_what_is_gone(
    build: Callable[[], nn.Module], granularity: str
) -> None:
    """A schedule of MACs reckons so, and does not count again after each removal."""
    network = build()
    blocks = find_blocks(network, IMAGE, granularity)
    count = count_macs(network, IMAGE)
    left, costs = count.total, block_costs(count, blocks)
    for block in candidates(blocks):
        remove_blocks(network, block)
        left -= costs[block.name]
        assert count_macs(network, IMAGE).total == left
