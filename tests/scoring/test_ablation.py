import numpy as np
import pytest
import torch
from helpers.authors_network import REFERENCE, authors_blocks, golden_images, needs_reference, trained
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from consensus_cli.errors import UserError
from consensus_cli.models.classifier import logits_of
from consensus_cli.models.resnet import ResNet, resnet
from consensus_cli.pruning.blocks import Block, candidates, find_blocks
from consensus_cli.pruning.surgery import bypassed
from consensus_cli.scoring.folding import fold_batch_norms
from consensus_cli.scoring.representations import AblationEngine, representation_size


def block(name: str) -> Block:
    return Block(name, stage=0, shape=(), removable=True)


def trained_looking(network: nn.Module) -> nn.Module:
    """Gives the batch norms statistics and scales other than those of an untrained network."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    return network


def resnet20() -> tuple[nn.Module, list[Block]]:
    torch.manual_seed(0)
    network = trained_looking(resnet(20))
    return network, [block(f"layer{stage}.{i}") for stage in (1, 2, 3) for i in (1, 2)]


def one_by_one(network: nn.Module, blocks: list[Block], images: Tensor) -> Tensor:
    """Features by the definition: the network itself, a forward pass for each block that is replaced."""
    network.eval()
    features = []
    for each in [None, *blocks]:
        seen = []
        hook = network.fc.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            if each is None:
                network(images)
            else:
                with bypassed(network, each):
                    network(images)
        hook.remove()
        features.append(seen[0])
    return torch.stack(features)


def test_one_pass_gives_what_a_forward_pass_per_block_gives():
    network, blocks = resnet20()
    images = torch.rand(5, 3, 32, 32)
    engine = AblationEngine(network, blocks, images)
    features = engine.representations(images)
    assert engine.way == "forked"
    assert engine.candidates == tuple(each.name for each in blocks)
    assert features.shape == (7, 5, 64)
    assert engine.features == 64
    assert features.dtype == torch.float32
    expected = one_by_one(network, blocks, images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    for row in range(1, 7):
        assert not torch.allclose(features[0], features[row], rtol=1e-2)


def test_rows_follow_the_candidates_not_the_order_of_execution():
    network, blocks = resnet20()
    images = torch.rand(2, 3, 32, 32)
    forwards = AblationEngine(network, blocks, images).representations(images)
    backwards = AblationEngine(network, blocks[::-1], images).representations(images)
    torch.testing.assert_close(backwards[1:], forwards[1:].flip(0))


def test_the_network_is_left_as_it_was():
    network, blocks = resnet20()
    network.train()
    network.layer1[0].eval()
    modes = {name: module.training for name, module in network.named_modules()}
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.rand(4, 3, 32, 32)
    AblationEngine(network, blocks, images).representations(images)
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_features_do_not_depend_on_how_the_images_are_divided():
    network, blocks = resnet20()
    images = torch.rand(7, 3, 32, 32)
    whole = AblationEngine(network, blocks, images).representations(images)
    thrifty = AblationEngine(network, blocks, images, memory_gb=1e-6)
    assert thrifty.batch_size == 1
    torch.testing.assert_close(thrifty.representations(images), whole, rtol=1e-4, atol=1e-4)


def test_without_candidates_there_is_the_network_alone():
    network, _ = resnet20()
    images = torch.rand(2, 3, 32, 32)
    features = AblationEngine(network, (), images).representations(images)
    torch.testing.assert_close(features, one_by_one(network, [], images), rtol=1e-4, atol=1e-4)


def test_batch_size_follows_the_memory_budget():
    network, blocks = resnet20()
    example = torch.zeros(1, 3, 32, 32)
    sizes = [AblationEngine(network, blocks, example, memory_gb=gigabytes).batch_size for gigabytes in (0.02, 0.04, 64)]
    assert 1 < sizes[0] < sizes[1] < sizes[2] == 1024
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=1)
    # Three streams of 16 × 32 × 32 floats after the last candidate of stage 1, held four times, are 786 kB.
    assert sizes[0] == pytest.approx(0.02 * 2**30 / 786_432, rel=0.05)


def test_bf16_is_close_but_not_equal():
    network, blocks = resnet20()
    images = torch.rand(4, 3, 32, 32)
    exact = AblationEngine(network, blocks, images).representations(images)
    rounded = AblationEngine(network, blocks, images, precision="bf16").representations(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


class TwoReaders(nn.Module):
    """A network whose second block is read again at the end: a stream more there does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = Residual(8)
        self.b = Residual(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        early = self.a(self.stem(x))
        return self.fc((self.b(early) + early).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


class Gathering(TwoReaders):
    """A network that mixes the images of a batch: streams fit in shape, the numbers do not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.stem(x)))
        return self.fc((x - x.mean(0)).mean((2, 3)))


class TwoBranches(nn.Module):
    """A block of two branches, one after the other, called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.BatchNorm2d(8), Residual(8).conv, Residual(8).conv

    def forward(self, *, shift: float, x: Tensor) -> Tensor:
        x = x + self.first(self.norm(x + shift))
        return x + self.second(x)


class OfBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), TwoBranches(), TwoBranches()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(shift=1.0, x=self.a(shift=0.5, x=self.stem(x)))
        return self.fc(x.mean((2, 3)))


class KeepsBatchSize(TwoReaders):
    """Reads the number of images before the blocks and counts on it behind them."""

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        return self.fc(self.b(self.a(self.stem(x))).reshape(count, 8, -1).mean(2))


class EarlyToken(nn.Module):
    """Gives each image its class token before any block; the second block goes through them together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.token = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.a, self.b = Residual(8), Residual(8)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(len(x), 8, 1, x.shape[-1])
        x = self.a(self.stem(x))
        return self.fc(self.b(torch.cat([token, x], dim=2))[:, :, 0].mean(2))


class Stage(nn.Module):
    """Keeps the number of images while its blocks of two branches run, writes into what they return, returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = TwoBranches(), TwoBranches()

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        count = len(maps["x"])
        x = self.a(shift=0.5, x=maps["x"])
        x += 1
        x = self.b(shift=1.0, x=x).mul_(2)
        return {"x": x.reshape(count, 8, *x.shape[2:])}


class OfStages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.fc = nn.Conv2d(3, 8, 3), Stage(), Stage(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.one({"x": self.stem(x)})
        maps["x"].relu_()
        return self.fc(self.two(maps)["x"].mean((2, 3)))


class Remembers(Residual):
    """Keeps what it computed last for code elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        self.latest = super().forward(x)
        return self.latest


class ReadsKept(KeepsBatchSize):
    """Reads at the end what a block in the middle has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c = Remembers(8), Residual(8)

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        x = self.c(self.b(self.a(self.stem(x))))
        return self.fc((x * self.b.latest).reshape(count, 8, -1).mean(2))


STAGES = [
    f"{stage}.{block}+{branch}"
    for stage in ("one", "two")
    for block in ("a", "b")
    for branch in ("norm+first", "second")
]


class Moody(KeepsBatchSize):
    """Looks for what stands in the place of its block before it comes to it."""

    def forward(self, x: Tensor) -> Tensor:
        count, x = len(x), self.stem(x)
        x = self.a(x) if isinstance(self.b, Residual) else x + self.a.conv(x).relu()
        return self.fc(self.b(x).reshape(count, 8, -1).mean(2))


class LooksAhead(Residual):
    """Computes otherwise where a block behind it is another."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 if isinstance(self.network[0].b, Residual) else 2)


class Wavering(KeepsBatchSize):
    def __init__(self) -> None:
        super().__init__()
        self.a = LooksAhead(8)
        self.a.network = [self]


@pytest.mark.parametrize(
    ("network_class", "names", "way"),
    [
        (OfBranches, ["a+norm+first", "a+second", "b+norm+first", "b+second"], "forked"),
        (TwoReaders, ["a+conv"], "forked"),
        (TwoReaders, ["a", "b"], "resumed"),
        (Gathering, ["a", "b"], "resumed"),
        (KeepsBatchSize, ["b", "a"], "resumed"),
        (EarlyToken, ["a", "b"], "resumed"),
        (OfStages, STAGES, "resumed"),
        (ReadsKept, ["a", "c"], "resumed"),
        (Moody, ["a", "b"], "in turn"),
        (Wavering, ["a", "b"], "in turn"),
    ],
)
def test_every_way_gives_what_a_whole_pass_without_each_block_gives(network_class, names, way):
    torch.manual_seed(0)
    network = network_class()
    blocks = [block(name) for name in names]
    images = torch.rand(4, 3, 8, 8)
    engine = AblationEngine(network, blocks, images)
    assert engine.way == way
    # The second time of another number of images: nothing is left over from before.
    for some in (images, images[:3]):
        torch.testing.assert_close(engine.representations(some), one_by_one(network, blocks, some))
    assert not any("forward" in vars(module) for module in engine._network.modules())


def test_what_lies_before_a_block_is_not_computed_again():
    images = torch.rand(2, 3, 8, 8)
    engine = AblationEngine(OfStages().requires_grad_(False), [block(name) for name in STAGES], images)
    with FlopCounterMode(display=False) as counter:
        engine.representations(images)
    # Of 2 images: 8 maps of 6 × 6, by kernels of 3 × 3 for 3 channels (stem) or 8 (branches); 4 classes.
    stem, branch, head = (2 * 2 * products for products in (8 * 36 * 9 * 3, 8 * 36 * 9 * 8, 8 * 4))
    # All 8 branches once; without the first one the 7 behind it, and so on.
    assert counter.get_total_flops() == stem + (8 + 7 * 8 // 2) * branch + 9 * head


def test_memory_kept_for_streams_counts():
    images = torch.rand(1, 3, 8, 8)
    sizes = [AblationEngine(KeepsBatchSize(), [block("b")], images, memory_gb=gb).batch_size for gb in (1e-3, 2e-3)]
    # Four tensors of 8 × 8 × 8 floats at once, two kept (of the stem and of the first block), and the results.
    assert sizes[0] == pytest.approx(1e-3 * 2**30 / (6 * 2048 + 4 * 2 * 8 * 4), rel=0.05)
    assert sizes[1] == pytest.approx(2 * sizes[0], abs=1)


class Unfoldable(nn.Module):
    """The convolution's output is read beside its batch norm: folding would change what the other reader gets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.a = Residual(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(self.a(self.bn(x) + x).mean((2, 3)))


def test_a_batch_norm_that_cannot_be_folded_is_kept():
    torch.manual_seed(0)
    network = trained_looking(Unfoldable())
    images = torch.rand(4, 3, 8, 8)
    engine = AblationEngine(network, [block("a")], images)
    torch.testing.assert_close(engine.representations(images), one_by_one(network, [block("a")], images))


def test_a_convolution_whose_weight_a_hook_sets_is_not_folded():
    network = Unfoldable()
    network.conv = nn.utils.spectral_norm(network.conv)
    images = torch.rand(4, 3, 8, 8)
    engine = AblationEngine(trained_looking(network), [block("a")], images)
    torch.testing.assert_close(engine.representations(images), one_by_one(network, [block("a")], images))


class ActivationBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.relu(self.conv(x)))


def test_folding_keeps_the_outputs_and_only_takes_what_a_convolution_feeds():
    network, _ = resnet20()
    network.eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = network(images)
        # One stem, two convolutions in each of nine blocks, two projections.
        assert fold_batch_norms(network, images) == 1 + 18 + 2
        torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert fold_batch_norms(ActivationBetween().eval(), images) == 0


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.bn(self.conv(x)))


