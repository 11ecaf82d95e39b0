"""What the logits of a network are computed from, however its head is written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from consensus_cli.errors import UserError
from consensus_cli.models.classifier import Classifier, logits_of
from consensus_cli.models.head import find_head

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES, WIDTH = 5, 4


class Headless(nn.Module):
    """A trunk whose features (n, 4) and map (n, 4, 8, 8) a subclass turns into logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.weights = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def map(self, x: Tensor) -> Tensor:
        return torch.relu(self.trunk(x))

    def features(self, x: Tensor) -> Tensor:
        return self.map(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class ByKeyword(Headless):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=self.features(x))


class Cosine(Headless):
    """The last linear layer by order of definition and of execution is a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        y = y * torch.sigmoid(self.gate(y))
        return 16 * functional.linear(functional.normalize(y), functional.normalize(self.weights))

    def expected(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return functional.normalize(y * torch.sigmoid(self.gate(y)))


class WeightsFirst(Headless):
    """Class weights times features, transposed."""

    def forward(self, x: Tensor) -> Tensor:
        return (functional.normalize(self.weights) @ self.features(x).T).T


class Convolution(Headless):
    """A 1×1 convolution behind the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x)[:, :, None, None])


class ConvolutionThenPool(Convolution):
    """As in SqueezeNet."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(self.map(x))).mean((2, 3))


class Pair(Headless):
    """A distilled pair: two heads on two views of the image, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(self.features(x)) + self.other(self.map(x).amax((2, 3)))) / 2

    def expected(self, x: Tensor) -> Tensor:
        return torch.cat([self.features(x), self.map(x).amax((2, 3))], dim=1)


class Auxiliary(Headless):
    """An auxiliary head on every position runs last and adds half of its strongest answer, as in VOLO."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        main = self.fc(self.features(x))
        return main + 0.5 * self.aux(self.map(x).flatten(2).mT).amax(1)


class AllPositions(Headless):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.map(x).flatten(2).mT).mean(1)


class Distances(Headless):
    """Prototypes of all classes at once, by broadcasting."""

    def forward(self, x: Tensor) -> Tensor:
        return -(self.features(x)[:, None] - self.weights).pow(2).sum(-1)


class ProductsSummed(Headless):
    def forward(self, x: Tensor) -> Tensor:
        return (self.weights.T * self.features(x)[..., None]).sum(1)


class CosineSimilarity(Headless):
    def forward(self, x: Tensor) -> Tensor:
        return functional.cosine_similarity(self.features(x).unsqueeze(1), self.weights.unsqueeze(0), dim=-1)


class LogProbabilities(Headless):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(1)


class Written(Headless):
    """Logits written into a buffer, a part at a time."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), CLASSES)
        logits[:] = self.fc(self.features(x))
        return logits


class DeeperPair(Pair):
    """One of two heads is deeper, but made of what the other is made of, not of its result."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.fc(y) + self.other(torch.relu(y @ self.weights.T @ self.weights))

    def expected(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return torch.cat([y, torch.relu(y @ self.weights.T @ self.weights)], dim=1)


class Backbone(Headless):
    """Answers with the features that its blocks add up, in place and then normalised."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        y = y + functional.gelu(y) @ self.weights.T @ self.weights
        y += y.sigmoid() @ self.weights.T @ self.weights
        return functional.layer_norm(y, (WIDTH,))

    def expected(self, x: Tensor) -> Tensor:
        return self(x)


@pytest.mark.parametrize(
    ("build", "modules"),
    [
        (Headless, ("fc",)),
        (ByKeyword, ("fc",)),
        (Cosine, ()),
        (WeightsFirst, ()),
        (Convolution, ("fc",)),
        (ConvolutionThenPool, ("fc",)),
        (Pair, ("fc", "other")),
        (Auxiliary, ("fc",)),
        (AllPositions, ("fc",)),
        (Distances, ()),
        (ProductsSummed, ()),
        (CosineSimilarity, ()),
        (LogProbabilities, ("fc",)),
        (Written, ("fc",)),
        (DeeperPair, ("fc", "other")),
        (Backbone, ()),
    ],
)
def test_the_representation_is_what_the_logits_are_computed_from(
    build: Callable[[], Headless], modules: tuple[str, ...]
) -> None:
    network = build().eval()
    head = find_head(network, IMAGES)
    assert head.modules == modules
    other = torch.rand(3, 3, 8, 8)
    with torch.no_grad(), head.watching(network) as representation:
        network(other)
        found = representation()
        expected = network.expected(other) if hasattr(network, "expected") else network.features(other)
    torch.testing.assert_close(found, expected)


def test_the_network_is_left_as_it_was() -> None:
    network = Cosine()
    find_head(network, IMAGES)
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_without_products_has_no_head() -> None:
    with pytest.raises(UserError, match="Sequential has no head"):
        find_head(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), IMAGES)


class Answer(OrderedDict[str, Tensor]):
    """A dictionary with attributes, as transformers answers with."""


class Named:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


LOGITS, FEATURES = torch.rand(2, 3), torch.rand(2, 8, 4, 4)


@pytest.mark.parametrize(
    "answer",
    [
        LOGITS,
        LOGITS[:, :, None, None],
        {"logits": LOGITS, "features": FEATURES},
        {"scores": LOGITS},
        {"out": LOGITS, "aux": LOGITS + 1},
        Answer(logits=LOGITS, hidden=FEATURES),
        Named(LOGITS),
        (LOGITS, FEATURES),
        [LOGITS],
    ],
)
def test_logits_in_any_form(answer: object) -> None:
    assert torch.equal(logits_of(answer), LOGITS)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (FEATURES, "a tensor of shape (2, 8, 4, 4)"),
        (LOGITS[0], "a tensor of shape (3,)"),
        ({"features": FEATURES, "other": LOGITS}, "a dict of features, other"),
        ((FEATURES, LOGITS), "a tuple of a tensor of shape (2, 8, 4, 4), a tensor of shape (2, 3)"),
        ((), "a tuple of nothing"),
        (None, "a NoneType"),
    ],
)
def test_other_answers_are_described(answer: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        logits_of(answer)
    assert error.value.message == f"the network answers with {said}, not with logits (images, classes)"


def test_a_classifier_brings_images_into_the_memory_format_of_its_network() -> None:
    seen = []
    network = nn.Flatten()
    network.register_forward_pre_hook(lambda _m, args: seen.append(args[0].is_contiguous()))
    model = Classifier(nn.Identity(), network)
    model(IMAGES.contiguous(memory_format=torch.channels_last))
    model.memory_format = torch.contiguous_format
    model(IMAGES.contiguous(memory_format=torch.channels_last))
    assert seen == [False, True]
