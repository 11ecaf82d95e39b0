"""What mends a network that fails on the images of a dataset: found by trying, in words to type."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from consensus_cli.errors import ForeignCodeError, UserError, foreign_code
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.modes import evaluating

#: sizes in pixels that networks are usually made for, tried where the given one does not work
_USUAL_SIZES = (32, 48, 64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)


def answer(model: Classifier, images: Tensor, name: str) -> Tensor:
    """Returns the logits (n, k) of a network in eval mode; what its code raises names it.

    Raises:
        UserError: its code raises, or it answers with something else.
    """
    with evaluating(model), foreign_code(name, "its forward must take a batch of images alone"):
        return model(images)


def explained(model: Classifier, images: Tensor, name: str, failure: ForeignCodeError) -> UserError:
    """Returns what a network that fails cannot do, and what mends it: other sizes and numbers of channels are tried.

    Args:
        model: the network, never run before; runs where it must fail anyway.
        images: (n, c, h, w) in [0, 1] on which a copy of it failed.
        name: what messages call it.
        failure: how it failed.
    """
    if _answers(model, images):
        return UserError(
            f"a deep copy of {name} fails where the network itself runs: {said(failure, name)}",
            "a hook or closure refers to the original; let it use the module that it is given",
        )
    with torch.no_grad():
        _, channels, height, width = model.normalize(images).shape
    taken = f"{name} does not take images of {channels}×{height}×{width}: {said(failure, name)}"
    for size, count in _other_shapes(channels, height):
        other = torch.rand(len(images), count, size, size, device=images.device)
        copied = clone(model)
        # Straight into the network: the normalisation has the given number of channels.
        copied.normalize = nn.Identity()
        if _answers(copied, other):
            spread = channels > images.shape[1]
            return UserError(taken, _hint((count, size), (channels, height), spread=spread))
    return UserError(taken, failure.hint)


def said(failure: ForeignCodeError, name: str) -> str:
    """Returns what the network's code raised, without the network's name."""
    return failure.message.removeprefix(f"{name} raised ")


def _other_shapes(channels: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields sizes and numbers of channels, those that change less first."""
    counts = [channels, *(count for count in (3, 1) if count != channels)]
    for usual in (size, *_USUAL_SIZES):
        yield from ((usual, count) for count in counts)


def _hint(taken: tuple[int, int], given: tuple[int, int], *, spread: bool) -> str:
    """Returns what gives a network the channels and size that it takes; `spread`: model.mean makes three of one."""
    (count, size), (given_count, given_size) = taken, given
    words = []
    if taken == given:
        zeros, ones = (",".join([number] * count) for number in "01")
        return f"it takes images in [0, 1] and normalises them itself: 'model.mean=[{zeros}]' 'model.std=[{ones}]'"
    if size != given_size:
        words.append(f"dataset.image_size={size}")
    if count == 3 and given_count == 1:
        words.append("'model.mean=[0.5,0.5,0.5]' 'model.std=[0.5,0.5,0.5]' (spreads grey over three channels)")
    if count == 1 and spread:
        words.append("one number in model.mean and model.std")
    elif count == 1 and given_count == 3:
        words.append("a dataset of grey images, or arguments that make it take three channels in model.kwargs")
    return f"it takes {count}×{size}×{size}: give it {' and '.join(words)}"


def _answers(model: Classifier, images: Tensor) -> bool:
    try:
        answer(model, images, "")
    except UserError:
        return False
    return True
