"""Maps in place of removed blocks: exact where they can be, never worse than the shortcut, part of the network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from consensus_cli.models.macs import count_macs
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning import bypassed, find_blocks, remove_blocks
from consensus_cli.pruning.healing import RIDGE, fit_maps, heal, map_macs
from consensus_cli.pruning.least_squares import Moments
from consensus_cli.pruning.replacement import ChannelMap, MapForm, install_forms
from consensus_cli.pruning.surgery import put_in_place


class Linearised(nn.Module):
    """A block whose branch is linear per pixel, with a ReLU behind the addition where asked for."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.branch = nn.Conv2d(width, width, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.branch(x)
        return y if self.activation is None else self.activation(y)


class OverTokens(nn.Module):
    """A pre-norm layer of two branches, as a transformer's, whose branches are linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.first = nn.Identity(), nn.Linear(width, width)
        self.norm2, self.second = nn.Identity(), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(self.norm1(x))
        return x + self.second(self.norm2(x))


def maps_network(activation: Callable[[Tensor], Tensor] | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [Linearised(6, activation) for _ in range(4)]
    stem = nn.Conv2d(3, 6, 3, padding=1)
    return nn.Sequential(stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()


def images(count: int = 64, size: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batches_of(all_images: Tensor, size: int = 16) -> Callable[[], Iterator[Tensor]]:
    return lambda: iter(all_images.split(size))


@pytest.mark.parametrize("activation", [None, functional.relu, nn.ReLU(inplace=True), nn.ReLU6()])
def test_what_a_map_can_do_is_restored(activation: Callable[[Tensor], Tensor] | None) -> None:
    original = maps_network(activation)
    pruned = copy.deepcopy(original)
    remove_blocks(pruned, ["3", "4"])
    expected, without = original(images(seed=2)), pruned(images(seed=2))
    fits = heal(pruned, original, ["3", "4"], batches_of(images()), "linear")
    assert all(fit.left < 1e-3 for fit in fits.values())
    healed = pruned(images(seed=2))
    assert (healed - expected).abs().max() < 0.02 * (without - expected).abs().max()
    assert isinstance(pruned[3], ChannelMap)
    limits = {None: (None, None), nn.ReLU6: (0.0, 6.0)}.get(type(activation) if activation else None, (0.0, None))
    assert (pruned[3].form.low, pruned[3].form.high) == limits


def test_branches_of_a_layer_over_tokens_are_restored() -> None:
    torch.manual_seed(0)
    layers = [OverTokens(8) for _ in range(3)]
    original = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), *layers, nn.Flatten(), nn.Linear(8 * 7, 4)).eval()
    example = torch.rand(64, 7, 5)
    names = [block.name for block in find_blocks(original, example, "branch") if block.removable][:2]
    assert all("+" in name for name in names)
    pruned = copy.deepcopy(original)
    remove_blocks(pruned, names)
    without = pruned(example)
    heal(pruned, original, names, lambda: iter([example]), "linear")
    assert (pruned(example) - original(example)).abs().max() < 0.02 * (without - original(example)).abs().max()


def test_a_branch_that_is_scaled_outside_of_its_modules_gets_no_map() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 4)
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + 0.1 * self.one(x)
            return self.head(x + self.two(x))

    net = Net().eval()
    example = torch.rand(32, 5)
    fits = fit_maps(net, net, ["+one", "+two"], lambda: iter([example]), "linear")
    assert list(fits) == ["+two"]
    assert fits["+two"].left < 1e-3


def test_moments_add_up_to_ridge_regression() -> None:
    generator = np.random.default_rng(0)
    x, t = generator.normal(2, 3, (500, 4)), generator.normal(size=(500, 4))
    parts = [Moments(4, 4), Moments(4, 4)]
    for part, rows in zip(parts, np.array_split(np.arange(500), 2), strict=True):
        part.update(torch.tensor(x[rows]), torch.tensor(t[rows] - x[rows]))
    weight, bias = (parts[0] + parts[1]).fit(RIDGE)
    centred, d = x - x.mean(0), (t - x) - (t - x).mean(0)
    penalty = RIDGE * centred.var(0).mean() * 500
    expected = np.linalg.solve(centred.T @ centred + penalty * np.eye(4), centred.T @ d).T
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-9)
    left = ((t - x) - x @ expected.T - bias.numpy()) ** 2
    assert (parts[0] + parts[1]).error(weight, bias) == pytest.approx(left.sum(1).mean())
    factor, shift = (parts[0] + parts[1]).fit(RIDGE, per_channel=True)
    assert (parts[0] + parts[1]).error(factor, shift) == pytest.approx(
        (((t - x) - x * factor.numpy() - shift.numpy()) ** 2).sum(1).mean()
    )


@pytest.mark.parametrize("count", [1, 2, 9, 64])
def test_few_images_and_dead_channels_are_finite_and_never_worse(count: int) -> None:
    original = maps_network(functional.relu)
    with torch.no_grad():
        original[0].weight[:3].zero_()
        original[0].bias[:3].fill_(-1.0)
    pruned = copy.deepcopy(original)
    remove_blocks(pruned, ["3", "4"])
    few = images(count, size=1)
    for name, fit in heal(pruned, original, ["3", "4"], batches_of(few), "linear").items():
        assert fit.weight.isfinite().all()
        assert fit.bias.isfinite().all()
        assert isinstance(dict(pruned.named_modules())[name], ChannelMap) == fit.helps
    assert pruned(images()).isfinite().all()


def test_a_map_that_does_not_help_leaves_the_shortcut() -> None:
    """Where the block added nothing, there is nothing that a map could do better."""
    original = maps_network()
    pruned = copy.deepcopy(original)
    remove_blocks(pruned, ["3"])
    torch.manual_seed(0)
    with torch.no_grad():
        original[3].branch.weight.zero_()
        original[3].branch.bias.zero_()
    fits = heal(pruned, original, ["3"], batches_of(images()), "linear")
    assert not fits["3"].helps
    assert not isinstance(pruned[3], ChannelMap)
    put_in_place(pruned, "3", ChannelMap(MapForm("linear", 6, 1)))
    heal(pruned, original, ["3"], batches_of(images()), "linear")
    assert not isinstance(pruned[3], ChannelMap)


def test_maps_of_one_pass_are_those_of_one_block_at_a_time() -> None:
    original = resnet(20).eval()
    example = images(24, size=8)
    names = [block.name for block in find_blocks(original, example) if block.removable]
    together = fit_maps(original, original, names, batches_of(example), "linear")
    for name in names[:2]:
        alone = fit_maps(original, original, [name], batches_of(example, 24), "linear")[name]
        torch.testing.assert_close(together[name].weight, alone.weight, rtol=1e-6, atol=1e-9)
        assert together[name].left == pytest.approx(alone.left, rel=1e-6)


@pytest.mark.parametrize("kind", ["linear", "scale"])
@pytest.mark.parametrize("shape", [(2, 6, 3, 3), (2, 5, 6), (2, 6)])
def test_maps_begin_as_the_identity_and_change_the_channels_alone(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    axis = 1 if len(shape) == 4 else -1
    module = ChannelMap(MapForm(kind, 6, axis))
    torch.testing.assert_close(module(x), x)
    with torch.no_grad():
        module.weight.mul_(2)
        module.bias.fill_(1.0)
    torch.testing.assert_close(module(x), 2 * x + 1)
    assert module.train()(x).requires_grad


def test_the_macs_of_a_map_are_counted_and_foretold() -> None:
    original = resnet(20).eval()
    example = images(2, size=8)
    block = next(block for block in find_blocks(original, example) if block.name == "layer2.1")
    before, kept = count_macs(original, example[:1]), map_macs(original, block, "linear")
    assert map_macs(original, block, "scale") == 0
    remove_blocks(original, [block.name])
    put_in_place(original, block.name, ChannelMap(MapForm("linear", 32, 1)))
    after = count_macs(original, example[:1])
    assert kept == 32 * math.prod(block.shape) == after.by_module["layer2.1"]
    assert after.total == before.total - before.by_module["layer2.1"] + kept


def test_maps_are_in_the_state_dict_and_can_be_put_back() -> None:
    original = maps_network(functional.relu)
    pruned = copy.deepcopy(original)
    remove_blocks(pruned, ["3"])
    heal(pruned, original, ["3"], batches_of(images()), "linear")
    assert {"3.weight", "3.bias"} <= pruned.state_dict().keys()
    again = maps_network(functional.relu)
    remove_blocks(again, ["3"])
    install_forms(again, {"3": {"kind": "linear", "channels": 6, "axis": 1, "low": 0.0, "high": None}})
    again.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(again(images()), pruned(images()))
    with bypassed(original, "3", using={"3": pruned[3]}):
        torch.testing.assert_close(original(images()), pruned(images()))
