"""Small residual networks with one odd habit each, as `model.target` names them. All take (n, 3, 16, 16)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


class Plain(nn.Module):
    """Nothing odd: four candidates."""

    def __init__(self, num_classes: int = 10, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.blocks = nn.ModuleList(block() for _ in range(5))
        self.fc = nn.Linear(WIDTH, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class NeedsSize(Plain):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 32, f"expected 32 pixels, got {x.shape[-1]}"
        return super().forward(x)


class NeedsMask(Plain):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x * mask)


class Views(Plain):
    """`view` over several dimensions works in PyTorch's own memory format alone."""

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x.view(len(x), -1)[:, :WIDTH]


class FiveOutputs(Plain):
    def __init__(self) -> None:
        super().__init__(num_classes=5)


class ManyOutputs(Plain):
    def __init__(self) -> None:
        super().__init__(num_classes=1000)


class OtherRows(Plain):
    """A row for every half of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, x.flip(3)]))


class AnswersMaps(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class OwnNormalisation(Plain):
    def forward(self, x: Tensor) -> Tensor:
        assert x.min() >= 0, "expected images in [0, 1]"
        return super().forward((x - 0.5) / 0.25)


class OneChannel(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.stem[0] = nn.Conv2d(1, WIDTH, 3, 2, 1)


class KeepsBatchSize(Plain):
    """A mask as large as the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(len(x), 1)
        return self.fc(self.features(x) * self.mask)


class KeepsGraph(Plain):
    """Computes class weights once, from parameters that then change."""

    @functools.cached_property
    def weights(self) -> Tensor:
        return functional.normalize(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.features(x), self.weights)


class MakesBuffers(Plain):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "places"):
            self.register_buffer("places", torch.linspace(0, 1, x.shape[-1]))
        return super().forward(x + self.places)


class FeaturesFirst(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return features, self.fc(features)


class Exits(Plain):
    """Answers with the logits of several exits."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.fc(self.features(x) * scale) for scale in (1, 2, 3)]


class Centred(Plain):
    """Takes the mean over the batch off, in eval mode as well."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return self.fc(features - features.mean(0))


class NotFinite(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


class AlwaysDrops(Plain):
    """Dropout that eval mode does not switch off."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.dropout(self.features(x), 0.5))


class Hooked(Plain):
    """A closure over the original keeps the features; a copy reads what it does not write."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None
        self.blocks[-1].register_forward_hook(lambda _m, _i, out: setattr(self, "kept", out.mean((2, 3))))

    def forward(self, x: Tensor) -> Tensor:
        self.features(x)
        return self.fc(self.kept)


class Borrows(Plain):
    """A closure computes with the original's head, whichever copy runs."""

    def __init__(self) -> None:
        super().__init__()
        fc = self.fc
        self.answer = lambda features: fc(features)  # noqa: PLW0108 (a closure is the point)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.features(x))


class Uncopyable(Plain):
    def __deepcopy__(self, memo: dict[int, object]) -> Plain:
        raise RuntimeError("holds an open file")


class Scripted(Plain):
    """One block is TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[2] = torch.jit.script(self.blocks[2])


class FewAtOnce(Plain):
    """Raises where more images come at once than a dry run shows."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 8:
            raise KeyError("too many")
        return super().forward(x)


class Lazy(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.LazyLinear(10)


class Frozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class TrainsOtherwise(Plain):
    """Answers with its features while it is trained."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return (self.features(x)[:, :, None, None].expand(-1, -1, 2, 2),) if self.training else super().forward(x)


class FailsInTraining(Plain):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyError("labels")
        return super().forward(x)


class AuxiliaryFirst(Plain):
    """Answers in training with the logits of an auxiliary head first."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.features(x)
        return (self.auxiliary(features), self.fc(features)) if self.training else self.fc(features)


class BuildsItself(nn.Module):
    """Makes its layers in its first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.network: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.network is None:
            self.network = Plain()
        return self.network(self.stem(x))


class Accumulates(Plain):
    """Adds what it has seen before."""

    seen: Tensor | float = 0.0

    def features(self, x: Tensor) -> Tensor:
        self.seen = super().features(x) + self.seen
        return self.seen


class PlainList(Plain):
    """Holds its blocks where PyTorch does not see them."""

    def __init__(self) -> None:
        super().__init__()
        blocks = list(self.blocks.eval())
        del self.blocks
        self.blocks = blocks


class Probabilities(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class WritesImages(Plain):
    """Normalises the images that it is given in their place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


class NoGradient(Plain):
    """Preprocesses images where no gradient is kept."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x.clamp(-3, 3)
        return super().forward(x)


class WritesFloats(Plain):
    """Collects its features in a float32 tensor, which takes no bfloat16."""

    def features(self, x: Tensor) -> Tensor:
        found = super().features(x)
        return torch.zeros(found.shape).index_add(0, torch.arange(len(found)), found)


class DictionaryAnswer(Plain):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x)
        return {"logits": self.fc(features), "features": features}


class TupleAnswer(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.fc(features), features


@dataclasses.dataclass
class Answer:
    logits: Tensor
    features: Tensor


class DataclassAnswer(Plain):
    def forward(self, x: Tensor) -> Answer:
        features = self.features(x)
        return Answer(self.fc(features), features)


class Auxiliary(Plain):
    """A head in the middle that answers in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        middle = self.blocks[1](self.blocks[0](self.stem(x)))
        logits = self.fc(self.blocks[4](self.blocks[3](self.blocks[2](middle))).mean((2, 3)))
        return {"out": logits, "aux": self.auxiliary(middle.mean((2, 3)))} if self.training else logits


class Distilled(Plain):
    """Two heads: both answers in training, their mean else."""

    def __init__(self) -> None:
        super().__init__()
        self.distilled = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.features(x)
        answers = self.fc(features), self.distilled(features.square())
        return answers if self.training else (answers[0] + answers[1]) / 2


class Cosine(Plain):
    def __init__(self) -> None:
        super().__init__()
        del self.fc
        self.prototypes = nn.Parameter(torch.randn(10, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * functional.cosine_similarity(self.features(x)[:, None], self.prototypes[None], dim=-1)


class KeepsLoss(Block):
    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        self.loss = branch.square().mean()
        return torch.relu(x + branch)


class SumsLosses(Plain):
    """Reads what its blocks keep while it is trained, so that none can go as a whole."""

    def __init__(self) -> None:
        super().__init__(block=KeepsLoss)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + 0 * sum(block.loss for block in self.blocks) if self.training else logits


class CachedGate(Block):
    """Keeps a gate computed from a parameter in eval mode until training begins; loading weights does not reset it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(WIDTH))
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> CachedGate:
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(3 * self.table) if self.training or self.kept is None else self.kept
        if not self.training:
            self.kept = gate
        return torch.relu(x + self.branch(x) * gate[:, None, None])


class Caches(Plain):
    def __init__(self) -> None:
        super().__init__(block=CachedGate)


class Convolutional(Plain):
    """A 1×1 convolution as head, and no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(WIDTH, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x)[:, :, None, None]).flatten(1)


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x).tanh()


class WithoutHead(Plain):
    """Its last block adds to the logits themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.more = Adds()

    def forward(self, x: Tensor) -> Tensor:
        return self.more(super().forward(x))


class InTuple(Block):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class Tuples(Plain):
    """Blocks that return tuples, called by number in a plain `nn.Sequential`."""

    def __init__(self) -> None:
        super().__init__(block=InTuple)
        self.blocks = nn.Sequential(*self.blocks)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number in range(5):
            (x,) = self.blocks[number](x)
        return x.mean((2, 3))
