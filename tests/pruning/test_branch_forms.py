"""Branches that end elsewhere than in a module with weights of their block's own, and noise on the shortcut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.residual_networks import WIDTH, DropsShortcut, Net, Residual, TokenNet, conv_bn
from helpers.surgery_checks import check_removal, check_round_trip
from torch import Tensor, nn

from consensus_cli.pruning.blocks import candidates, find_blocks
from consensus_cli.pruning.surgery import remove_blocks

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Output(nn.Module):
    """Forms the sum itself, as the last part of a layer of BERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(0.2)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.dropout(self.dense(x)) + shortcut


class SumInOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.up, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), Output()
        self.drop_path = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mix(self.norm1(x)))
        # Twice over: the branch and, as CvT of transformers does, all that the block returns.
        return self.drop_path(self.output(torch.relu(self.up(self.norm2(x))), x))


class ClassAttention(nn.Module):
    """Takes all tokens and returns the first."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.kv(x).chunk(2, dim=-1)
        return (self.q(x[:, :1]) @ keys.transpose(1, 2)).softmax(-1) @ values


class ClassBlock(nn.Module):
    """A block of the class token, beside which the others stay as they are, as those of VOLO."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp = ClassAttention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :1] + self.attention(self.norm1(x))
        first = first + self.mlp(self.norm2(first))
        return torch.cat([first, x[:, 1:]], dim=1)


