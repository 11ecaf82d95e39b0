"""What the data flow cannot show, the trial of each candidate does; what works in whatever form, it lets pass."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable

import pytest
import torch
from helpers.odd_networks import WIDTH, Block, Plain, WritesImages
from torch import Tensor, nn
from torch.nn import functional

from consensus_cli.models.modes import SAME
from consensus_cli.pruning.blocks import candidates, find_blocks

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BRANCH = "; its branch can go by itself: prune.granularity=branch"


class Keeps(Block):
    """Keeps a number for the code around it, in training or always."""

    always = False

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        if self.always:
            self.kept = 1.0
        elif self.training:
            self.kept = branch.square().mean()
        return torch.relu(x + branch)


class KeepsAlways(Keeps):
    always = True


class AuxiliaryLoss(Plain):
    """Sums what its blocks keep in training."""

    def __init__(self) -> None:
        super().__init__(block=Keeps)

    def forward(self, x: Tensor) -> Tensor:
        answer = super().forward(x)
        if self.training:
            self.auxiliary = sum(block.kept for block in self.blocks)
        return answer


class NeedsNeighbour(Plain):
    """Each block that is still there reads what the one before it keeps; where both are gone, nobody asks."""

    def __init__(self) -> None:
        super().__init__(block=KeepsAlways)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for before, block in zip((self.blocks[0], *self.blocks[:-1]), self.blocks, strict=True):
            x = block(x)
            if isinstance(block, Keeps) and block is not before:
                x = x * before.kept
        return x.mean((2, 3))


class Counts(Plain):
    """Multiplies by how many blocks there are."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * sum(isinstance(module, Block) for module in self.modules())


class Weighs(Plain):
    """Weighs blocks in training, where all of them are there."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(5))

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        whole = all(isinstance(block, Block) for block in self.blocks)
        return features * self.weights.mean() if self.training and whole else features


class SwitchesInTraining(Plain):
    """Is another network in training once a block is gone."""

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        return features if all(isinstance(b, Block) for b in self.blocks) or not self.training else features * 2


class Overflows(Plain):
    """Without a block, the gradient of the stem is not finite."""

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        if all(isinstance(block, Block) for block in self.blocks):
            return features
        return features + (0 * features).sqrt() * 0


WRONG: dict[str, tuple[type[nn.Module], str]] = {
    "loss": (AuxiliaryLoss, "without it, training fails (AttributeError: 'Shortcut' object has no attribute 'kept')"),
    "neighbour": (NeedsNeighbour, "the code around it needs its modules (AttributeError: 'Shortcut' object has no"),
    "count": (Counts, "without it, the network does not answer as it does when its branch adds nothing"),
    "weights": (Weighs, "without it, weights gets no gradient"),
    "training": (SwitchesInTraining, "without it, the network trains otherwise than when its branch adds nothing"),
    "gradient": (Overflows, "without it, the gradient of stem.0.weight is not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_block_that_is_needed_stays_with_the_reason_and_its_branch_can_go(kind: str) -> None:
    make, reason = WRONG[kind]
    torch.manual_seed(0)
    network = make()
    blocks = find_blocks(network, IMAGES)
    # The last one has no neighbour that reads what it keeps.
    needed = blocks[1:4] if kind == "neighbour" else blocks[1:]
    assert all(block.reason.startswith(reason) and block.reason.endswith(BRANCH) for block in needed), blocks[1].reason
    assert not any(block.removable for block in needed)
    branches = find_blocks(network, IMAGES, "branch")
    assert [block.name for block in candidates(branches)][:3] == [f"blocks.{i}+branch" for i in (1, 2, 3)]
    assert len(candidates(find_blocks(network, IMAGES, verify=False))) == 4


class Parametrised(Block):
    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.PReLU(WIDTH, init=0.7)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.branch(x) + x)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += x
        return functional.silu(y, inplace=True)


class InPlaceOnTrunk(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.branch(x)
        return x


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(Block().branch, nn.Dropout(0.3))
        self.second, self.dropout = Block().branch, nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.first(x))
        return x + self.dropout(self.second(x))


class SkipsItself(Block):
    """Stochastic depth with random numbers of Python."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.4 else super().forward(x)


class WithArguments(Block):
    def forward(self, x: Tensor, scale: float, *, mask: Tensor, cache: None = None) -> tuple[Tensor, None]:
        return torch.relu(x + scale * self.branch(x) * mask), cache


