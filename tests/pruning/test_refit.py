"""Layers behind removed blocks, fitted anew: what can be made up for is, whatever the layers look like."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from consensus_cli.models.macs import count_macs
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning import find_blocks, remove_blocks
from consensus_cli.pruning.healing import heal
from consensus_cli.pruning.refit import refit
from consensus_cli.pruning.replacement import ChannelMap


class Block(nn.Module):
    """A residual block with an end of one's choice."""

    def __init__(self, branch: nn.Module, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.branch, self.activation = branch, activation

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.branch(x)
        return y if self.activation is None else self.activation(y)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.1, 0.9, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class ToTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ToMaps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class Normalized(nn.Conv2d):
    """Its weights are computed anew in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight / self.weight.norm(), self.bias, padding=self.padding)


def trained_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width)
    with torch.no_grad():
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
    return norm


#: ends of a branch: what is fitted is the last convolution or linear layer
ENDS: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: nn.Conv2d(6, 6, 1),
    "3x3": lambda: nn.Conv2d(6, 6, 3, padding=1),
    "before batch norm": lambda: nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), trained_norm(6)),
    "with a bias before batch norm": lambda: nn.Sequential(nn.Conv2d(6, 6, 1), trained_norm(6)),
    "scaled tokens": lambda: nn.Sequential(ToTokens(), nn.Linear(6, 6), LayerScale(6), ToMaps()),
}


def network(ends: Callable[[], nn.Module], activation: Callable[[Tensor], Tensor] | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        Block(nn.Conv2d(6, 6, 1)),
        Block(nn.Conv2d(6, 6, 1)),
        Block(ends(), activation),
        Block(ends(), activation),
    ]
    stem = nn.Conv2d(3, 6, 3, padding=1)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()


def images(count: int = 64, size: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batches_of(all_images: Tensor, size: int = 16) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(all_images.split(size))


def remove(original: nn.Module, *names: str) -> nn.Module:
    pruned = copy.deepcopy(original)
    remove_blocks(pruned, names)
    return pruned


def error(pruned: nn.Module, original: nn.Module) -> float:
    with torch.no_grad():
        return float((pruned(images(seed=2)) - original(images(seed=2))).norm())


@pytest.mark.parametrize("activation", [None, functional.relu, nn.ReLU(inplace=True)])
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_the_next_block_makes_up_for_a_linear_one_that_is_gone(
    ends: Callable[[], nn.Module], activation: Callable[[Tensor], Tensor] | None
) -> None:
    original = network(ends, activation)
    pruned = remove(original, "2")
    without, macs = error(pruned, original), count_macs(pruned, images(1)).total
    done = refit(pruned, original, batches_of(images()))
    assert [each.layer.partition(".")[0] for each in done] == ["3", "4", "7"]
    assert done[0].left < 0.05
    assert error(pruned, original) < 0.1 * without
    assert count_macs(pruned, images(1)).total == macs
    assert pruned.state_dict().keys() == remove(original, "2").state_dict().keys()


def test_batch_norm_gives_the_same_by_its_own_statistics_as_by_those_of_a_batch() -> None:
    """So that training begins where the network stands."""
    original = network(ENDS["before batch norm"])
    pruned = remove(original, "2")
    refit(pruned, original, batches_of(images(256)))
    seen: list[Tensor] = []
    norm = pruned[3].branch[1]
    hook = norm.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    with hook, torch.no_grad():
        pruned(images(256))
        norm.train()
        pruned(images(256))
    torch.testing.assert_close(*seen, atol=2e-3, rtol=1e-2)


def test_layers_in_front_of_the_first_removed_block_stay() -> None:
    original = network(ENDS["1x1"])
    pruned = remove(original, "3")
    refit(pruned, original, batches_of(images()))
    assert torch.equal(pruned[1].branch.weight, original[1].branch.weight)
    assert not torch.equal(pruned[4].branch.weight, original[4].branch.weight)
    whole = copy.deepcopy(original)
    assert refit(whole, original, batches_of(images())) == []


def test_layers_that_are_not_what_they_seem_are_left_alone() -> None:
    shared = nn.Conv2d(6, 6, 1)
    ends = {
        "weights computed anew": lambda: Normalized(6, 6, 1),
        "groups": lambda: nn.Conv2d(6, 6, 1, groups=2),
        "shared": lambda: shared,
    }
    for what, end in ends.items():
        original = network(end)
        pruned = remove(original, "2")
        kept = {name: value.clone() for name, value in pruned.state_dict().items() if not name.startswith("7")}
        done = refit(pruned, original, batches_of(images()))
        assert [each.layer for each in done] == ["7"], what
        assert all(torch.equal(pruned.state_dict()[name], value) for name, value in kept.items()), what


def test_an_end_that_is_bent_does_what_it_did_in_the_original() -> None:
    """Behind a ReLU nobody can say what the layer would have to return for the sum to be right."""
    original = network(lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()))
    pruned = remove(original, "2")
    without = error(pruned, original)
    assert [each.layer for each in refit(pruned, original, batches_of(images()))] == ["3.branch.0", "4.branch.0", "7"]
    assert error(pruned, original) < without


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_images_are_finite_and_a_fit_that_does_not_help_is_not_used(count: int) -> None:
    original = network(ENDS["3x3"], functional.relu)
    pruned = remove(original, "2")
    before = copy.deepcopy(pruned.state_dict())
    done = refit(pruned, original, batches_of(images(count, size=2)))
    for each in done:
        changed = not torch.equal(pruned.state_dict()[f"{each.layer}.weight"], before[f"{each.layer}.weight"])
        assert changed == each.helps
    assert pruned(images()).isfinite().all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_resnet_with_stages_gets_closer_and_its_maps_take_part(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    original = resnet(20).eval()
    names = [block.name for block in find_blocks(original, images(2, size=16)) if block.removable][:2]
    example = batches_of(images(96, size=16), 32)
    pruned = remove(original, *names)
    errors = [error(pruned, original)]
    healed = copy.deepcopy(pruned)
    done = refit(pruned, original, example, precision=precision)
    paths = [each.layer for each in done]
    assert paths[-3:] == ["layer3.2.conv1", "layer3.2.conv2", "fc"]
    # The shortcut's own layer comes first: conv2 makes up for what is left.
    assert paths.index("layer2.0.downsample.0") < paths.index("layer2.0.conv2")
    errors.append(error(pruned, original))
    assert errors[1] < 0.7 * errors[0]
    heal(healed, original, names, example, "linear", precision=precision)
    errors.append(error(healed, original))
    done = refit(healed, original, example, maps=names, precision=precision)
    assert [each.layer for each in done[:2]] == names
    assert all(isinstance(healed.get_submodule(name), ChannelMap) for name in names)
    assert error(healed, original) < errors[2] < errors[0]


def test_branches_of_a_transformer_are_fitted_in_turn() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    original = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, embed_dim=24, num_heads=3)
    original = original.eval()
    names = [block.name for block in find_blocks(original, images(2, size=32), "branch") if block.removable][:1]
    pruned = remove(original, *names)
    example = batches_of(images(64, size=32), 32)

    def missed() -> float:
        with torch.no_grad():
            return float((pruned(images(32, 32, seed=2)) - original(images(32, 32, seed=2))).norm())

    without = missed()
    done = refit(pruned, original, example)
    paths = [each.layer for each in done]
    assert paths[-5:] == [f"blocks.3.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")] + ["head"]
    assert missed() < 0.7 * without