def test_a_batch_norm_that_runs_twice_is_not_folded():
    assert fold_batch_norms(Shared().eval(), torch.rand(2, 3, 4, 4)) == 0


def test_classifier_is_the_last_linear_layer_executed():
    torch.manual_seed(0)
    network = ResNet(1)
    network.unused = nn.Linear(3, 3)
    engine = AblationEngine(network, [block("layer1.0")], torch.zeros(1, 3, 32, 32))
    assert engine.features == 64


def test_a_network_without_a_head_is_named():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="Sequential has no head") as error:
        AblationEngine(network, [], torch.zeros(1, 3, 8, 8))
    assert "random" in error.value.hint


class ReadsItsBlock(KeepsBatchSize):
    """Reads an attribute of what stands where its block stood."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.b.conv.stride[0]


def test_a_network_that_cannot_do_without_a_block_is_named():
    network, images = ReadsItsBlock(), torch.rand(2, 3, 8, 8)
    (first, second) = find_blocks(network, images)
    assert not first.removable
    assert "AttributeError: 'Shortcut' object has no attribute 'conv'" in second.reason
    believed = candidates(find_blocks(network, images, verify=False))
    with pytest.raises(UserError, match=r"ReadsItsBlock, without one of the blocks, raised AttributeError") as error:
        AblationEngine(network, believed, images)
    assert "verify" in error.value.hint


def test_unknown_precision_is_named():
    network, blocks = resnet20()
    with pytest.raises(UserError, match="unknown precision 'fp8'") as error:
        AblationEngine(network, blocks, torch.zeros(1, 3, 32, 32), precision="fp8")
    assert "valid: bf16, fp32" in error.value.hint


def golden_features(per_class: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(REFERENCE / "base_features.npz") as golden:
        rows = np.arange(2560).reshape(10, 256)[:, :per_class].ravel()
        return np.concatenate([golden["original"][None], golden["ablated"]])[:, rows], golden["candidates"]


@needs_reference
@pytest.mark.parametrize("per_class", [2, pytest.param(256, marks=pytest.mark.slow)])
def test_features_of_the_authors_network_are_the_golden_ones(per_class):
    images = golden_images(per_class)
    engine = AblationEngine(trained(), authors_blocks(), images[:1])
    golden, candidates = golden_features(per_class)
    assert engine.way == "forked"
    assert [name.split(".")[1] for name in engine.candidates] == [str(number) for number in candidates]
    # Of each representation's own length: the golden ones are themselves up to 2e-4 away from float64 (next test).
    away = np.linalg.norm(engine.representations(images).numpy() - golden, axis=-1)
    assert (away < 1e-4 * np.linalg.norm(golden, axis=-1)).all()


@needs_reference
def test_features_of_the_authors_network_are_those_in_float64():
    network, images = trained(), golden_images(1)[:2]
    features = AblationEngine(network, authors_blocks(), images[:1]).representations(images)
    exact = one_by_one(network.double(), authors_blocks(), images.double())
    assert (features - exact).abs().max() < 2e-5


class Remembering(nn.Module):
    """Keeps a tensor of its first forward pass, as lazily made position encodings are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.fc = nn.Linear(3, 2)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.arange(3.0) * x.new_ones(3)
        return self.fc(x.mean(dim=(2, 3)) * self.scale * self.kept)


