"""Maps that go into a neighbouring layer: where it is exact, the answers stay and the cost is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

import consensus_cli as cc
from consensus_cli.models.macs import count_macs
from consensus_cli.models.modes import alike
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning.folding import fold
from consensus_cli.pruning.replacement import ChannelMap, MapForm
from consensus_cli.pruning.surgery import Shortcut, put_in_place, remove_blocks

IMAGES = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def batches() -> list[Tensor]:
    return [IMAGES[:8], IMAGES[8:]]


@torch.no_grad()
def trained(network: nn.Module) -> nn.Module:
    """Gives batch norms factors of their own and the statistics of what they get, as after training."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
    network.train()(IMAGES)
    return network.eval()


@torch.no_grad()
def with_map(network: nn.Module, name: str, channels: int, kind: str = "linear", **form: float) -> ChannelMap:
    made = ChannelMap(MapForm(kind, channels, 1, **form))
    made.weight.add_(0.2 * torch.randn_like(made.weight))
    made.bias.add_(0.2 * torch.randn_like(made.bias))
    put_in_place(network, name, made)
    return made


@pytest.fixture
def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return trained(mobilenet_v2(width_mult=0.35, num_classes=10))


@pytest.mark.parametrize("kind", ["linear", "scale"])
@pytest.mark.parametrize(
    ("blocks", "folded"),
    [
        # The last of a stage goes into the expansion behind it, the first behind a stage's first block into its end.
        ([("features.10", 24)], ["features.10"]),
        ([("features.8", 24)], ["features.8"]),
        # One in the middle is read by a shortcut as well, and stays.
        ([("features.9", 24)], []),
        ([("features.9", 24), ("features.10", 24)], ["features.9", "features.10"]),
        ([("features.8", 24), ("features.9", 24), ("features.10", 24)], ["features.8", "features.9", "features.10"]),
    ],
)
def test_at_the_ends_of_stages_it_costs_nothing(mobilenet, blocks, folded, kind) -> None:
    names = [name for name, _ in blocks]
    remove_blocks(mobilenet, names)
    without = copy.deepcopy(mobilenet)
    for name, channels in blocks:
        with_map(mobilenet, name, channels, kind)
    expected = mobilenet(IMAGES)
    assert not alike(expected, without(IMAGES))
    assert sorted(fold(mobilenet, names, batches)) == sorted(folded)
    assert alike(mobilenet(IMAGES), expected)
    assert all(type(mobilenet.get_submodule(name)) is Shortcut for name in folded)
    if len(folded) == len(blocks):
        assert count_macs(mobilenet, IMAGES[:1]).total == count_macs(without, IMAGES[:1]).total
        assert mobilenet.state_dict().keys() == without.state_dict().keys()


@pytest.mark.parametrize("name", ["features.8", "features.10"])
def test_training_begins_where_the_network_stands(mobilenet, name) -> None:
    """Batch norm goes by a batch's own statistics while it trains; those in the layer are of what it gets now."""
    remove_blocks(mobilenet, [name])
    with_map(mobilenet, name, 24)
    norm = mobilenet.features[7].conv[3] if name == "features.8" else mobilenet.features[11].conv[0][1]
    assert fold(mobilenet, [name], batches) == [name]
    given: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    mobilenet(IMAGES)
    torch.testing.assert_close(norm.running_mean, given[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, given[0].var((0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-5)


class Around(nn.Module):
    """A map between two layers, with something else of one's choice."""

    def __init__(self, before: nn.Module, after: nn.Module, through: Callable[..., Tensor]) -> None:
        super().__init__()
        self.before, self.map, self.after, self.through = before, nn.Linear(6, 6), after, through

    def forward(self, x: Tensor) -> Tensor:
        return self.through(self.before, self.map, self.after, x)


PLAIN = {"before": nn.Conv2d(3, 6, 3), "after": nn.Conv2d(6, 4, 1)}
AROUND = {
    "either": (PLAIN, lambda f, g, h, x: h(g(f(x))), True),
    "behind, what comes in is read twice": (PLAIN, lambda f, g, h, x: h(g(y := f(x))).flatten(1) + y.mean(), True),
    "before, what comes out is read twice": (PLAIN, lambda f, g, h, x: h(y := g(f(x))).flatten(1) + y.mean(), True),
    "both are read twice": (PLAIN, lambda f, g, h, x: h(z := g(y := f(x))).flatten(1) + y.mean() + z.mean(), False),
    "activations on both sides": (PLAIN, lambda f, g, h, x: h(g(f(x).relu()).relu()), False),
    "activations in place": (PLAIN, lambda f, g, h, x: h(g(f(x).relu_()).relu_()), False),
    "what comes out is the answer": (PLAIN, lambda f, g, h, x: (z := g(f(x).relu()), h(z))[0], False),
    "a padded kernel": ({**PLAIN, "after": nn.Conv2d(6, 4, 3, padding=1)}, lambda f, g, h, x: h(g(f(x).relu())), False),
    "a border of zeros": ({**PLAIN, "after": nn.Conv2d(6, 4, 1, padding=1)},
                          lambda f, g, h, x: h(g(f(x).relu())), False),
    "groups": ({"before": nn.Conv2d(3, 6, 3, groups=3), "after": nn.Conv2d(6, 4, 1, groups=2)},
               lambda f, g, h, x: h(g(f(x))), False),
    "no place for a constant": ({"before": nn.Conv2d(3, 6, 3, bias=False), "after": nn.Conv2d(6, 4, 1, bias=False)},
                                lambda f, g, h, x: h(g(f(x))), False),
    "a layer that runs twice": (PLAIN, lambda f, g, h, x: h(g(f(x).relu())) + h(f(x)), False),
    "views between": (PLAIN, lambda f, g, h, x: h(g(f(x).relu()).flatten(2).unflatten(2, (30, 30))), True),
}  # fmt: skip


@pytest.mark.parametrize(("layers", "through", "goes"), AROUND.values(), ids=AROUND)
def test_whatever_lies_around_it(layers, through, goes) -> None:
    torch.manual_seed(2)
    network = Around(**copy.deepcopy(layers), through=through).eval()
    standing = with_map(network, "map", 6)
    expected = network(IMAGES)
    assert fold(network, ["map"], batches) == (["map"] if goes else [])
    assert alike(network(IMAGES), expected)
    assert (network.map is standing) == (not goes)


def test_tokens() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2)).eval()
    tokens = torch.rand(4, 7, 5)
    made = ChannelMap(MapForm("linear", 6, -1))
    nn.init.normal_(made.weight)
    put_in_place(network, "1", made)
    expected = network(tokens)
    assert fold(network, ["1"], lambda: [tokens]) == ["1"]
    assert alike(network(tokens), expected)


def test_behind_a_relu_it_stays() -> None:
    network = trained(resnet(20))
    remove_blocks(network, ["layer1.2"])
    with_map(network, "layer1.2", 16, low=0.0)
    before = copy.deepcopy(network.state_dict())
    assert fold(network, ["layer1.2"], batches) == []
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_prune_folds_after_the_last_removal(mobilenet) -> None:
    standing = []
    for removal in cc.prune(
        mobilenet, [(IMAGES, torch.arange(16) % 10)], ratio=0.2, criterion="last", replace="linear"
    ):
        standing.append(sum(isinstance(module, ChannelMap) for module in removal.model.modules()))
    assert standing == [1, 0]