class TwoStreams(nn.Module):
    """Adds to its summary what it makes of its tokens alone, as TNT does with pixels and patches."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.bridge, self.mlp = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, tokens: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens + self.mix(tokens)
        found = self.bridge(self.norm(tokens.mean(1, keepdim=True)))
        summary = torch.cat([summary[:, :1] + found, summary[:, 1:]], dim=1)
        return tokens, summary + self.mlp(summary)


class Aligns(TwoStreams):
    """Adds one to the other only to compare the two: no stream goes on from there."""

    def forward(self, tokens: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.sigmoid(
            self.mlp(torch.tanh(summary[:, :1] + self.bridge(self.norm(tokens.mean(1, keepdim=True)))))
        )
        tokens = tokens + self.mix(tokens)
        return tokens, summary * found


class Fuses(TwoStreams):
    """Two streams become one: without its branch, one of them would be lost."""

    def forward(self, tokens: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        return tokens + self.mix(tokens), self.fuse(summary, tokens.mean(1, keepdim=True))

    def fuse(self, summary: Tensor, tokens: Tensor) -> Tensor:
        return self.mlp(torch.tanh(self.norm(summary))) + self.bridge(tokens)


class StreamNet(TokenNet):
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        summary = tokens[:, :2].flip(1)
        for layer in self.layers:
            tokens, summary = layer(tokens, summary)
        return self.head(summary.mean(1))


class Pooled(nn.Module):
    """Mixes by pooling, which has no weights, as PoolFormer does."""

    def __init__(self, pooling: nn.Module | None = None) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Conv2d(WIDTH, WIDTH, 1), nn.GroupNorm(1, WIDTH)
        self.pooling = nn.AvgPool2d(3, 1, 1) if pooling is None else pooling
        self.mlp, self.scale = conv_bn(), nn.Parameter(torch.full((WIDTH, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.pooling(self.reduce(x))
        return x + self.scale * self.mlp(self.norm(x))


FORMS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "sum in a submodule": (
        lambda: TokenNet(*(SumInOutput() for _ in range(3))),
        [f"layers.{i}+{branch}" for i in (1, 2) for branch in ("norm1+mix", "norm2+up+output.dense")],
    ),
    "first token": (
        lambda: TokenNet(*(ClassBlock() for _ in range(3))),
        [f"layers.{i}+{branch}" for i in (1, 2) for branch in ("norm1+attention[:1]", "norm2+mlp")],
    ),
    "pooling": (
        lambda: Net(*(Pooled() for _ in range(3))),
        [f"blocks.{i}+{branch}" for i in (1, 2) for branch in ("reduce+pooling", "norm+mlp")],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_branch_and_each_block_can_go(form: str) -> None:
    make, names = FORMS[form]
    torch.manual_seed(0)
    network = make()
    assert [block.name for block in candidates(find_blocks(network, IMAGES))] == [
        names[0].partition("+")[0],
        names[2].partition("+")[0],
    ]
    branches = candidates(find_blocks(network, IMAGES, "branch"))
    assert [block.name for block in branches] == names
    for block in branches:
        check_removal(network, block, IMAGES)
    check_round_trip(network, names, IMAGES)


def test_without_its_branches_a_block_returns_what_it_is_given() -> None:
    """Zeros for all tokens would make the class token as many as there are."""
    block = ClassBlock().eval()
    network = TokenNet(block)
    remove_blocks(network, ["layers.0+norm1+attention[:1]", "layers.0+norm2+mlp"])
    x = torch.rand(2, 16, WIDTH)
    assert torch.equal(block(x), x)


def test_a_pooling_that_all_blocks_share_stays() -> None:
    pooling = nn.AvgPool2d(3, 1, 1)
    found = find_blocks(Net(*(Pooled(pooling) for _ in range(3))), IMAGES, "branch")
    assert {block.name: block.reason for block in found if not block.name.startswith("blocks.0")} == {
        "blocks.1+reduce+pooling": "runs 3 times in one forward pass",
        "blocks.1+norm+mlp": "",
        "blocks.2+reduce+pooling": "runs 3 times in one forward pass",
        "blocks.2+norm+mlp": "",
    }


class DropsSum(DropsShortcut):
    """Stochastic depth of all that the block returns."""

    def forward(self, x: Tensor) -> Tensor:
        return self.wrapper(x + self.branch(x))


@pytest.mark.parametrize("kind", [DropsShortcut, DropsSum])
def test_noise_on_the_shortcut_goes_with_the_block(kind: type[nn.Module]) -> None:
    network = Net(Residual(), kind(0.3), Residual())
    assert [block.name for block in candidates(find_blocks(network, IMAGES))] == ["blocks.1", "blocks.2"]
    remove_blocks(network, ["blocks.1"])
    network.train()
    assert torch.equal(network.blocks[1](IMAGES), IMAGES)


class DropsByKeyword(DropsSum):
    def forward(self, x: Tensor) -> Tensor:
        return self.wrapper.drop(input=x + self.branch(x))


def test_noise_may_come_from_one_module_of_all_blocks() -> None:
    blocks = [DropsByKeyword(0.3) for _ in range(4)]
    for block in blocks:
        block.wrapper = blocks[0].wrapper
    assert [block.name for block in candidates(find_blocks(Net(*blocks), IMAGES))] == [f"blocks.{i}" for i in (1, 2, 3)]


class Doubles(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.training else x


def test_what_a_shortcut_does_in_training_beside_noise_keeps_its_block() -> None:
    block = DropsSum(0.0)
    block.wrapper.drop = Doubles()
    found = find_blocks(Net(Residual(), block, Residual()), IMAGES)
    assert found[1].reason.startswith("its shortcut passes blocks.1.wrapper.drop, which acts in training only")


def test_a_branch_from_one_stream_to_another_can_go() -> None:
    torch.manual_seed(0)
    network = StreamNet(*(TwoStreams() for _ in range(3)))
    names = [f"layers.{i}+{branch}" for i in (1, 2) for branch in ("mix", "norm+bridge", "mlp")]
    branches = candidates(find_blocks(network, IMAGES, "branch"))
    assert [block.name for block in branches] == names
    # Without the last bridge, nothing reads the tokens of the last layer.
    for block in branches[:3]:
        check_removal(network, block, IMAGES)
    check_round_trip(network, names, IMAGES)


@pytest.mark.parametrize("layer", [Aligns, Fuses])
def test_a_sum_of_two_streams_that_neither_goes_on_from_is_no_branch(layer: type[nn.Module]) -> None:
    blocks = find_blocks(StreamNet(*(layer() for _ in range(3))), IMAGES, "branch")
    assert {block.name.partition("+")[2] for block in blocks} == {"mix"}