class Pooled(nn.Module):
    """A backbone: what its blocks add up is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), Residual(8), Residual(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.stem(x))).mean((2, 3))


class Normed(Pooled):
    """One with a norm at the end, and an answer in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.norm(super().forward(x))}


@pytest.mark.parametrize("network_class", [Pooled, Normed])
def test_of_a_backbone_the_features_are_the_representation(network_class):
    torch.manual_seed(0)
    network, blocks = network_class().eval(), [block("a"), block("b")]
    images = torch.rand(4, 3, 8, 8)
    assert representation_size(network, images) == 8
    rows = AblationEngine(network, blocks, images).representations(images)
    for row, names in zip(rows, ([], ["a"], ["b"]), strict=True):
        with bypassed(network, *names), torch.no_grad():
            torch.testing.assert_close(row, logits_of(network(images)))


def test_a_backbone_that_answers_with_maps_is_named():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), Residual(8), Residual(8))
    with pytest.raises(UserError, match=r"answers with a tensor of shape \(2, 8, 6, 6\)") as error:
        representation_size(network, torch.rand(2, 3, 8, 8))
    assert error.value.hint


def test_looking_for_the_size_leaves_a_network_that_can_be_trained():
    network = Remembering().train()
    assert representation_size(network, torch.rand(2, 3, 4, 4)) == 3
    assert network.training
    network(torch.rand(2, 3, 4, 4)).sum().backward()
    assert network.scale.grad is not None