class HasArguments(Plain):
    def __init__(self) -> None:
        super().__init__(block=WithArguments)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mask = torch.ones_like(x[:, :1])
        for number, block in enumerate(self.blocks):
            x, _ = block(x, 0.5 * number, mask=mask)
        return x.mean((2, 3))


class InDictionary(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({f"b{i}": block for i, block in enumerate(self.blocks)})

    def features(self, x: Tensor) -> Tensor:
        return functools.reduce(lambda h, name: self.blocks[name](h), sorted(self.blocks), self.stem(x)).mean((2, 3))


@dataclasses.dataclass
class Answer:
    logits: Tensor
    features: Tensor


class InDataclass(Plain):
    def forward(self, x: Tensor) -> Answer:
        features = self.features(x)
        return Answer(self.fc(features), features)


class LazyThroughout(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.LazyConv2d(WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.fc = nn.LazyLinear(10)


class HookOnModule(Plain):
    """A hook that keeps what it sees with the module that it is given survives a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.register_forward_hook(lambda module, _, output: setattr(module, "kept", output.mean((2, 3))))

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + self.stem.kept


class Generates(Plain):
    """Noise in training from a generator of its own, which no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        noise = torch.rand(features.shape, generator=self.generator)
        return features + noise if self.training else features


class AsksAll(Block):
    """Attends to a query that the network makes for its blocks, as in GCViT."""

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        return x + self.branch(x) * query


class MakesQueries(Plain):
    def __init__(self) -> None:
        super().__init__(block=AsksAll)
        self.query, self.blocks[0] = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.Sigmoid()), Block()

    def features(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        query = self.query(x)
        for block in self.blocks[1:]:
            x = block(x, query)
        return x.mean((2, 3))


class ChannelsLast(Block):
    """Returns its features in another layout, in which the next dropout draws its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(WIDTH), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.branch(self.dropout(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + x


RIGHT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "activation with weights": (lambda: Plain(block=Parametrised), 4),
    "in place": (lambda: Plain(block=InPlace), 4),
    "in place on the trunk": (lambda: Plain(block=InPlaceOnTrunk), 4),
    "two branches and dropout": (lambda: Plain(block=TwoBranches), 4),
    "skipped at random": (lambda: Plain(block=SkipsItself), 4),
    "further arguments": (HasArguments, 4),
    "dictionary of blocks": (InDictionary, 4),
    "answers in a dataclass": (InDataclass, 4),
    "lazy layers": (LazyThroughout, 4),
    "hook": (HookOnModule, 4),
    "generator": (Generates, 4),
    "writes into its images": (WritesImages, 4),
    "what serves the blocks alone": (MakesQueries, 4),
    "dropout after another layout": (lambda: Plain(block=ChannelsLast), 4),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_all_candidates_pass(kind: str) -> None:
    make, count = RIGHT[kind]
    torch.manual_seed(0)
    network = make()
    python, own = random.getstate(), torch.get_rng_state()
    blocks = find_blocks(network, IMAGES)
    assert len(candidates(blocks)) == count, {block.reason for block in blocks}
    assert find_blocks(network, IMAGES, verify=False) == blocks
    # Nothing random is used up, and nothing is left in the network.
    assert (random.getstate(), torch.equal(torch.get_rng_state(), own)) == (python, True)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(IMAGES, torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(0)))


def test_branches_that_draw_random_numbers_can_go() -> None:
    torch.manual_seed(0)
    blocks = find_blocks(Plain(block=TwoBranches), IMAGES, "branch")
    assert [block.name for block in candidates(blocks)] == [
        f"blocks.{i}+{branch}" for i in range(1, 5) for branch in ("first", "second")
    ]


def test_candidates_of_one_class_are_tried_together(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0

    class Counted(Plain):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return super().forward(x)

    def count(depth: int) -> int:
        nonlocal passes
        network = Counted()
        network.blocks = nn.ModuleList(Block() for _ in range(depth))
        passes = 0
        assert len(candidates(find_blocks(network, IMAGES))) == depth - 1
        return passes

    assert count(5) == count(20) < 20


def test_what_is_tried_is_what_silencing_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shortcut that is no identity is found by the numbers, whatever the data flow says."""

    monkeypatch.setattr("consensus_cli.pruning.surgery.Shortcut.forward", lambda _, x: x + 0.1)
    assert SAME < 0.1
    blocks = find_blocks(Plain(), IMAGES)
    assert {block.reason for block in blocks[1:]} == {
        f"without it, the network does not answer as it does when its branch adds nothing{BRANCH}"
    }
