"""Layers behind removed blocks, fitted anew: what can be made up for is, whatever the layers look like."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

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
        "weights computed from others": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)),
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


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(input=x)


class Recorder(nn.Module):
    """Looks at what it hands on in a way that does not work with gradients."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.numpy().mean()
        return x


class Overwriting(nn.Module):
    """Normalises what it is given in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.4).div_(0.3)


@pytest.mark.parametrize("ends", [ByKeyword, lambda: nn.Sequential(nn.Conv2d(6, 6, 1), Recorder())])
def test_code_of_any_kind_around_a_layer(ends: Callable[[], nn.Module]) -> None:
    original = network(ends, functional.relu)
    pruned = remove(original, "2")
    without = error(pruned, original)
    assert len(refit(pruned, original, batches_of(images()))) == 3
    assert error(pruned, original) < without
    assert _get_current_dispatch_mode() is None


@pytest.mark.parametrize("replace", ["nothing", "linear"])
def test_images_that_the_network_overwrites_stay(replace: str) -> None:
    original = nn.Sequential(Overwriting(), *network(ENDS["1x1"]))
    pruned, names, given = remove(original, "3"), ["3"], images()
    if replace != "nothing":
        heal(pruned, original, names, lambda: [given], replace)
    refit(pruned, original, lambda: [given], maps=names if replace != "nothing" else ())
    assert torch.equal(given, images())


class Scaled(nn.Module):
    """Two branches that other code scales."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((8,), factor))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.factor * self.fc1(self.norm1(x))
        return x + self.factor * self.fc2(self.norm2(x))


@pytest.mark.parametrize("factor", [0.01, 0.3, -0.5])
def test_what_other_code_scales_makes_up_for_what_is_gone_all_the_same(factor: float) -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Flatten(2), nn.Linear(16, 8), *(Scaled(factor) for _ in range(3))).eval()
    for block in original[2:4]:
        nn.init.constant_(block.factor, 0.5)
    assert [block.name for block in find_blocks(original, images(2, 4), "branch")][2] == "3+norm1+fc1"
    pruned = remove(original, "3+norm1+fc1")
    tokens = images(64, 4, seed=2)

    def missed() -> float:
        with torch.no_grad():
            return float((pruned(tokens) - original(tokens)).norm())

    without, kept = missed(), copy.deepcopy(pruned)
    done = {each.layer: each for each in refit(pruned, original, batches_of(images(256, 4)))}
    # It is fitted to the sum itself: what that lacks shrinks by as much as the fit says.
    refitted, pruned[4].fc2 = pruned[4].fc2, kept[4].fc2
    before, pruned[4].fc2 = missed(), refitted
    assert done["4.fc2"].helps
    assert (missed() / before) ** 2 == pytest.approx(done["4.fc2"].left, rel=0.15)
    assert missed() < without


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
