"""A network together with its input normalisation: what attacks, export, latency and users all see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.errors import UserError
from consensus_cli.models.normalization import problems
from consensus_cli.models.spec import ModelSpec


class Normalize(nn.Module):
    """Per-channel normalisation `(x − mean) / std` of images in [0, 1].

    Mean and deviation describe the data, not the weights: they are not in the state dict, so that the
    state-dict names of the network stay those of torchvision.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (n, c, h, w) in [0, 1] to normalised ones; a single channel spreads over those of the mean."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Normalisation as the first layer, then the user's own network.

    Attributes:
        normalize: maps images in [0, 1] to what the network was trained on.
        network: the module that is pruned; block names and state-dict names are relative to it.
        memory_format: of the images that the network gets; None leaves it as it comes.
        classes: names of the classes in the order of the logits, where they are known.
        built: what the network was built from, and the channels of its images; None where it was given.
    """

    def __init__(self, normalize: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network
        self.memory_format: torch.memory_format | None = None
        self.classes: tuple[str, ...] = ()
        self.built: tuple[ModelSpec, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (n, c, h, w) in [0, 1] to logits (n, num_classes)."""
        return logits_of(self.network(self.inputs(x)))

    def inputs(self, x: Tensor) -> Tensor:
        """Maps images (n, c, h, w) in [0, 1] to what the network takes: normalised, in its memory format."""
        normalized: Tensor = self.normalize(x)
        return normalized if self.memory_format is None else normalized.contiguous(memory_format=self.memory_format)


def normalized(model: nn.Module, mean: float | Sequence[float], std: float | Sequence[float]) -> Classifier:
    """Wraps a network that takes normalised images, so that it takes images in [0, 1].

        model = normalized(my_resnet, mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616])
        logits = model(images)    # images (n, 3, 32, 32) in [0, 1]

    The network itself stays reachable as `.network`: it is what is pruned, and names of blocks are relative to it.

    Args:
        model: maps normalised images (n, c, h, w) to logits (n, classes); neither copied nor changed.
        mean: of the images in [0, 1] that it was trained on: one number per channel, or one for all.
        std: their standard deviation, likewise.

    Raises:
        UserError: numbers that cannot be those of images in [0, 1], or a model that normalises already.
    """
    if isinstance(model, Classifier):
        raise UserError("the model normalises its images already", "wrap the network itself: model.network")
    means, stds = ([float(v)] if isinstance(v, int | float) else [float(x) for x in v] for v in (mean, std))
    for problem in problems(means, stds):
        raise problem
    wrapped = Classifier(Normalize(means, stds), model)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    wrapped.normalize.to(device)
    # Not `train(mode)`: that would set the mode of the network's own modules.
    wrapped.training = wrapped.normalize.training = model.training
    return wrapped


def network_of(model: nn.Module) -> nn.Module:
    """Returns the network in a `Classifier`, to which names of blocks are relative; any other model as it is."""
    return model.network if isinstance(model, Classifier) else model


def logits_of(answer: Any) -> Tensor:
    """Returns the logits (n, k) in what a network answers.

    That is a tensor, a mapping or an object that holds `logits` (as those of transformers and torchvision's Inception
    do), a mapping with `out` (beside auxiliary heads, as torchvision names it) or a single tensor, or a tuple or list
    whose first element is one. Trailing dimensions of size 1, as a convolution leaves them behind global pooling, are
    dropped.

    Raises:
        UserError: the answer is something else.
    """
    found = _find_logits(answer)
    if isinstance(found, Tensor) and found.ndim > 2 and found.shape[2:].numel() == 1:
        found = found.flatten(1)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise UserError(
            f"the network answers with {_described(answer)}, not with logits (images, classes)",
            "let its forward return the logits: as a tensor, 'logits' of a dictionary or object, or first in a tuple",
        )
    return found


def _find_logits(answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, Mapping):
        for name in ("logits", "out"):
            if name in answer:
                return answer[name]
        tensors = [value for value in answer.values() if isinstance(value, Tensor)]
        return tensors[0] if len(tensors) == 1 else None
    if isinstance(getattr(answer, "logits", None), Tensor):
        return answer.logits
    return answer[0] if isinstance(answer, tuple | list) and answer else None


def _described(answer: Any) -> str:
    if isinstance(answer, Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"
    if isinstance(answer, Mapping):
        return f"a {type(answer).__name__} of {', '.join(map(str, answer)) or 'nothing'}"
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of {', '.join(_described(part) for part in answer[:4]) or 'nothing'}"
    return f"a {type(answer).__name__}"
