"""Multiply-accumulates of whole networks and of their modules, whichever way they are written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from helpers.counted import COUNTED_BY_TORCH, Of, call, macs
from helpers.evaluation_networks import small_conv_net
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer, efficientnet_b0, mobilenet_v3_small, regnet_y_400mf, swin_t

from consensus_cli.models.macs import count_macs
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.schedule import block_costs


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x


WAYS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "dictionary": lambda layer, x: {"logits": layer(x)},
    "tuple": lambda layer, x: (layer(x), [x]),
    "keyword": lambda layer, x: layer(input=x),
    "flow that the data decide": lambda layer, x: layer(x) if x.sum() > 0 else x,
    "sizes as numbers": lambda layer, x: layer(x.reshape(*(int(s) for s in x.shape))),
    "checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=False),
    "inference mode": lambda layer, x: torch.inference_mode()(layer)(x),
    "vmap": lambda layer, x: torch.func.vmap(layer)(x),
    "functional call": lambda layer, x: torch.func.functional_call(layer, dict(layer.named_parameters()), (x,)),
    "compiled": lambda layer, x: torch.compile(layer)(x),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_does_not_matter_how_a_network_is_written(way):
    assert macs(way, 8, 8, module=nn.Linear(8, 8)) == 512


def test_scripted_and_compiled_networks_and_functions_of_autograd():
    layers = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(layers)
    for network in (scripted, Of(call, scripted), torch.compile(layers), Of(call, torch.compile(layers))):
        assert count_macs(network, torch.rand(1, 8)).total == 8 * 3 + 3 * 2
    assert macs(Squared.apply, 4, 4) == 64


@pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "supports_higher_order_operators"),
    reason="modes of this PyTorch see no such operators",
)
def test_flex_attention_is_counted_though_it_compiles_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.nn.attention.flex_attention import flex_attention

        assert macs(lambda x: flex_attention(x, x, x), 1, 2, 5, 8) == 2 * 2 * 25 * 8


def test_ragged_tensors_are_named():
    def ragged(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged)).to_padded_tensor(0.0)

    assert "aten::linear × 1" in count_macs(Of(ragged, nn.Linear(8, 3)), torch.rand(4, 8)).uncounted


class Shares(nn.Module):
    """One layer runs twice, another hangs under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.part = nn.Sequential(nn.Linear(8, 4))
        self.same_part = self.part

    def forward(self, x: Tensor) -> Tensor:
        return self.same_part(self.twice(self.twice(x)))


def test_modules_count_in_all_their_calls_and_under_all_their_names():
    assert count_macs(Shares(), torch.rand(1, 8)).by_module == {
        "": 160, "twice": 128, "part": 32, "part.0": 32, "same_part": 32, "same_part.0": 32,
    }  # fmt: skip


def test_blocks_and_the_whole_come_from_one_count():
    network = resnet(56)
    count = count_macs(network, torch.zeros(1, 3, 32, 32))
    blocks = [Block(name, 0, (), removable=True) for name in ("layer1.1", "layer3.8", "+layer1.1+layer1.2")]
    assert block_costs(count, blocks) == {"layer1.1": 4718592, "layer3.8": 4718592, "+layer1.1+layer1.2": 9437184}
    assert count.total == 125_747_840
    assert max(count.by_module.values()) == count.total


class Remembers(nn.Module):
    """Keeps what it computes in its first pass, as some position encodings do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.layer.weight.sum() + 0
        return self.layer(x) * self.kept


def test_the_network_itself_never_runs():
    network = Remembers().train()
    assert count_macs(network, torch.rand(1, 4)).total == 16
    assert network.kept is None
    assert network.training
    assert not network._forward_hooks
    assert not network.layer._forward_pre_hooks


SMALL = {
    "conv net": (small_conv_net, (3, 8, 8)),
    "resnet20": (lambda: resnet(20), (3, 16, 16)),
    "efficientnet": (efficientnet_b0, (3, 32, 32)),
    "mobilenet": (mobilenet_v3_small, (3, 32, 32)),
    "regnet": (regnet_y_400mf, (3, 32, 32)),
    "swin": (swin_t, (3, 64, 64)),
    "vit": (lambda: VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10), (3, 32, 32)),
}


@pytest.mark.parametrize(
    ("build", "shape"),
    [pytest.param(*case, id=name, marks=COUNTED_BY_TORCH if name == "vit" else ()) for name, case in SMALL.items()],
)
def test_it_agrees_with_pytorchs_counter_module_by_module(build, shape):
    network, image = build().eval(), torch.zeros(1, *shape)
    count = count_macs(network, image)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    by_torch = {path.partition(".")[2]: sum(ops.values()) // 2 for path, ops in counter.get_flop_counts().items()}
    assert count.total == counter.get_total_flops() // 2
    assert {path: found for path, found in by_torch.items() if path and found} == {
        path: found for path, found in count.by_module.items() if path
    }
    assert count.uncounted == ()


@pytest.mark.parametrize("name", ["conv net", "resnet20", "efficientnet", "mobilenet", "regnet"])
def test_it_agrees_with_fvcores_own_trace_of_convolutional_networks(name):
    build, shape = SMALL[name]
    network, image = build().eval(), torch.zeros(1, *shape)
    by_operator = FlopCountAnalysis(network, image).unsupported_ops_warnings(False).by_operator()
    assert count_macs(network, image).total == by_operator["conv"] + by_operator["linear"]
